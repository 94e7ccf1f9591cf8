"""Target scaling for atomistic machine learning, as a PyTorch Lightning plugin."""

from .accumulator import ScaleAccumulator
from .baseline import CompositionBaseline
from .callback import TargetScaler
from .metrics import PhysicalUnits
from .mixin import TargetScalingMixin
from .scaler import Scaler

__all__ = [
    "CompositionBaseline",
    "PhysicalUnits",
    "ScaleAccumulator",
    "Scaler",
    "TargetScaler",
    "TargetScalingMixin",
]
