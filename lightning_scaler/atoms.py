"""A batch's atoms: types, counts, and which atom each sample row belongs to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from metatensor.torch import Labels, TensorMap

from .settings import check_choice
from .tensormap import describe

SystemLabels = Literal["auto", "position", "id"]


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
    """

    types: torch.Tensor
    counts: torch.Tensor
    offsets: torch.Tensor
    system_of_atom: torch.Tensor
    sample_id: torch.Tensor | None = None

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
        )

    def __len__(self) -> int:
        """Return the number of systems."""
        return self.counts.numel()

    def to(self, device: torch.device | str) -> "Atoms":
        """The same atoms on another device."""
        if self.types.device == torch.device(device):
            return self
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Atoms(**{name: p if p is None else p.to(device) for name, p in parts.items()})

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


@dataclass(frozen=True)
class Reading:
    """How the ``system`` label of a batch's targets is to be read.

    Attributes:
        labels: ``"position"`` in the batch, ``"id"`` of the data set, or ``"auto"`` where both
            give the same.
        ids: the id of every system in the batch's order, ``(n_systems,)``, for ``"id"``.
    """

    labels: SystemLabels
    ids: torch.Tensor | None = None

    def positions(self, name: str, samples: Labels, atoms: Atoms) -> torch.Tensor:
        """Position in the batch of every row's system, ``(n_samples,)``.

        Raises:
            ValueError: for a row whose system or atom is not in the batch.
        """
        if self.ids is None and atoms.usual_rows(samples):
            usual = torch.arange(len(atoms), device=atoms.types.device)
            return usual if samples.values.shape[1] == 1 else atoms.system_of_atom
        systems: torch.Tensor = samples.values[:, 0].long()
        if self.ids is None:
            found, known = systems, (systems >= 0) & (systems < len(atoms))
        else:
            sorted_ids, order = self.ids.sort()
            index, known = find_types(systems, sorted_ids)
            found = order[index] if order.numel() else index
        if samples.values.shape[1] == 2 and bool(known.all()):
            atom = samples.values[:, 1]
            known = (atom >= 0) & (atom < atoms.counts[found])
        if not bool(known.all()):
            row = int((~known).nonzero()[0])
            raise ValueError(
                f"target '{name}': the sample ({describe(samples, row)}) is not in the batch of "
                f"{len(atoms)} systems, its system label being read as "
                f"{'an id of the data set' if self.ids is not None else 'a position in it'}; "
                "see the setting system_labels ('auto', 'position' or 'id')"
            )
        return found

    def atom_rows(self, name: str, samples: Labels, atoms: Atoms) -> torch.Tensor:
        """Index among the batch's atoms of every row of a per-atom target, ``(n_samples,)``."""
        if self.ids is None and atoms.usual_rows(samples):
            return torch.arange(atoms.types.numel(), device=atoms.types.device)
        systems = self.positions(name, samples, atoms)
        atom: torch.Tensor = samples.values[:, 1].long()
        return atoms.offsets[systems] + atom


POSITION = Reading("position")


def read_system_labels(
    atoms: Atoms, tensors: Mapping[str, TensorMap], setting: SystemLabels, exact: bool = False
) -> Reading:
    """Settle how the ``system`` labels of a batch are read (SPEC rule 11 in words).

    Rows in the usual order read the same both ways. Else ``"position"`` fits if every label is a
    position in the batch, ``"id"`` if some block covers every system once its labels are numbered
    by first appearance, or every label is one of the batch's ``sample_id``. ``"auto"`` takes the
    only one that fits.

    Args:
        atoms: of the batch.
        tensors: the targets by name; all of them take part.
        setting: ``"auto"``, ``"position"`` or ``"id"``.
        exact: both readings must give the same systems, not only systems of the same types.

    Raises:
        ValueError: where no reading fits, or both fit and differ; the message names the setting.
    """
    check_choice("system_labels", setting, SystemLabels)
    blocks = [
        (name, block.samples)
        for name, tensor in tensors.items()
        for block in tensor.blocks()
        if block.samples.values.shape[1] <= 2
        and not (atoms.usual_ids and atoms.usual_rows(block.samples))
    ]
    if setting == "position":
        return POSITION
    orders = [] if setting == "auto" and not blocks else _orders_of_ids(atoms, tensors)
    if setting == "id":
        return _only_order(orders, atoms, needed=bool(blocks))
    if not blocks:
        return Reading("auto")
    by_id = Reading("id", orders[0]) if len(orders) == 1 else None
    fits = [reading for reading in (POSITION, by_id) if reading and _fits(reading, blocks, atoms)]
    if len(fits) == 2:
        if all(_agree(fits, name, samples, atoms, exact) for name, samples in blocks):
            return Reading("auto")
        raise ValueError(
            "the system labels of the targets can be read as positions in the batch and as ids of "
            f"the data set, with different results (target '{blocks[0][0]}', first labels "
            f"{blocks[0][1].values[:4, 0].tolist()}); set system_labels='position' or 'id'"
        )
    if not fits:
        raise ValueError(
            "the system labels of the targets are neither positions in the batch of "
            f"{len(atoms)} systems nor ids that come in one order in every block that has them all "
            f"(target '{blocks[0][0]}', first labels {blocks[0][1].values[:4, 0].tolist()}); set "
            "system_labels='position' or 'id' and see which rows do not fit"
        )
    return fits[0]


def _only_order(orders: list[torch.Tensor], atoms: Atoms, needed: bool) -> Reading:
    if len(orders) == 1:
        return Reading("id", orders[0])
    if not orders and not needed:
        return Reading("id", torch.arange(len(atoms), device=atoms.types.device))
    found = f"they come in the orders {[order[:8].tolist() for order in orders]}"
    raise ValueError(
        "system_labels='id': expected a block of the targets that has a row for each of the "
        f"batch's {len(atoms)} systems, in their order; {found if orders else 'there is none'}, so "
        "which id belongs to which system is unknown; add such a target to the batch, or give its "
        "rows in the order of the systems"
    )


def _orders_of_ids(atoms: Atoms, tensors: Mapping[str, TensorMap]) -> list[torch.Tensor]:
    """The different orders in which blocks that cover every system have their ids."""
    if atoms.sample_id is not None:
        return [atoms.sample_id]
    orders: list[torch.Tensor] = []
    for tensor in tensors.values():
        for block in tensor.blocks():
            systems = block.samples.values[:, 0].long()
            ids, inverse = systems.unique(return_inverse=True)
            if ids.numel() == len(atoms):
                first = torch.full_like(ids, systems.numel())
                rows = torch.arange(systems.numel(), device=systems.device)
                first.scatter_reduce_(0, inverse, rows, "amin")
                order = ids[first.argsort()]
                if not any(torch.equal(order, other) for other in orders):
                    orders.append(order)
    return orders


def _fits(reading: Reading, blocks: list[tuple[str, Labels]], atoms: Atoms) -> bool:
    try:
        for name, samples in blocks:
            reading.positions(name, samples, atoms)
    except ValueError:
        return False
    return True


def _agree(readings: list[Reading], name: str, samples: Labels, atoms: Atoms, exact: bool) -> bool:
    first, second = (reading.positions(name, samples, atoms) for reading in readings)
    if torch.equal(first, second):
        return True
    if exact:
        return False
    if samples.values.shape[1] == 2:
        atom = samples.values[:, 1].long()
        return torch.equal(
            atoms.types[atoms.offsets[first] + atom], atoms.types[atoms.offsets[second] + atom]
        )
    composition = atoms.composition(atoms.types.unique())
    return torch.equal(composition[first], composition[second])
