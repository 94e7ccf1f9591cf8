"""The atoms of a batch: their types, and the system that each belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..tensors import TargetLayout, scripted_arithmetic
from .atomic_types import find_types, index_types, read_types, unique_types
from .systems import HasTypes, IdentifiedSystems, OwnBatch, ReadSystems


class LabelRecord(NamedTuple):
    """What is known of the labels of a TensorMap of a batch, so that they are not read again.

    Attributes:
        tensor: the TensorMap.
        original: a TensorMap with the same labels: that on the host, for one that was moved.
        in_batch_order: whether each block has all systems, or all atoms, in batch order.
        layout: the layout, if it is known.
    """

    tensor: TensorMap
    original: TensorMap
    in_batch_order: list[bool]
    layout: TargetLayout | None = None


@dataclass(frozen=True, eq=False)
class Atoms:
    """The atoms of a batch, system after system.

    Attributes:
        types: atomic type of every atom, ``(n_all_atoms,)`` int64.
        n_atoms: number of atoms of every system, ``(n_systems,)`` int64.
        unique_types: the types that occur, sorted, ``(n_types,)`` int64, always on the CPU.
        sample_ids: id of every system in the dataset, ``(n_systems,)``, if the batch has ids.
        ids_are_positions: whether the ids, if there are any, number the systems from 0.
        systems: the systems themselves; empty if only their atoms are known.
        host: the same atoms where they were read, if they have been moved since.
        label_records: what is known of the labels of TensorMaps of the batch.
    """

    types: Tensor
    n_atoms: Tensor
    unique_types: Tensor
    sample_ids: Tensor | None = None
    ids_are_positions: bool = True
    systems: Sequence[HasTypes] = field(default=(), repr=False)
    host: "Atoms | None" = field(default=None, repr=False)
    label_records: Sequence[LabelRecord] = field(default=(), repr=False)

    @classmethod
    def from_systems(cls, systems: Sequence[HasTypes]) -> "Atoms":
        """Read types and lengths, unless they have been read before.

        Raises:
            ValueError: for negative types, and for systems on the meta device.
        """
        if isinstance(systems, OwnBatch):
            return systems.atoms
        read = systems.atoms if isinstance(systems, ReadSystems) else None
        atoms = cls._checked(*read_types(systems)) if read is None else read
        if not isinstance(systems, IdentifiedSystems):
            return replace(atoms, systems=systems)
        ids = torch.tensor(systems.sample_id)
        host = replace(
            atoms.on_host,
            sample_ids=ids.to(atoms.on_host.types.device),
            ids_are_positions=torch.equal(ids, torch.arange(len(ids))),
        )
        if atoms.host is None:
            return replace(host, systems=systems)
        return replace(host.to(atoms.types.device, atoms.label_records), systems=systems)

    @classmethod
    def from_types(
        cls, types: Tensor, n_atoms: Tensor, unique: tuple[Tensor, int] | None = None
    ) -> "Atoms":
        """Atoms of these types, ``n_atoms`` of them in every system.

        Args:
            types: atomic type of every atom, ``(n_all_atoms,)`` int64.
            n_atoms: number of atoms of every system, ``(n_systems,)`` int64.
            unique: result of :func:`unique_types`, if it is known.
        """
        return cls._checked(types, n_atoms, *(unique or unique_types(types)))

    @classmethod
    def _checked(cls, types: Tensor, n_atoms: Tensor, found: Tensor, smallest: int) -> "Atoms":
        if types.device.type == "meta":
            raise ValueError("expected systems with data, got systems on the meta device")
        if smallest < 0:
            raise ValueError(f"expected non-negative atomic types, got {smallest} in the systems")
        return cls(types, n_atoms, found.cpu())

    def to(
        self,
        device: torch.device | str,
        label_records: Sequence[LabelRecord] = (),
    ) -> "Atoms":
        """The same atoms on another device.

        Args:
            device: device of the result.
            label_records: of TensorMaps of the batch on that device; default: the same.
        """
        if self.types.device == torch.device(device) and not label_records:
            return self
        ids = self.sample_ids
        return replace(
            self,
            types=self.types.to(device, non_blocking=True),
            n_atoms=self.n_atoms.to(device, non_blocking=True),
            sample_ids=None if ids is None else ids.to(device, non_blocking=True),
            host=replace(self.on_host, systems=()),
            label_records=label_records or self.label_records,
        )

    @property
    def on_host(self) -> "Atoms":
        """The atoms where they were read; reading these does not wait for another device."""
        return self if self.host is None else self.host

    def label_record(self, tensor: TensorMap) -> LabelRecord | None:
        """The record of the labels of a TensorMap, if there is one."""
        return next((record for record in self.label_records if record.tensor is tensor), None)

    @property
    def n_systems(self) -> int:
        """Number of systems."""
        return self.n_atoms.numel()

    @cached_property
    def set_of_types(self) -> frozenset[int]:
        """The types that occur."""
        return frozenset(self.unique_types.tolist())

    @cached_property
    def type_index(self) -> Tensor:
        """Index of every atom's type in :attr:`unique_types`, ``(n_all_atoms,)`` int64."""
        if self.host is not None and self.host.types.device != self.types.device:
            return self.host.type_index.to(self.types.device, non_blocking=True)
        return index_types(self.types, self.unique_types.to(self.types.device))

    @cached_property
    def first_atom(self) -> Tensor:
        """Index of the first atom of every system, ``(n_systems,)`` int64."""
        return self.n_atoms.cumsum(0) - self.n_atoms

    @cached_property
    def n_atoms_or_nan(self) -> Tensor:
        """Number of atoms of every system, ``(n_systems,)`` float64; NaN where it is 0."""
        n_atoms = self.n_atoms.double()
        return torch.where(n_atoms > 0, n_atoms, torch.nan)

    @cached_property
    def system_of_atom(self) -> Tensor:
        """Position in the batch of every atom's system, ``(n_all_atoms,)`` int64."""
        return torch.repeat_interleave(self.n_atoms, output_size=self.types.numel())

    @cached_property
    def type_counts(self) -> Tensor:
        """Atoms of each of the unique types in every system, ``(n_systems, n_types)`` float64."""
        n_types = self.unique_types.numel()
        return _count_types(self.type_index, self.system_of_atom, self.n_systems, n_types)

    @cached_property
    def type_fractions(self) -> Tensor:
        """Fraction of each of the unique types in every system; 0 in systems without atoms."""
        return (self.type_counts / self.n_atoms_or_nan[:, None]).nan_to_num()

    def index_among(self, types: Tensor) -> Tensor:
        """Index of every atom's type in the sorted ``types``, which hold all that occur."""
        if torch.equal(types, self.unique_types):
            return self.type_index
        return self.gather_by_type(find_types(self.unique_types, types)[0])

    def gather_by_type(self, values: Tensor) -> Tensor:
        """Values of unique types, ``(n_types, ...)``, for every atom, ``(n_all_atoms, ...)``."""
        return values.index_select(0, self.type_index)

    def composition(self, types: Tensor) -> Tensor:
        """Atoms of each of ``types`` in every system, ``(n_systems, n_types)`` float64."""
        if torch.equal(types, self.unique_types):
            return self.type_counts
        column, known = find_types(self.unique_types, types)
        counts = self.type_counts.new_zeros((self.n_systems, types.numel()))
        device = counts.device
        return counts.index_copy_(
            1, column[known].to(device), self.type_counts[:, known.to(device)]
        )


def read_atoms(systems: Sequence[HasTypes] | Atoms) -> Atoms:
    """The atoms of the systems; atoms are returned as they are."""
    return systems if isinstance(systems, Atoms) else Atoms.from_systems(systems)


@scripted_arithmetic
def _count_types(
    type_index: Tensor, system_of_atom: Tensor, n_systems: int, n_types: int
) -> Tensor:
    # Not bincount, which waits for a GPU.
    counts = torch.zeros([n_systems * n_types], dtype=torch.float64, device=type_index.device)
    ones = counts.new_ones([1]).expand(type_index.numel())
    counts.index_add_(0, system_of_atom * n_types + type_index, ones)
    return counts.reshape([n_systems, n_types])
