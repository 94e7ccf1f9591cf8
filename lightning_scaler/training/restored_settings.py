"""The settings requested now: compared with those of restored scales, and given to a scaler."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, NoReturn

from lightning.pytorch.utilities import rank_zero_warn

from ..plain_tensors import Declaration
from ..scaling import Scaler
from ..settings import RefitPart, Settings, check_names, did_you_mean, same_unit
from .fit_settings import FitSettings

# Settings by name, each with its value in the restored scales and the one requested now.
Pairs = dict[str, tuple[Any, Any]]


def check_restored(scaler: Scaler, request: FitSettings) -> None:
    """Check that the settings of restored scales are those requested now.

    If targets are named, settings of others are compared only where they are named too.
    ``system_labels="auto"`` matches any, and so does no additive module where the network provides
    one. A part of the scales that is fitted again may have other settings.

    Args:
        scaler: restored scaler.
        request: settings of the callback.

    Raises:
        ValueError: for names of unknown targets, and if settings differ: each with both values.
    """
    targets, known = request.targets or (), {*scaler.targets, *(request.targets or ())}
    by_target = {
        "intensive_targets": sorted(request.intensive_targets),
        "fixed_scales": request.fixed_scales,
        "fixed_baseline": request.fixed_baseline,
        "baseline": request.without_baseline,
    }
    for setting, names in by_target.items():
        check_names(setting, names, known)
    named = {*targets, *(name for names in by_target.values() for name in names)}
    compared = [name for name in scaler.targets if not targets or name in named]
    found = _differences(scaler, request, compared, request.part)
    if not found:
        return
    ways_out = "use the same settings, or set refit=True to fit again"
    if request.part is None and not _differences(scaler, request, compared, "types"):
        ways_out = (
            "use the same settings, or set refit='types' to use these for new atomic types and "
            "keep all numbers of the others, or set refit=True to fit again"
        )
    raise ValueError(
        "the settings of TargetScaler contradict those of the scales that the module already "
        f"has (from a checkpoint or an earlier fit): {'; '.join(found)}; {ways_out}"
    )


def declare_targets(scaler: Scaler, request: FitSettings) -> None:
    """Give a scaler the declared targets, or none for a list of names, and the units of the data.

    A checkpoint may have others.

    Args:
        scaler: scaler of the module, fitted or not.
        request: settings of the callback.

    Raises:
        ValueError: if the scales that are kept belong to other values or units.
    """
    if request.declaration is not None and scaler.fitted and request.refit is not True:
        _check_same_values(scaler.declaration, request.declaration)
        _warn_of_undeclared(scaler, request.declaration)
    if request.refit is not True:
        check_same_units(scaler.units, request.units)
    if request.targets is not None:
        scaler.declare(request.declaration)
    scaler.units = {**scaler.units, **request.units}


def store_loss_settings(scaler: Scaler, request: FitSettings, stored: Settings) -> None:
    """Store the settings of the loss in a fitted scaler.

    Unlike scales, weights may change when training is resumed: those set now replace stored ones.

    Args:
        scaler: scaler with all its targets.
        request: settings of the callback.
        stored: settings of the restored scales, or the defaults.

    Raises:
        ValueError: for a weight that is not of a term of the loss; lists the terms. If all terms
            have the weight 0.
    """
    weights, balance = request.loss_weights, request.balance_loss
    weights = stored.loss_weights if weights is None else weights
    balance = stored.balance_loss if balance is None else balance
    unknown = [term for term in weights if term not in scaler.loss_terms]
    if unknown:
        raise ValueError(
            f"loss_weights names '{unknown[0]}', which is not a term of the loss; "
            f"{did_you_mean(unknown[0], scaler.loss_terms)}"
        )
    if scaler.loss_terms and all(weights.get(term) == 0 for term in scaler.loss_terms):
        raise ValueError(
            f"loss_weights: expected a positive weight for one of the terms of the loss, got "
            f"{weights}, with which the loss is always 0"
        )
    scaler.settings = replace(scaler.settings, loss_weights=dict(weights), balance_loss=balance)


def _check_same_values(before: Declaration | None, now: Declaration) -> None:
    """Check that declared targets have the values that restored scales belong to.

    Addresses may differ.

    Raises:
        ValueError: for values per atom instead of totals.
    """
    targets = {} if before is None else before.targets
    for name in now.targets.keys() & targets.keys():
        old, new = (getattr(one[name], "per_atom", None) for one in (targets, now.targets))
        if None not in (old, new) and old != new:
            _raise_for_other(name, "per_atom", old, new)


def check_same_units(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check that the data have the units that restored scales belong to.

    Raises:
        ValueError: for another unit.
    """
    for name in before.keys() & now.keys():
        if not same_unit(before[name], now[name]):
            _raise_for_other(name, "unit", before[name], now[name])


def _warn_of_undeclared(scaler: Scaler, now: Declaration) -> None:
    """Warn of targets with scales that were declared before and are not any more."""
    before = scaler.declaration.targets.keys() if scaler.declaration else set()
    undeclared = sorted((before & scaler.targets.keys()) - now.targets.keys())
    if undeclared:
        rank_zero_warn(
            f"the module has scales of the targets {undeclared}, which targets={{…}} does not "
            "declare, so that they stay in model space where forward returns them, also in "
            "predictions, and with checkpoints of this run; declare them too, unless forward no "
            "longer returns them"
        )


def _raise_for_other(name: str, argument: str, old: Any, new: Any) -> NoReturn:
    raise ValueError(
        f"target '{name}': the scales that the module already has are for {argument}={old!r}, and "
        f"it is declared with {argument}={new!r}; use the same values, or set refit=True to fit "
        "again"
    )


def _differences(
    scaler: Scaler, request: FitSettings, names: Iterable[str], part: RefitPart | None
) -> list[str]:
    """The settings that differ, of all targets and of some, with both values in words."""
    pairs = _general_settings(scaler, request, part)
    for name in names:
        scales = scaler.targets[name]
        if scales.layout.sample_kind == "structure":
            intensive = (not scales.extensive, name in request.intensive_targets)
            pairs[f"intensive_targets: {name}"] = intensive
        if part != "baseline" and (scales.weights or scales.composition == "none"):
            now = "none" if name in request.without_baseline else "composition"
            before = "none" if scales.composition == "none" else "composition"
            pairs[f"baseline: {name}"] = (before, now)
        fixed = (scales.fixed, request.fixed_scales.get(name))
        weights = (scales.fixed_weights, request.fixed_baseline.get(name))
        if part is not None:
            fixed = _of_known_types(fixed, {*scales.row_of_type()})
            weights = _of_known_types(weights, scales.types_with_weights)
        if name not in request.output_layers:
            pairs[f"fixed_scales: {name}"] = fixed
        if part != "baseline":
            pairs[f"fixed_baseline: {name}"] = weights
    return [
        f"{name} was {before!r} and is {now!r}"
        for name, (before, now) in pairs.items()
        if before != now
    ]


def _general_settings(scaler: Scaler, request: FitSettings, part: RefitPart | None) -> Pairs:
    restored, requested, additive = scaler.settings, request.settings, request.additive_name
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


def _of_known_types(fixed: tuple[Any, Any], types: Set[int]) -> tuple[Any, Any]:
    """The fixed numbers before and now, without those of other types."""
    before, now = (
        {z: number for z, number in numbers.items() if z in types} or None
        if isinstance(numbers, dict)
        else numbers
        for numbers in fixed
    )
    return before, now
