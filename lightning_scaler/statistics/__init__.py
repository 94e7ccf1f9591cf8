"""Statistics of targets that merge exactly: sums, means and streaming least squares.

Imports ``tensors`` and ``batches``.
"""

from .batch_statistics import BlockValues
from .block_statistics import BlockStatistics
from .gradient_sums import GradientSums, gradient_sums, value_sums
from .pending import JoinedBatch, PendingBatches, copy_small_values
from .target_statistics import TargetStatistics

__all__ = [
    "BlockStatistics",
    "BlockValues",
    "GradientSums",
    "JoinedBatch",
    "PendingBatches",
    "TargetStatistics",
    "copy_small_values",
    "gradient_sums",
    "value_sums",
]
