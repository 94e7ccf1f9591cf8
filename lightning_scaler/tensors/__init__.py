"""TensorMaps read, compared and rebuilt; the layout of a target; states as one tensor.

Imports no other room, and ``safetensors`` for files. Nothing here knows what a batch or a scale is.
"""

from .dataclass_state import fields_from_state, from_state, to_state
from .known_layouts import find_known_layouts, match_layouts
from .labels import (
    blocks_in_batch_order,
    find_gradient_rows,
    find_rows,
    have_dtype,
    have_labels,
    take_rows,
)
from .layout import (
    CPU,
    PREDICTION,
    TARGET,
    Invariance,
    Key,
    TargetLayout,
)
from .masks import apply_mask, mask_values
from .state import digest, flatten_state, state_to_cpu, unflatten_state
from .state_checks import InvalidStateError, NumberOrNaN, TensorCheck, check_shapes, state_of
from .state_file import (
    check_checkpoint,
    check_writable,
    load_state,
    loading_weights,
    replacing,
    save_state,
    saved_kind,
)
from .state_tensor import state_from_tensor, state_to_tensor
from .tensormaps import (
    block_with_samples,
    describe,
    describe_labels,
    dtype_of,
    gradients_of_blocks,
    is_tensormap,
    map_blocks,
    rebuild,
    script_class_name,
    scripted,
    scripted_arithmetic,
    scripted_gradients_of_blocks,
    values_and_gradients,
)

__all__ = [
    "CPU",
    "PREDICTION",
    "TARGET",
    "InvalidStateError",
    "Invariance",
    "Key",
    "NumberOrNaN",
    "TargetLayout",
    "TensorCheck",
    "apply_mask",
    "block_with_samples",
    "blocks_in_batch_order",
    "check_checkpoint",
    "check_shapes",
    "check_writable",
    "describe",
    "describe_labels",
    "digest",
    "dtype_of",
    "fields_from_state",
    "find_gradient_rows",
    "find_known_layouts",
    "find_rows",
    "flatten_state",
    "from_state",
    "gradients_of_blocks",
    "have_dtype",
    "have_labels",
    "is_tensormap",
    "load_state",
    "loading_weights",
    "map_blocks",
    "mask_values",
    "match_layouts",
    "rebuild",
    "replacing",
    "save_state",
    "saved_kind",
    "script_class_name",
    "scripted",
    "scripted_arithmetic",
    "scripted_gradients_of_blocks",
    "state_from_tensor",
    "state_of",
    "state_to_cpu",
    "state_to_tensor",
    "take_rows",
    "to_state",
    "unflatten_state",
    "values_and_gradients",
]
