"""The statistics of one batch of a target."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..batches import Atoms
from ..tensors import Invariance, Key, TargetLayout
from .block_statistics import BlockStatistics
from .grouped_sums import check_finite, compute_means, sum_squares
from .least_squares import make_problems
from .means import Means


class BlockValues(NamedTuple):
    """One block of a target in one batch.

    Attributes:
        values: ``(n_samples, *components, n_properties)``, NaN where missing.
        rows: index in the batch of every sample's atom (per-atom targets) or system (per-structure
            targets), ``(n_samples,)``; ``None``: all of them in the order of the batch.
        mask: ``False`` where a value is missing, in the shape of ``values``.
        contribution: values of an additive module, to be subtracted first, in the same shape.
    """

    values: torch.Tensor
    rows: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    contribution: torch.Tensor | None = None


@dataclass(frozen=True)
class SampleValues:
    """Values of one block with all components on one axis.

    Attributes:
        raw: values of the data, ``(n_samples, n_components, n_properties)``, NaN where missing.
        residual: ``raw`` minus the contribution of an additive module; ``raw`` itself without one.
        mask: ``False`` where a value is missing, in the same shape.
        invariance: which components are invariant, and can have a baseline.
        rounding: machine epsilon of the contribution.
    """

    raw: torch.Tensor
    residual: torch.Tensor
    mask: torch.Tensor | None
    invariance: Invariance
    rounding: float = 0.0

    @classmethod
    def from_block(cls, block: BlockValues, invariance: Invariance) -> "SampleValues":
        """Flatten the components and subtract the contribution."""
        values, mask, contribution = block.values, block.mask, block.contribution
        shape = (len(values), math.prod(values.shape[1:-1]), values.shape[-1])
        raw = values.detach().reshape(shape)
        mask = None if mask is None else mask.reshape(shape)
        if contribution is None:
            return cls(raw, raw, mask, invariance)
        residual = raw.double() - contribution.double().reshape(shape)
        return cls(raw, residual, mask, invariance, torch.finfo(contribution.dtype).eps)

    @property
    def has_contribution(self) -> bool:
        """Whether something is subtracted from the raw values."""
        return self.residual is not self.raw

    def apply_mask(self) -> "SampleValues":
        """The same without a mask, NaN where it was ``False``."""
        mask = self.mask
        if mask is None:
            return self
        return replace(self, mask=None)._map(lambda values: torch.where(mask, values, torch.nan))

    def divide(self, n_atoms: torch.Tensor) -> "SampleValues":
        """The values per atom, float64; ``n_atoms`` is ``(n_samples,)``."""
        return self._map(lambda values: values.double() / n_atoms[:, None, None])

    def invariant(self) -> "SampleValues":
        """The components that can have a baseline.

        The diagonal components of a rank-2 block count as observations of the same quantity.
        """
        if self.invariance == "scalar":
            return self
        return self._map(lambda values: values[:, self._diagonal()])

    def non_invariant(self) -> "SampleValues":
        """The components that have no baseline."""
        if self.invariance is None:
            return self
        if self.invariance == "scalar":
            return self._map(lambda values: values[:, :0])
        return self._map(lambda values: values[:, ~self._diagonal()])

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "SampleValues":
        raw = function(self.raw)
        residual = function(self.residual) if self.has_contribution else raw
        mask = None if self.mask is None else function(self.mask)
        return replace(self, raw=raw, residual=residual, mask=mask)

    def _diagonal(self) -> torch.Tensor:
        return torch.eye(math.isqrt(self.raw.shape[1]), dtype=torch.bool).reshape(-1)


def per_atom_statistics(
    layout: TargetLayout, blocks: dict[Key, SampleValues], type_index: torch.Tensor, n_types: int
) -> dict[Key, BlockStatistics]:
    """Statistics of the blocks of a per-atom target that have the same samples.

    Args:
        layout: layout of the target.
        blocks: values by key.
        type_index: index of the type of every sample's atom, ``(n_samples,)``.
        n_types: number of types, some of which may not occur.

    Raises:
        ValueError: for infinite values, and for squares that overflow.
    """
    statistics = _square_sums(layout, blocks, blocks, type_index, n_types)
    invariant = {key: block.invariant() for key, block in blocks.items() if block.invariance}
    if invariant:
        residuals = [block.residual for block in invariant.values()]
        columns = compute_means(residuals, type_index, n_types, _masks(invariant.values()))
        by_block = zip(*(_split(column, residuals) for column in columns), strict=True)
        for key, parts in zip(invariant, by_block, strict=True):
            statistics[key].means = Means(*parts)
    for key, block in invariant.items():
        if block.has_contribution:
            pooled = compute_means([block.raw], None, 1, _masks([block]))
            statistics[key].pooled_means = Means(*pooled)
    return statistics


def per_structure_statistics(
    layout: TargetLayout,
    blocks: dict[Key, SampleValues],
    rows: torch.Tensor | None,
    atoms: Atoms,
    types: torch.Tensor,
    *,
    extensive: bool,
    fractions: bool,
) -> dict[Key, BlockStatistics]:
    """Statistics of the blocks of a per-structure target that have the same samples.

    Args:
        layout: layout of the target.
        blocks: values by key.
        rows: index in the batch of every sample's system, ``(n_samples,)``; ``None``: all systems
            in the order of the batch.
        atoms: atoms of the batch.
        types: sorted atomic types, the columns of a baseline fit; some may not occur.
        extensive: whether values are divided by the number of atoms first.
        fractions: whether a baseline multiplies the fraction of each type, not its count.

    Raises:
        ValueError: for infinite values, and for squares that overflow.
    """
    totals = {key: block.apply_mask() for key, block in blocks.items()}
    n_atoms = atoms.n_atoms_or_nan if rows is None else atoms.n_atoms_or_nan[rows]
    values = totals
    if extensive:
        values = {key: block.divide(n_atoms) for key, block in totals.items()}
    statistics = _square_sums(layout, values, totals, None, 1)
    if not any(block.invariance for block in blocks.values()):
        return statistics
    composition = atoms.composition(types)
    if fractions:
        composition = (composition / atoms.n_atoms_or_nan[:, None]).nan_to_num()
    composition = composition if rows is None else composition[rows]
    for key, block in statistics.items():
        if totals[key].invariance:
            total, value = totals[key].invariant(), values[key].invariant()
            block.pooled_means = Means(*compute_means([value.raw], None, 1))
            block.totals_fit = make_problems(composition, total.residual.double(), types)
            if extensive:  # the values of systems without atoms are NaN, which leaves out the row
                per_atom = composition / n_atoms[:, None]
                block.per_atom_fit = make_problems(per_atom, value.residual, types)
    return statistics


def _square_sums(
    layout: TargetLayout,
    blocks: dict[Key, SampleValues],
    stored: dict[Key, SampleValues],
    type_index: torch.Tensor | None,
    n_types: int,
) -> dict[Key, BlockStatistics]:
    """Sums of squares; ``stored`` holds the values as they are in the data, for the messages."""
    if not blocks:
        return {}
    raw = [block.raw for block in blocks.values()]
    raw_sq_sum, counts = sum_squares(raw, type_index, n_types, _masks(blocks.values()))
    if not math.isfinite(float(raw_sq_sum.sum())):
        _check_finite(layout, stored)
    statistics = {}
    by_block = zip(blocks.items(), _split(counts, raw), _split(raw_sq_sum, raw), strict=True)
    for (key, block), n_values, squares in by_block:
        no_baseline = squares
        if block.invariance == "scalar":
            no_baseline = torch.zeros_like(squares)
        elif block.invariance or block.has_contribution:
            others = block.non_invariant()
            no_baseline, _ = sum_squares([others.residual], type_index, n_types, _masks([others]))
        epsilon = torch.finfo(stored[key].raw.dtype).eps
        statistics[key] = BlockStatistics(n_values, squares, no_baseline, epsilon)
        n_rows, n_components, n_properties = block.raw.shape
        if float(n_values.sum()) < n_rows * n_components * n_properties:
            rows = n_values.new_full((1,), n_rows)
            if type_index is not None:
                rows = torch.bincount(type_index, minlength=n_types).to(n_values)
            statistics[key].missing = n_components * rows[:, None] - n_values
        if block.has_contribution:
            contribution = [block.raw.double() - block.residual]
            sq_sum, _ = sum_squares(contribution, type_index, n_types, _masks([block]))
            statistics[key].rounding_sq_sum = block.rounding**2 * sq_sum
    return statistics


def _masks(blocks: Iterable[SampleValues]) -> list[torch.Tensor] | None:
    """The masks of the blocks of a target, which all have one or none."""
    return [block.mask for block in blocks if block.mask is not None] or None


def _split(columns: torch.Tensor, values: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Split the columns of several blocks, a column for every property."""
    return tuple(columns.split([block.shape[2] for block in values], 1))


def _check_finite(layout: TargetLayout, blocks: dict[Key, SampleValues]) -> None:
    for key, block in blocks.items():
        where = f"target '{layout.name}', block ({layout.describe(key)})"
        check_finite(where, block.apply_mask().raw)
