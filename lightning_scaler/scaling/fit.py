"""From the statistics of one target to its scales and baseline."""

import torch

from ..baselines import CompositionBaseline
from ..settings import FixedScale
from ..statistics import BlockStatistics, Fitted, TargetStatistics, fit_scales
from ..tensors import Key, TargetLayout
from .target_scales import TargetScales

# Residuals carry a few roundings of the fit, which is in float64.
ROUNDINGS_OF_THE_FIT = 16.0 * torch.finfo(torch.float64).eps


def fit_target(
    statistics: TargetStatistics,
    extensive: bool,
    baseline: CompositionBaseline | None,
    fixed: FixedScale | None = None,
    enabled: bool = True,
    additive: bool = False,
) -> tuple[TargetScales, list[str]]:
    """Fit one target.

    Args:
        statistics: of the target.
        extensive: how they were taken.
        baseline: what comes off first.
        fixed: per-target scale that replaces the fitted one.
        enabled: ``False`` sets every scale to 1.
        additive: whether contributions of an additive module came off first.

    Returns:
        The scales; and in words, which data vanish: they have an RMS of zero, or below the
        rounding noise of the data before the baseline came off.

    Raises:
        ValueError: for a fixed scale or baseline that does not suit the target.
    """
    layout, blocks = statistics.layout, statistics.blocks
    types = statistics.types if layout.kind == "atom" else torch.tensor([-1])
    per_target = None if fixed is None else _fixed_per_target(layout, fixed, types)
    weights = {} if baseline is None else baseline.weights(statistics)
    if layout.kind == "pair":
        scales = TargetScales(layout, extensive, types, *_identity(layout))
        return scales, []
    squares = {key: block.residual(weights.get(key)) for key, block in blocks.items()}
    _check_finite(layout, squares)
    noise = [_noise(block, weights.get(key)) for key, block in blocks.items()]
    fixed_weights = None if baseline is None else baseline.fixed.get(layout.name)
    baseline_types = statistics.types
    if fixed_weights is not None:
        # Types that the data lack have a number too.
        baseline_types = torch.tensor(sorted(fixed_weights))
        numbers = [[fixed_weights[z]] for z in baseline_types.tolist()]
        weights = {key: torch.tensor(numbers, dtype=torch.float64) for key in weights}
    fitted = fit_scales(
        list(squares.values()),
        [block.counts for block in blocks.values()],
        noise,
        per_target,
        fixed if isinstance(fixed, float) else None,
        layout.single_property,
    )
    with_stand_ins = [
        torch.cat([own, pooled[None], torch.ones_like(pooled)[None]])
        for own, pooled in zip(fitted.per_property, fitted.pooled_property, strict=True)
    ]
    stand_ins = torch.stack([fitted.pooled_target, torch.ones_like(fitted.pooled_target)])
    entries = sum(float(block.counts.sum()) for block in blocks.values())
    squares_left = sum(float(sums.sum()) for sums in squares.values())
    variance = sum(block.variance() for block in blocks.values())
    scales = TargetScales(
        layout=layout,
        extensive=extensive,
        types=types,
        per_target=torch.cat([fitted.per_target, stand_ins]),
        per_property=dict(zip(blocks, with_stand_ins, strict=True)),
        fixed=fixed,
        baseline_types=baseline_types,
        weights=weights,
        fixed_weights=fixed_weights,
        rms_before=_rms(sum(float(block.stored.sum()) for block in blocks.values()), entries),
        additive=additive,
        rms_after=_rms(squares_left, entries),
        explained_variance=1.0 - squares_left / variance if variance > 0.0 else 0.0,
    )
    words = _in_words(layout, list(blocks), types, fitted)
    if isinstance(fixed, dict) and layout.single_property:
        # Nothing but the number is needed of a type, so those that the data lack have theirs too.
        given = [z for z in sorted(fixed) if z not in types.tolist()]
        more = torch.tensor([fixed[z] for z in given], dtype=torch.float64)
        scales.fixed_only_types = torch.tensor(given, dtype=torch.int64)
        scales.per_target = torch.cat([scales.per_target, more])
        ones = torch.ones((len(scales.per_target), 1), dtype=torch.float64)
        scales.per_property = dict.fromkeys(blocks, ones)
    if not enabled:
        scales.per_target = torch.ones_like(scales.per_target)
        scales.per_property = {k: torch.ones_like(v) for k, v in scales.per_property.items()}
        return scales, []
    return scales, words


def _identity(layout: TargetLayout) -> tuple[torch.Tensor, dict[Key, torch.Tensor]]:
    ones = torch.ones(3, dtype=torch.float64)
    return ones, {
        key: ones[:, None].repeat(1, block.n_properties) for key, block in layout.blocks.items()
    }


def _check_finite(layout: TargetLayout, squares: dict[Key, torch.Tensor]) -> None:
    for key, sums in squares.items():
        if not bool(torch.isfinite(sums.sum())):
            raise ValueError(
                f"target '{layout.name}', block ({layout.describe(key)}): the sum of squares over "
                "all data overflows; give the target in a larger unit"
            )


def _noise(block: BlockStatistics, weights: torch.Tensor | None) -> torch.Tensor:
    # Without a baseline the squares are those stored, and below it only where they are 0.
    of_data = block.epsilon**2 * block.stored
    if block.noise is not None:
        of_data = of_data + block.noise
    return torch.maximum(of_data, ROUNDINGS_OF_THE_FIT**2 * block.contributions(weights))


def _rms(squares: float, entries: float) -> float:
    return float((squares / entries) ** 0.5) if entries else 0.0


def _fixed_per_target(layout: TargetLayout, fixed: FixedScale, types: torch.Tensor) -> torch.Tensor:
    where = f"fixed_scales of target '{layout.name}'"
    if layout.kind == "pair":
        raise ValueError(f"{where}: atom-pair targets are not scaled; leave this target out")
    if isinstance(fixed, float):
        return torch.full((types.numel(),), fixed, dtype=torch.float64)
    if layout.kind != "atom":
        raise ValueError(
            f"{where}: expected one number for a per-structure target, got a number per type "
            f"({fixed})"
        )
    missing = [atomic_type for atomic_type in types.tolist() if atomic_type not in fixed]
    if missing:
        raise ValueError(
            f"{where}: no number for the atomic types {missing} of the data, only for "
            f"{sorted(fixed)}; add them"
        )
    return torch.tensor([fixed[z] for z in types.tolist()], dtype=torch.float64)


def _in_words(
    layout: TargetLayout, keys: list[Key], types: torch.Tensor, fitted: Fitted
) -> list[str]:
    words = []
    for key, vanishing in zip(keys, fitted.vanishing, strict=True):
        for group, column in vanishing.nonzero().tolist():
            atomic_type = int(types[group])
            of_type = "" if atomic_type == -1 else f", type {atomic_type}"
            words.append(
                f"target '{layout.name}', {layout.describe_property(key, column)}{of_type}"
            )
    return words
