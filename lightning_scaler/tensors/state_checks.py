"""What a loaded state must satisfy before it is used."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch


class InvalidStateError(ValueError):
    """A state or file that is truncated, damaged, or not a state of this package."""


@contextmanager
def state_of(where: str) -> Iterator[None]:
    """Put ``where`` in front of the message of an :class:`InvalidStateError` inside."""
    try:
        yield
    except InvalidStateError as error:
        raise InvalidStateError(f"{where}: {error}") from error.__cause__


class NumberOrNaN:
    """A number in a state that may be NaN; written into the annotation of its field."""

    def check_kind(self, value: Any) -> None:
        """Check a value.

        Raises:
            InvalidStateError: for another type, or an infinite number.
        """
        if not isinstance(value, float):
            raise InvalidStateError(f"expected a number, got {value!r}")
        if math.isinf(value):
            raise InvalidStateError(f"expected a finite number, got {value}")


class TensorCheck:
    """What a tensor in a state must be; written into the annotation of its field.

    Args:
        shape: names of the sizes of its dimensions.
        dtype: dtype of its values.
        allow_nan: whether values may be NaN (they may never be infinite).

    Example:
        >>> TensorCheck("n_types").check(torch.ones(2).double(), {"n_types": 2})
    """

    def __init__(
        self, *shape: str, dtype: torch.dtype = torch.float64, allow_nan: bool = False
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.allow_nan = allow_nan

    def check_kind(self, tensor: Any) -> None:
        """Check all that does not depend on sizes.

        Raises:
            InvalidStateError: for another kind of value, dtype or number of dimensions, and for
                values that are not allowed.
        """
        if not isinstance(tensor, torch.Tensor):
            raise InvalidStateError(f"expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype != self.dtype:
            raise InvalidStateError(f"expected {self.dtype}, got {tensor.dtype}")
        if tensor.dim() != len(self.shape):
            raise InvalidStateError(
                f"expected the shape ({', '.join(self.shape)}), got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            return
        wrong = tensor.isinf() if self.allow_nan else ~tensor.isfinite()
        if bool(wrong.any()):
            raise InvalidStateError(f"expected finite numbers, got {tensor[wrong].tolist()}")

    def check(self, tensor: Any, sizes: Mapping[str, int]) -> None:
        """Check a tensor, given the size behind each name in the shape.

        Raises:
            InvalidStateError: as :meth:`check_kind`, and for another shape.
        """
        self.check_kind(tensor)
        shape = tuple(sizes[name] for name in self.shape)
        if tuple(tensor.shape) != shape:
            raise InvalidStateError(
                f"expected the shape ({', '.join(self.shape)}) = {shape}, got {tuple(tensor.shape)}"
            )


def check_shapes(
    value: Any,
    sizes: Mapping[str, int],
    sizes_by_key: Mapping[str, Mapping[Any, int]] | None = None,
) -> None:
    """Apply the :class:`TensorCheck` of every field of a dataclass or named tuple.

    Args:
        value: dataclass or named tuple with tensors, and dicts of tensors, as fields; a field that
            is ``None`` is not checked.
        sizes: size behind each name in a shape.
        sizes_by_key: the same for sizes that differ between the keys of a dict.

    Raises:
        InvalidStateError: for a tensor that does not fit, or a key without sizes.
    """
    for name, check in _tensor_checks(value.__class__).items():
        tensors = getattr(value, name)
        if tensors is None:
            continue
        if not isinstance(tensors, dict):
            with state_of(name):
                check.check(tensors, sizes)
            continue
        for key, tensor in tensors.items():
            with state_of(f"{name}: {key}"):
                if any(key not in by_key for by_key in (sizes_by_key or {}).values()):
                    raise InvalidStateError("the target does not have this block")
                of_key = {size: by_key[key] for size, by_key in (sizes_by_key or {}).items()}
                check.check(tensor, {**sizes, **of_key})


@cache
def _tensor_checks(kind: Any) -> dict[str, TensorCheck]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: check
        for name, hint in hints.items()
        if get_origin(hint) is Annotated
        for check in get_args(hint)[1:]
        if isinstance(check, TensorCheck)
    }
