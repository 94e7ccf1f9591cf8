"""What the ``system`` labels of a batch's targets mean: positions in the batch, or ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from metatensor.torch import Labels, TensorMap
from torch import Tensor

from ..settings import SystemLabels, check_choice
from ..tensors import PREDICTION, TARGET, describe
from .atomic_types import find_types
from .atoms import Atoms


@dataclass(frozen=True)
class SystemIndexing:
    """The meaning of the ``system`` labels of a batch's targets.

    Attributes:
        labels: ``"position"`` in the batch, ``"id"`` in the dataset, or ``"auto"`` where both
            give the same.
        ids: id of every system, in the order of the batch, ``(n_systems,)``, for ``"id"``.
    """

    labels: SystemLabels
    ids: Tensor | None = None

    def positions(self, name: str, samples: Labels, atoms: Atoms, what: str = TARGET) -> Tensor:
        """Position in the batch of every row's system, ``(n_samples,)``.

        Args:
            name: name of the target, for messages.
            samples: samples of a block.
            atoms: atoms of the batch.
            what: whether they are those of a ``TARGET`` or a ``PREDICTION``, for messages.

        Raises:
            ValueError: for a row whose system or atom is not in the batch.
        """
        systems: Tensor = samples.values[:, 0].long()
        if self.ids is None:
            found, known = systems, (systems >= 0) & (systems < atoms.n_systems)
        else:
            # The ids are on the host; a masked target is on the device of the batch.
            sorted_ids, order = self.ids.to(systems.device).sort()
            index, known = find_types(systems, sorted_ids)
            found = order[index] if order.numel() else index
        if samples.values.shape[1] == 2 and bool(known.all()):
            atom = samples.values[:, 1]
            known = (atom >= 0) & (atom < atoms.n_atoms[found])
        if not bool(known.all()):
            row = int((~known).nonzero()[0])
            meaning = "a position in it" if self.ids is None else "an id of the dataset"
            words = f", its system label being read as {meaning}; see the setting system_labels "
            words += "('auto', 'position' or 'id')"
            if what == PREDICTION:
                words = "; predictions carry the position in the batch as 'system'"
            raise ValueError(
                f"{what} '{name}': the sample ({describe(samples, row)}) is not in the batch of "
                f"{atoms.n_systems} systems{words}"
            )
        return found

    def rows(self, name: str, samples: Labels, atoms: Atoms, what: str = TARGET) -> Tensor:
        """Index of every row's system, or atom among all atoms of the batch, ``(n_samples,)``.

        See :meth:`positions` for the arguments.
        """
        systems = self.positions(name, samples, atoms, what)
        if samples.values.shape[1] == 1:
            return systems
        rows: Tensor = atoms.first_atom[systems] + samples.values[:, 1].long()
        return rows


BlockSamples = list[tuple[str, Labels]]


def infer_system_indexing(
    atoms: Atoms,
    tensors: Mapping[str, TensorMap],
    in_order: Mapping[str, Sequence[bool]],
    setting: SystemLabels,
    exact: bool = False,
) -> SystemIndexing:
    """Decide what the ``system`` labels of a batch mean.

    Rows in batch order mean the same both ways. Otherwise ``"position"`` fits if every label is a
    position in the batch, ``"id"`` if some block covers every system once its labels are numbered
    by first appearance, or if the batch has a ``sample_id`` for every label. ``"auto"`` takes the
    only one that fits.

    Args:
        atoms: atoms of the batch.
        tensors: targets by name; all of them take part.
        in_order: for each target, whether its blocks have all systems or atoms in batch order.
        setting: ``"auto"``, ``"position"`` or ``"id"``.
        exact: require both meanings to give the same systems, not only systems of the same types.

    Raises:
        ValueError: if neither meaning fits, or both fit and differ; the message names the setting.
    """
    check_choice("system_labels", setting, SystemLabels)
    position = SystemIndexing("position")
    if setting == "position":
        return position
    ambiguous = [
        (name, block.samples)
        for name, tensor in tensors.items()
        if not (atoms.ids_are_positions and all(in_order[name]))
        for block, block_in_order in zip(tensor.blocks(), in_order[name], strict=True)
        if block.samples.values.shape[1] <= 2 and not (atoms.ids_are_positions and block_in_order)
    ]
    orders = [] if setting == "auto" and not ambiguous else _orders_of_ids(atoms, tensors)
    if setting == "id":
        return _only_order(orders, atoms, needed=bool(ambiguous))
    if not ambiguous:
        return SystemIndexing("auto")
    by_id = SystemIndexing("id", orders[0]) if len(orders) == 1 else None
    fits = [
        indexing for indexing in (position, by_id) if indexing and _fits(indexing, ambiguous, atoms)
    ]
    if not fits:
        unfit = next(block for block in ambiguous if not _fits(position, [block], atoms))
        raise ValueError(
            "the system labels of the targets are neither positions in the batch of "
            f"{atoms.n_systems} systems nor ids that come in one order in every block that has "
            f"them all ({_in_words(unfit)}); set system_labels='position' or 'id' and see which "
            "rows do not fit"
        )
    if len(fits) == 1:
        return fits[0]
    differing = [block for block in ambiguous if not _agree(fits, *block, atoms, exact)]
    if not differing:
        return SystemIndexing("auto")
    raise ValueError(
        "the system labels of the targets can be read as positions in the batch and as ids of the "
        f"dataset, with different results ({_in_words(differing[0])}); set "
        "system_labels='position' or 'id'"
    )


def _in_words(block: tuple[str, Labels]) -> str:
    name, samples = block
    return f"target '{name}', first labels {samples.values[:4, 0].tolist()}"


def _only_order(orders: list[Tensor], atoms: Atoms, needed: bool) -> SystemIndexing:
    if len(orders) == 1:
        return SystemIndexing("id", orders[0])
    if not orders and not needed:
        return SystemIndexing("id", torch.arange(atoms.n_systems, device=atoms.types.device))
    found = f"they come in the orders {[order[:8].tolist() for order in orders]}"
    raise ValueError(
        "system_labels='id': expected a block of the targets that has a row for each of the "
        f"batch's {atoms.n_systems} systems, in their order; "
        f"{found if orders else 'there is none'}, so which id belongs to which system is unknown; "
        "add such a target to the batch, or give its rows in the order of the systems"
    )


def _orders_of_ids(atoms: Atoms, tensors: Mapping[str, TensorMap]) -> list[Tensor]:
    """The distinct orders of ids in blocks that cover every system."""
    if atoms.sample_ids is not None:
        return [atoms.sample_ids]
    orders: list[Tensor] = []
    for tensor in tensors.values():
        for block in tensor.blocks():
            systems = block.samples.values[:, 0].long()
            ids, inverse = systems.unique(return_inverse=True)
            if ids.numel() == atoms.n_systems:
                first = torch.full_like(ids, systems.numel())
                rows = torch.arange(systems.numel(), device=systems.device)
                first.scatter_reduce_(0, inverse, rows, "amin")
                order = ids[first.argsort()]
                if not any(torch.equal(order, other) for other in orders):
                    orders.append(order)
    return orders


def _fits(indexing: SystemIndexing, blocks: BlockSamples, atoms: Atoms) -> bool:
    try:
        for name, samples in blocks:
            indexing.positions(name, samples, atoms)
    except ValueError:
        return False
    return True


def _agree(
    meanings: list[SystemIndexing], name: str, samples: Labels, atoms: Atoms, exact: bool
) -> bool:
    """Whether both meanings give the same systems, or systems (or atoms) of the same types."""
    first, second = (indexing.positions(name, samples, atoms) for indexing in meanings)
    if torch.equal(first, second):
        return True
    if exact:
        return False
    if samples.values.shape[1] == 2:
        rows = [indexing.rows(name, samples, atoms) for indexing in meanings]
        return torch.equal(atoms.types[rows[0]], atoms.types[rows[1]])
    return torch.equal(atoms.type_counts[first], atoms.type_counts[second])
