"""The fit of the scales and the conversions between the three spaces.

:class:`ScaleAccumulator` collects the statistics of targets and computes a :class:`Scaler`, which
converts tensors. Imports ``settings`` and the rooms from ``tensors`` to ``baselines``; also
``reports`` when a table is requested, and ``interop`` when a checkpoint of metatrain is read. Works
without Lightning.
"""

from .accumulator import ScaleAccumulator
from .alignment import align_prediction
from .arithmetic import ConversionArgs, rescale_target
from .comparison import find_differences
from .data_parts import DataPart, missing_shards
from .drawn_scales import scales_to_draw
from .factor_range import check_factors
from .fixed_settings import fixed_settings
from .force_targets import describe_force_targets
from .loss_space import (
    index_by_position,
    predictions_to_loss,
    predictions_to_physical,
    targets_to_loss,
)
from .loss_space_sums import LossSpaceSums, TermSize
from .loss_targets import LossTargets
from .physical_values import (
    PhysicalValues,
    TargetPart,
    add_baseline,
    errors_in_physical_units,
    parts_of_targets,
    values_in_physical_units,
)
from .random_sample import RandomSample
from .sampling_errors import estimate_sample, merged
from .saved_files import load_saved, merge_files
from .scaler import Scaler
from .target_scales import TargetScales, term_name

__all__ = [
    "ConversionArgs",
    "DataPart",
    "LossSpaceSums",
    "LossTargets",
    "PhysicalValues",
    "RandomSample",
    "ScaleAccumulator",
    "Scaler",
    "TargetPart",
    "TargetScales",
    "TermSize",
    "add_baseline",
    "align_prediction",
    "check_factors",
    "describe_force_targets",
    "errors_in_physical_units",
    "estimate_sample",
    "find_differences",
    "fixed_settings",
    "index_by_position",
    "load_saved",
    "merge_files",
    "merged",
    "missing_shards",
    "parts_of_targets",
    "predictions_to_loss",
    "predictions_to_physical",
    "rescale_target",
    "scales_to_draw",
    "targets_to_loss",
    "term_name",
    "values_in_physical_units",
]
