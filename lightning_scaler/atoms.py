"""A batch's atoms: types, counts, and which atom each sample row belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from metatensor.torch import Labels


class HasTypes(Protocol):
    """What is asked of a system: a length and a type per atom."""

    @property
    def types(self) -> Any:
        """Atomic types, ``(n_atoms,)`` integers."""

    def __len__(self) -> int:
        """Return the number of atoms."""


class IdentifiedSystems(list[Any]):
    """The systems of a batch that says which of the data set they are.

    Args:
        systems: of the batch.
        sample_id: the id of each, an integer.
    """

    def __init__(self, systems: Sequence[HasTypes], sample_id: Sequence[int]) -> None:
        if len(systems) != len(sample_id):
            raise ValueError(
                f"expected a sample_id for each of the {len(systems)} systems of the batch, got "
                f"{len(sample_id)}"
            )
        super().__init__(systems)
        self.sample_id = tuple(sample_id)


@dataclass(frozen=True)
class Atoms:
    """The atoms of a batch of systems, one after the other.

    Attributes:
        types: atomic type of every atom, ``(n_atoms,)`` int64.
        counts: number of atoms of every system, ``(n_systems,)`` int64.
        offsets: index of the first atom of every system, ``(n_systems,)`` int64.
        system_of_atom: position in the batch of every atom's system, ``(n_atoms,)`` int64.
        sample_id: the id of every system in the data set, ``(n_systems,)``, where the batch says.
        systems: the systems themselves, wherever they are.
    """

    types: torch.Tensor
    counts: torch.Tensor
    offsets: torch.Tensor
    system_of_atom: torch.Tensor
    sample_id: torch.Tensor | None = None
    systems: Sequence[HasTypes] = field(default=(), repr=False)

    @classmethod
    def from_systems(cls, systems: Sequence[HasTypes]) -> "Atoms":
        """Read types and lengths, the only things asked of a system."""
        per_system = [torch.as_tensor(system.types) for system in systems]
        device = per_system[0].device if per_system else torch.device("cpu")
        if device.type == "meta":
            raise ValueError("expected systems with data, got systems on the meta device")
        types = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *per_system]).long()
        if types.numel() > 0 and int(types.min()) < 0:
            raise ValueError(
                f"expected non-negative atomic types, got {int(types.min())} in the systems"
            )
        counts = torch.tensor([len(t) for t in per_system], dtype=torch.int64, device=device)
        positions = torch.arange(len(per_system), device=device)
        sample_id = getattr(systems, "sample_id", None)
        return cls(
            types=types,
            counts=counts,
            offsets=counts.cumsum(0) - counts,
            system_of_atom=positions.repeat_interleave(counts, output_size=types.numel()),
            sample_id=None if sample_id is None else torch.tensor(sample_id, device=device),
            systems=systems,
        )

    def __len__(self) -> int:
        """Return the number of systems."""
        return self.counts.numel()

    def to(self, device: torch.device | str) -> "Atoms":
        """The same atoms on another device."""
        if self.types.device == torch.device(device):
            return self
        return Atoms(
            self.types.to(device),
            self.counts.to(device),
            self.offsets.to(device),
            self.system_of_atom.to(device),
            None if self.sample_id is None else self.sample_id.to(device),
            self.systems,
        )

    @cached_property
    def usual_labels(self) -> dict[int, torch.Tensor]:
        """Labels of all systems, and of all atoms, in the order of the batch, by their width."""
        atom = torch.arange(self.types.numel(), device=self.types.device)
        atom = atom - self.offsets[self.system_of_atom]
        system = torch.arange(len(self), device=self.types.device)
        return {
            1: system[:, None].to(torch.int32),
            2: torch.stack([self.system_of_atom, atom], 1).to(torch.int32),
        }

    @cached_property
    def usual_ids(self) -> bool:
        """Whether ids and positions are the same, as far as the batch says."""
        usual = torch.arange(len(self), device=self.types.device)
        return self.sample_id is None or torch.equal(self.sample_id, usual)

    def usual_rows(self, samples: Labels) -> bool:
        """Whether rows are those of all systems, or of all atoms, in the order of the batch."""
        values = samples.values
        usual = self.usual_labels.get(values.shape[1])
        return usual is not None and torch.equal(values, usual)

    def composition(self, types: torch.Tensor) -> torch.Tensor:
        """Atoms of each of ``types`` in every system, float64 ``(n_systems, n_types)``."""
        counts = torch.zeros(
            (len(self), types.numel()), dtype=torch.float64, device=self.types.device
        )
        column, known = find_types(self.types, types)
        counts.index_put_(
            (self.system_of_atom[known], column[known]),
            torch.ones((), dtype=torch.float64, device=counts.device),
            accumulate=True,
        )
        return counts


def read_atoms(systems: Sequence[HasTypes] | Atoms) -> Atoms:
    """The atoms of the systems, unless these have been read already."""
    return systems if isinstance(systems, Atoms) else Atoms.from_systems(systems)


def find_types(types: torch.Tensor, among: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of every type in the sorted tensor ``among``, and whether it is there at all."""
    if among.numel() == 0:
        return torch.zeros_like(types), torch.zeros_like(types, dtype=torch.bool)
    index = torch.searchsorted(among, types).clamp(max=among.numel() - 1)
    return index, among[index] == types
