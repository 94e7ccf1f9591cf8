"""The state of a Scaler: what is saved, and the checks before it is used."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from ..baselines import FrozenModule
from ..settings import Settings
from ..tensors import InvalidStateError, from_state, state_of, state_to_cpu
from .target_scales import TargetScales

# 2: with additive modules. 3: saved as one tensor.
STATE_VERSION = 3


class ScalerState(NamedTuple):
    """The parts of a Scaler.

    Attributes:
        targets: scales by target name.
        settings: settings of the fit.
        additive: additive module without its code, if there is one.
    """

    targets: dict[str, TargetScales]
    settings: Settings
    additive: FrozenModule | None


def write_state(parts: ScalerState) -> dict[str, Any]:
    """The parts as plain Python objects and tensors."""
    return {
        "version": STATE_VERSION,
        "settings": asdict(parts.settings),
        "targets": {name: scales.state() for name, scales in parts.targets.items()},
        "additive": parts.additive and parts.additive.state(),
    }


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
    unknown = [str(name) for name in state.keys() - {"version", "settings", "targets", "additive"}]
    if missing or unknown:
        problem = "missing" if missing else "unknown"
        raise InvalidStateError(f"{problem} fields: {', '.join(missing or sorted(unknown))}")
    state = state_to_cpu(state)
    complete = version == STATE_VERSION
    with state_of("settings"):
        settings = from_state(Settings, state["settings"], complete)
    with state_of("targets"):
        saved_targets = from_state(dict[str, Any], state["targets"])
    targets = {
        name: TargetScales.from_state(name, saved, complete)
        for name, saved in saved_targets.items()
    }
    additive = None
    if state.get("additive") is not None:
        with state_of("additive"):
            additive = FrozenModule.from_state(state["additive"])
    _check_consistent(ScalerState(targets, settings, additive))
    return ScalerState(targets, settings, additive)


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
