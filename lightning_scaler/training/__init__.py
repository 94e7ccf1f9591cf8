"""Target scaling in a Lightning ``Trainer``: the callback, the mixin, the pass over the data.

Imports ``metrics``, ``scaling`` and the rooms below them, and ``reports``.
"""

from .mixin import TargetScalingMixin
from .target_scaler import TargetScaler

__all__ = [
    "TargetScaler",
    "TargetScalingMixin",
]
