"""Metrics of torchmetrics in physical units.

Imports ``scaling`` and the rooms above it.
"""

from .baseline_dependence import depends_on_baseline, parts_of, set_double_precision
from .physical_units import PhysicalUnits, leave_inference_mode, select_values
from .relative_rmse import RelativeRootMeanSquaredError
from .weighted_mean import WeightedMean

__all__ = [
    "PhysicalUnits",
    "RelativeRootMeanSquaredError",
    "WeightedMean",
    "depends_on_baseline",
    "leave_inference_mode",
    "parts_of",
    "select_values",
    "set_double_precision",
]
