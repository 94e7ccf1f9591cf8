"""The statistics of all targets seen so far."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..baselines import CompositionBaseline, Contribution, gradient_contributions
from ..batches import Atoms, IndexedTarget, find_types
from ..scaling import n_atoms_of_rows
from ..statistics import (
    BlockValues,
    GradientSums,
    JoinedBatch,
    PendingBatches,
    TargetStatistics,
    copy_small_values,
    gradient_sums,
    value_sums,
)
from ..tensors import (
    CPU,
    TargetLayout,
    find_known_layouts,
    match_layouts,
    values_and_gradients,
)


class TargetCollection:
    """The statistics of every target, and the small batches that are still to be read.

    Args:
        intensive_targets: names of per-structure targets that are not divided by the number of
            atoms before any statistics.
        baseline: composition baseline to fit; ``None``: none.
    """

    def __init__(
        self, intensive_targets: frozenset[str], baseline: CompositionBaseline | None
    ) -> None:
        self._intensive_targets = intensive_targets
        self._baseline = baseline
        self._statistics: dict[str, TargetStatistics] = {}
        self._pending = PendingBatches()

    @property
    def layouts(self) -> dict[str, TargetLayout]:
        """The layout of every target."""
        return {name: statistics.layout for name, statistics in self._statistics.items()}

    @property
    def types(self) -> dict[str, list[int]]:
        """The atomic types seen with every target."""
        return {name: statistics.types.tolist() for name, statistics in self.statistics.items()}

    @property
    def statistics(self) -> dict[str, TargetStatistics]:
        """The statistics of every target, after reading all pending batches."""
        for joined in self._pending.take_all():
            self._merge_joined(joined)
        return self._statistics

    def read_layouts(
        self, tensors: Mapping[str, TensorMap]
    ) -> tuple[dict[str, TensorMap], dict[str, TargetLayout]]:
        """The targets of a batch on the CPU, and the layout of each.

        Raises:
            ValueError: if a layout differs from earlier batches.
        """
        known = self.layouts
        # A layout that is found is on the CPU. Moving takes 33 µs a tensor, even from there.
        layouts = find_known_layouts(known, tensors, CPU)
        moved = {name: t.to(device="cpu") for name, t in tensors.items() if name not in layouts}
        if moved:
            layouts |= match_layouts(known, moved, CPU)
        return {**tensors, **moved}, layouts

    def is_extensive(self, layout: TargetLayout) -> bool:
        """Whether a target is divided by the number of atoms first."""
        return layout.sample_kind == "structure" and layout.name not in self._intensive_targets

    def update(
        self,
        targets: Mapping[str, IndexedTarget],
        atoms: Atoms,
        masks: Mapping[str, list[Tensor]],
        contributions: Mapping[str, Sequence[Contribution | None]],
    ) -> None:
        """Add one batch; an error leaves everything as it was.

        Args:
            targets: targets of the batch, each with at least one block.
            atoms: atoms of the batch.
            masks: masks by target name, for each block ``False`` where a value is missing.
            contributions: contributions of an additive module to every block, by target name.

        Raises:
            ValueError: for infinite values, and squares that overflow.
        """
        plain = {
            name: target.tensor
            for name, target in targets.items()
            if target.layout.sample_kind != "pair"
            and not (target.rows or name in masks or name in contributions)
            # Otherwise the batch has blocks that were absent so far, or only some of the blocks.
            and (name not in self._statistics or self._statistics[name].layout is target.layout)
        }
        copies = copy_small_values(list(plain.values()))
        small = {name: values for name, values in zip(plain, copies, strict=True) if values}
        batch = {
            name: self._read_batch(
                target.layout,
                _block_values(target, masks.get(name), contributions.get(name)),
                atoms,
            )
            for name, target in targets.items()
            if name not in small
        }
        gradients = {
            name: self._sum_gradients(target, atoms, masks.get(name), contributions.get(name))
            for name, target in targets.items()
            if target.layout.gradients or target.layout.sample_kind == "pair"
        }
        for name, target in targets.items():
            if name not in self._statistics:
                self._statistics[name] = TargetStatistics(target.layout, atoms.unique_types, {})
            if name in batch:
                self._statistics[name].merge(batch[name])
        for name, sums in gradients.items():
            self._statistics[name].add_gradients(sums, self._types(name, atoms))
        if small:
            layouts = {name: targets[name].layout for name in small}
            for joined in self._pending.add(layouts, atoms, small):
                self._merge_joined(joined)

    def merge(self, other: "TargetCollection") -> None:
        """Add everything from another collection with matching layouts, which stays as it is."""
        for name, statistics in other.statistics.items():
            if name in self._statistics:
                self._statistics[name].merge(statistics)
            else:
                self._statistics[name] = copy.copy(statistics)

    def state(self) -> dict[str, Any]:
        """All statistics as plain Python objects and tensors."""
        return {name: statistics.state() for name, statistics in self.statistics.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the :meth:`state` of another collection."""
        for name, statistics in state.items():
            self._statistics[name] = TargetStatistics.from_state(name, statistics)

    def _merge_joined(self, batch: JoinedBatch) -> None:
        for name, layout in batch.layouts.items():
            blocks = [BlockValues(values) for values in batch.values[name]]
            self._statistics[name].merge(self._read_batch(layout, blocks, batch.atoms))

    def _read_batch(
        self, layout: TargetLayout, blocks: Sequence[BlockValues], atoms: Atoms
    ) -> TargetStatistics:
        composition, extensive = "none", self.is_extensive(layout)
        if self._baseline is not None:
            composition = self._baseline.composition(layout, extensive)
        return TargetStatistics.from_batch(
            layout,
            blocks,
            atoms,
            self._types(layout.name, atoms),
            extensive=extensive,
            baseline=composition != "none",
            fractions=composition == "fractions",
        )

    def _sum_gradients(
        self,
        target: IndexedTarget,
        atoms: Atoms,
        masks: Sequence[Tensor] | None,
        contributions: Sequence[Contribution | None] | None,
    ) -> dict[str, GradientSums]:
        """Sums over the gradients of a target in one batch, and over the values of atom pairs."""
        layout = target.layout
        if layout.sample_kind == "pair":
            masks = None if masks is None else list(masks)
            return {"": value_sums(layout.name, target.tensor, masks)}
        type_index: list[Tensor] = []
        n_types = 1
        if layout.sample_kind == "atom":
            types = self._types(layout.name, atoms)
            n_types, of_atoms = types.numel(), atoms.index_among(types)
            type_index = [of_atoms[rows] for rows in target.rows] or [of_atoms]
        n_atoms: list[Tensor] = []
        if self.is_extensive(layout):
            n_atoms = n_atoms_of_rows(target, atoms)
        subtracted = gradient_contributions(target.tensor, contributions)
        return gradient_sums(layout.name, target.tensor, type_index, n_types, n_atoms, subtracted)

    def _types(self, name: str, atoms: Atoms) -> Tensor:
        """The types seen with a target, including those of this batch."""
        if name not in self._statistics:
            return atoms.unique_types
        seen = self._statistics[name].types
        if torch.equal(seen, atoms.unique_types):
            return seen
        if bool(find_types(atoms.unique_types, seen)[1].all()):
            return seen
        types: Tensor = torch.cat([seen, atoms.unique_types]).unique()
        return types


def _block_values(
    target: IndexedTarget,
    masks: Sequence[Tensor] | None,
    contributions: Sequence[Contribution | None] | None,
) -> list[BlockValues]:
    blocks = []
    for i, values in enumerate(values_and_gradients(target.tensor)[0]):
        contribution = None if contributions is None else contributions[i]
        blocks.append(
            BlockValues(
                values,
                target.rows[i] if target.rows else None,
                None if masks is None else masks[i],
                None if contribution is None else contribution.values,
            )
        )
    return blocks
