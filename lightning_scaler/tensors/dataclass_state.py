"""States of dataclasses and named tuples: made from them, and checked against their annotations."""

import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .state_checks import InvalidStateError, state_of


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


def from_state(kind: Any, state: Any, complete: bool = True) -> Any:
    """The inverse of :func:`to_state`, which checks the state against the type.

    A :class:`TensorCheck` in an annotation is applied:
    ``Annotated[torch.Tensor, TensorCheck("n_types")]``. Numbers must be finite.

    Args:
        kind: the type of the value, as it would be annotated: ``dict[int, Means | None]``.
        state: the state of such a value.
        complete: whether all fields of dataclasses must be there; ``False`` for states of earlier
            versions, where fields that are new take their defaults.

    Raises:
        InvalidStateError: for a value of another type, a missing field, or an unknown one.

    Example:
        >>> from_state(dict[tuple[int, int], str], to_state({(0, 1): "a"}))
        {(0, 1): 'a'}
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return state
    if origin is Annotated:
        value: Any
        if arguments[0] is float:  # which may be NaN
            value = float(state) if type(state) is int else state
        else:
            value = from_state(arguments[0], state, complete)
            if value is None:
                return None
        parts = value if get_origin(arguments[0]) is dict else {"": value}
        for check in arguments[1:]:
            for where, part in parts.items():
                with state_of(f"{where}") if where else nullcontext():
                    check.check_kind(part)
        return value
    if origin in (Union, UnionType):
        return _from_union(arguments, state, complete)
    if origin is Literal:
        _expect(isinstance(state, str) and state in arguments, f"one of {list(arguments)}", state)
        return state
    if origin in (dict, Mapping):
        return _dict_from_state(arguments, state, complete)
    if origin in (list, set, frozenset, tuple):
        _expect(isinstance(state, (list, tuple)), "a list", state)
        if origin is tuple and arguments[-1] is not Ellipsis:
            _expect(len(state) == len(arguments), f"{len(arguments)} values", state)
            return tuple(map(partial(from_state, complete=complete), arguments, state))
        return origin(from_state(arguments[0], part, complete) for part in state)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(state, kind):
        return state
    if hasattr(kind, "from_state"):
        return kind.from_state(state)
    if is_dataclass(kind) or hasattr(kind, "_asdict"):
        return fields_from_state(kind, state, complete)
    return _plain_from_state(kind, state)


def _from_union(kinds: tuple[Any, ...], state: Any, complete: bool) -> Any:
    if state is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        with suppress(InvalidStateError):
            return from_state(kind, state, complete)
    return from_state(others[-1], state, complete)


def _dict_from_state(kinds: tuple[Any, ...], state: Any, complete: bool) -> dict[Any, Any]:
    _expect(isinstance(state, (Mapping, list)), "a dict", state)
    pairs = list(state.items() if isinstance(state, Mapping) else state)
    for pair in pairs:
        _expect(isinstance(pair, (list, tuple)) and len(pair) == 2, "a key and a value", pair)
    values = {}
    for name, part in pairs:
        key = from_state(kinds[0], name, complete)
        with state_of(f"{key!r}"):
            values[key] = from_state(kinds[1], part, complete)
    _expect(len(values) == len(pairs), "no key twice", [name for name, _ in pairs])
    return values


def fields_from_state(kind: Any, state: Any, complete: bool = True) -> Any:
    """A dataclass or named tuple from a dict of the states of its fields; see :func:`from_state`.

    Raises:
        InvalidStateError: for a missing field, an unknown one, or a value of another type.
    """
    _expect(isinstance(state, Mapping), "a dict of its fields", state)
    kinds = _annotations(kind)
    if is_dataclass(kind):
        saved = [f for f in fields(kind) if f.init]
        known = {f.name for f in saved}
        required = {f.name for f in saved if f.default is MISSING and f.default_factory is MISSING}
    else:
        known, required = set(kind._fields), set(kind._fields) - kind._field_defaults.keys()
    for problem, names in (
        ("missing fields", (known if complete else required) - state.keys()),
        ("unknown fields", state.keys() - known),
    ):
        if names:
            raise InvalidStateError(f"{problem}: {', '.join(sorted(map(str, names)))}")
    values = {}
    for name, part in state.items():
        with state_of(name):
            values[name] = from_state(kinds[name], part, complete)
    try:
        return kind(**values)
    except InvalidStateError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidStateError(str(error)) from error


def _plain_from_state(kind: Any, state: Any) -> Any:
    names = {float: "a finite number", int: "an integer", bool: "True or False", str: "a string"}
    if kind is float and type(state) is int:
        return float(state)
    _expect(
        type(state) is kind if kind in names else isinstance(state, kind),
        names.get(kind, f"a {kind.__name__}"),
        state,
    )
    _expect(kind is not float or math.isfinite(state), "a finite number", state)
    return state


def _expect(holds: bool, what: str, got: Any) -> None:
    if not holds:
        text = repr(got)
        raise InvalidStateError(
            f"expected {what}, got {text if len(text) < 80 else type(got).__name__}"
        )


@cache
def _annotations(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
