"""The fit of the scales and the conversions between the three spaces.

:class:`ScaleAccumulator` collects the statistics of targets and computes a :class:`Scaler`, which
converts tensors. Imports the rooms from ``tensors`` to ``baselines``; works without Lightning.
"""

from .accumulator import ScaleAccumulator
from .arithmetic import physical_entries
from .conversion import factors_of_rows
from .loss_space import between_positions, predictions_to_loss, targets_to_loss
from .scaler import Scaler
from .target_scales import TargetScales

__all__ = [
    "ScaleAccumulator",
    "Scaler",
    "TargetScales",
    "between_positions",
    "factors_of_rows",
    "physical_entries",
    "predictions_to_loss",
    "targets_to_loss",
]
