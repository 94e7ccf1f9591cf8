"""The additive baseline that comes off before scaling and goes back on at inference."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..settings import Numbers, fixed_baseline
from ..statistics import BlockStatistics, TargetStatistics
from ..tensors import TargetLayout


@dataclass(frozen=True)
class CompositionBaseline:
    """A sum of one contribution per atomic type.

    Per-structure targets: least squares of the totals on the counts of each type (of smallest norm
    where the compositions do not determine it). Per-atom targets: the mean per type. Only what is
    invariant under rotation and inversion gets one: scalars, ``o3_lambda=0`` with ``o3_sigma=1``,
    and the trace of rank-2 spherical blocks.

    Args:
        fixed: for some targets the contribution of each type, in the units of the data, instead of
            a fit: ``{"energy": {1: -13.6, 8: -2041.8}}``.

    Raises:
        ValueError: for anything in ``fixed`` that is not a finite number per atomic type.

    Example:
        >>> CompositionBaseline(fixed={"energy": {"1": -13.6}}).fixed
        {'energy': {1: -13.6}}
    """

    fixed: Numbers = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bring the keys to plain integers."""
        object.__setattr__(self, "fixed", fixed_baseline(self.fixed))

    def weights(self, statistics: TargetStatistics) -> dict[tuple[int, ...], torch.Tensor]:
        """The contribution of every type, for each block that has a baseline.

        Args:
            statistics: of one target.

        Returns:
            By key ``(n_types, n_properties)`` float64 in the order of ``statistics.types``, NaN
            for a type without data.

        Raises:
            ValueError: if a fixed number is missing for a type in the data, or the target has
                nothing that could have a baseline, or several properties.
        """
        layout = statistics.layout
        fixed = self.fixed.get(layout.name)
        invariant = [key for key in statistics.blocks if layout.invariance(key)]
        if fixed is None:
            return {key: _fitted(statistics.blocks[key]) for key in invariant}
        _check_fixed(layout, invariant, fixed, statistics.types.tolist())
        weights = [[fixed[atomic_type]] for atomic_type in statistics.types.tolist()]
        of_types = torch.tensor(weights, dtype=torch.float64).reshape(-1, 1)
        return dict.fromkeys(invariant, of_types)


def _fitted(block: BlockStatistics) -> torch.Tensor:
    if block.means is not None:
        return torch.where(block.means.number > 0, block.means.mean + block.means.rest, torch.nan)
    n_types = block.totals[0][1].types.numel()
    weights = torch.full((n_types, block.counts.shape[1]), torch.nan, dtype=torch.float64)
    for properties, problem in block.totals:
        weights[:, properties] = problem.weights()
    return weights


def _check_fixed(
    layout: TargetLayout,
    invariant: list[tuple[int, ...]],
    fixed: Mapping[int, float],
    types: list[int],
) -> None:
    where = f"fixed_baseline of target '{layout.name}'"
    if not invariant:
        raise ValueError(
            f"{where}: expected a target with an invariant part, got blocks that all change under "
            "rotation or inversion (Cartesian blocks do); leave this target out"
        )
    for key in invariant:
        if layout.blocks[key].n_properties != 1:
            raise ValueError(
                f"{where}: expected a single property, got {layout.blocks[key].n_properties} in "
                f"block ({layout.describe(key)}); one number per type is not enough for them"
            )
    missing = [atomic_type for atomic_type in types if atomic_type not in fixed]
    if missing:
        raise ValueError(
            f"{where}: no number for the atomic types {missing} of the data, only for "
            f"{sorted(fixed)}; add them"
        )
