"""Batches: their systems and atoms, and how the rows of a target refer to them.

Takes batches apart, moves them to a device, turns plain tensors of declared targets into TensorMaps
and back, and determines once per target which system or atom each row belongs to. Imports
``tensors`` and ``settings``.
"""

from .addresses import describe_address
from .atomic_types import LARGEST_IN_TABLE, find_types
from .atoms import Atoms, read_atoms
from .declaration import Declaration
from .declared_batch import DeclaredBatch
from .declared_targets import STRESS, GradientTensor, PerAtom, PerStructure
from .declared_tensors import signed_path
from .device import move_to_device, move_unpacked
from .engine import neighbor_vectors, sample_labels, selected_samples
from .indexed_target import (
    IndexedBatch,
    IndexedTarget,
    index_batch,
    index_targets,
    relabel_by_position,
)
from .inference import clone_inference_tensors
from .joined_predictions import join_predictions
from .plain_values import check_plain_values, describe_type
from .system_labels import SystemIndexing
from .systems import HasTypes, is_system
from .unpack import Batch, check_unpacked, unpack

__all__ = [
    "LARGEST_IN_TABLE",
    "STRESS",
    "Atoms",
    "Batch",
    "Declaration",
    "DeclaredBatch",
    "GradientTensor",
    "HasTypes",
    "IndexedBatch",
    "IndexedTarget",
    "PerAtom",
    "PerStructure",
    "SystemIndexing",
    "check_plain_values",
    "check_unpacked",
    "clone_inference_tensors",
    "describe_address",
    "describe_type",
    "find_types",
    "index_batch",
    "index_targets",
    "is_system",
    "join_predictions",
    "move_to_device",
    "move_unpacked",
    "neighbor_vectors",
    "read_atoms",
    "relabel_by_position",
    "sample_labels",
    "selected_samples",
    "signed_path",
    "unpack",
]
