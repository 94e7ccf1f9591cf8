"""What is kept of one block of a target while the data pass by."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .atoms import Atoms
from .least_squares import Problems, merge_problems, read_problems
from .moments import (
    Means,
    column_means,
    group_means,
    merge_means,
    pooled_means,
    square_sums,
    squares_about,
)
from .target import Invariance, TargetLayout

# Merging so many means costs as much as merging two.
PARTS_AT_ONCE = 64


@dataclass
class BlockStatistics:
    """Sums over one block; groups are the types of a per-atom target, else a single one.

    Attributes:
        counts: present entries, ``(n_groups, n_properties)``.
        stored: sums of squares of all entries as the data store them, likewise.
        squares: sums of squares of the entries that have no baseline, likewise.
        epsilon: largest machine epsilon of the dtypes in which the data were stored.
        means: of the entries that have a baseline, for per-atom targets.
        totals: rows as they are, for per-structure targets with a baseline; several problems once
            some properties had missing values, each with the properties it is for.
        averages: the same rows divided by the number of atoms, for extensive targets.
        spread: parts of the means of entries that have a baseline, as the data store them; only
            where they are not those of :attr:`means`.
        noise: sums of squares of the roundings of contributions, ``(n_groups, n_properties)``.
    """

    counts: torch.Tensor
    stored: torch.Tensor
    squares: torch.Tensor
    epsilon: float
    means: Means | None = None
    totals: Problems = field(default_factory=list)
    averages: Problems = field(default_factory=list)
    spread: list[Means] = field(default_factory=list)
    noise: torch.Tensor | None = None

    def residual(self, weights: torch.Tensor | None) -> torch.Tensor:
        """Sums of squares after a baseline of these weights, ``(n_groups, n_properties)``."""
        if weights is None:
            return self.squares
        squares = self.squares.clone()
        if self.means is not None:
            return squares + squares_about(self.means, torch.nan_to_num(weights))
        for properties, problem in self.averages or self.totals:
            squares[:, properties] += problem.squares_left(weights[:, properties])
        return squares

    def variance(self) -> float:
        """Sum of squares about the mean of what could have a baseline, and about 0 of the rest."""
        parts = self.spread or ([] if self.means is None else [self.means])
        if not parts:
            return float(self.stored.sum())
        return float(_pooled(parts).centred.sum() + self.squares.sum())

    def contributions(self, weights: torch.Tensor | None) -> torch.Tensor:
        """Sums of squares of what a baseline adds up, ``(n_groups, n_properties)``.

        Contributions that cancel each other are larger than their sum, and so is their rounding.
        """
        squares = self.stored.clone()
        if weights is None or self.means is not None:
            return squares
        for properties, problem in self.averages or self.totals:
            sizes = problem.column_norms() @ torch.nan_to_num(weights[:, properties]).abs()
            squares[:, properties] = torch.maximum(squares[:, properties], sizes.square())
        return squares


def block_of_batch(
    layout: TargetLayout,
    key: tuple[int, ...],
    values: torch.Tensor,
    keep: torch.Tensor | None,
    rows: torch.Tensor | None,
    types: torch.Tensor,
    atoms: Atoms,
    extensive: bool,
    baseline: bool,
    contribution: torch.Tensor | None = None,
) -> BlockStatistics:
    """Read one block of one batch; see :meth:`TargetStatistics.of_batch`.

    Args:
        layout: of the target.
        key: of the block.
        values: ``(n_samples, *components, n_properties)``, NaN where missing.
        keep: ``False`` where an entry is missing too, in the same shape.
        rows: index of every sample's atom (per-atom targets) or system among those of the batch,
            ``(n_samples,)``; ``None``: all of them in order.
        types: sorted atomic types, the groups of a per-atom target; some of them may not occur.
        atoms: of the batch.
        extensive: per-structure values are divided by the number of atoms first.
        baseline: whether the invariant part is to be kept apart for one.
        contribution: of an additive module, in the shape of the values; it comes off first.

    Raises:
        ValueError: for infinite entries, and for squares that overflow.
    """
    epsilon = torch.finfo(values.dtype).eps
    shape = (len(values), math.prod(values.shape[1:-1]), values.shape[-1])
    stored = left = values.reshape(shape)
    if contribution is not None:
        left = stored.double() - contribution.double().reshape(shape)
    keep = None if keep is None else keep.reshape(shape)
    invariance = layout.invariance(key) if baseline else None
    if layout.kind == "atom":
        groups, n_groups = atoms.index_among(types), types.numel()
        groups = groups if rows is None else groups[rows]
        statistics = _sums(stored, left, groups, n_groups, keep, invariance, epsilon)
        _check_finite(layout, key, statistics, stored, keep)
        if contribution is not None:
            given = stored.double() - left
            statistics.noise = _roundings(given, contribution.dtype, groups, n_groups, keep)
        if invariance is not None:
            of_mean = None if keep is None else _invariant(keep, invariance)
            chosen = _invariant(left, invariance)
            statistics.means = group_means(chosen, groups, n_groups, of_mean)
            if contribution is not None:
                chosen = _invariant(stored, invariance)
                statistics.spread = [group_means(chosen, None, 1, of_mean)]
        return statistics
    if keep is not None:
        stored, left = (torch.where(keep, entries, torch.nan) for entries in (stored, left))
    stored, left = stored.double(), left.double()
    averaged, left_averaged, divisors = stored, left, atoms.divisors
    if extensive:
        divisors = divisors if rows is None else divisors[rows]
        averaged = left_averaged = stored / divisors[:, None, None]
        if contribution is not None:
            left_averaged = left / divisors[:, None, None]
    statistics = _sums(averaged, left_averaged, None, 1, None, invariance, epsilon)
    _check_finite(layout, key, statistics, stored, None)
    if contribution is not None:
        given = averaged - left_averaged
        statistics.noise = _roundings(given, contribution.dtype, None, 1)
    if invariance is not None:
        columns = _invariant(averaged, invariance).reshape(-1, shape[-1])
        statistics.spread = [column_means(columns)]
        composition = atoms.composition(types)
        composition = composition if rows is None else composition[rows]
        statistics.totals = read_problems(composition, _invariant(left, invariance), types)
        if extensive:
            per_atom = composition / divisors.nan_to_num(1.0)[:, None]
            statistics.averages = read_problems(
                per_atom, _invariant(left_averaged, invariance), types
            )
    return statistics


def _sums(
    stored: torch.Tensor,
    left: torch.Tensor,
    groups: torch.Tensor | None,
    n_groups: int,
    keep: torch.Tensor | None,
    invariance: Invariance,
    epsilon: float,
) -> BlockStatistics:
    """Statistics of ``(n_samples, n_components, n_properties)`` without those of a baseline.

    Args:
        stored: as the data store them (per atom if extensive).
        left: the same without contributions.
        groups: of every sample.
        n_groups: number of groups.
        keep: ``False`` where an entry is missing.
        invariance: the part that a baseline is to be taken from.
        epsilon: of the data.
    """
    squares, numbers = square_sums(stored, groups, n_groups, keep)
    statistics = BlockStatistics(numbers, squares, squares, epsilon)
    if invariance == "scalar":
        statistics.squares = torch.zeros_like(squares)
    elif invariance is not None:
        others = None if keep is None else _without_invariant(keep)
        without = _without_invariant(left)
        statistics.squares = square_sums(without, groups, n_groups, others)[0]
    elif left is not stored:
        statistics.squares = square_sums(left, groups, n_groups, keep)[0]
    return statistics


def _roundings(
    given: torch.Tensor,
    dtype: torch.dtype,
    groups: torch.Tensor | None,
    n_groups: int,
    keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sums of squares of the roundings of contributions, NaN where the target has no entry."""
    return torch.finfo(dtype).eps ** 2 * square_sums(given, groups, n_groups, keep)[0]


def _invariant(values: torch.Tensor, invariance: Invariance) -> torch.Tensor:
    """The entries that a baseline is taken from, ``(n_samples, n_entries, n_properties)``.

    The diagonal entries of a rank-2 block are observations of the same number each.
    """
    if invariance == "scalar":
        return values
    return values[:, _diagonal(values.shape[1])]


def _without_invariant(values: torch.Tensor) -> torch.Tensor:
    """The entries off the diagonal of a rank-2 block."""
    return values[:, ~_diagonal(values.shape[1])]


def _diagonal(n_components: int) -> torch.Tensor:
    return torch.eye(round(n_components**0.5), dtype=torch.bool).reshape(-1)


def merged(first: BlockStatistics, second: BlockStatistics) -> BlockStatistics:
    """The statistics of both; their least-squares problems are merged into those of the first."""
    means = first.means
    if first.means is not None and second.means is not None:
        means = merge_means(first.means, second.means)
    spread = first.spread + second.spread
    if len(spread) > PARTS_AT_ONCE:
        spread = [_pooled(spread)]
    return BlockStatistics(
        counts=first.counts + second.counts,
        stored=first.stored + second.stored,
        squares=first.squares + second.squares,
        epsilon=max(first.epsilon, second.epsilon),
        means=means,
        totals=merge_problems(first.totals, second.totals),
        averages=merge_problems(first.averages, second.averages),
        spread=spread,
        noise=second.noise if first.noise is None else _plus(first.noise, second.noise),
    )


def _pooled(parts: list[Means]) -> Means:
    return pooled_means(Means(*(torch.cat(numbers) for numbers in zip(*parts, strict=True))))


def _plus(first: torch.Tensor, second: torch.Tensor | None) -> torch.Tensor:
    return first if second is None else first + second


def regrouped(block: BlockStatistics, types: torch.Tensor, wanted: torch.Tensor) -> BlockStatistics:
    """The statistics with a row for each of the wanted types, a superset of those there are."""
    rows = torch.searchsorted(wanted, types)

    def spread(sums: torch.Tensor) -> torch.Tensor:
        return sums.new_zeros((wanted.numel(), sums.shape[1])).index_copy_(0, rows, sums)

    means = None if block.means is None else Means(*(spread(sums) for sums in block.means))
    counts, stored, squares = (spread(s) for s in (block.counts, block.stored, block.squares))
    noise = None if block.noise is None else spread(block.noise)
    return BlockStatistics(
        counts, stored, squares, block.epsilon, means, spread=block.spread, noise=noise
    )


def _check_finite(
    layout: TargetLayout,
    key: tuple[int, ...],
    statistics: BlockStatistics,
    stored: torch.Tensor,
    keep: torch.Tensor | None,
) -> None:
    if math.isfinite(float(statistics.stored.sum())):
        return
    if keep is not None:
        stored = torch.where(keep, stored, torch.nan)
    infinite = torch.isinf(stored)
    where = f"target '{layout.name}', block ({layout.describe(key)})"
    if bool(infinite.any()):
        raise ValueError(
            f"{where}: expected finite numbers, or NaN for missing ones, got "
            f"{int(infinite.sum())} infinite entries in a batch; remove these structures or set "
            "the entries to NaN; nothing is fitted"
        )
    largest = torch.nan_to_num(stored).abs().max()
    raise ValueError(
        f"{where}: the sum of squares overflows, the largest absolute value being "
        f"{float(largest):.3e}; give the target in a larger unit; nothing is fitted"
    )


def block_state(key: tuple[int, ...], block: BlockStatistics) -> dict[str, Any]:
    """The statistics of one block as plain Python objects and tensors."""
    return {
        "key": list(key),
        "counts": block.counts,
        "stored": block.stored,
        "squares": block.squares,
        "epsilon": block.epsilon,
        "means": None if block.means is None else list(block.means),
        "totals": [(properties, problem.state()) for properties, problem in block.totals],
        "averages": [(properties, problem.state()) for properties, problem in block.averages],
        "spread": [list(part) for part in block.spread],
        "noise": block.noise,
    }
