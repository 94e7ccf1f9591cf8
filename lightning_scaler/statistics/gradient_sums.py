"""Sums of squares of gradients, and of the values of atom pairs, for the loss alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import Atoms, IndexedTarget
from ..tensors import TensorCheck, describe, fields_from_state, scripted_arithmetic
from .grouped_sums import check_finite


@dataclass(frozen=True)
class GradientSums:
    """Sums over all blocks of a target.

    Attributes:
        sums: sums of squares (of the residuals where an additive module contributes), numbers of
            values that are not missing, sums of squares up to which residuals are rounding noise,
            and numbers of missing values: ``(4, n_types)`` float64, with a single column unless the
            target is per-atom.
    """

    sums: Annotated[Tensor, TensorCheck("n_sums", "n_types")]

    @classmethod
    def from_state(cls, state: Any) -> "GradientSums":
        """The sums from their fields; earlier files have no numbers of missing values."""
        found: GradientSums = fields_from_state(cls, state)
        if found.sums.shape[0] == 3:
            return cls(torch.cat([found.sums, torch.zeros_like(found.sums[:1])]))
        return found

    @property
    def counts(self) -> Tensor:
        """Numbers of values, ``(n_types,)``."""
        return self.sums[1]

    @property
    def missing(self) -> Tensor:
        """Numbers of missing values, ``(n_types,)``."""
        return self.sums[3]

    @property
    def sq_sum(self) -> Tensor:
        """Sums of squares, 0 where they are rounding noise, ``(n_types,)``."""
        return torch.where(self.sums[0] <= self.sums[2], 0.0, self.sums[0])

    def plus(self, other: "GradientSums") -> "GradientSums":
        """The sums over all data of both."""
        return GradientSums(self.sums + other.sums)

    def reindex(self, old: Tensor, new: Tensor) -> "GradientSums":
        """The sums for a superset of the sorted types."""
        column_of_type = torch.searchsorted(new, old)
        zeros = self.sums.new_zeros(4, new.numel())
        return GradientSums(zeros.index_copy_(1, column_of_type, self.sums))


def gradient_sums(
    target: IndexedTarget,
    atoms: Atoms,
    types: Tensor | None,
    extensive: bool,
    contributions: list[Tensor | None],
) -> dict[str, GradientSums]:
    """Sums over the gradients of one batch of a target, by parameter.

    Gradients with respect to the whole structure (strain) of extensive targets are divided by its
    number of atoms, as the values are.

    Args:
        target: the target, on the CPU.
        atoms: atoms of the batch.
        types: sorted atomic types, including all of the batch, for a per-atom target; ``None`` for
            any other.
        extensive: whether values are divided by the number of atoms.
        contributions: contributions of an additive module to every gradient, in the order of blocks
            and parameters; empty if there are none.

    Raises:
        ValueError: for infinite values, and for squares that overflow.
    """
    layout = target.layout
    type_index: list[Tensor] = []
    n_types = 1
    if types is not None:
        n_types, of_atoms = types.numel(), atoms.index_among(types)
        type_index = [of_atoms[rows] for rows in target.rows] or [of_atoms]
    n_atoms: list[Tensor] = []
    if extensive and layout.gradients != ("positions",):
        n_atoms = [atoms.n_atoms_or_nan[rows] for rows in target.rows] or [atoms.n_atoms_or_nan]
    parameters, sums, finite = _sum_squares(
        target.tensor, type_index, n_types, n_atoms, contributions
    )
    by_parameter: dict[str, GradientSums] = {}
    for parameter, of_gradient in zip(parameters, sums, strict=True):
        if not finite:
            _check_finite(layout.name, target.tensor, parameter)
        found = GradientSums(of_gradient)
        known = by_parameter.get(parameter)
        by_parameter[parameter] = found if known is None else known.plus(found)
    return by_parameter


def value_sums(target: IndexedTarget, masks: Sequence[Tensor] | None) -> GradientSums:
    """Sums over the values of all blocks of a target of atom pairs, as one row.

    Args:
        target: the target, NaN where a value is missing.
        masks: for each block ``False`` where a value is missing.

    Raises:
        ValueError: for infinite values, and for squares that overflow.
    """
    name, tensor = target.layout.name, target.tensor
    sums = torch.zeros(4, 1, dtype=torch.float64)
    for i, block in enumerate(tensor.blocks()):
        kept = block.values.detach().double()
        if masks is not None:
            kept = torch.where(masks[i], kept, torch.nan)
        of_block = _sums_of(kept, None, 1, None, 0.0)
        if not bool(torch.isfinite(of_block[0]).all()):
            check_finite(f"target '{name}', block ({describe(tensor.keys, i)})", kept)
        sums += of_block
    return GradientSums(sums)


def _sums_of(
    values: Tensor, types: Tensor | None, n_types: int, contribution: Tensor | None, epsilon: float
) -> Tensor:
    """Sums of squares, counts, noise and missing values by type, ``(4, n_types)`` float64.

    Args:
        values: ``(n_samples, *components, n_properties)`` float64, NaN where missing.
        types: row of the result for each sample; ``None``: row 0.
        n_types: number of rows of the result.
        contribution: contribution of an additive module, in the shape of the values.
        epsilon: relative rounding error of values and contribution.
    """
    if types is None and contribution is None:  # nearly all data
        flat = values.reshape([-1])
        sq_sum = torch.dot(flat, flat)
        if not bool(sq_sum.isnan()):
            total = torch.zeros([4, 1], dtype=torch.float64)
            total[0] = sq_sum
            total[1] = flat.numel()
            return total
    n_rows = 1 if types is None else values.size(0)
    shape = [n_rows, values.numel() // max(1, n_rows)]
    noise: Tensor | None = None
    if contribution is not None:
        contributed = contribution.to(torch.float64)
        values = values - contributed
        noise = (epsilon * contributed).square().reshape(shape)
    squares = values.square().reshape(shape)
    sums = torch.zeros([4, n_rows], dtype=torch.float64)
    sums[0] = squares.sum(1)
    sums[1] = shape[1]
    if bool(sums[0].isnan().any()):
        missing = squares.isnan()
        squares = squares.masked_fill(missing, 0.0)
        sums[0] = squares.sum(1)
        sums[3] = missing.sum(1)
        sums[1] -= sums[3]
        if noise is not None:
            noise = noise.masked_fill(missing, 0.0)
    if noise is not None:
        sums[2] = noise.sum(1)
    if types is None:
        return sums
    by_type = torch.zeros([4, n_types], dtype=torch.float64)
    return by_type.index_add_(1, types, sums)


@scripted_arithmetic
def _sum_squares(
    tensor: TensorMap,
    type_index: list[Tensor],
    n_types: int,
    n_atoms: list[Tensor],
    contributions: list[Tensor | None],
) -> tuple[list[str], list[Tensor], bool]:
    """The parameter and the sums of each gradient, and whether all sums of squares are finite.

    Args:
        tensor: the target.
        type_index: index of the type of every sample's atom, by block or once for all blocks; empty
            unless the target is per-atom.
        n_types: number of types; 1 unless the target is per-atom.
        n_atoms: number of atoms of every sample's system, NaN if it has none, ``(n_samples,)``
            float64, by block or once for all blocks; empty where nothing is divided by it.
        contributions: see :func:`gradient_sums`.
    """
    parameters: list[str] = []
    sums: list[Tensor] = []
    finite = True
    for i, block in enumerate(tensor.blocks()):
        for parameter in block.gradients_list():
            gradient = block.gradient(parameter)
            stored = gradient.values.detach()
            values = stored.to(torch.float64)
            # Reading the labels of forces would take a third of the time.
            per_atom = parameter == "positions" or "atom" in gradient.samples.names
            if len(n_atoms) > 0 and not per_atom:
                by_row = n_atoms[i] if len(n_atoms) > 1 else n_atoms[0]
                by_sample = by_row.index_select(0, gradient.samples.values[:, 0])
                values = values / by_sample.reshape([-1] + [1] * (values.dim() - 1))
            types: Tensor | None = None
            if len(type_index) > 0:
                of_rows = type_index[i] if len(type_index) > 1 else type_index[0]
                types = of_rows.index_select(0, gradient.samples.values[:, 0])
            contribution = contributions[len(sums)] if len(contributions) > 0 else None
            double = stored.dtype == torch.float64
            if contribution is not None:
                double = double and contribution.dtype == torch.float64
            parameters.append(parameter)
            epsilon = 2.0**-52 if double else 2.0**-23
            sums.append(_sums_of(values, types, n_types, contribution, epsilon))
            finite = finite and float(sums[-1].sum()) < float("inf")
    return parameters, sums, finite


def _check_finite(name: str, tensor: TensorMap, parameter: str) -> None:
    for index, block in enumerate(tensor.blocks()):
        if parameter in block.gradients_list():
            block_name = f"target '{name}', block ({describe(tensor.keys, index)})"
            values = block.gradient(parameter).values
            check_finite(f"{block_name}, gradient '{parameter}'", values)
