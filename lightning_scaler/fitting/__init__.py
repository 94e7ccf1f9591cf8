"""The fit of the scales: statistics of batches are collected, merged, saved, and computed.

:class:`ScaleAccumulator` reads batches and computes a :class:`Scaler`. Imports ``settings`` and the
rooms from ``tensors`` to ``scaling``. Works without Lightning.
"""

from .accumulator import ScaleAccumulator
from .data_parts import DataPart, missing_shards
from .data_warnings import describe_force_targets
from .random_sample import RandomSample
from .sampling_errors import estimate_sample, merged
from .saved_files import load_saved, merge_files

__all__ = [
    "DataPart",
    "RandomSample",
    "ScaleAccumulator",
    "describe_force_targets",
    "estimate_sample",
    "load_saved",
    "merge_files",
    "merged",
    "missing_shards",
]
