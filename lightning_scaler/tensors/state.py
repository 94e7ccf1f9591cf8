"""States of plain Python objects and tensors: made from dataclasses, flattened, compared."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

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


def to_state(value: Any) -> Any:
    """The value in dicts, lists, tensors and numbers (``torch.load(weights_only=True)``).

    Args:
        value: a dataclass, named tuple, dict, list, tuple or set of such values; an object with a
            ``state()`` method; anything else is returned as it is.

    Returns:
        A dict for a dataclass, a named tuple or a dict with string keys, a list of pairs for any
        other dict, a sorted list for a set.
    """
    if hasattr(value, "state"):
        return value.state()
    if is_dataclass(value):
        return {f.name: to_state(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: to_state(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: to_state(part) for key, part in value.items()}
        return [[to_state(key), to_state(part)] for key, part in value.items()]
    if isinstance(value, (set, frozenset)):
        return [to_state(part) for part in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [to_state(part) for part in value]
    return value


def from_state(kind: Any, state: Any) -> Any:
    """The inverse of :func:`to_state`.

    Args:
        kind: the type of the value, as it would be annotated: ``dict[int, Means | None]``.
        state: the state of such a value.

    Example:
        >>> from_state(dict[tuple[int, int], str], to_state({(0, 1): "a"}))
        {(0, 1): 'a'}
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if state is None or len(arguments) > 2:
            return state
        return from_state(next(part for part in arguments if part is not type(None)), state)
    if origin is dict:
        pairs = state.items() if isinstance(state, Mapping) else state
        return {from_state(arguments[0], k): from_state(arguments[1], v) for k, v in pairs}
    if origin in (list, set, frozenset):
        return origin(from_state(arguments[0], part) for part in state)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(from_state(arguments[0], part) for part in state)
        return tuple(map(from_state, arguments, state))
    if hasattr(kind, "from_state"):
        return kind.from_state(state)
    if is_dataclass(kind) or hasattr(kind, "_asdict"):
        kinds = _annotations(kind)
        return kind(**{name: from_state(kinds[name], part) for name, part in state.items()})
    return state


@cache
def _annotations(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
