"""Metrics of torchmetrics in physical units.

Imports ``scaling`` and the rooms above it.
"""

from .baseline_dependence import depends_on_baseline, parts_of, set_double_precision
from .error_sums import ErrorSums
from .physical_units import PhysicalUnits, leave_inference_mode, select_values
from .relative_rmse import RelativeRootMeanSquaredError
from .summed_error import SummedError, is_summable
from .weighted_mean import WeightedMean
from .weighted_means import WeightedMeans

__all__ = [
    "ErrorSums",
    "PhysicalUnits",
    "RelativeRootMeanSquaredError",
    "SummedError",
    "WeightedMean",
    "WeightedMeans",
    "depends_on_baseline",
    "is_summable",
    "leave_inference_mode",
    "parts_of",
    "select_values",
    "set_double_precision",
]
