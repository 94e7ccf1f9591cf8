"""Metrics of torchmetrics in physical units.

Imports ``scaling`` and the rooms above it.
"""

from .metric_parts import depends_on_baseline, leave_inference_mode, parts_of, set_double_precision
from .physical_units import PhysicalUnits, select_values
from .relative_rmse import RelativeRootMeanSquaredError
from .shared_sums import MeanOfSums, SharedMetric, SharedSums, SummedError, is_summable

__all__ = [
    "MeanOfSums",
    "PhysicalUnits",
    "RelativeRootMeanSquaredError",
    "SharedMetric",
    "SharedSums",
    "SummedError",
    "depends_on_baseline",
    "is_summable",
    "leave_inference_mode",
    "parts_of",
    "select_values",
    "set_double_precision",
]
