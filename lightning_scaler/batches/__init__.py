"""Batches: their systems and atoms, and how the rows of a target refer to them.

Takes batches apart, moves them to a device, and settles once per target which atom or system each
row belongs to. Imports ``tensors``.
"""

from .atomic_types import TABLED, find_types
from .atoms import Atoms, HasTypes, read_atoms
from .device import move_to_device
from .known_tensors import Known
from .matching import averaged, find_gradient_rows, find_rows, matched, positioned, selected
from .system_labels import Reading, read_positions, read_system_labels, rows_of_blocks
from .unpack import unpack

__all__ = [
    "TABLED",
    "Atoms",
    "HasTypes",
    "Known",
    "Reading",
    "averaged",
    "find_gradient_rows",
    "find_rows",
    "find_types",
    "matched",
    "move_to_device",
    "positioned",
    "read_atoms",
    "read_positions",
    "read_system_labels",
    "rows_of_blocks",
    "selected",
    "unpack",
]
