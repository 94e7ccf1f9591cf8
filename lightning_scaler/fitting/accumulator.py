"""One pass over the data gives the baseline and all scales."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from metatensor.torch import TensorMap

from ..baselines import CompositionBaseline, FrozenModule, freeze, parse_baseline
from ..plain_tensors import Declaration, read_batch
from ..scaling import SAMPLED_DATA, Scaler, TargetScales
from ..settings import (
    Numbers,
    RefitPart,
    Settings,
    SystemLabels,
    UnseenTypes,
    check_choice,
    check_names,
    join_units,
    list_of_names,
    parse_fixed_scales,
    parse_units,
)
from ..statistics import TargetStatistics
from ..tensors import from_state, state_of, to_state
from .accumulator_state import (
    AccumulatorSettings,
    Collected,
    check_errors,
    load_content,
    read_saved,
    save_accumulator,
)
from .batch_targets import BatchInputs
from .data_names import NamesInData, check_mask, choose_targets
from .data_parts import DataPart, Origin, merge_origins
from .data_warnings import warn_of_data
from .fit_checks import check_values, warn_of_fit
from .random_sample import RandomSample
from .refit import EarlierFit, check_subtracted
from .target_collection import TargetCollection


class ScaleAccumulator:
    """Collects statistics of targets batch by batch and computes a :class:`Scaler` from them.

    For each block, property and (per-atom targets) atomic type it keeps the sum of squares and the
    count of values, and what the baseline needs, so that one pass over the data gives the baseline
    and all scales. Nothing is written to the tensors of a batch, and an error leaves the
    accumulator as it was. Memory does not grow with the number of samples or batches.

    An accumulator belongs to one thread. Several threads, processes or jobs use one each, and
    :meth:`merge` adds them up exactly.

    Args:
        targets: names of targets that must be fitted; other TensorMaps are ignored. ``None``: all
            but those named ``mtt::aux::…``, which metatrain adds to batches and predictions. A
            mapping declares targets that are plain tensors, as :class:`PerStructure` or
            :class:`PerAtom`.
        intensive_targets: names of per-structure targets that are not divided by the number of
            atoms before any statistics.
        baseline: ``"composition"`` or a :class:`CompositionBaseline`, which is subtracted before
            the scales are taken; ``"none"`` or ``None``: none.
        system_labels: meaning of the ``system`` label of targets: the ``"position"`` in the batch,
            an ``"id"`` in the dataset (numbered by first appearance), or ``"auto"``: as decided by
            the first batch that only one of them fits.
        additive: module that contributes to some targets, subtracted before the baseline; see
            :meth:`Scaler.set_additive`.
        batch: for declared targets, addresses in the batch of ``types``, and of ``structure`` or
            ``n_atoms``, where they are not recognised.
        units: units of targets and gradients in the data, for tables: ``{"energy": "eV",
            "energy/positions": "eV/Å"}``. ``PerStructure(unit=…)`` says the same.

    Attributes:
        parts: the data that all batches together are, if that is known: set it after the last
            :meth:`update`, which clears it. Saved in files; :meth:`merge` refuses equal parts.
        sample: how precise the scales are, if the batches are a random sample of the data; as
            ``parts``, but :meth:`merge` refuses those of a part of the data.

    Raises:
        TypeError: for a ``baseline`` or ``additive`` of another type.
        ValueError: for an unknown ``system_labels``.

    Example:
        Energies of -3 for O and 6 for H2O; the scale is the uncentred RMS per atom of -3 and 2.

        >>> import torch
        >>> from lightning_scaler import PerStructure
        >>> batch = {"z": torch.tensor([8, 1, 1, 8]), "n_atoms": torch.tensor([1, 3])}
        >>> batch["energy"] = torch.tensor([-3.0, 6.0])
        >>> scaler = ScaleAccumulator(targets={"energy": PerStructure()}).fit([batch])
        >>> scaler.per_target_scales["energy"].block().values
        tensor([[2.5495]], dtype=torch.float64)
    """

    def __init__(
        self,
        targets: Sequence[str] | Mapping[str, Any] | None = None,
        intensive_targets: Iterable[str] = (),
        baseline: CompositionBaseline | Literal["composition", "none"] | None = None,
        system_labels: SystemLabels = "auto",
        additive: torch.nn.Module | FrozenModule | None = None,
        batch: Mapping[str, Any] | None = None,
        units: Mapping[str, str] | None = None,
    ) -> None:
        check_choice("system_labels", system_labels, SystemLabels)
        if isinstance(baseline, str):
            baseline = parse_baseline(baseline).composition
        if baseline is not None and not isinstance(baseline, CompositionBaseline):
            raise TypeError(
                "baseline: expected 'composition', 'none', a CompositionBaseline or None, got "
                f"{baseline!r}; give a module as additive="
            )
        self.declaration: Declaration | None = None
        intensive = list_of_names("intensive_targets", intensive_targets)
        if isinstance(targets, Mapping):
            self.declaration = Declaration.parse(targets, batch)
            intensive = (*intensive, *self.declaration.intensive_targets)
        elif batch is not None:
            raise ValueError("batch: addresses are for declared targets, a mapping; got no mapping")
        self.targets = None if targets is None else list_of_names("targets", targets)
        self.intensive_targets = frozenset(intensive)
        self.units = parse_units(units)
        if self.declaration is not None:
            self.units = join_units(self.declaration.units, self.units)
        self.baseline = baseline
        self.system_labels: SystemLabels = system_labels
        self.additive = freeze(additive)
        self._collection = TargetCollection(self.intensive_targets, baseline, self.additive)
        self._names = NamesInData()
        self.parts: tuple[DataPart, ...] = ()
        self.sample: RandomSample | None = None

    @property
    def _data(self) -> str:
        """What was read, in words."""
        return "data" if self.sample is None or self.sample.complete else SAMPLED_DATA

    @property
    def is_empty(self) -> bool:
        """Whether no target has been seen."""
        return not self._collection.layouts

    def fresh(self) -> "ScaleAccumulator":
        """An empty accumulator with the same settings."""
        return ScaleAccumulator(**self._settings.arguments(), system_labels=self.system_labels)

    def fit(
        self,
        batches: Iterable[Any],
        fixed_scales: Numbers | None = None,
        unseen_types: UnseenTypes = "error",
    ) -> Scaler:
        """Add all batches, such as those of a loader, and compute the Scaler.

        Args:
            batches: batches as for :meth:`update`, each as a whole.
            fixed_scales: as for :meth:`compute`.
            unseen_types: as for :meth:`compute`.

        Raises:
            TypeError, ValueError: as :meth:`update` and :meth:`compute`; without any batch.
        """
        found = False
        for batch in batches:
            found = True
            self.update(batch)
        if not found and self.is_empty:
            raise ValueError(
                "fit: expected at least one batch, got none; an iterator, such as a generator, "
                "gives its batches once, so make a new one"
            )
        return self.compute(fixed_scales, unseen_types)

    def update(
        self,
        systems: Any,
        targets: Mapping[str, TensorMap] | None = None,
        masks: Mapping[str, TensorMap] | None = None,
        exact_labels: bool = False,
    ) -> None:
        """Add one batch.

        Args:
            systems: systems of the batch, each with ``.types`` of shape ``(n_atoms,)``; or the
                whole batch, without ``targets``.
            targets: targets by name; a target or some of its blocks may be absent, NaN values are
                missing.
            masks: masks by target name; values where a mask is ``False`` (or 0) are missing.
            exact_labels: refuse ``system`` labels that can be read as positions and as ids also
                where both readings give the same statistics (isomers in another order), as a
                conversion does.

        Raises:
            TypeError: for a target that is not a TensorMap, also if it came beside the targets in a
                batch that was unpacked, unless ``targets`` are named.
            ValueError: for infinite values, an unknown kind of samples, samples that are not in
                the batch, or a layout that differs from earlier batches.
        """
        if targets is None:
            systems, targets, masks = read_batch(systems, self.declaration)
        self._names.read_first_batches(systems, targets)
        chosen, masks = choose_targets(self.targets, targets), masks or {}
        for name in masks.keys() & chosen.keys():
            check_mask(name, masks[name])
        batch = BatchInputs(systems, targets, chosen, masks)
        self.system_labels = self._collection.update(batch, self.system_labels, exact_labels)
        self._names.ignored |= targets.keys() - self._collection.layouts.keys()
        self._names.masked |= masks.keys()
        self.parts, self.sample = (), None

    def follow(self, earlier: "ScaleAccumulator") -> None:
        """Go on after the batches of another accumulator with the same settings.

        The meaning of labels, and what the first batches have shown, are taken from it.
        """
        self.system_labels = earlier.system_labels
        self._names.missing_declared = earlier._names.missing_declared
        self._names.energies = earlier._names.energies

    def merge(self, other: "ScaleAccumulator") -> None:
        """Add everything that another accumulator has seen, which stays as it is.

        Raises:
            ValueError: if its settings differ, or the layout of a target; if both hold the same
                part of some data, or only one of them says which data it holds; and if one of them
                holds a random sample of some data.
        """
        decided = {self.system_labels, other.system_labels} - {"auto"}
        with_weights = self.additive is not other.additive
        ours, theirs = (one._settings.compared(with_weights) for one in (self, other))
        if len(decided) > 1 or ours != theirs:
            raise ValueError(
                "expected an accumulator with the same settings, got "
                f"{ours} with system_labels={self.system_labels!r} and "
                f"{theirs} with system_labels={other.system_labels!r}"
            )
        origins = (Origin(one.parts, one.sample, one.is_empty) for one in (self, other))
        parts, sample = merge_origins(*origins)
        self._collection.check_merge(other._collection)
        self.units = join_units(self.units, other.units)
        self.system_labels = decided.pop() if decided else "auto"
        self._names.merge(other._names)
        self._collection.merge(other._collection)
        self.parts, self.sample = parts, sample

    def settings_differences(self, other: "ScaleAccumulator") -> list[str]:
        """The settings that differ from those of another accumulator, each with both values."""
        ours, theirs = (one._settings.compared(with_weights=True) for one in (self, other))
        return [
            f"{name} ({value!r} and {theirs[name]!r})"
            for name, value in ours.items()
            if value != theirs[name]
        ]

    def all_fixed(self, fixed_scales: Numbers | None) -> bool:
        """Whether the targets seen so far need no more data, because every scale is fixed.

        This holds if the targets to fit were named and seen, and each has a single property, a
        fixed scale, and no baseline or a fixed one, both for all types seen so far.
        """
        fixed = parse_fixed_scales(fixed_scales)
        named = self.targets is not None and {*self.targets} <= self._collection.layouts.keys()
        return named and self._collection.all_fixed(fixed)

    def compute(
        self,
        fixed_scales: Numbers | None = None,
        unseen_types: UnseenTypes = "error",
        enabled: bool = True,
        complete: bool = True,
    ) -> Scaler:
        """Fit the baseline and the scales; more batches can be added afterwards.

        Args:
            fixed_scales: per-target scales that replace the fitted ones, one number for a target
                or one per type: ``{"energy": 0.5, "forces": {1: 0.2, 8: 1.1}}``. The scales of
                all other types are fitted.
            unseen_types: what the Scaler does with types that were not in the data: ``"error"``,
                ``"pooled"`` (the RMS over all types) or ``"identity"``.
            enabled: ``False`` sets every scale to 1; the baseline is still subtracted.
            complete: ``False`` for a few batches of the data, in which requested targets may have
                no value.

        Raises:
            ValueError: without any data; if a requested target, or the target of a mask or of a
                setting, does not occur in the data; if a requested target has no value at all; or
                if a setting does not suit its target.
        """
        return self._fit(fixed_scales, unseen_types, enabled, complete)

    def refit(
        self,
        scaler: Scaler,
        part: RefitPart = "types",
        fixed_scales: Numbers | None = None,
        unseen_types: UnseenTypes = "error",
        complete: bool = True,
        new_scales: Iterable[str] = (),
        errors: "ScaleAccumulator | None" = None,
    ) -> Scaler:
        """Fit a part of another scaler again, and targets that it does not have.

        ``"types"`` adds scales and baseline weights for the atomic types that it does not have and
        keeps every number; the new weights are fitted to what the others leave. ``"baseline"``
        keeps the scales and fits the weights again; those of types without data are kept.
        ``"scales"`` keeps the baseline and fits some of the scales again.

        Args:
            scaler: scaler with scales, which stays as it is.
            part: what is fitted again.
            fixed_scales: as for :meth:`compute`; of new types, or of the targets in
                ``new_scales``.
            unseen_types: as for :meth:`compute`.
            complete: as for :meth:`compute`.
            new_scales: names of the targets whose scales are fitted again, under ``"scales"``.
            errors: accumulator of the targets minus the predictions of a network with this scaler,
                in physical space; the weights are corrected by a fit to them. ``None``: they are
                fitted to the targets.

        Returns:
            A new scaler with the targets of both.

        Raises:
            ValueError: as :meth:`compute`, for targets with another layout, and without the
                baseline or the additive module that belongs to scales that are kept.
        """
        check_choice("part", part, RefitPart)
        of_errors = {} if errors is None else errors.statistics
        new_scales = list_of_names("new_scales", new_scales)
        check_names("new_scales", new_scales, self._collection.layouts)
        in_data = self._collection.layouts
        check_subtracted(scaler, part, self.baseline, self.additive is not None, in_data)
        earlier = EarlierFit(scaler.targets, part, frozenset(new_scales), of_errors)
        refitted = self._fit(fixed_scales, unseen_types, scaler.settings.enabled, complete, earlier)
        refitted.targets = {**scaler.targets, **refitted.targets}
        refitted.units = {**scaler.units, **refitted.units}
        if scaler.declaration is not None:
            refitted.declare(scaler.declaration.union(self.declaration))
        return refitted

    def _fit(
        self,
        fixed_scales: Numbers | None,
        unseen_types: UnseenTypes,
        enabled: bool,
        complete: bool,
        earlier: EarlierFit | None = None,
    ) -> Scaler:
        """The scaler of the targets in the data; see :meth:`compute` and :meth:`refit`."""
        check_choice("unseen_types", unseen_types, UnseenTypes)
        fixed = parse_fixed_scales(fixed_scales)
        statistics = self.statistics
        kept = {} if earlier is None else {n: s.layout for n, s in earlier.targets.items()}
        self._names.check(
            self._settings,
            self._collection.layouts,
            fixed,
            kept,
            self._data,
            complete and (self.sample is None or self.sample.complete),
        )
        self._collection.check_additive()
        if not self.all_fixed(fixed):
            requested = (self.targets or ()) if complete else ()
            check_values(statistics, requested, f"the {self._data}")
        scales, below_noise = {}, {}
        for name, target_statistics in statistics.items():
            if earlier is not None and name in kept:
                scales[name], noise = earlier.refit(
                    target_statistics, self.baseline, fixed.get(name), enabled
                )
            else:
                scales[name], noise = self._collection.fit(
                    name, fixed.get(name), enabled, self.sample
                )
            layout, types = scales[name].layout, scales[name].types
            below_noise[name] = layout.describe_properties(noise, types)
        warn_of_fit(
            scales, below_noise, statistics, None if self.additive is None else self.additive.name
        )
        warn_of_data(scales, statistics, {} if earlier is None else earlier.kept_types())
        baseline = "none" if self.baseline is None else "composition"
        settings = Settings(self.system_labels, unseen_types, enabled, cast(Any, baseline))
        scaler = Scaler(scales, settings, self.additive)
        scaler.declare(self.declaration)
        scaler.units = dict(self.units)
        return scaler

    @property
    def statistics(self) -> Mapping[str, TargetStatistics]:
        """The statistics of each target, by name."""
        return self._collection.statistics

    def fitted_targets(self) -> dict[str, tuple[TargetStatistics, TargetScales]]:
        """The statistics of each target, and its scales without any that are fixed.

        Neither checks nor warnings of :meth:`compute` are made.
        """
        return {
            name: (one, self._collection.fit(name, sample=self.sample)[0])
            for name, one in self.statistics.items()
        }

    def state(self) -> dict[str, Any]:
        """Everything collected, as plain Python objects and tensors, for :meth:`merge_state`."""
        return {
            "system_labels": self.system_labels,
            "coverage": self._collection.coverage.state(),
            "ignored": sorted(self._names.ignored),
            "masked": sorted(self._names.masked),
            "statistics": self._collection.state(),
            "sample": to_state(self.sample),
        }

    def merge_state(self, state: dict[str, Any]) -> None:
        """Merge the :meth:`state` of an accumulator with the same settings in another process."""
        other = self.fresh()
        other._set_state(from_state(Collected, state))
        self.merge(other)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything collected, the settings and the parts to one safetensors file.

        Jobs over parts of a dataset can save theirs; :meth:`merge` of all gives the scales of the
        whole dataset. The file replaces an old one when it is complete.
        """
        save_accumulator(path, self._settings, self.state(), self.parts)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], additive: torch.nn.Module | None = None
    ) -> "ScaleAccumulator":
        """Read an accumulator from a file written by :meth:`save`; no pickled code runs.

        Args:
            path: file to read.
            additive: code of the additive module, if there was one and batches are to be added.

        Raises:
            OSError: if there is no such file.
            InvalidStateError: naming the file, if it is truncated, damaged, or something else.
        """
        content = load_content(path)
        with state_of(f"file '{os.fspath(path)}'"):
            saved = read_saved(content, additive)
            accumulator = cls(**saved.settings.arguments())
            accumulator._set_state(saved.collected)
            accumulator.parts = saved.parts
        return accumulator

    def _set_state(self, collected: Collected) -> None:
        self.system_labels = collected.system_labels
        self._names = NamesInData(collected.ignored, collected.masked)
        self._collection.coverage = collected.coverage
        self._collection.load_state(collected.statistics)
        if collected.sample is not None and not collected.sample.complete:
            check_errors(collected.sample, self._collection.statistics)
        self.sample = collected.sample

    @property
    def _settings(self) -> AccumulatorSettings:
        return AccumulatorSettings(
            None if self.targets is None else list(self.targets),
            sorted(self.intensive_targets),
            self.baseline,
            self.additive,
            self.declaration,
            self.units,
        )
