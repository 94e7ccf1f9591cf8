"""TensorMaps: read, compared, rebuilt; the layout of a target; states as one tensor.

Imports ``settings`` alone. Nothing here knows what a batch or a scale is.
"""

from .labels import has_rows, have_labels, have_one_dtype, have_rows
from .layout import CPU, Invariance, Key, TargetLayout, holding
from .state import digest, with_numbers, without_numbers
from .tensormaps import (
    block_with_samples,
    describe,
    dtype_of,
    entries_kept,
    is_system,
    is_tensormap,
    map_blocks,
    mask_entries,
)
from .torchscript import (
    gradients_of_blocks,
    names_of_gradients,
    rebuilt,
    scripted,
    scripted_arithmetic,
    values_and_gradients,
)

__all__ = [
    "CPU",
    "Invariance",
    "Key",
    "TargetLayout",
    "block_with_samples",
    "describe",
    "digest",
    "dtype_of",
    "entries_kept",
    "gradients_of_blocks",
    "has_rows",
    "have_labels",
    "have_one_dtype",
    "have_rows",
    "holding",
    "is_system",
    "is_tensormap",
    "map_blocks",
    "mask_entries",
    "names_of_gradients",
    "rebuilt",
    "scripted",
    "scripted_arithmetic",
    "values_and_gradients",
    "with_numbers",
    "without_numbers",
]
