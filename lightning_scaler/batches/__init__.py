"""Batches: their systems and atoms, and how the rows of a target refer to them.

Takes batches apart, joins them, moves them to a device, and determines once per target which system
or atom each row belongs to. Imports ``tensors`` and ``settings``.
"""

from .atomic_types import LARGEST_IN_TABLE, find_types, unique_types
from .atoms import Atoms, LabelRecord, read_atoms
from .device import move_to_device, move_unpacked
from .engine import neighbor_vectors, sample_labels, sample_values, selected_samples
from .ignored_values import check_plain_values, describe_type
from .indexed_target import (
    IndexedBatch,
    IndexedTarget,
    index_batch,
    index_targets,
    relabel_by_position,
)
from .inference import clone_inference_tensors
from .joined import join_batches, join_predictions
from .system_labels import SystemIndexing
from .systems import HasTypes, LazySystems, OwnBatch, is_system
from .unpack import Batch, check_unpacked, unpack

__all__ = [
    "LARGEST_IN_TABLE",
    "Atoms",
    "Batch",
    "HasTypes",
    "IndexedBatch",
    "IndexedTarget",
    "LabelRecord",
    "LazySystems",
    "OwnBatch",
    "SystemIndexing",
    "check_plain_values",
    "check_unpacked",
    "clone_inference_tensors",
    "describe_type",
    "find_types",
    "index_batch",
    "index_targets",
    "is_system",
    "join_batches",
    "join_predictions",
    "move_to_device",
    "move_unpacked",
    "neighbor_vectors",
    "read_atoms",
    "relabel_by_position",
    "sample_labels",
    "sample_values",
    "selected_samples",
    "unique_types",
    "unpack",
]
