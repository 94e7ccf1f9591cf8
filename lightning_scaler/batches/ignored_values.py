"""Members of a batch that look like targets and are not TensorMaps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap

from ..tensors import is_tensormap, script_class_name

# Floating-point members under these names are inputs, or weights of the loss.
INPUTS = {
    "positions",
    "pos",
    "coordinates",
    "coords",
    "xyz",
    "x",
    "velocities",
    "momenta",
    "masses",
}
INPUTS |= {"cell", "cells", "lattice", "box", "pbc", "weight", "weights"}
PREFIXES = ("_", "edge_", "node_", "neighbor", "neighbour")
SUFFIXES = ("_mask", "_weight", "_weights", "_id", "_ids", "_index", "_idx", "_attr", "_attrs")


class BatchTargets(dict[str, TensorMap]):
    """The targets of a batch, with the values beside them that would be ignored.

    Args:
        tensors: TensorMaps by name.
        plain_values: what :func:`find_plain_values` found beside them.
    """

    def __init__(self, tensors: Mapping[str, TensorMap], plain_values: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.plain_values = dict(plain_values)


def find_plain_values(named: Mapping[Any, Any]) -> dict[str, str]:
    """Floating-point values by name that are not in a TensorMap, in words.

    Integers, masks and the usual names of inputs (positions, cells, edges, weights) are left out;
    blocks, and sequences and mappings of TensorMaps, count too.

    Args:
        named: members of a batch by name.
    """
    found = {}
    for name, value in named.items():
        words = None if _is_input(name) else _describe_plain(value)
        if words is not None:
            found[name] = words
    return found


def check_plain_values(targets: Mapping[str, TensorMap]) -> None:
    """Refuse values that would be ignored.

    Args:
        targets: targets of a batch, in which all TensorMaps are to be fitted.

    Raises:
        TypeError: for :class:`BatchTargets` with plain values; the message names the ways out.
    """
    found = targets.plain_values if isinstance(targets, BatchTargets) else {}
    # An override of unpack_batch may have added a TensorMap since.
    found = {name: words for name, words in found.items() if name not in targets}
    if not found:
        return
    words = ", ".join(f"'{name}' ({described})" for name, described in found.items())
    listed = ", ".join([*map(repr, targets), "…"] if not targets else map(repr, targets))
    way_out = "convert it to a TensorMap, as the other targets are"
    if not targets:
        name = next(iter(found))
        way_out = f"declare it: TargetScaler(targets={{'{name}': PerStructure()}}) or PerAtom()"
    raise TypeError(
        f"expected targets that are TensorMaps, got {words} beside the systems of a batch, which "
        f"would be ignored; if this is a target, {way_out}; if not, name the targets: "
        f"TargetScaler(targets=[{listed}])"
    )


def check_masks(named: Mapping[Any, Any], extra: Mapping[Any, Any], suffix: str) -> None:
    """Refuse masks of targets that would be ignored.

    Args:
        named: members of a batch by name.
        extra: the third part of a batch that is a tuple.
        suffix: end of the name of a mask, after that of its target.

    Raises:
        TypeError: for a mask that is not a TensorMap, or boolean values under the name of a target
            in ``extra``.
    """
    for name, value in named.items():
        mask_name = f"{name}{suffix}"
        if not is_tensormap(value) or not isinstance(name, str):
            continue
        mask = extra.get(mask_name, named.get(mask_name))
        if mask is not None and not is_tensormap(mask):
            raise TypeError(
                f"'{mask_name}': expected the mask of the target '{name}' as a TensorMap with its "
                f"keys, samples and shapes, got {describe_type(mask)}; convert it, or rename it if "
                "it is not a mask of the target"
            )
        other: Any = extra.get(name)
        if is_tensormap(other) and any(b.values.dtype == torch.bool for b in other.blocks()):
            raise TypeError(
                f"target '{name}': got boolean values under its name in the third part of the "
                f"batch, which would be ignored; if this is its mask, name it '{mask_name}'"
            )


def describe_type(value: Any) -> str:
    """The type of a value; for a tensor its shape and dtype too."""
    script_class = script_class_name(value)
    if script_class is not None:
        return script_class
    name = type(value).__name__
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{name} of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    return name


def _is_input(name: Any) -> bool:
    if not isinstance(name, str) or name in ("system", "sample_id"):
        return True
    lower = name.lower()
    return lower in INPUTS or lower.startswith(PREFIXES) or lower.endswith(SUFFIXES)


def _describe_plain(value: Any) -> str | None:
    """The value in words, ``None`` unless it looks like a target."""
    script_class = script_class_name(value)
    if script_class is not None:
        return script_class if script_class == "TensorBlock" else None
    if _is_floating_point(value):
        return describe_type(value)
    if isinstance(value, Mapping):
        members: Iterable[Any] = value.values()
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        members = value
    else:
        return None
    first = next(iter(members), None)
    if is_tensormap(first) or isinstance(first, float) or _is_floating_point(first):
        return f"{type(value).__name__} of {describe_type(first)}"
    return None


def _is_floating_point(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() or value.is_complex()
    # NumPy is not a dependency.
    return getattr(getattr(value, "dtype", None), "kind", None) in ("f", "c")
