"""How the ``system`` labels of a batch's targets are read: as positions in it, or as ids."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from metatensor.torch import Labels, TensorMap

from ..settings import SystemLabels, check_choice
from ..tensors import TargetLayout, describe
from .atomic_types import find_types
from .atoms import Atoms


@dataclass(frozen=True)
class SystemIndexing:
    """How the ``system`` label of a batch's targets is to be read.

    Attributes:
        labels: ``"position"`` in the batch, ``"id"`` of the data set, or ``"auto"`` where both
            give the same.
        ids: the id of every system in the batch's order, ``(n_systems,)``, for ``"id"``.
        usual: names of targets that are known to have the rows of all systems, or of all atoms, in
            the order of the batch, so that their labels need not be looked at again.
    """

    labels: SystemLabels
    ids: torch.Tensor | None = None
    usual: frozenset[str] = frozenset()

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


def rows_of_blocks(
    layout: TargetLayout, tensor: TensorMap, atoms: Atoms, reading: SystemIndexing
) -> list[torch.Tensor]:
    """For each block the index of every row's atom or system; none for all of them in order.

    There are none of atom pairs either.
    """
    if layout.kind == "pair" or layout.name in reading.usual:
        return []
    find = reading.atom_rows if layout.kind == "atom" else reading.positions
    return [find(layout.name, block.samples, atoms) for block in tensor.blocks()]


def index_by_position(atoms: Atoms, tensors: Mapping[str, TensorMap]) -> SystemIndexing:
    """The reading of tensors whose ``system`` label is the position in the batch."""
    return SystemIndexing("position", usual=atoms.usual(tensors))


def infer_system_indexing(
    atoms: Atoms, tensors: Mapping[str, TensorMap], setting: SystemLabels, exact: bool = False
) -> SystemIndexing:
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
    usual = atoms.usual(tensors)
    position = SystemIndexing("position", usual=usual)
    if setting == "position":
        return position
    blocks = [
        (name, block.samples)
        for name, tensor in tensors.items()
        if not (atoms.usual_ids and name in usual)
        for block in tensor.blocks()
        if block.samples.values.shape[1] <= 2
        and not (atoms.usual_ids and atoms.usual_rows(block.samples))
    ]
    orders = [] if setting == "auto" and not blocks else _orders_of_ids(atoms, tensors)
    if setting == "id":
        return _only_order(orders, atoms, needed=bool(blocks))
    if not blocks:
        return SystemIndexing("auto", usual=usual)
    by_id = SystemIndexing("id", orders[0]) if len(orders) == 1 else None
    fits = [reading for reading in (position, by_id) if reading and _fits(reading, blocks, atoms)]
    if len(fits) == 2:
        if all(_agree(fits, name, samples, atoms, exact) for name, samples in blocks):
            return SystemIndexing("auto", usual=usual)
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


def _only_order(orders: list[torch.Tensor], atoms: Atoms, needed: bool) -> SystemIndexing:
    if len(orders) == 1:
        return SystemIndexing("id", orders[0])
    if not orders and not needed:
        return SystemIndexing("id", torch.arange(len(atoms), device=atoms.types.device))
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


def _fits(reading: SystemIndexing, blocks: list[tuple[str, Labels]], atoms: Atoms) -> bool:
    try:
        for name, samples in blocks:
            reading.positions(name, samples, atoms)
    except ValueError:
        return False
    return True


def _agree(
    readings: list[SystemIndexing], name: str, samples: Labels, atoms: Atoms, exact: bool
) -> bool:
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
