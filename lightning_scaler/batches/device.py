"""Moves the systems and TensorMaps of a batch, which Lightning leaves where they are."""

from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System

from ..tensors import is_system, is_tensormap, scripted, scripted_arithmetic
from .atoms import Atoms
from .known_tensors import Known
from .systems import ReadSystems


def move_to_device(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A batch whose TensorMaps and systems are on the device, the systems in ``dtype``.

    TensorMaps keep their dtype: targets are rounded in loss space only. Whatever was made under
    ``torch.inference_mode`` (a loader inside a validation loop) is copied, so that autograd can
    use it. Lists of systems become :class:`ReadSystems`: types and labels are read before the move,
    so that nothing on the device waits for the host later. Other members of the batch are left
    alone.

    Args:
        batch: any nesting of mappings, sequences, named tuples and dataclasses.
        device: where to.
        dtype: of positions, cells and neighbour vectors.
    """
    move = _Move(device, dtype)
    moved = move(batch)
    for atoms, systems in move.lists:
        usual = atoms.usual({i: before for i, (before, _) in enumerate(move.tensors)})
        for i, (before, after) in enumerate(move.tensors):
            atoms.known.learn(after, Known(i in usual, original=atoms.on_host(before)))
        systems.take(atoms.to(device))
    return moved


class _Move:
    # Not functions that call each other by name, which only the garbage collector would free, and
    # with them the batch on the device.

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.tensors: list[tuple[TensorMap, TensorMap]] = []
        self.lists: list[tuple[Atoms, ReadSystems]] = []

    def __call__(self, part: Any) -> Any:
        return apply_to_collection(part, (torch.ScriptObject, list, tuple), self._member)

    def _member(self, member: Any) -> Any:
        if is_tensormap(member):
            moved = member.to(device=self.device)
            moved = _copied(moved) if _is_inference(moved) else moved
            self.tensors.append((member, moved))
            return moved
        if is_system(member):
            return self._systems([member])[0]
        return self._members(member) if isinstance(member, (list, tuple)) else member

    def _members(self, members: Any) -> Any:
        if members and all(map(is_system, members)):
            read = Atoms.from_systems(members), ReadSystems(self._systems(members))
            self.lists.append(read)
            return read[1]
        parts = map(self, members)
        return type(members)(*parts) if hasattr(members, "_fields") else type(members)(parts)

    def _systems(self, members: Any) -> list[Any]:
        moved, are_inference = _moved_systems(list(members), self.device, self.dtype)
        each = zip(moved, are_inference, strict=True)
        return [_copied_system(system) if inference else system for system, inference in each]


@scripted_arithmetic
def _moved_systems(
    systems: list[System], device: torch.device, dtype: torch.dtype
) -> tuple[list[System], list[bool]]:
    """The systems on a device, and whether each was made under ``torch.inference_mode``."""
    moved = [system.to(dtype, device) for system in systems]
    return moved, [system.types.is_inference() for system in moved]


@scripted
def _is_inference(tensor: TensorMap) -> bool:
    for block in tensor.blocks():
        if block.values.is_inference() or block.samples.values.is_inference():
            return True
    return False


def _copied(tensor: TensorMap) -> TensorMap:
    blocks = [_copied_block(block) for block in tensor.blocks()]
    return TensorMap(_copied_labels(tensor.keys), blocks)


def _copied_block(block: TensorBlock) -> TensorBlock:
    copy = TensorBlock(
        block.values.clone(),
        _copied_labels(block.samples),
        [_copied_labels(component) for component in block.components],
        _copied_labels(block.properties),
    )
    for parameter in block.gradients_list():
        copy.add_gradient(parameter, _copied_block(block.gradient(parameter)))
    return copy


def _copied_labels(labels: Labels) -> Labels:
    return Labels(labels.names, labels.values.clone())


def _copied_system(system: System) -> System:
    copy = System(
        types=system.types.clone(),
        positions=system.positions.clone(),
        cell=system.cell.clone(),
        pbc=system.pbc.clone(),
    )
    for options in system.known_neighbor_lists():
        copy.add_neighbor_list(options, _copied_block(system.get_neighbor_list(options)))
    for name in system.known_data():
        copy.add_data(name, _copied(system.get_data(name)))
    return copy
