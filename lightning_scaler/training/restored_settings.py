"""Whether the settings requested now are those of restored scales."""

from collections.abc import Collection
from typing import Any

from ..scaling import Scaler, TargetScales
from ..settings import FixedScale, RefitPart, Settings, check_names

# The settings of a target, by name, and its values in the scales and now.
Pairs = dict[str, tuple[Any, Any]]


def check_restored(
    scaler: Scaler,
    requested: Settings,
    targets: Collection[str],
    intensive_targets: Collection[str],
    fixed_scales: dict[str, FixedScale],
    fixed_baseline: dict[str, dict[int, float]],
    additive: str | None = None,
    without_baseline: Collection[str] = (),
    part: RefitPart | None = None,
    new_scales: Collection[str] = (),
) -> None:
    """Check that the settings of restored scales are those requested now.

    Args:
        scaler: restored scaler.
        requested: general settings; ``system_labels="auto"`` matches any.
        targets: names of the targets to fit; of others, only settings that name them are compared.
            Empty: all are.
        intensive_targets: names of the targets that are not divided by the number of atoms.
        fixed_scales: per-target scales by target name, as ``settings.parse_fixed_scales`` returns
            them.
        fixed_baseline: contributions per atomic type by target name, as
            ``settings.parse_fixed_baseline`` returns them.
        additive: class name of the additive module; ``None`` matches one that the network provides.
        without_baseline: names of the targets that are excluded from the composition baseline.
        part: part of the scales that is fitted again, whose settings may differ.
        new_scales: names of the targets whose scales are fitted again.

    Raises:
        ValueError: for names of unknown targets, and if settings differ: each with both values.
    """
    known = {*scaler.targets, *targets}
    check_names("intensive_targets", sorted(intensive_targets), known)
    check_names("fixed_scales", fixed_scales, known)
    check_names("fixed_baseline", fixed_baseline, known)
    check_names("baseline", without_baseline, known)

    named = {*targets, *intensive_targets, *fixed_scales, *fixed_baseline, *without_baseline}
    compared = [name for name in scaler.targets if not targets or name in named]

    def differences(part: RefitPart | None) -> list[str]:
        pairs = _general_settings(scaler, requested, additive, part)
        for name in compared:
            scales = scaler.targets[name]
            if scales.layout.sample_kind == "structure":
                intensive = (not scales.extensive, name in intensive_targets)
                pairs[f"intensive_targets: {name}"] = intensive
            if part != "baseline" and (scales.weights or scales.composition == "none"):
                now = "none" if name in without_baseline else "composition"
                before = "none" if scales.composition == "none" else "composition"
                pairs[f"baseline: {name}"] = (before, now)
            fixed = (scales.fixed, fixed_scales.get(name))
            weights = (scales.fixed_weights, fixed_baseline.get(name))
            if part is not None:
                fixed = _of_known_types(fixed, _types_with_scales(scales))
                weights = _of_known_types(weights, _types_with_weights(scales))
            if name not in new_scales:
                pairs[f"fixed_scales: {name}"] = fixed
            if part != "baseline":
                pairs[f"fixed_baseline: {name}"] = weights
        return [
            f"{name} was {before!r} and is {now!r}"
            for name, (before, now) in pairs.items()
            if before != now
        ]

    found = differences(part)
    if not found:
        return
    ways_out = "use the same settings, or set refit=True to fit again"
    if part is None and not differences("types"):
        ways_out = (
            "use the same settings, or set refit='types' to use these for new atomic types and "
            "keep all numbers of the others, or set refit=True to fit again"
        )
    raise ValueError(
        "the settings of TargetScaler contradict those of the scales that the module already "
        f"has (from a checkpoint or an earlier fit): {'; '.join(found)}; {ways_out}"
    )


def _general_settings(
    scaler: Scaler, requested: Settings, additive: str | None, part: RefitPart | None
) -> Pairs:
    restored = scaler.settings
    names = ("enabled",) if part == "baseline" else ("enabled", "baseline")
    pairs = {name: (getattr(restored, name), getattr(requested, name)) for name in names}
    # Provisional scales are "pooled", whatever was requested.
    if part is None and not restored.provisional:
        pairs["unseen_types"] = (restored.unseen_types, requested.unseen_types)
    if "auto" not in (restored.system_labels, requested.system_labels):
        pairs["system_labels"] = (restored.system_labels, requested.system_labels)
    restored_additive = None
    if scaler.additive is not None and any(scales.additive for scales in scaler.targets.values()):
        restored_additive = scaler.additive.name
        if additive is None and scaler.provided_module is not None:
            additive = scaler.provided_module.name
    pairs["additive module"] = (restored_additive, additive)
    return pairs


def _types_with_scales(scales: TargetScales) -> set[int]:
    return {*scales.types.tolist(), *scales.fixed_only_types.tolist()}


def _types_with_weights(scales: TargetScales) -> set[int]:
    return {*scales.baseline_types.tolist()} - {*scales.unknown_types}


def _of_known_types(fixed: tuple[Any, Any], types: set[int]) -> tuple[Any, Any]:
    """The fixed numbers before and now, without those of other types."""
    before, now = (
        {z: number for z, number in numbers.items() if z in types} or None
        if isinstance(numbers, dict)
        else numbers
        for numbers in fixed
    )
    return before, now
