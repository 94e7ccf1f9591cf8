"""Copies of what was made under ``torch.inference_mode``, for autograd.

Loaders and hooks of an evaluation run in inference mode. Tensors made there raise an error on
``requires_grad_`` ever after.
"""

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System

from ..tensors import script_class_name, scripted
from .systems import is_system

# Objects that hold no tensors of a batch, or whose attributes must not be replaced one by one.
OPAQUE = (
    *(str, bytes, int, float, complex, type, types.ModuleType, types.FunctionType),
    *(torch.nn.Module, torch.Generator, torch.device, torch.dtype),
)

# How deep a batch may be nested; some objects refer to a whole dataset.
DEPTH = 8


def clone_inference_tensors(batch: Any) -> Any:
    """A batch in which tensors made in inference mode are replaced by normal copies.

    Call it outside of inference mode. Looks into mappings, sequences, named tuples and the
    attributes of other objects; an object with such a tensor and a method ``clone`` is cloned as a
    whole. Parts without such tensors are the same objects as before.

    Args:
        batch: any nesting of these, with tensors, TensorMaps and systems.
    """
    return _clone(batch, frozenset())


def _clone(part: Any, above: frozenset[int]) -> Any:
    if isinstance(part, torch.Tensor):
        return part.clone() if part.is_inference() else part
    if isinstance(part, torch.ScriptObject):
        return _clone_script_object(part)
    if part is None or isinstance(part, OPAQUE) or id(part) in above or len(above) > DEPTH:
        return part
    above = above | {id(part)}
    if isinstance(part, Mapping):
        return _clone_mapping(part, above)
    if isinstance(part, (list, tuple)):
        return _clone_sequence(part, above)
    changed = {}
    for name, value in _attributes(part):
        new = _clone(value, above)
        if new is not value:
            changed[name] = new
    if not changed:
        return part
    if callable(getattr(part, "clone", None)):
        return part.clone()
    replaced = copy.copy(part)
    for name, value in changed.items():
        object.__setattr__(replaced, name, value)  # also those of frozen dataclasses
    return replaced


def _clone_mapping(part: Mapping[Any, Any], above: frozenset[int]) -> Any:
    cloned = {key: _clone(value, above) for key, value in part.items()}
    if all(cloned[key] is value for key, value in part.items()):
        return part
    if callable(getattr(part, "clone", None)):
        return part.clone()  # type: ignore[attr-defined]
    if type(part) is dict:
        return cloned
    replaced: Any = copy.copy(part)
    replaced.update(cloned)
    return replaced


def _clone_sequence(part: Any, above: frozenset[int]) -> Any:
    if part and all(map(is_system, part)) and not any(_systems_are_inference(list(part))):
        return part
    cloned = [_clone(value, above) for value in part]
    if all(new is old for new, old in zip(cloned, part, strict=True)):
        return part
    if hasattr(part, "_fields"):
        return type(part)(*cloned)
    if isinstance(part, tuple):
        return type(part)(cloned)
    replaced = copy.copy(part)
    replaced[:] = cloned
    return replaced


def _attributes(part: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(part, "__dict__", {}).items()
    for cls in type(part).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(part, name):
                yield name, getattr(part, name)


def _clone_script_object(part: Any) -> Any:
    kind = script_class_name(part)
    if kind == "TensorMap" and _is_inference(part):
        return _copy(part)
    if kind == "System" and _systems_are_inference([part])[0]:
        return _copy_system(part)
    if kind == "TensorBlock" and part.values.is_inference():
        return _copy_block(part)
    if kind == "Labels" and part.values.is_inference():
        return _copy_labels(part)
    return part


@scripted
def _systems_are_inference(systems: list[System]) -> list[bool]:
    return [s.types.is_inference() or s.positions.is_inference() for s in systems]


@scripted
def _is_inference(tensor: TensorMap) -> bool:
    for block in tensor.blocks():
        if block.values.is_inference() or block.samples.values.is_inference():
            return True
    return False


def _copy(tensor: TensorMap) -> TensorMap:
    return TensorMap(_copy_labels(tensor.keys), [_copy_block(block) for block in tensor.blocks()])


def _copy_block(block: TensorBlock) -> TensorBlock:
    copied = TensorBlock(
        block.values.clone(),
        _copy_labels(block.samples),
        [_copy_labels(component) for component in block.components],
        _copy_labels(block.properties),
    )
    for parameter in block.gradients_list():
        copied.add_gradient(parameter, _copy_block(block.gradient(parameter)))
    return copied


def _copy_labels(labels: Labels) -> Labels:
    return Labels(labels.names, labels.values.clone())


def _copy_system(system: System) -> System:
    copied = System(
        types=system.types.clone(),
        positions=system.positions.clone(),
        cell=system.cell.clone(),
        pbc=system.pbc.clone(),
    )
    for options in system.known_neighbor_lists():
        copied.add_neighbor_list(options, _copy_block(system.get_neighbor_list(options)))
    for name in system.known_data():
        copied.add_data(name, _copy(system.get_data(name)))
    return copied
