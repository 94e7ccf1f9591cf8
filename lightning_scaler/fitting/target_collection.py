"""The statistics of all targets seen so far."""

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..baselines import AdditiveCoverage, CompositionBaseline, FrozenModule
from ..batches import Atoms, find_types
from ..scaling import TargetScales
from ..settings import FixedScale, SystemLabels
from ..statistics import (
    BlockValues,
    JoinedBatch,
    PendingBatches,
    TargetStatistics,
    copy_small_values,
)
from ..tensors import Key, TargetLayout, to_state
from .batch_targets import BatchInputs, BatchTarget, read_targets
from .fit import fit_target
from .random_sample import RandomSample


class TargetCollection:
    """The statistics of every target, and the small batches that are still to be read.

    Args:
        intensive_targets: names of per-structure targets that are not divided by the number of
            atoms before any statistics.
        baseline: composition baseline to fit; ``None``: none.
        additive: module whose contributions are subtracted first; ``None``: none.

    Attributes:
        coverage: the targets and blocks that the additive module contributes to.
    """

    def __init__(
        self,
        intensive_targets: frozenset[str],
        baseline: CompositionBaseline | None,
        additive: FrozenModule | None,
    ) -> None:
        self._intensive_targets = intensive_targets
        self._baseline = baseline
        self._additive = additive
        self.coverage = AdditiveCoverage()
        self._statistics: dict[str, TargetStatistics] = {}
        self._pending = PendingBatches()

    @property
    def layouts(self) -> dict[str, TargetLayout]:
        """The layout of every target."""
        return {name: statistics.layout for name, statistics in self._statistics.items()}

    @property
    def statistics(self) -> dict[str, TargetStatistics]:
        """The statistics of every target, after reading all pending batches."""
        for joined in self._pending.take_all():
            self._merge_joined(joined)
        return self._statistics

    def update(
        self, inputs: BatchInputs, system_labels: SystemLabels, exact_labels: bool
    ) -> SystemLabels:
        """Add one batch; an error leaves everything as it was.

        Args:
            inputs: the batch as it came.
            system_labels: what the ``system`` labels mean.
            exact_labels: see :meth:`ScaleAccumulator.update`.

        Returns:
            What the labels mean from now on.

        Raises:
            ValueError: see :meth:`ScaleAccumulator.update`.
        """
        batch = read_targets(inputs, self.layouts, self._additive, system_labels, exact_labels)
        if batch.coverage is not None and self._additive is not None:
            layouts = {name: target.indexed.layout for name, target in batch.targets.items()}
            self.coverage.check(batch.coverage, self._additive.name, layouts)
        self._add(batch.targets, batch.atoms)
        if batch.coverage is not None:
            self.coverage.merge(batch.coverage)
        return batch.system_labels

    def check_merge(self, other: "TargetCollection") -> None:
        """Refuse a collection with other layouts, or contributions to other blocks."""
        layouts, others = self.layouts, other.layouts
        for name in layouts.keys() & others.keys():
            layouts[name].union(others[name])
        if self._additive is not None:
            self.coverage.check(other.coverage, self._additive.name, others)

    def merge(self, other: "TargetCollection") -> None:
        """Add everything from another collection, which stays as it is; see check_merge."""
        self.coverage.merge(other.coverage)
        for name, statistics in other.statistics.items():
            if name in self._statistics:
                self._statistics[name].merge(statistics)
            else:
                self._statistics[name] = copy.copy(statistics)

    def state(self) -> dict[str, Any]:
        """All statistics as plain Python objects and tensors."""
        return {name: to_state(statistics) for name, statistics in self.statistics.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the :meth:`state` of another collection."""
        for name, statistics in state.items():
            self._statistics[name] = TargetStatistics.from_state(name, statistics)

    def fit(
        self,
        name: str,
        fixed: FixedScale | None = None,
        enabled: bool = True,
        sample: RandomSample | None = None,
    ) -> tuple[TargetScales, dict[Key, Tensor]]:
        """Fit one target.

        Args:
            name: name of the target.
            fixed: per-target scale that replaces the fitted one.
            enabled: ``False`` sets every scale to 1.
            sample: how precise the scales are, if the data are a random sample.

        Returns:
            Its scales, and its properties below the noise; see :func:`fit_target`.
        """
        statistics = self.statistics[name]
        scales, below_noise = fit_target(
            statistics,
            self._is_extensive(statistics.layout),
            self._baseline,
            fixed,
            enabled,
            additive=self._additive is not None and self.coverage.covers(name),
        )
        if sample is not None and not sample.complete:
            given = fixed if isinstance(fixed, dict) else {}
            exact = [isinstance(fixed, float) or z in given for z in scales.types.tolist()]
            errors = torch.where(torch.tensor(exact), 0.0, sample.errors[name])
            scales = replace(scales, relative_errors=errors)
        return scales, below_noise

    def all_fixed(self, fixed_scales: Mapping[str, FixedScale]) -> bool:
        """Whether all scales, of single properties, and all of a baseline are fixed."""
        for name, one in self.statistics.items():
            types = one.types.tolist()
            fixed = one.layout.single_property and _is_fixed(fixed_scales.get(name), types)
            if self._baseline is not None:
                fixed = fixed and self._baseline.is_fixed(one.layout, types)
            if not fixed:
                return False
        return True

    def check_additive(self) -> None:
        """Refuse an additive module that was never used; warn of gradients that it did not give."""
        if self._additive is None:
            return
        self.coverage.check_used(self._additive.name, self._statistics)
        for name, parameter in sorted(self.coverage.missing_gradients):
            warnings.warn(
                f"additive module {self._additive.name}: it gives no gradient '{parameter}' of the "
                f"target '{name}', which counts as zero although its values are subtracted; give "
                "the gradient too, unless it is zero",
                stacklevel=4,
            )

    def _is_extensive(self, layout: TargetLayout) -> bool:
        """Whether a target is divided by the number of atoms first."""
        return layout.sample_kind == "structure" and layout.name not in self._intensive_targets

    def _add(self, targets: Mapping[str, BatchTarget], atoms: Atoms) -> None:
        """Add the targets of a batch, or none of them.

        Raises:
            ValueError: for infinite values, and squares that overflow.
        """
        plain = {
            name: target.indexed.tensor
            for name, target in targets.items()
            if target.has_values_alone
            # Otherwise the batch has blocks that were absent so far, or only some of the blocks.
            and (
                name not in self._statistics
                or self._statistics[name].layout is target.indexed.layout
            )
        }
        copies = copy_small_values(list(plain.values()))
        small = {name: values for name, values in zip(plain, copies, strict=True) if values}
        batch, gradients = {}, {}
        for name, target in targets.items():
            layout = target.indexed.layout
            if name not in small:
                batch[name] = self._read_batch(layout, target.block_values(), atoms)
            if layout.gradients or layout.sample_kind == "pair":
                types = self._types(name, atoms) if layout.sample_kind == "atom" else None
                sums = target.gradient_sums(atoms, types, self._is_extensive(layout))
                gradients[name] = sums, types
        for name, target in targets.items():
            if name not in self._statistics:
                layout = target.indexed.layout
                self._statistics[name] = TargetStatistics(layout, atoms.unique_types, {})
            if name in batch:
                self._statistics[name].merge(batch[name])
        for name, (sums, types) in gradients.items():
            self._statistics[name].add_gradients(sums, types)
        if small:
            layouts = {name: targets[name].indexed.layout for name in small}
            for joined in self._pending.add(layouts, atoms, small):
                self._merge_joined(joined)

    def _merge_joined(self, batch: JoinedBatch) -> None:
        for name, layout in batch.layouts.items():
            blocks = [BlockValues(values) for values in batch.values[name]]
            self._statistics[name].merge(self._read_batch(layout, blocks, batch.atoms))

    def _read_batch(
        self, layout: TargetLayout, blocks: Sequence[BlockValues], atoms: Atoms
    ) -> TargetStatistics:
        composition, extensive = "none", self._is_extensive(layout)
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


def _is_fixed(fixed: FixedScale | None, types: Iterable[int]) -> bool:
    """Whether a target has a fixed scale for each of these types."""
    return {*types} <= fixed.keys() if isinstance(fixed, dict) else fixed is not None
