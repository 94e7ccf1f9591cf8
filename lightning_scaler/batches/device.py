"""Systems and TensorMaps of a batch moved to a device; Lightning moves tensors only."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import System

from ..tensors import blocks_in_batch_order, is_tensormap, scripted, scripted_arithmetic
from .atoms import Atoms, MovedTensor
from .systems import ReadSystems, is_system


def move_to_device(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A batch with its TensorMaps and systems on the device, the systems in ``dtype``.

    TensorMaps keep their dtype: targets are rounded in loss space only. Whatever was made under
    ``torch.inference_mode`` (by a loader inside a validation loop) is copied, so that autograd can
    use it. Lists of systems become :class:`ReadSystems`: types and labels are read before the move,
    so that later nothing on the device waits for the host. Other members stay as they are.

    Args:
        batch: any nesting of mappings, sequences, named tuples and dataclasses.
        device: device of the result.
        dtype: dtype of positions, cells and neighbor vectors.
    """
    move = _Move(device, dtype)
    moved_batch = move(batch)
    for atoms, systems in move.lists:
        systems.attach_atoms(atoms.to(device, _read_labels(atoms, move.tensors)))
    return moved_batch


def _read_labels(atoms: Atoms, pairs: Sequence[tuple[TensorMap, TensorMap]]) -> list[MovedTensor]:
    """Records of moved TensorMaps, from pairs of the TensorMap before and after the move."""
    known = [atoms.find_moved(before) for before, _ in pairs]
    originals = [
        before if moved is None else moved.original
        for (before, _), moved in zip(pairs, known, strict=True)
    ]
    host = atoms.on_host
    in_order = blocks_in_batch_order(originals, host.n_atoms, host.types.numel())
    return [
        MovedTensor(after, original, flags)
        for (_, after), original, flags in zip(pairs, originals, in_order, strict=True)
    ]


class _Move:
    # Not functions that call each other by name: only the garbage collector would free those, and
    # with them the batch on the device.

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.tensors: list[tuple[TensorMap, TensorMap]] = []
        self.lists: list[tuple[Atoms, ReadSystems]] = []

    def __call__(self, part: Any) -> Any:
        return apply_to_collection(part, (torch.ScriptObject, list, tuple), self._move)

    def _move(self, member: Any) -> Any:
        if is_tensormap(member):
            moved = member.to(device=self.device)
            moved = _copy(moved) if _is_inference(moved) else moved
            self.tensors.append((member, moved))
            return moved
        if is_system(member):
            return self._move_systems([member])[0]
        return self._move_sequence(member) if isinstance(member, (list, tuple)) else member

    def _move_sequence(self, members: Any) -> Any:
        if members and all(map(is_system, members)):
            atoms, systems = Atoms.from_systems(members), ReadSystems(self._move_systems(members))
            self.lists.append((atoms, systems))
            return systems
        parts = map(self, members)
        return type(members)(*parts) if hasattr(members, "_fields") else type(members)(parts)

    def _move_systems(self, systems: Any) -> list[Any]:
        moved, are_inference = _moved_systems(list(systems), self.device, self.dtype)
        pairs = zip(moved, are_inference, strict=True)
        return [_copy_system(system) if inference else system for system, inference in pairs]


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


def _copy(tensor: TensorMap) -> TensorMap:
    return TensorMap(_copy_labels(tensor.keys), [_copy_block(block) for block in tensor.blocks()])


def _copy_block(block: TensorBlock) -> TensorBlock:
    copy = TensorBlock(
        block.values.clone(),
        _copy_labels(block.samples),
        [_copy_labels(component) for component in block.components],
        _copy_labels(block.properties),
    )
    for parameter in block.gradients_list():
        copy.add_gradient(parameter, _copy_block(block.gradient(parameter)))
    return copy


def _copy_labels(labels: Labels) -> Labels:
    return Labels(labels.names, labels.values.clone())


def _copy_system(system: System) -> System:
    copy = System(
        types=system.types.clone(),
        positions=system.positions.clone(),
        cell=system.cell.clone(),
        pbc=system.pbc.clone(),
    )
    for options in system.known_neighbor_lists():
        copy.add_neighbor_list(options, _copy_block(system.get_neighbor_list(options)))
    for name in system.known_data():
        copy.add_data(name, _copy(system.get_data(name)))
    return copy
