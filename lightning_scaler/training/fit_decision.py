"""Whether scales that were fitted before are what the settings of now ask for."""

from collections.abc import Iterable

from ..scaling import Scaler
from ..settings import FixedScale, Settings, check_names


def check_restored(
    scaler: Scaler,
    asked: Settings,
    targets: Iterable[str],
    intensive_targets: Iterable[str],
    fixed_scales: dict[str, FixedScale],
    fixed_baseline: dict[str, dict[int, float]],
    additive: str | None = None,
) -> None:
    """Compare the settings of restored scales with those asked for.

    Args:
        scaler: restored.
        asked: general settings; ``system_labels="auto"`` goes with anything.
        targets: names that are to be fitted.
        intensive_targets: names of the targets that are not divided by the number of atoms.
        fixed_scales: in plain form.
        fixed_baseline: in plain form.
        additive: the class of the additive module; ``None`` goes with one that the module brought.

    Raises:
        ValueError: for names that are no target, and one that lists every setting that differs,
            with both values.
    """
    known = {*scaler.targets, *targets}
    check_names("intensive_targets", sorted(intensive_targets), known)
    check_names("fixed_scales", fixed_scales, known)
    check_names("fixed_baseline", fixed_baseline, known)
    had = scaler.settings
    pairs = {
        name: (getattr(had, name), getattr(asked, name))
        for name in ("enabled", "baseline", "unseen_types")
    }
    if "auto" not in (had.system_labels, asked.system_labels):
        pairs["system_labels"] = (had.system_labels, asked.system_labels)
    fitted_with = None
    if scaler.additive is not None and any(scales.additive for scales in scaler.targets.values()):
        fitted_with = scaler.additive.name
        if additive is None and scaler.provided_module is not None:
            additive = scaler.provided_module.name
    pairs["additive module"] = (fitted_with, additive)
    intensive = set(intensive_targets)
    for name, scales in scaler.targets.items():
        if scales.layout.kind == "structure":
            pairs[f"intensive_targets: {name}"] = (not scales.extensive, name in intensive)
        pairs[f"fixed_scales: {name}"] = (scales.fixed, fixed_scales.get(name))
        pairs[f"fixed_baseline: {name}"] = (scales.fixed_weights, fixed_baseline.get(name))
    differences = [
        f"{name} was {before!r} and is {now!r}"
        for name, (before, now) in pairs.items()
        if before != now
    ]
    if differences:
        raise ValueError(
            "the settings of TargetScaler contradict those of the scales that the module already "
            f"has (from a checkpoint or an earlier fit): {'; '.join(differences)}; use the same "
            "settings, or refit=True to fit anew"
        )
