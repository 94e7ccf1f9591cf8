"""Addresses of tensors in a batch or in the output of a network."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch

Address: TypeAlias = str | int | Sequence[str | int]
"""A key, an attribute, an index, or several of these for nested objects; the last may be a column.

``"energy"``, ``("inputs", "energy")``, ``(1, "energy")``, ``("y", 3)``.
"""

Path: TypeAlias = tuple[str | int, ...]


def parse_address(where: str, address: Any) -> Path:
    """Check an address, and write it as a tuple.

    Args:
        where: setting that holds the address, for messages.
        address: what the user gave.

    Raises:
        TypeError: for anything but a string, an integer, or a sequence of these.

    Example:
        >>> parse_address("tensor", "energy"), parse_address("tensor", ["y", 3])
        (('energy',), ('y', 3))
    """
    path = (address,) if isinstance(address, (str, int)) else address
    valid = isinstance(path, Sequence) and all(
        isinstance(part, (str, int)) and not isinstance(part, bool) for part in path
    )
    if not valid:
        raise TypeError(
            f"{where}: expected the address of a tensor: a name, an index, or a list of these, "
            f"such as 'energy' or ['y', 3], got {address!r}"
        )
    return tuple(path)


def describe_address(path: Path) -> str:
    """An address as the user would write it.

    Example:
        >>> describe_address(("energy",)), describe_address(("y", 3))
        ("'energy'", "('y', 3)")
    """
    if not path:
        return "the top"
    return repr(path[0]) if len(path) == 1 else repr(path)


def find(holder: Any, path: Path) -> Any:
    """The object at an address; ``None`` if there is none.

    A string is a key of a mapping, or an attribute; an integer is an index, or a column of a
    tensor, ``(n, n_columns)``.
    """
    for part in path:
        holder = _member(holder, part)
        if holder is None:
            return None
    return holder


def tensor_of(where: str, value: Any) -> torch.Tensor:
    """A tensor, an array, a number or a list of numbers as a tensor; Python floats in float64.

    Args:
        where: what the value is, for messages.
        value: value at an address.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "__array__"):  # numpy's, and the cell of ASE
        value = value.__array__()
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    try:
        # Numbers made of tensors would have lost their graph.
        tensor = None if isinstance(first, torch.Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        tensor = None
    if tensor is None:
        of = "" if first is None else f" of {type(first).__name__}"
        raise TypeError(
            f"{where}: expected a tensor, an array or numbers, got a {type(value).__name__}{of}; "
            "concatenate or stack lists, and name what is inside of other objects by an address of "
            "several parts"
        )
    if tensor.is_floating_point() and not hasattr(value, "dtype"):
        return torch.as_tensor(value, dtype=torch.float64)
    return tensor


def replace(holder: Any, path: Path, value: Any) -> Any:
    """A copy of an object with another value at an address; the object itself stays as it is.

    Only what is on the way to the address is copied, and not deeply. A column is written into a
    copy of its tensor, in the wider of the two dtypes.

    Args:
        holder: batch or output, in which there is something at the address.
        path: address.
        value: new value.
    """
    if not path:
        return value
    part = path[0]
    value = replace(_member(holder, part), path[1:], value)
    if hasattr(holder, "__array__"):  # a tensor or an array
        holder = torch.as_tensor(holder)
        tensor = holder.to(torch.promote_types(holder.dtype, value.dtype), copy=True)
        tensor[:, cast(int, part)] = value
        return tensor
    if hasattr(holder, "_fields"):
        name = holder._fields[part] if isinstance(part, int) else part
        return holder._replace(**{name: value})
    if isinstance(holder, (list, tuple)):
        members = list(holder)
        members[cast(int, part)] = value  # the index may be negative
        return type(holder)(members)
    if type(holder) is dict:
        return {**holder, part: value}
    copied = copy.copy(holder)
    if isinstance(holder, Mapping):
        copied[part] = value
    elif dataclasses.is_dataclass(holder):
        object.__setattr__(copied, cast(str, part), value)  # also in a frozen one
    else:
        setattr(copied, cast(str, part), value)
    return copied


def describe_holder(holder: Any) -> str:
    """An object and the names of its members, for messages.

    Example:
        >>> describe_holder(({"z": 1, "batch": 2}, 0.5))
        'a tuple of a dict with batch, z; a float'
    """
    if holder is None:
        return "None"
    kind = type(holder).__name__
    words = f"{'an' if kind[:1] in 'AEIOUaeiou' else 'a'} {kind}"
    if isinstance(holder, (list, tuple)) and not hasattr(holder, "_fields"):
        members = [describe_holder(member) for member in holder[:2]]
        more = ["…"] if len(holder) > len(members) else []
        return f"{words} of {'; '.join(members + more)}" if holder else f"an empty {kind}"
    names = names_in(holder)
    return f"{words} with {', '.join(names)}" if names else words


def names_in(holder: Any) -> list[str]:
    """The names under which an object holds its members, for messages."""
    if isinstance(holder, Mapping):
        names = list(holder)
    elif hasattr(holder, "_fields"):
        names = list(holder._fields)
    elif callable(getattr(holder, "keys", None)):  # PyTorch Geometric
        names = list(holder.keys())
    elif isinstance(getattr(holder, "info", None), Mapping) and hasattr(holder, "arrays"):  # ASE
        results = getattr(getattr(holder, "calc", None), "results", None) or {}
        names = list({**holder.info, **holder.arrays, **results})
    else:
        names = list(getattr(holder, "__dict__", ()))
    return sorted(str(name) for name in names if not str(name).startswith("__"))


def _member(holder: Any, part: str | int) -> Any:
    if type(holder) is dict or isinstance(holder, Mapping):  # the first is ten times faster
        return holder.get(part)
    if isinstance(part, int):
        return _item(holder, part)
    if isinstance(holder, torch.Tensor):
        return None
    member = getattr(holder, part, None)
    if not callable(member) or isinstance(member, torch.nn.Module):
        return member
    # A target may have the name of a method, such as `size` of a graph.
    return holder[part] if callable(getattr(holder, "keys", None)) and part in holder else None


def _item(holder: Any, index: int) -> Any:
    is_table = hasattr(holder, "ndim") and hasattr(holder, "shape")
    try:
        if is_table:
            return holder[:, index] if holder.ndim > 1 else None
        return holder[index]
    except (IndexError, KeyError, TypeError):
        return None
