"""Statistics of one block of a target."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

import torch

from ..tensors import (
    InvalidStateError,
    TensorCheck,
    check_shapes,
    fields_from_state,
    state_of,
)
from .least_squares import Problems, merge_problems
from .means import Means, merge_means, pool_means, sum_sq_about

Sums = TypeVar("Sums", torch.Tensor, Means)


@dataclass
class BlockStatistics:
    """Sums over all values of one block, NaN values excluded.

    Sums have shape ``(n_types, n_properties)``, with a single row unless the target is per-atom.
    "Raw" values are those of the data, divided by the number of atoms for extensive targets; only
    the contribution of an additive module is subtracted from the others.

    Attributes:
        counts: numbers of values.
        raw_sq_sum: sums of squares of all raw values.
        no_baseline_sq_sum: sums of squares of the values that no baseline is subtracted from.
        epsilon: largest machine epsilon of the dtypes in which the data were stored.
        means: means of the values with a baseline, for per-atom targets.
        totals_fit: least-squares problems of the undivided values with a baseline, for
            per-structure targets: properties, and the problem that they share.
        per_atom_fit: the same with every row divided by its number of atoms, for extensive
            targets; the residuals per atom do not follow from those of the totals.
        pooled_means: means of the raw values with a baseline over all types, ``(1, n_properties)``,
            where they do not follow from ``means``.
        rounding_sq_sum: sums of squares of the rounding errors of an additive module.
        missing: numbers of missing values; ``None``: none is missing.
    """

    counts: Annotated[torch.Tensor, TensorCheck("n_types", "n_properties")]
    raw_sq_sum: Annotated[torch.Tensor, TensorCheck("n_types", "n_properties")]
    no_baseline_sq_sum: Annotated[torch.Tensor, TensorCheck("n_types", "n_properties")]
    epsilon: float
    means: Means | None = None
    totals_fit: Problems = field(default_factory=list)
    per_atom_fit: Problems = field(default_factory=list)
    pooled_means: Means | None = None
    rounding_sq_sum: Annotated[torch.Tensor | None, TensorCheck("n_types", "n_properties")] = None
    missing: Annotated[torch.Tensor | None, TensorCheck("n_types", "n_properties")] = None

    @classmethod
    def from_state(cls, state: Any) -> "BlockStatistics":
        """The statistics from their fields; files of 0.1.0 have no numbers of missing values."""
        if isinstance(state, Mapping):
            state = {"missing": None, **state}
        found: BlockStatistics = fields_from_state(cls, state)
        return found

    def residual_sq_sum(self, weights: torch.Tensor | None) -> torch.Tensor:
        """Sums of squares after subtracting a baseline, ``(n_types, n_properties)``.

        Args:
            weights: baseline of each type of the systems, ``(n_types, n_properties)``.
        """
        if weights is None:
            return self.no_baseline_sq_sum
        if self.means is not None:
            return self.no_baseline_sq_sum + sum_sq_about(self.means, torch.nan_to_num(weights))
        squares = self.no_baseline_sq_sum.clone()
        for properties, problem in self.per_atom_fit or self.totals_fit:
            squares[:, properties] += problem.sum_sq_residuals(weights[:, properties])
        return squares

    def raw_sum_sq_dev(self) -> float:
        """Sum of squares about the mean for values with a baseline, about 0 for all others."""
        pooled = self.pooled_means
        if pooled is None and self.means is not None:
            pooled = pool_means(self.means)
        if pooled is None:
            return float(self.raw_sq_sum.sum())
        return float(pooled.sum_sq_dev.sum() + self.no_baseline_sq_sum.sum())

    def term_sq_sum(self, weights: torch.Tensor | None) -> torch.Tensor:
        """Sums of squares of the terms that a baseline adds up, ``(n_types, n_properties)``.

        The rounding error of a sum is that of its terms, which are larger than the sum where they
        cancel.
        """
        if weights is None or self.means is not None:
            return self.raw_sq_sum
        squares = self.raw_sq_sum.clone()
        for properties, problem in self.per_atom_fit or self.totals_fit:
            terms = problem.column_norms() @ torch.nan_to_num(weights[:, properties]).abs()
            squares[:, properties] = torch.maximum(squares[:, properties], terms.square())
        return squares


def merge_blocks(first: BlockStatistics, second: BlockStatistics) -> BlockStatistics:
    """The statistics of all data of both, which remain unchanged."""
    return BlockStatistics(
        counts=first.counts + second.counts,
        raw_sq_sum=first.raw_sq_sum + second.raw_sq_sum,
        no_baseline_sq_sum=first.no_baseline_sq_sum + second.no_baseline_sq_sum,
        epsilon=max(first.epsilon, second.epsilon),
        means=_merge_optional(first.means, second.means),
        totals_fit=merge_problems(first.totals_fit, second.totals_fit),
        per_atom_fit=merge_problems(first.per_atom_fit, second.per_atom_fit),
        pooled_means=_merge_optional(first.pooled_means, second.pooled_means),
        rounding_sq_sum=_merge_optional(first.rounding_sq_sum, second.rounding_sq_sum),
        missing=_merge_optional(first.missing, second.missing),
    )


def _merge_optional(first: Sums | None, second: Sums | None) -> Sums | None:
    if first is None or second is None:
        return second if first is None else first
    return merge_means(first, second) if isinstance(first, Means) else first + second


def reindex_types(
    block: BlockStatistics, old: torch.Tensor, new: torch.Tensor, per_atom: bool
) -> BlockStatistics:
    """A copy of the statistics for a superset of the types.

    Args:
        block: statistics for the types ``old``.
        old: sorted atomic types.
        new: sorted atomic types, all of ``old`` among them.
        per_atom: whether the sums have a row for each type.
    """
    totals_fit, per_atom_fit = (
        [(properties, problem.copy()) for properties, problem in problems]
        for problems in (block.totals_fit, block.per_atom_fit)
    )
    for _, problem in totals_fit + per_atom_fit:
        problem.extend(new)
    copy = replace(block, totals_fit=totals_fit, per_atom_fit=per_atom_fit)
    if not per_atom or torch.equal(old, new):
        return copy
    row_of_type = torch.searchsorted(new, old)

    def reindex(sums: torch.Tensor) -> torch.Tensor:
        return sums.new_zeros((new.numel(), sums.shape[1])).index_copy_(0, row_of_type, sums)

    return replace(
        copy,
        counts=reindex(block.counts),
        raw_sq_sum=reindex(block.raw_sq_sum),
        no_baseline_sq_sum=reindex(block.no_baseline_sq_sum),
        means=None if block.means is None else Means(*map(reindex, block.means)),
        rounding_sq_sum=None if block.rounding_sq_sum is None else reindex(block.rounding_sq_sum),
        missing=None if block.missing is None else reindex(block.missing),
    )


def check_block(block: BlockStatistics, types: torch.Tensor, sizes: Mapping[str, int]) -> None:
    """Check that the parts of loaded statistics have the shapes of one block.

    Args:
        block: statistics of the block.
        types: sorted atomic types of the systems.
        sizes: ``n_types``, the number of rows, and ``n_properties``.

    Raises:
        InvalidStateError: for another shape, or least-squares problems of other types or
            properties.
    """
    check_shapes(block, sizes)
    for name, means, n_rows in (
        ("means", block.means, sizes["n_types"]),
        ("pooled_means", block.pooled_means, 1),
    ):
        if means is not None:
            with state_of(name):
                check_shapes(means, {**sizes, "n_types": n_rows})
    for name, problems in (("totals_fit", block.totals_fit), ("per_atom_fit", block.per_atom_fit)):
        found = sorted(p for properties, _ in problems for p in properties)
        if problems and found != list(range(sizes["n_properties"])):
            raise InvalidStateError(
                f"{name}: expected each of {sizes['n_properties']} properties once, got {found}"
            )
        for properties, problem in problems:
            if problem.n_properties != len(properties) or not torch.equal(problem.types, types):
                raise InvalidStateError(
                    f"{name}: expected the types {types.tolist()} and {len(properties)} "
                    f"properties, got {problem.types.tolist()} and {problem.n_properties}"
                )
