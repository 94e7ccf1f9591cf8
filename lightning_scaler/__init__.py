"""Target scaling for atomistic machine learning, as a PyTorch Lightning plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines import ZBL, CompositionBaseline
    from .metrics import PhysicalUnits, RelativeRootMeanSquaredError
    from .scaling import ScaleAccumulator, Scaler
    from .training import TargetScaler, TargetScalingMixin

__all__ = [
    "ZBL",
    "CompositionBaseline",
    "PhysicalUnits",
    "RelativeRootMeanSquaredError",
    "ScaleAccumulator",
    "Scaler",
    "TargetScaler",
    "TargetScalingMixin",
]

_HOMES = {
    "CompositionBaseline": "baselines",
    "PhysicalUnits": "metrics",
    "RelativeRootMeanSquaredError": "metrics",
    "ScaleAccumulator": "scaling",
    "Scaler": "scaling",
    "TargetScaler": "training",
    "TargetScalingMixin": "training",
    "ZBL": "baselines",
}


def __getattr__(name: str) -> Any:
    # Importing Lightning takes seconds; the core and the command line's help do without it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
