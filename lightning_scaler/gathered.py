"""The statistics of all targets while the data pass by."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap

from .additive import Contribution
from .atoms import Atoms, find_types
from .statistics import TargetStatistics
from .system_labels import Reading
from .target import CPU, TargetLayout, holding
from .waiting import ENTRIES_AT_ONCE, WaitingBatches, copies_of_small


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
        self._waiting: dict[str, WaitingBatches] = {}

    @property
    def layouts(self) -> dict[str, TargetLayout]:
        """The layout of every target seen."""
        return {name: statistics.layout for name, statistics in self._read.items()}

    @property
    def statistics(self) -> dict[str, TargetStatistics]:
        """The statistics of every target seen."""
        for name in list(self._waiting):
            self._read_waiting(name)
        return self._read

    def is_extensive(self, layout: TargetLayout) -> bool:
        """Whether a target is divided by the number of atoms first."""
        return layout.kind == "structure" and layout.name not in self._intensive_targets

    def layouts_of(self, tensors: Mapping[str, TensorMap]) -> dict[str, TargetLayout]:
        """The layouts of a batch's targets, on the CPU; those seen before are the same objects.

        Raises:
            ValueError: if one does not go with that of earlier batches.
        """
        known = self.layouts
        held = holding(known, tensors, CPU)
        layouts = {}
        for name, tensor in tensors.items():
            layouts[name] = known[name] if name in held else TargetLayout.of(name, tensor)
            if name in known and name not in held and layouts[name].blocks:
                known[name].united(layouts[name])
        return layouts

    def update(
        self,
        layouts: Mapping[str, TargetLayout],
        tensors: Mapping[str, TensorMap],
        atoms: Atoms,
        reading: Reading,
        keep: Mapping[str, list[torch.Tensor]],
        contributions: Mapping[str, Sequence[Contribution | None]],
    ) -> None:
        """Take in one batch; an error leaves everything as it was.

        Args:
            layouts: of :meth:`layouts_of`.
            tensors: by target name, each with some block.
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
                tensor,
                atoms,
                reading,
                extensive=self.is_extensive(layouts[name]),
                baseline=self._baseline,
                contributions=contributions.get(name),
                keep=keep.get(name),
                types=self._types(name, atoms),
            )
            for name, tensor in tensors.items()
            if name not in small
        }
        for name in tensors:
            if name not in self._read:
                self._read[name] = TargetStatistics(layouts[name], atoms.kinds, {})
            if name in batch:
                self._read[name].merge(batch[name])
            else:
                self._wait(layouts[name], atoms, small[name])

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

    def _wait(self, layout: TargetLayout, atoms: Atoms, values: list[torch.Tensor]) -> None:
        name = layout.name
        if name in self._waiting and not self._waiting[name].suits(layout, values):
            self._read_waiting(name)
        waiting = self._waiting.setdefault(name, WaitingBatches(layout))
        if waiting.add(atoms, values):
            self._read_waiting(name)

    def _read_waiting(self, name: str) -> None:
        waiting = self._waiting.pop(name)
        atoms, values = waiting.joined()
        statistics = TargetStatistics.of_values(
            waiting.layout,
            values,
            None,
            atoms,
            extensive=self.is_extensive(waiting.layout),
            baseline=self._baseline,
            types=self._types(name, atoms),
        )
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
