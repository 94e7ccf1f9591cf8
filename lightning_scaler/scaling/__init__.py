"""The scales of targets and the conversions between the three spaces.

A :class:`Scaler` converts tensors. Imports ``settings`` and the rooms from ``tensors`` to
``baselines``; also ``reports`` when a table is requested, and ``interop`` when a checkpoint of
metatrain is read. Works without Lightning.
"""

from .alignment import align_prediction
from .arithmetic import ConversionArgs, rescale_target
from .baseline_warnings import describe_unknown, refuse_unseen_types, way_out_of_unknown
from .comparison import find_differences
from .conversion import check_factors
from .fixed_settings import fixed_settings
from .loss_space import (
    LossPredictions,
    LossTargets,
    index_by_position,
    is_auxiliary,
    predictions_to_loss,
    predictions_to_physical,
    targets_to_loss,
)
from .loss_space_sums import LossSpaceSums, TermSize
from .physical_values import (
    PhysicalValues,
    TargetPart,
    add_baseline,
    errors_in_physical_units,
    parts_of_targets,
    values_in_physical_units,
)
from .scaler import Scaler
from .summary import scales_to_draw
from .target_scales import SAMPLED_DATA, TargetScales, term_name

__all__ = [
    "SAMPLED_DATA",
    "ConversionArgs",
    "LossPredictions",
    "LossSpaceSums",
    "LossTargets",
    "PhysicalValues",
    "Scaler",
    "TargetPart",
    "TargetScales",
    "TermSize",
    "add_baseline",
    "align_prediction",
    "check_factors",
    "describe_unknown",
    "errors_in_physical_units",
    "find_differences",
    "fixed_settings",
    "index_by_position",
    "is_auxiliary",
    "parts_of_targets",
    "predictions_to_loss",
    "predictions_to_physical",
    "refuse_unseen_types",
    "rescale_target",
    "scales_to_draw",
    "targets_to_loss",
    "term_name",
    "values_in_physical_units",
    "way_out_of_unknown",
]
