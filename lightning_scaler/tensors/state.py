"""States of plain Python objects and tensors: flattened, hashed, written as JSON without pickle."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from .state_checks import InvalidStateError

TENSOR, BYTES, PAIRS = "$tensor", "$bytes", "$pairs"


class TensorSlot(NamedTuple):
    """Where a float64 tensor of this shape was taken out of a state."""

    shape: tuple[int, ...]


def flatten_state(state: Any) -> tuple[Any, torch.Tensor]:
    """Take all float64 tensors out of a state.

    Args:
        state: nested dicts, lists and tuples of tensors and anything else.

    Returns:
        The structure, with a :class:`TensorSlot` in the place of every float64 tensor; and the
        values of all of them, one after the other, ``(n_values,)``.

    Example:
        >>> flatten_state({"a": torch.ones(1, 2).double(), "b": "c"})
        ({'a': TensorSlot(shape=(1, 2)), 'b': 'c'}, tensor([1., 1.], dtype=torch.float64))
    """
    parts = [torch.zeros(0, dtype=torch.float64)]

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or leaf.dtype != torch.float64:
            return leaf
        parts.append(leaf.detach().cpu().reshape(-1))
        return TensorSlot(tuple(leaf.shape))

    return _map_leaves(state, take), torch.cat(parts)


def unflatten_state(structure: Any, values: torch.Tensor) -> Any:
    """The inverse of :func:`flatten_state`; values after the last slot are not used."""
    start = 0

    def fill(leaf: Any) -> Any:
        nonlocal start
        if not isinstance(leaf, TensorSlot):
            return leaf
        length = torch.Size(leaf.shape).numel()
        start += length
        return values[start - length : start].reshape(leaf.shape).clone()

    return _map_leaves(structure, fill)


def state_to_cpu(state: Any) -> Any:
    """The same state with all tensors on the CPU, whatever ``map_location`` it was loaded with."""
    return _map_leaves(state, lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf)


def digest(state: Any) -> str:
    """A hash of a state, equal only if all tensors in it are equal to the last bit."""
    whole = hashlib.sha256()
    for part in _pieces(state):
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of all elements, in their order."""
    # ``contiguous`` keeps any stride of an axis of length 1, and ``view`` refuses it.
    copied = tensor.detach().cpu().resolve_conj().clone(memory_format=torch.contiguous_format)
    return copied.view(-1).view(torch.uint8).numpy().tobytes()


def state_to_json(state: Any) -> tuple[str, list[torch.Tensor]]:
    """Write a state as JSON, with its tensors apart.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings, bytes and ``None``.

    Returns:
        The JSON text, with ``{"$tensor": i}`` in the place of tensor ``i``; and the tensors, on the
        CPU.

    Raises:
        TypeError: for anything else, naming the place.

    Example:
        >>> state_to_json({"a": torch.ones(2), "b": None})
        ('{"a":{"$tensor":0},"b":null}', [tensor([1., 1.])])
    """
    tensors: list[torch.Tensor] = []

    def slot(kind: str, tensor: torch.Tensor) -> dict[str, int]:
        tensors.append(tensor)
        return {kind: len(tensors) - 1}

    def plain(where: str, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            if part.layout != torch.strided or part.is_quantized or part.is_meta:
                raise TypeError(f"{where}: a {_describe(part)} cannot be saved")
            return slot(TENSOR, part.detach().to("cpu").resolve_conj().contiguous())
        if isinstance(part, (bytes, bytearray)):
            return slot(BYTES, torch.tensor(list(part), dtype=torch.uint8, device="cpu"))
        if isinstance(part, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in part):
                return {key: plain(f"{where}[{key!r}]", value) for key, value in part.items()}
            if not all(isinstance(key, (str, int)) for key in part):
                raise TypeError(f"{where}: only strings and integers can be saved as keys")
            return {
                PAIRS: [[key, plain(f"{where}[{key!r}]", value)] for key, value in part.items()]
            }
        if isinstance(part, (list, tuple)):
            return [plain(f"{where}[{i}]", value) for i, value in enumerate(part)]
        if part is None or isinstance(part, (bool, int, float, str)):
            return part
        raise TypeError(
            f"{where}: a value of type {type(part).__name__} cannot be saved, only tensors, "
            "numbers, strings, bytes, and dicts and lists of these"
        )

    structure = plain("the state", state)
    return json.dumps(structure, separators=(",", ":")), tensors


def state_from_json(text: str | bytes, tensors: list[torch.Tensor]) -> Any:
    """The inverse of :func:`state_to_json`; tuples come back as lists.

    Raises:
        InvalidStateError: for a text that is not JSON, or that does not name each tensor once.
    """
    unused = set(range(len(tensors)))

    def take(index: Any) -> torch.Tensor:
        if isinstance(index, bool) or not isinstance(index, int) or index not in unused:
            raise InvalidStateError(f"expected each of {len(tensors)} tensors once, got {index!r}")
        unused.remove(index)
        return tensors[index]

    def restore(part: Any) -> Any:
        if isinstance(part, list):
            return [restore(value) for value in part]
        if not isinstance(part, dict):
            return part
        if part.keys() == {TENSOR}:
            return take(part[TENSOR])
        if part.keys() == {BYTES}:
            return bytes(take(part[BYTES]).flatten().tolist())
        if part.keys() == {PAIRS}:
            return dict(restore(pair) for pair in part[PAIRS])
        return {key: restore(value) for key, value in part.items()}

    try:
        state = restore(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidStateError(f"its structure cannot be read: {error}") from error
    if unused:
        raise InvalidStateError(f"its structure does not name the tensors {sorted(unused)}")
    return state


def _map_leaves(state: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(state, Mapping):
        return {name: _map_leaves(part, change) for name, part in state.items()}
    if isinstance(state, (list, tuple)) and not isinstance(state, TensorSlot):
        return [_map_leaves(part, change) for part in state]
    return change(state)


def _pieces(state: Any) -> Iterator[bytes]:
    if isinstance(state, torch.Tensor):
        yield f"{state.dtype} {tuple(state.shape)}".encode()
        yield tensor_bytes(state)
    elif isinstance(state, Mapping):
        yield f"mapping of {len(state)}".encode()
        for name, part in state.items():
            yield repr(name).encode()
            yield from _pieces(part)
    elif isinstance(state, (list, tuple)):
        yield f"sequence of {len(state)}".encode()
        for part in state:
            yield from _pieces(part)
    else:
        yield repr(state).encode()


def _describe(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "tensor on the meta device"
    return "quantized tensor" if tensor.is_quantized else f"tensor of layout {tensor.layout}"
