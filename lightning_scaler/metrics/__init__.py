"""Metrics of torchmetrics in physical units.

Imports ``scaling`` and the rooms above it.
"""

from .physical_units import PhysicalUnits, leave_inference_mode, select_values
from .relative_rmse import RelativeRootMeanSquaredError

__all__ = [
    "PhysicalUnits",
    "RelativeRootMeanSquaredError",
    "leave_inference_mode",
    "select_values",
]
