"""What a module does in its steps: both mixins, the loss, metrics and checkpoints.

Imports ``data_pass``, ``metrics``, ``scaling`` and the rooms above them; knows no callback.
"""

from .epoch_log import logged_path
from .mixin import TargetScalingMixin
from .padding import drop_systems, evaluation_loaders, padded_positions
from .scaled_module import ScaledModule, is_lightning, restores_later, scaler_of
from .scaled_steps import ScaledSteps, prepare, remove_hooks, set_place

__all__ = [
    "ScaledModule",
    "ScaledSteps",
    "TargetScalingMixin",
    "drop_systems",
    "evaluation_loaders",
    "is_lightning",
    "logged_path",
    "padded_positions",
    "prepare",
    "remove_hooks",
    "restores_later",
    "scaler_of",
    "set_place",
]
