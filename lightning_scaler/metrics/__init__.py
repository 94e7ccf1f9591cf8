"""Metrics of torchmetrics in physical units.

Imports ``scaling`` and the rooms below it.
"""

from .physical_units import (
    PhysicalPair,
    PhysicalUnits,
    entries_of,
    leave_inference_mode,
    physical_pairs,
)
from .relative_rmse import RelativeRootMeanSquaredError

__all__ = [
    "PhysicalPair",
    "PhysicalUnits",
    "RelativeRootMeanSquaredError",
    "entries_of",
    "leave_inference_mode",
    "physical_pairs",
]
