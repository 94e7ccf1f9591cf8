"""The statistics of all targets while the data pass by."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap

from ..baselines import Contribution
from ..batches import Atoms, SystemIndexing, find_types, rows_of_blocks
from ..statistics import ENTRIES_AT_ONCE, TargetStatistics, Values, WaitingBatches, copies_of_small
from ..tensors import CPU, TargetLayout, names_with_layout, values_and_gradients

# Batches of so many different sets of targets wait at a time, which bounds their memory.
SETS_OF_TARGETS = 8


class GatheredStatistics:
    """The statistics of every target of the batches seen so far, some of which wait to be read.

    Args:
        intensive_targets: names of per-structure targets that are not divided by the number of
            atoms before any statistic.
        baseline: whether the invariant parts are to be kept apart for one.
    """

    def __init__(self, intensive_targets: frozenset[str], baseline: bool) -> None:
        self._intensive_targets = intensive_targets
        self._baseline = baseline
        self._read: dict[str, TargetStatistics] = {}
        self._waiting: dict[tuple[str, ...], WaitingBatches] = {}

    @property
    def layouts(self) -> dict[str, TargetLayout]:
        """The layout of every target seen."""
        return {name: statistics.layout for name, statistics in self._read.items()}

    @property
    def statistics(self) -> dict[str, TargetStatistics]:
        """The statistics of every target seen."""
        self._read_waiting()
        return self._read

    def is_extensive(self, layout: TargetLayout) -> bool:
        """Whether a target is divided by the number of atoms first."""
        return layout.kind == "structure" and layout.name not in self._intensive_targets

    def recognised(
        self, tensors: Mapping[str, TensorMap]
    ) -> tuple[dict[str, TensorMap], dict[str, TargetLayout]]:
        """The targets of a batch on the CPU, and their layouts.

        Raises:
            ValueError: if one does not go with that of earlier batches.
        """
        known = self.layouts
        # What is held is on the CPU, so that no other tensor has to be asked where it is.
        held = names_with_layout(known, tensors, CPU)
        moved = {
            name: tensor.to(device="cpu")
            for name, tensor in tensors.items()
            if name not in held and tensor.device != CPU
        }
        held |= names_with_layout(known, moved, CPU)
        tensors = {**tensors, **moved}
        layouts = {}
        for name, tensor in tensors.items():
            layouts[name] = known[name] if name in held else TargetLayout.of(name, tensor)
            if name in known and name not in held and layouts[name].blocks:
                known[name].union(layouts[name])
        return tensors, layouts

    def update(
        self,
        layouts: Mapping[str, TargetLayout],
        tensors: Mapping[str, TensorMap],
        atoms: Atoms,
        reading: SystemIndexing,
        keep: Mapping[str, list[torch.Tensor]],
        contributions: Mapping[str, Sequence[Contribution | None]],
    ) -> None:
        """Take in one batch; an error leaves everything as it was.

        Args:
            layouts: of :meth:`recognised`.
            tensors: likewise, each with some block.
            atoms: of the batch.
            reading: of the ``system`` labels.
            keep: by target name, for each block ``False`` where an entry is missing.
            contributions: of an additive module, by target name, to every block.

        Raises:
            ValueError: for infinite entries, and for squares that overflow.
        """
        plain = {
            name: tensor
            for name, tensor in tensors.items()
            if name in reading.usual
            and name not in keep
            and name not in contributions
            # Others have blocks that earlier batches lacked, or lack some.
            and (name not in self._read or self._read[name].layout is layouts[name])
        }
        copies = copies_of_small(list(plain.values()), ENTRIES_AT_ONCE)
        small = {name: values for name, values in zip(plain, copies, strict=True) if values}
        batch = {
            name: TargetStatistics.of_batch(
                layouts[name],
                values_and_gradients(tensor)[0],
                rows_of_blocks(layouts[name], tensor, atoms, reading),
                atoms,
                self._types(name, atoms),
                extensive=self.is_extensive(layouts[name]),
                baseline=self._baseline,
                contributions=_values(contributions.get(name)),
                keep=keep.get(name),
            )
            for name, tensor in tensors.items()
            if name not in small
        }
        for name in tensors:
            if name not in self._read:
                self._read[name] = TargetStatistics(layouts[name], atoms.kinds, {})
            if name in batch:
                self._read[name].merge(batch[name])
        if small:
            self._wait(layouts, atoms, small)

    def merge(self, other: "GatheredStatistics") -> None:
        """Take over all that another has, whose layouts go with these; it stays as it is."""
        for name, statistics in copy.deepcopy(other.statistics).items():
            if name in self._read:
                self._read[name].merge(statistics)
            else:
                self._read[name] = statistics

    def state(self) -> dict[str, Any]:
        """All statistics as plain Python objects and tensors."""
        return {name: statistics.state() for name, statistics in self.statistics.items()}

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Take the :meth:`state` of another."""
        for name, statistics in state.items():
            self._read[name] = TargetStatistics.from_state(name, statistics)

    def _wait(self, layouts: Mapping[str, TargetLayout], atoms: Atoms, values: Values) -> None:
        names = tuple(values)
        if names in self._waiting:
            if not self._waiting[names].suits(layouts, values):
                self._read_waiting(names)
        elif len(self._waiting) == SETS_OF_TARGETS:
            self._read_waiting()
        of_names = {name: layouts[name] for name in names}
        waiting = self._waiting.setdefault(names, WaitingBatches(of_names))
        if waiting.add(atoms, values):
            self._read_waiting(names)

    def _read_waiting(self, *sets_of_names: tuple[str, ...]) -> None:
        """Read what waits of some sets of targets, of all of them unless they are given."""
        for names in sets_of_names or tuple(self._waiting):
            atoms, values = self._waiting[names].joined()
            read = {
                name: TargetStatistics.of_batch(
                    layout,
                    values[name],
                    [],
                    atoms,
                    self._types(name, atoms),
                    extensive=self.is_extensive(layout),
                    baseline=self._baseline,
                )
                for name, layout in self._waiting[names].layouts.items()
            }
            del self._waiting[names]
            for name, statistics in read.items():
                self._read[name].merge(statistics)

    def _types(self, name: str, atoms: Atoms) -> torch.Tensor:
        """The types seen with a target, those of this batch among them."""
        if name not in self._read:
            return atoms.kinds
        seen = self._read[name].types
        if torch.equal(seen, atoms.kinds) or bool(find_types(atoms.kinds, seen)[1].all()):
            return seen
        types: torch.Tensor = torch.cat([seen, atoms.kinds]).unique()
        return types


def _values(parts: Sequence[Contribution | None] | None) -> list[torch.Tensor | None] | None:
    return None if parts is None else [part and part.values for part in parts]
