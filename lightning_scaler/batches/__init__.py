"""Batches: their systems and atoms, and how the rows of a target refer to them.

Takes batches apart, moves them to a device, and settles once per target which system or atom each
row belongs to. Imports ``tensors`` and ``settings``.
"""

from .atoms import LARGEST_IN_TABLE, Atoms, find_types, read_atoms
from .device import move_to_device
from .indexed_target import (
    IndexedBatch,
    IndexedTarget,
    index_batch,
    index_targets,
    relabel_by_position,
)
from .system_labels import SystemIndexing
from .systems import HasTypes, is_system
from .unpack import unpack

__all__ = [
    "LARGEST_IN_TABLE",
    "Atoms",
    "HasTypes",
    "IndexedBatch",
    "IndexedTarget",
    "SystemIndexing",
    "find_types",
    "index_batch",
    "index_targets",
    "is_system",
    "move_to_device",
    "read_atoms",
    "relabel_by_position",
    "unpack",
]
