"""What a module does in its steps: both mixins, the loss, metrics and checks of validation.

Imports ``data_pass``, ``metrics``, ``scaling`` and the rooms above them; knows no callback.
"""

from .metric_scopes import logged_path
from .mixin import TargetScalingMixin
from .scaled_module import ScaledModule, is_lightning, restores_later, scaler_of
from .scaled_steps import ScaledSteps, prepare, remove_hooks, set_place
from .validation_check import ValidationCheck, describe_far_terms
from .validation_rms import ValidationRms

__all__ = [
    "ScaledModule",
    "ScaledSteps",
    "TargetScalingMixin",
    "ValidationCheck",
    "ValidationRms",
    "describe_far_terms",
    "is_lightning",
    "logged_path",
    "prepare",
    "remove_hooks",
    "restores_later",
    "scaler_of",
    "set_place",
]
