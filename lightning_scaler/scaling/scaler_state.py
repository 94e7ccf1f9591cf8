"""The state of a Scaler: what is saved, and the checks before it is used."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from ..baselines import FrozenModule
from ..plain_tensors import Declaration
from ..settings import Settings, parse_loss_weights
from ..tensors import (
    InvalidStateError,
    TargetLayout,
    check_shapes,
    fields_from_state,
    from_state,
    state_of,
    state_to_cpu,
)
from .target_scales import TargetScales

# 2: with additive modules. 3: saved as one tensor.
STATE_VERSION = 3

_PARTS = {"version", "settings", "targets", "additive", "declaration", "units"}

# The fields of version 2 and, without the last two of a target, version 1. Fields that came later
# take their defaults.
_OLD_SETTINGS = ("system_labels", "unseen_types", "enabled", "baseline", "provisional")
_OLD_FIELDS = (
    *("layout", "extensive", "types", "per_target", "per_property", "fixed", "given_types"),
    *("composition_types", "weights", "fixed_weights", "rms_before", "rms_after"),
    *("additive", "explained"),
)

# Attributes that have another name in states, all of which go back to version 0.1.0.
_SAVED_NAMES = {
    "fixed_only_types": "given_types",
    "baseline_types": "composition_types",
    "explained_variance": "explained",
}

# Attributes with a tensor for each block.
_BY_KEY = {"per_property", "weights", "unknown", "zeros"}


class ScalerState(NamedTuple):
    """The parts of a Scaler.

    Attributes:
        targets: scales by target name.
        settings: settings of the fit.
        additive: additive module without its code, if there is one.
        declaration: declared targets, if they are plain tensors.
        units: units of targets and gradients in the data, where they are known.
    """

    targets: dict[str, TargetScales]
    settings: Settings
    additive: FrozenModule | None
    declaration: Declaration | None
    units: dict[str, str]


def write_state(parts: ScalerState) -> dict[str, Any]:
    """The parts as plain Python objects and tensors."""
    state = {
        "version": STATE_VERSION,
        "settings": asdict(parts.settings),
        "targets": {name: write_target_scales(scales) for name, scales in parts.targets.items()},
        "additive": parts.additive and parts.additive.state(),
    }
    if parts.declaration is not None:
        state["declaration"] = parts.declaration.state()
    if parts.units:
        state["units"] = dict(parts.units)
    return state


def read_state(state: Any) -> ScalerState:
    """The inverse of :func:`write_state`, for states of this version and all earlier ones.

    Raises:
        InvalidStateError: for anything else, and for a state that contradicts itself.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise InvalidStateError(
            f"expected the state of a Scaler, got a {type(state).__name__} without its version"
        )
    version = state["version"]
    if not isinstance(version, int) or not 1 <= version <= STATE_VERSION:
        raise InvalidStateError(
            f"expected a scaler state of version {STATE_VERSION} or older, got version "
            f"{version!r}; update lightning_scaler to read it"
        )
    missing = [name for name in ("settings", "targets") if name not in state]
    missing += ["additive"] if version > 1 and "additive" not in state else []
    unknown = [str(name) for name in state.keys() - _PARTS]
    if missing or unknown:
        problem = "missing" if missing else "unknown"
        raise InvalidStateError(f"{problem} fields: {', '.join(missing or sorted(unknown))}")
    state = state_to_cpu(state)
    complete = version == STATE_VERSION
    with state_of("settings"):
        if not complete:
            _check_fields(state["settings"], _OLD_SETTINGS)
        settings = from_state(Settings, state["settings"], complete)
        try:
            parse_loss_weights(settings.loss_weights)
        except ValueError as error:
            raise InvalidStateError(str(error)) from error
    with state_of("targets"):
        saved_targets = from_state(dict[str, Any], state["targets"])
    targets = {}
    for name, saved in saved_targets.items():
        if not complete:
            with state_of(f"target '{name}'"):
                _check_fields(saved, _OLD_FIELDS[: len(_OLD_FIELDS) - 2 * (version == 1)])
        targets[name] = read_target_scales(name, saved, complete)
    additive = None
    if state.get("additive") is not None:
        with state_of("additive"):
            additive = FrozenModule.from_state(state["additive"])
    declaration = None
    if "declaration" in state:
        with state_of("declaration"):
            declaration = Declaration.from_state(state["declaration"])
    with state_of("units"):
        units = {} if declaration is None else declaration.units
        units = {**units, **from_state(dict[str, str], state.get("units", {}))}
    parts = ScalerState(targets, settings, additive, declaration, units)
    _check_consistent(parts)
    return parts


def _check_fields(state: Any, names: Iterable[str]) -> None:
    missing = [name for name in names if not isinstance(state, Mapping) or name not in state]
    if missing:
        raise InvalidStateError(f"missing fields: {', '.join(missing)}")


def _check_consistent(parts: ScalerState) -> None:
    for name, scales in parts.targets.items():
        if scales.additive and parts.additive is None:
            raise InvalidStateError(
                f"target '{name}': expected the additive module that was subtracted from it, got "
                "none"
            )
        if scales.weights and parts.settings.baseline == "none":
            raise InvalidStateError(
                f"target '{name}': expected no baseline weights under baseline='none', got some"
            )


def write_target_scales(scales: TargetScales) -> dict[str, Any]:
    """Plain Python objects and tensors (``torch.load(weights_only=True)``)."""
    plain = scales.__getstate__()
    plain["layout"] = scales.layout.state()
    for name in _BY_KEY:
        plain[name] = [(list(key), tensor) for key, tensor in plain[name].items()]
    for name, saved in _SAVED_NAMES.items():
        plain[saved] = plain.pop(name)
    return plain


def read_target_scales(name: str, state: Any, complete: bool = True) -> TargetScales:
    """The inverse of :func:`write_target_scales`, for states of earlier versions too.

    Args:
        name: name of the target.
        state: result of :func:`write_target_scales`.
        complete: ``False`` for states of earlier versions, which may not have all fields.

    Raises:
        InvalidStateError: for a missing or unknown field, or a value that does not fit.
    """
    with state_of(f"target '{name}'"):
        if not isinstance(state, Mapping):
            raise InvalidStateError(f"expected a dict, got a {type(state).__name__}")
        attributes = {saved: attribute for attribute, saved in _SAVED_NAMES.items()}
        plain = {attributes.get(saved, saved): value for saved, value in state.items()}
        plain.setdefault("relative_errors", None)  # earlier versions read all data
        if "layout" in plain:
            plain["layout"] = TargetLayout.from_state(name, plain["layout"])
        scales: TargetScales = fields_from_state(TargetScales, plain, complete)
        _check_loaded(scales)
    return _without_nan_weights(scales)


def _check_loaded(scales: TargetScales) -> None:
    """Check that the fields of loaded scales agree with each other and with the layout.

    Raises:
        InvalidStateError: for other shapes, types that are not sorted, scales that are not
            positive, or values for blocks that the target does not have.
    """
    layout = scales.layout
    per_atom = layout.sample_kind == "atom"
    sizes = {
        "n_types": scales.types.numel(),
        "n_fixed_only_types": scales.fixed_only_types.numel(),
        "n_baseline_types": scales.baseline_types.numel(),
    }
    sizes["n_rows"] = sizes["n_types"] + 2 + sizes["n_fixed_only_types"]
    n_properties = {key: block.n_properties for key, block in layout.blocks.items()}
    check_shapes(scales, sizes, {"n_properties": n_properties})
    if scales.per_property.keys() != n_properties.keys():
        raise InvalidStateError(
            f"per_property: expected the blocks {list(n_properties)}, got "
            f"{list(scales.per_property)}"
        )
    if not per_atom and scales.types.tolist() != [-1]:
        raise InvalidStateError(f"types: expected [-1], got {scales.types.tolist()}")
    for name in ("types", "fixed_only_types", "baseline_types"):
        types = getattr(scales, name)
        if bool((types.diff() <= 0).any()):
            raise InvalidStateError(f"{name}: expected sorted types, got {types.tolist()}")
    terms = {"", *layout.gradients}
    wrong_terms = {t: m for t, m in scales.mean_squares.items() if t not in terms or m < 0}
    if wrong_terms:
        raise InvalidStateError(
            f"mean_squares: expected numbers of at least 0 for {sorted(terms)}, got {wrong_terms}"
        )
    if not scales.unknown.keys() <= scales.weights.keys():
        raise InvalidStateError(
            f"unknown: expected some of the blocks with weights, {list(scales.weights)}, got "
            f"{list(scales.unknown)}"
        )
    fractions = layout.sample_kind == "structure" and not scales.extensive
    if scales.weights and scales.composition not in ("counts", *(["fractions"] * fractions)):
        raise InvalidStateError(
            f"composition: expected one that suits the target, got '{scales.composition}'"
        )
    if isinstance(scales.fixed, dict) and not per_atom:
        raise InvalidStateError("fixed: expected one number for a target that is not per-atom")
    fixed = scales.fixed.values() if isinstance(scales.fixed, dict) else [scales.fixed]
    if any(number is not None and number <= 0 for number in fixed):
        raise InvalidStateError(f"fixed: expected positive numbers, got {scales.fixed}")
    for name, values in [
        ("per_target", scales.per_target),
        *((f"per_property: {key}", values) for key, values in scales.per_property.items()),
    ]:
        # Scales from metatrain, which have no RMS, have none over all types either, and the scale
        # 0 of a property whose data were 0.
        imported = math.isnan(scales.rms_before)
        used = torch.ones(len(values), dtype=torch.bool)
        used[sizes["n_types"]] = not imported
        wrong = ~(values[used] > 0.0)
        if imported and name != "per_target":
            wrong &= values[used] != 0.0
        if bool(wrong.any()):
            raise InvalidStateError(
                f"{name}: expected positive scales, got {values[used][wrong].tolist()}"
            )


def _without_nan_weights(scales: TargetScales) -> TargetScales:
    """The same scales, with 0 for weights without data, which are marked as unknown.

    Version 0.1.0 marked them with NaN instead.
    """
    without_data = {
        key: weights.isnan() for key, weights in scales.weights.items() if weights.isnan().any()
    }
    if not without_data:
        return scales
    weights = {key: weights.nan_to_num() for key, weights in scales.weights.items()}
    if scales.layout.sample_kind != "structure":
        return replace(scales, weights=weights)
    return replace(scales, weights=weights, unknown=without_data)
