"""The fit of one target: from its statistics to its scales and baseline."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..baselines import CompositionBaseline, CompositionWeights
from ..scaling import TargetScales
from ..settings import FixedScale
from ..statistics import BlockStatistics, TargetStatistics
from ..tensors import Key, TargetLayout
from .scale_formula import BlockSums, FittedScales, compute_scales

# The residuals of a baseline contain a few roundings of its fit, which is in float64.
FIT_ROUNDING = 16.0 * torch.finfo(torch.float64).eps


def fit_target(
    statistics: TargetStatistics,
    extensive: bool,
    baseline: CompositionBaseline | None,
    fixed: FixedScale | None = None,
    enabled: bool = True,
    additive: bool = False,
    weights: CompositionWeights | None = None,
) -> tuple[TargetScales, dict[Key, Tensor]]:
    """Fit one target.

    Args:
        statistics: statistics of the target.
        extensive: whether its values were divided by the number of atoms.
        baseline: the baseline that is subtracted before scaling; ``None``: none.
        fixed: per-target scale that replaces the fitted one.
        enabled: ``False`` sets every scale to 1.
        additive: whether contributions of an additive module were subtracted.
        weights: weights of the baseline to use instead of fitted ones.

    Returns:
        The scales; and for each block the properties whose RMS after subtracting the baseline is
        zero or below the rounding noise of the stored values, ``(n_types, n_properties)`` bool, but
        not those whose stored values are exactly 0 in a target that is not.

    Raises:
        ValueError: for a fixed scale or baseline that does not suit the target, and for a sum of
            squares that overflows.
    """
    layout, blocks = statistics.layout, statistics.blocks
    types = statistics.types if layout.sample_kind == "atom" else torch.tensor([-1])
    fixed_per_target = None if fixed is None else _fixed_per_target(layout, fixed, types)
    if weights is None:
        weights = CompositionWeights(statistics.types, {}, {})
        if baseline is not None:
            weights = baseline.weights(statistics)
    if layout.sample_kind == "pair":
        identity, one = _identity(layout), torch.ones(1)
        mean_squares = _mean_squares_of_gradients(statistics, one)
        return TargetScales(layout, extensive, types, *identity, mean_squares=mean_squares), {}
    by_key = weights.for_types(statistics.types)
    residual_sq_sums = {k: block.residual_sq_sum(by_key.get(k)) for k, block in blocks.items()}
    _check_finite(layout, residual_sq_sums)
    fitted = compute_scales(
        [
            BlockSums(residual_sq_sums[key], block.counts, _noise_sq_sum(block, by_key.get(key)))
            for key, block in blocks.items()
        ],
        fixed_per_target,
        fixed if isinstance(fixed, float) else None,
        layout.single_property,
    )
    fixed_only: dict[int, float] = {}
    if isinstance(fixed, dict) and layout.single_property:
        # Their per-property scale is 1 by definition, so no data are needed.
        fixed_only = {z: fixed[z] for z in sorted(fixed) if z not in types.tolist()}
    per_target, per_property = _tables(fitted, list(fixed_only.values()))
    if not enabled:
        per_target = torch.ones_like(per_target)
        per_property = [torch.ones_like(table) for table in per_property]
    n_values = sum(float(block.counts.sum()) for block in blocks.values())
    raw_sq_sum = sum(float(block.raw_sq_sum.sum()) for block in blocks.values())
    zeros = _find_zeros(blocks, fitted) if raw_sq_sum else {}
    residual_sq_sum = sum(float(sums.sum()) for sums in residual_sq_sums.values())
    sum_sq_dev = sum(block.raw_sum_sq_dev() for block in blocks.values())
    scales = TargetScales(
        layout=layout,
        extensive=extensive,
        types=types,
        per_target=per_target,
        per_property=dict(zip(blocks, per_property, strict=True)),
        fixed=fixed,
        fixed_only_types=torch.tensor(list(fixed_only), dtype=torch.int64),
        baseline_types=weights.types,
        weights=weights.by_key,
        unknown=weights.unknown,
        composition="counts" if baseline is None else baseline.composition(layout, extensive),
        fixed_weights=None if baseline is None else baseline.fixed.get(layout.name),
        additive=additive,
        rms_before=_rms(raw_sq_sum, n_values),
        rms_after=_rms(residual_sq_sum, n_values),
        zeros=zeros,
        explained_variance=1.0 - residual_sq_sum / sum_sq_dev if sum_sq_dev > 0.0 else 0.0,
        mean_squares=_mean_squares(statistics, fitted, n_values, per_target),
    )
    return scales, _below_noise(blocks, fitted, zeros) if enabled else {}


def _mean_squares(
    statistics: TargetStatistics, fitted: FittedScales, n_values: float, per_target: torch.Tensor
) -> dict[str, float]:
    """Mean squares of the values, under ``""``, and of each gradient, divided by the scales."""
    per_target = per_target[: fitted.per_target.numel()]
    values = {"": _mean_square(fitted.sq_sum, n_values, per_target)} if n_values else {}
    found = values | _mean_squares_of_gradients(statistics, per_target)
    # One that overflows, with a very small fixed scale, counts as unknown.
    return {term: value for term, value in found.items() if math.isfinite(value)}


def _mean_squares_of_gradients(
    statistics: TargetStatistics, per_target: torch.Tensor
) -> dict[str, float]:
    mean_squares = {}
    for parameter, sums in statistics.gradients.items():
        count = float(sums.counts.sum())
        if count:
            mean_squares[parameter] = _mean_square(sums.sq_sum, count, per_target)
    return mean_squares


def _mean_square(sq_sum: torch.Tensor, count: float, scales: torch.Tensor) -> float:
    """Mean square in loss space from sums of squares by type, ``(n_types,)``."""
    return float((sq_sum.sqrt() / scales).square().sum()) / count


def _tables(
    fitted: FittedScales, fixed_only: list[float]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Scales with a row per type, one over all types, one of ones, and the fixed-only scales.

    Returns:
        Per-target scales ``(n_rows,)``; for each block per-property scales
        ``(n_rows, n_properties)``.
    """
    one = torch.ones_like(fitted.pooled_target)
    per_target = [fitted.per_target, torch.stack([fitted.pooled_target, one])]
    per_target.append(torch.tensor(fixed_only, dtype=torch.float64))
    per_property = [
        torch.cat([by_type, pooled[None], pooled.new_ones((1 + len(fixed_only), len(pooled)))])
        for by_type, pooled in zip(fitted.per_property, fitted.pooled_property, strict=True)
    ]
    return torch.cat(per_target), per_property


def _identity(layout: TargetLayout) -> tuple[torch.Tensor, dict[Key, torch.Tensor]]:
    ones = torch.ones(3, dtype=torch.float64)
    return ones, {
        key: ones[:, None].repeat(1, block.n_properties) for key, block in layout.blocks.items()
    }


def _check_finite(layout: TargetLayout, squares: dict[Key, torch.Tensor]) -> None:
    for key, sums in squares.items():
        if not math.isfinite(float(sums.sum())):
            raise ValueError(
                f"target '{layout.name}', block ({layout.describe(key)}): the sum of squares over "
                "all data overflows; convert the target to a larger unit"
            )


def _noise_sq_sum(block: BlockStatistics, weights: torch.Tensor | None) -> torch.Tensor:
    """Sums of squares up to which residuals are rounding noise, ``(n_types, n_properties)``."""
    # Without a baseline the residuals are the raw values: only zeros are below this.
    stored = block.epsilon**2 * block.raw_sq_sum
    if block.rounding_sq_sum is not None:
        stored = stored + block.rounding_sq_sum
    return torch.maximum(stored, FIT_ROUNDING**2 * block.term_sq_sum(weights))


def _rms(sq_sum: float, count: float) -> float:
    return float((sq_sum / count) ** 0.5) if count else 0.0


def _fixed_per_target(layout: TargetLayout, fixed: FixedScale, types: torch.Tensor) -> torch.Tensor:
    """The fixed scale of each type, ``(n_types,)``; NaN for types without one."""
    where = f"fixed_scales of target '{layout.name}'"
    if layout.sample_kind == "pair":
        raise ValueError(f"{where}: atom-pair targets are not scaled; leave this target out")
    if isinstance(fixed, float):
        return torch.full((types.numel(),), fixed, dtype=torch.float64)
    if layout.sample_kind != "atom":
        raise ValueError(
            f"{where}: expected one number for a per-structure target, got a number per type "
            f"({fixed})"
        )
    return torch.tensor([fixed.get(z, torch.nan) for z in types.tolist()], dtype=torch.float64)


def _find_zeros(blocks: dict[Key, BlockStatistics], fitted: FittedScales) -> dict[Key, Tensor]:
    """The properties whose values are all exactly 0."""
    zeros = {
        key: below_noise & (block.raw_sq_sum == 0.0)
        for (key, block), below_noise in zip(blocks.items(), fitted.below_noise, strict=True)
    }
    return {key: properties for key, properties in zeros.items() if bool(properties.any())}


def _below_noise(
    blocks: Iterable[Key], fitted: FittedScales, zeros: dict[Key, Tensor]
) -> dict[Key, Tensor]:
    return {
        key: of_block & ~zeros[key] if key in zeros else of_block
        for key, of_block in zip(blocks, fitted.below_noise, strict=True)
    }
