"""What is kept of one block of a target while the data pass by."""

from dataclasses import dataclass, field
from typing import Any

import torch

from .least_squares import Problems, merge_problems
from .moments import Means, merge_means, pooled_means, squares_about


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
        spread: means over all groups of the entries that have a baseline, as the data store them;
            only where they do not follow from :attr:`means`.
        noise: sums of squares of the roundings of contributions, ``(n_groups, n_properties)``.
    """

    counts: torch.Tensor
    stored: torch.Tensor
    squares: torch.Tensor
    epsilon: float
    means: Means | None = None
    totals: Problems = field(default_factory=list)
    averages: Problems = field(default_factory=list)
    spread: Means | None = None
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
        spread = pooled_means(self.means) if self.spread is None and self.means else self.spread
        if spread is None:
            return float(self.stored.sum())
        return float(spread.centred.sum() + self.squares.sum())

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


def merged(first: BlockStatistics, second: BlockStatistics) -> BlockStatistics:
    """The statistics of both; their least-squares problems are merged into those of the first."""
    return BlockStatistics(
        counts=first.counts + second.counts,
        stored=first.stored + second.stored,
        squares=first.squares + second.squares,
        epsilon=max(first.epsilon, second.epsilon),
        means=_together(first.means, second.means),
        totals=merge_problems(first.totals, second.totals),
        averages=merge_problems(first.averages, second.averages),
        spread=_together(first.spread, second.spread),
        noise=second.noise if first.noise is None else _plus(first.noise, second.noise),
    )


def _together(first: Means | None, second: Means | None) -> Means | None:
    if first is None or second is None:
        return first or second
    return merge_means(first, second)


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
        "spread": None if block.spread is None else list(block.spread),
        "noise": block.noise,
    }
