"""Systems and TensorMaps of a batch moved to a device; Lightning moves tensors only."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from metatensor.torch import TensorMap
from metatomic.torch import System

from ..tensors import blocks_in_batch_order, is_tensormap, scripted_arithmetic
from .atoms import Atoms, LabelRecord
from .inference import clone_inference_tensors
from .systems import OwnBatch, ReadSystems, is_system
from .unpack import Batch


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
    moved_batch = move(clone_inference_tensors(batch))
    for atoms, systems in move.lists:
        systems.attach_atoms(atoms.to(device, _read_labels(atoms, move.tensors)))
    return moved_batch


def move_unpacked(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Systems, targets and masks of a batch on the device, as :func:`move_to_device`.

    Whatever has been moved before stays the same object.

    Args:
        batch: batch taken apart.
        device: device of the result.
        dtype: dtype of positions, cells and neighbor vectors.
    """
    if isinstance(batch.systems, OwnBatch):
        # Lightning has moved the batch, except what is not a tensor.
        if batch.systems.atoms.types.device == device:
            return batch
        targets = {name: tensor.to(device=device) for name, tensor in batch.targets.items()}
        return Batch(batch.systems, targets, batch.masks)
    read = batch.systems.atoms if isinstance(batch.systems, ReadSystems) else None
    if read is None or read.types.device != device:
        systems, targets, masks = move_to_device(
            (batch.systems, dict(batch.targets), dict(batch.masks)), device, dtype
        )
        return Batch(systems, targets, masks)

    def move(tensors: Mapping[str, TensorMap]) -> Mapping[str, TensorMap]:
        others = {
            name: clone_inference_tensors(tensor)
            for name, tensor in tensors.items()
            if is_tensormap(tensor) and read.label_record(tensor) is None
        }
        if not others:
            return tensors
        return {**tensors, **{name: tensor.to(device=device) for name, tensor in others.items()}}

    return Batch(batch.systems, dict(move(batch.targets)), dict(move(batch.masks)))


def _read_labels(atoms: Atoms, pairs: Sequence[tuple[TensorMap, TensorMap]]) -> list[LabelRecord]:
    """Records of moved TensorMaps, from pairs of the TensorMap before and after the move."""
    known = [atoms.label_record(before) for before, _ in pairs]
    originals = [
        before if record is None else record.original
        for (before, _), record in zip(pairs, known, strict=True)
    ]
    host = atoms.on_host
    in_order = blocks_in_batch_order(originals, host.n_atoms, host.types.numel())
    return [
        LabelRecord(after, original, flags)
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
        return _moved_systems(list(systems), self.device, self.dtype)


@scripted_arithmetic
def _moved_systems(systems: list[System], device: torch.device, dtype: torch.dtype) -> list[System]:
    return [system.to(dtype, device) for system in systems]
