"""Sums, means and least-squares problems that merge exactly, and what is kept of one target.

Imports ``tensors`` and ``batches``.
"""

from .block_statistics import BlockStatistics
from .moments import Fitted, fit_scales
from .pending import ENTRIES_AT_ONCE, Values, WaitingBatches, copies_of_small
from .target_statistics import TargetStatistics

__all__ = [
    "ENTRIES_AT_ONCE",
    "BlockStatistics",
    "Fitted",
    "TargetStatistics",
    "Values",
    "WaitingBatches",
    "copies_of_small",
    "fit_scales",
]
