"""The callback: what it decides, checks, fits and reports in a run of a Lightning ``Trainer``.

Imports ``data_pass``, ``steps`` and the rooms above them.
"""

from .pass_without_module import collect_statistics
from .scale_steps import scaled_class, unscaled_copy
from .target_scaler import TargetScaler

__all__ = ["TargetScaler", "collect_statistics", "scaled_class", "unscaled_copy"]
