"""Target scaling for atomistic machine learning, as a PyTorch Lightning plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accumulator import ScaleAccumulator
    from .baseline import CompositionBaseline
    from .callback import TargetScaler
    from .metrics import PhysicalUnits
    from .mixin import TargetScalingMixin
    from .relative_error import RelativeRootMeanSquaredError
    from .scaler import Scaler
    from .zbl import ZBL

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
    "CompositionBaseline": "baseline",
    "PhysicalUnits": "metrics",
    "RelativeRootMeanSquaredError": "relative_error",
    "ScaleAccumulator": "accumulator",
    "Scaler": "scaler",
    "TargetScaler": "callback",
    "TargetScalingMixin": "mixin",
    "ZBL": "zbl",
}


def __getattr__(name: str) -> Any:
    # Importing Lightning takes seconds; the core and the command line's help do without it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
