"""A state as one float32 tensor, one byte per element.

What loops over a ``state_dict`` do to tensors leaves it intact: averages of equal copies
(``lerp_``, ``mul_`` and ``add_``), casts to half precision, files and distributed checkpoints that
take tensors alone. 0 to 255 are exact in float16 and bfloat16; ``uint8`` fails in ``lerp_`` and
``mul_``.
"""

import hashlib
import json
import zlib
from typing import Any

import torch

from .state import state_from_json, state_to_json, tensor_bytes
from .state_checks import InvalidStateError

MAGIC = b"LSSTATE1"
N_LENGTH = 8
N_DIGEST = 32
N_HEADER = len(MAGIC) + N_LENGTH + N_DIGEST
# Distributed checkpoints refuse to load a tensor into one of another length. A state of ten
# targets has 2 kB.
SMALLEST_LENGTH = 16384

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}


def state_to_tensor(state: Any) -> torch.Tensor:
    """Write a state into one float32 tensor on the CPU.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings, bytes and ``None``.

    Returns:
        Bytes from 0 to 255, ``(16384,)`` or the next power of two that is long enough: a header
        with length and checksum, the content, zeros.
    """
    text, tensors = state_to_json(state)
    shapes = [[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in tensors]
    head = json.dumps([text, shapes], separators=(",", ":")).encode()
    values = b"".join(map(tensor_bytes, tensors))
    # Compressed, so that few states need more than the smallest length.
    content = zlib.compress(len(head).to_bytes(N_LENGTH, "little") + head + values)
    digest = hashlib.sha256(content).digest()
    whole = MAGIC + len(content).to_bytes(N_LENGTH, "little") + digest + content
    length = max(SMALLEST_LENGTH, 1 << (len(whole) - 1).bit_length())
    padded = bytearray(whole.ljust(length, b"\0"))
    return torch.frombuffer(padded, dtype=torch.uint8).to(torch.float32)


def state_from_tensor(tensor: torch.Tensor) -> Any:
    """The inverse of :func:`state_to_tensor`; elements are rounded to integers.

    Args:
        tensor: the result of :func:`state_to_tensor`, in any dtype and on any device.

    Raises:
        InvalidStateError: for a tensor that is truncated or damaged, a mixture of different
            states, or something else.
    """
    whole, is_exact = _bytes_of(tensor)
    if not whole.startswith(MAGIC):
        if not any(whole):
            raise InvalidStateError("the tensor is empty, or all zeros, and holds no state")
        raise InvalidStateError(_damaged("its first bytes are not those of a state", is_exact))
    length = int.from_bytes(whole[len(MAGIC) : len(MAGIC) + N_LENGTH], "little")
    digest, content = whole[len(MAGIC) + N_LENGTH : N_HEADER], whole[N_HEADER : N_HEADER + length]
    if len(content) < length or len(digest) < N_DIGEST:
        raise InvalidStateError(
            f"the tensor is truncated: expected at least {N_HEADER + length} elements, got "
            f"{len(whole)}"
        )
    if hashlib.sha256(content).digest() != digest:
        raise InvalidStateError(_damaged("its checksum does not match its content", is_exact))
    try:
        return _read(zlib.decompress(content))
    except InvalidStateError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        raise InvalidStateError(f"the tensor is not a state of this package: {error}") from error


def _bytes_of(tensor: torch.Tensor) -> tuple[bytes, bool]:
    """The elements as bytes, and whether they were close to integers."""
    if tensor.is_meta:
        raise InvalidStateError("the tensor is on the meta device and holds no values")
    if tensor.is_complex() or tensor.dim() != 1:
        raise InvalidStateError(
            f"expected a real tensor with one dimension, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )
    values = tensor.detach().to("cpu", torch.float64)
    rounded = values.round()
    is_exact = bool(((values - rounded).abs() < 0.125).all())
    if not bool(((rounded >= 0) & (rounded <= 255)).all()):
        raise InvalidStateError(_damaged("its elements are not all from 0 to 255", is_exact))
    return bytes(rounded.to(torch.uint8).numpy()), is_exact


def _damaged(what: str, is_exact: bool) -> str:
    if is_exact:
        return f"the tensor is damaged, or a mixture of different states: {what}"
    return (
        f"the tensor is a mixture of different states, or damaged: {what}, and not all of its "
        "elements are integers; average only copies that were made after the fit of the scales, "
        "or leave this entry out of the state dict (the scales are then kept)"
    )


def _read(content: bytes) -> Any:
    end = N_LENGTH + int.from_bytes(content[:N_LENGTH], "little")
    text, shapes = json.loads(content[N_LENGTH:end])
    tensors, start = [], end
    for dtype, shape in shapes:
        empty = torch.empty(shape, dtype=_DTYPES[dtype], device="cpu")
        length = empty.numel() * empty.element_size()
        if length:
            part = bytearray(content[start : start + length])
            empty = torch.frombuffer(part, dtype=_DTYPES[dtype]).reshape(shape)
        tensors.append(empty)
        start += length
    return state_from_json(text, tensors)
