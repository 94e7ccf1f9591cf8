"""Target scaling in a Lightning ``Trainer``: the callback, the mixin and the data pass.

Imports ``metrics``, ``scaling`` and the rooms above them.
"""

from .mixin import TargetScalingMixin
from .pass_without_module import collect_statistics
from .scale_steps import scaled_class, unscaled_copy
from .scaled_steps import ScaledSteps
from .target_scaler import TargetScaler

__all__ = [
    "ScaledSteps",
    "TargetScaler",
    "TargetScalingMixin",
    "collect_statistics",
    "scaled_class",
    "unscaled_copy",
]
