"""Energies per atom that are declared as totals, and the other way round."""

from collections.abc import Mapping

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..plain_tensors import DeclaredBatch, PerStructure
from ..settings import warn_on_rank_zero

# How much better one of two fits must be than the other. In batches of 24 of the embedded molecules
# the ratio is at least 400 for total energies, at least 2 for totals without a reference of the
# atoms, and 0.7 to 1.1 for what the baseline leaves.
MUCH_BETTER = 10.0

# Relative to the values, what counts as not described: any two fits to water alone are the same.
NOT_DESCRIBED = 0.01


def warn_of_energies_per_atom(batch: DeclaredBatch, targets: Mapping[str, TensorMap]) -> None:
    """Warn of targets that are declared as totals and seem to be per atom, and of the reverse.

    Totals are nearly a sum over the atoms, and so a linear function of the numbers of atoms of each
    type; energies per atom are one of the fractions of the types. Where structures differ in size,
    a least-squares fit to each of these shows which it is. Batches of few structures, and energies
    without the large contributions of the atoms, show nothing.

    Args:
        batch: batch of declared targets.
        targets: its targets.
    """
    atoms = batch.atoms.to("cpu")
    for name, declared in batch.declaration.targets.items():
        if not isinstance(declared, PerStructure) or declared.intensive or name not in targets:
            continue
        if declared.shape or declared.properties:
            continue
        block = targets[name].block()
        values = block.values.detach().cpu().double().flatten()
        # Of the batches of several loaders, some may be without the target.
        structures = block.samples.column("system").cpu().long()
        n_atoms, counts = atoms.n_atoms[structures], atoms.type_counts[structures]
        if declared.per_atom:  # what the user gave
            values = values / n_atoms
        known = values.isfinite() & (n_atoms > 0)
        counts, values = counts[known], values[known]
        if len(values) < 3 * counts.shape[1] + 5:
            continue
        of_counts = _residual(counts, values)
        of_fractions = _residual(counts / counts.sum(1, keepdim=True), values)
        if max(of_counts, of_fractions) < NOT_DESCRIBED * values.square().mean().sqrt():
            continue
        errors = f"(residuals of {of_fractions:.3g} and {of_counts:.3g} in the first batch)"
        if not declared.per_atom and MUCH_BETTER * of_fractions < of_counts:
            warn_on_rank_zero(
                f"target '{name}': totals are expected, and its values are described by the "
                "fractions of the atomic types much better than by the numbers of atoms, as "
                f"energies per atom are {errors}; declare PerStructure(per_atom=True), or "
                "intensive=True for values that are no energies of the whole structure",
                stacklevel=4,
            )
        if declared.per_atom and MUCH_BETTER * of_counts < of_fractions:
            warn_on_rank_zero(
                f"target '{name}': with per_atom=True, energies per atom are expected, and its "
                "values are described by the numbers of atoms much better than by the fractions of "
                f"the atomic types, as totals are {errors}; declare them without per_atom=True",
                stacklevel=4,
            )


def _residual(design: Tensor, values: Tensor) -> float:
    """The RMS of what a least-squares fit leaves."""
    solution = torch.linalg.lstsq(design, values[:, None], driver="gelsd").solution
    return float((values[:, None] - design @ solution).square().mean().sqrt())
