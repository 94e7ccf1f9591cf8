"""TensorMaps: read, compared, rebuild; the layout of a target; states as one tensor.

Imports ``settings`` alone. Nothing here knows what a batch or a scale is.
"""

from .labels import has_rows, have_labels, have_one_dtype, have_rows
from .layout import CPU, Invariance, Key, TargetLayout, names_with_layout
from .state import digest, flatten_state, unflatten_state
from .tensormaps import (
    apply_mask,
    block_with_samples,
    describe,
    dtype_of,
    is_system,
    is_tensormap,
    map_blocks,
    mask_values,
)
from .torchscript import (
    gradients_of_blocks,
    names_of_gradients,
    rebuild,
    scripted,
    scripted_arithmetic,
    values_and_gradients,
)

__all__ = [
    "CPU",
    "Invariance",
    "Key",
    "TargetLayout",
    "apply_mask",
    "block_with_samples",
    "describe",
    "digest",
    "dtype_of",
    "flatten_state",
    "gradients_of_blocks",
    "has_rows",
    "have_labels",
    "have_one_dtype",
    "have_rows",
    "is_system",
    "is_tensormap",
    "map_blocks",
    "mask_values",
    "names_of_gradients",
    "names_with_layout",
    "rebuild",
    "scripted",
    "scripted_arithmetic",
    "unflatten_state",
    "values_and_gradients",
]
