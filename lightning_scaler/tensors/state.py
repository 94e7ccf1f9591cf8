"""States of plain Python objects and tensors: flattened, moved to the CPU, hashed."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch


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


def _map_leaves(state: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(state, Mapping):
        return {name: _map_leaves(part, change) for name, part in state.items()}
    if isinstance(state, (list, tuple)) and not isinstance(state, TensorSlot):
        return [_map_leaves(part, change) for part in state]
    return change(state)


def _pieces(state: Any) -> Iterator[bytes]:
    if isinstance(state, torch.Tensor):
        yield f"{state.dtype} {tuple(state.shape)}".encode()
        yield state.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
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
