"""Batches: their systems and atoms, and how the rows of a target refer to them.

Takes batches apart, moves them to a device, and settles once per target which atom or system each
row belongs to. Imports ``tensors``.
"""

from .atomic_types import TABLED, find_types
from .atoms import Atoms, HasTypes, read_atoms
from .device import move_to_device
from .known_tensors import Known
from .matching import (
    align_prediction,
    find_gradient_rows,
    find_rows,
    per_atom,
    relabel_by_position,
    selected,
)
from .system_labels import SystemIndexing, index_by_position, infer_system_indexing, rows_of_blocks
from .unpack import unpack

__all__ = [
    "TABLED",
    "Atoms",
    "HasTypes",
    "Known",
    "SystemIndexing",
    "align_prediction",
    "find_gradient_rows",
    "find_rows",
    "find_types",
    "index_by_position",
    "infer_system_indexing",
    "move_to_device",
    "per_atom",
    "read_atoms",
    "relabel_by_position",
    "rows_of_blocks",
    "selected",
    "unpack",
]
