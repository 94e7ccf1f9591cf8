"""The state of a Scaler: what is saved, and the checks before it is used."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from ..baselines import FrozenModule
from ..plain_tensors import Declaration
from ..settings import Settings, parse_loss_weights
from ..tensors import InvalidStateError, from_state, state_of, state_to_cpu
from .target_scales import TargetScales
from .target_scales_state import read_target_scales, write_target_scales

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
