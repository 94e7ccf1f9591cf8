"""Energies per atom that are declared as totals, and the other way round."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..plain_tensors import DeclaredBatch, PerAtom, PerStructure
from ..settings import warn_on_rank_zero

# How much better one of two fits must be than the other. In batches of 24 of the embedded molecules
# the ratio is at least 400 for total energies, at least 2 for totals without a reference of the
# atoms, and 0.7 to 1.1 for what the baseline leaves.
MUCH_BETTER = 10.0

# Relative to the values, what counts as not described: any two fits to water alone are the same.
NOT_DESCRIBED = 0.01


# Batches after which a target without enough energies is left alone.
MOST_BATCHES = 100


class FirstEnergies:
    """The energies of the first structures, until they show whether they are totals or per atom.

    Totals are nearly a sum over the atoms, and so a linear function of the numbers of atoms of each
    type; energies per atom are one of the fractions of the types. Where structures differ in size,
    a least-squares fit to each of these shows which it is. Few structures, and energies without the
    large contributions of the atoms, show nothing.
    """

    def __init__(self) -> None:
        self._batches: dict[str, list[_Energies]] = {}
        self._finished: set[str] = set()

    def add(self, batch: DeclaredBatch, targets: Mapping[str, TensorMap]) -> None:
        """Add a batch, and warn once of a target that seems to be declared as the other kind.

        Args:
            batch: batch of declared targets.
            targets: its targets.
        """
        for name, declared in batch.declaration.targets.items():
            if name in self._finished or name not in targets:
                continue
            if not _is_energy(declared):
                self._finished.add(name)
                continue
            batches = self._batches.setdefault(name, [])
            batches.append(_read_energies(batch, targets[name], declared.per_atom))
            found = _join(batches)
            enough = len(found.values) >= 3 * found.types.numel() + 5
            if enough or len(batches) == MOST_BATCHES:
                self._finished.add(name)
                del self._batches[name]
            if enough:
                _warn_of_other_kind(name, found, declared.per_atom)


class _Energies(NamedTuple):
    """Energies of some structures.

    Attributes:
        types: atomic types, sorted, ``(n_types,)``.
        counts: number of atoms of each type, ``(n_structures, n_types)`` float64.
        values: energies as the user gave them, ``(n_structures,)`` float64.
    """

    types: Tensor
    counts: Tensor
    values: Tensor


def _is_energy(declared: PerStructure | PerAtom) -> TypeGuard[PerStructure]:
    if not isinstance(declared, PerStructure) or declared.intensive:
        return False
    return not declared.shape and not declared.properties


def _read_energies(batch: DeclaredBatch, target: TensorMap, per_atom: bool) -> _Energies:
    """The energies of a batch that are not missing."""
    atoms, block = batch.atoms.to("cpu"), target.block()
    values = block.values.detach().cpu().double().flatten()
    # Of the batches of several loaders, some may be without the target.
    structures = block.samples.column("system").cpu().long()
    n_atoms, counts = atoms.n_atoms[structures], atoms.type_counts[structures]
    if per_atom:
        values = values / n_atoms
    known = values.isfinite() & (n_atoms > 0)
    return _Energies(atoms.unique_types, counts[known], values[known])


def _join(batches: Sequence[_Energies]) -> _Energies:
    types = torch.cat([one.types for one in batches]).unique()
    counts = []
    for one in batches:
        columns = torch.searchsorted(types, one.types)
        of_all = one.counts.new_zeros(len(one.counts), len(types))
        counts.append(of_all.index_copy_(1, columns, one.counts))
    return _Energies(types, torch.cat(counts), torch.cat([one.values for one in batches]))


def _warn_of_other_kind(name: str, energies: _Energies, per_atom: bool) -> None:
    _, counts, values = energies
    of_counts = _residual(counts, values)
    of_fractions = _residual(counts / counts.sum(1, keepdim=True), values)
    if max(of_counts, of_fractions) < NOT_DESCRIBED * values.square().mean().sqrt():
        return
    errors = (
        f"(residuals of {of_fractions:.3g} and {of_counts:.3g} in the first {len(values)} "
        "structures)"
    )
    if not per_atom and MUCH_BETTER * of_fractions < of_counts:
        warn_on_rank_zero(
            f"target '{name}': totals are expected, and its values are described by the "
            "fractions of the atomic types much better than by the numbers of atoms, as "
            f"energies per atom are {errors}; declare PerStructure(per_atom=True), or "
            "intensive=True for values that are no energies of the whole structure",
            stacklevel=4,
        )
    if per_atom and MUCH_BETTER * of_counts < of_fractions:
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
