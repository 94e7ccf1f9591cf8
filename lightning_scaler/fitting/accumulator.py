"""One pass over the data gives the baseline and all scales."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, cast

import torch
from metatensor.torch import TensorMap
from torch import Tensor

from ..baselines import (
    AdditiveCoverage,
    CompositionBaseline,
    FrozenModule,
    align_contributions,
    freeze,
    parse_baseline,
)
from ..batches import Atoms, check_plain_values, index_targets
from ..plain_tensors import Declaration, DeclaredBatch, read_batch
from ..scaling import SAMPLED_DATA, Scaler, TargetScales, is_auxiliary
from ..settings import (
    FixedScale,
    Numbers,
    RefitPart,
    Settings,
    SystemLabels,
    UnseenTypes,
    check_choice,
    check_names,
    did_you_mean,
    join_units,
    list_of_names,
    parse_fixed_scales,
    parse_units,
)
from ..statistics import TargetStatistics
from ..tensors import (
    InvalidStateError,
    Key,
    digest,
    from_state,
    is_tensormap,
    load_state,
    mask_values,
    save_state,
    state_of,
    to_state,
)
from .accumulator_state import Collected, SavedAccumulator
from .data_parts import DataPart, merge_parts
from .data_warnings import warn_of_data
from .energies_per_atom import warn_of_energies_per_atom
from .fit import fit_target
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
        self._collection = TargetCollection(self.intensive_targets, baseline)
        self._coverage = AdditiveCoverage()
        self._ignored: set[str] = set()
        self._missing_declared: dict[str, str] | None = None
        self._masked: set[str] = set()
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
        declaration = self.declaration
        return ScaleAccumulator(
            self.targets if declaration is None else declaration.targets,
            self.intensive_targets,
            self.baseline,
            self.system_labels,
            self.additive,
            None if declaration is None else declaration.batch,
            self.units,
        )

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
        if isinstance(systems, DeclaredBatch) and self._missing_declared is None:
            self._missing_declared = _missing_in_first_batch(systems, targets)
        chosen = {
            name: tensor
            for name, tensor in targets.items()
            if (name in self.targets if self.targets is not None else not is_auxiliary(name))
        }
        if self.targets is None:
            check_plain_values(targets)
        for name, tensor in chosen.items():
            _check_tensormap(f"target '{name}'", tensor)
        chosen, layouts = self._collection.read_layouts(chosen)
        # A target without any block is absent from the batch.
        chosen = {name: tensor for name, tensor in chosen.items() if layouts[name].blocks}
        kept_values = {}
        for name, mask in (masks or {}).items():
            if name in chosen:
                _check_tensormap(f"mask of target '{name}'", mask)
                kept_values[name] = mask_values(name, chosen[name], mask.to(device="cpu"))
        atoms = Atoms.from_systems(systems).to("cpu")
        # Contributions depend on positions, so that isomers must not be exchanged.
        exact = exact_labels or self.additive is not None
        indexing, indexed = index_targets(atoms, chosen, layouts, self.system_labels, exact=exact)
        # All targets are requested: a module may know some that are not fitted here.
        with torch.no_grad():
            outputs = {} if self.additive is None else self.additive(atoms, targets)
        contributions = align_contributions(outputs, chosen, atoms, indexing)
        coverage = AdditiveCoverage()
        if self.additive is not None and atoms.n_systems:
            fitted = {name: layouts[name] for name in chosen}
            coverage = AdditiveCoverage.of_batch(outputs, fitted, contributions)
            self._coverage.check(coverage, self.additive.name, layouts)
        self._collection.update(indexed, atoms, kept_values, contributions)
        self._coverage.merge(coverage)
        self.system_labels = indexing.labels
        self._ignored |= targets.keys() - chosen.keys()
        self._masked |= (masks or {}).keys()
        self.parts = ()
        self.sample = None

    def follow(self, earlier: "ScaleAccumulator") -> None:
        """Go on after the batches of another accumulator with the same settings.

        The meaning of labels, and the targets that the first batch lacks, are taken from it.
        """
        self.system_labels = earlier.system_labels
        self._missing_declared = earlier._missing_declared

    def merge(self, other: "ScaleAccumulator") -> None:
        """Add everything that another accumulator has seen, which stays as it is.

        Raises:
            ValueError: if its settings differ, or the layout of a target; if both hold the same
                part of some data, or only one of them says which data it holds; and if one of them
                holds a random sample of some data.
        """
        decided = {self.system_labels, other.system_labels} - {"auto"}
        with_weights = self.additive is not other.additive
        ours, theirs = self._settings(with_weights), other._settings(with_weights)
        if len(decided) > 1 or ours != theirs:
            raise ValueError(
                "expected an accumulator with the same settings, got "
                f"{ours} with system_labels={self.system_labels!r} and "
                f"{theirs} with system_labels={other.system_labels!r}"
            )
        layouts, others = self._collection.layouts, other._collection.layouts
        sample = self.sample or other.sample
        if not (self.is_empty or other.is_empty):
            for one in (self.sample, other.sample):
                if one is not None and not one.complete:
                    raise ValueError(
                        "expected statistics of all of some data, got those of a random sample "
                        f"({one.n_batches} of {one.n_all_batches} batches), which would count for "
                        "too little; collect them without relative_error"
                    )
            sample = None
        parts = merge_parts(self.parts, other.parts)
        unknown = any(not a.is_empty and not a.parts for a in (self, other))
        if parts and unknown:
            raise ValueError(
                "expected two accumulators that say which data they hold, got one with parts="
                f"{[str(part) for part in parts]} and one without; set the parts of both or of "
                "neither"
            )
        for name in layouts.keys() & others.keys():
            layouts[name].union(others[name])
        if self.additive is not None:
            self._coverage.check(other._coverage, self.additive.name, others)
        self.units = join_units(self.units, other.units)
        self.system_labels = decided.pop() if decided else "auto"
        self._coverage.merge(other._coverage)
        self._ignored |= other._ignored
        self._masked |= other._masked
        if self._missing_declared is None:
            self._missing_declared = other._missing_declared
        self._collection.merge(other._collection)
        self.parts, self.sample = parts, sample

    def settings_differences(self, other: "ScaleAccumulator") -> list[str]:
        """The settings that differ from those of another accumulator, each with both values."""
        ours, theirs = self._settings(with_weights=True), other._settings(with_weights=True)
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
        layouts, types = self._collection.layouts, self._collection.types
        if self.targets is None or not {*self.targets} <= layouts.keys():
            return False
        return all(
            layout.single_property
            and _is_fixed(fixed.get(name), types[name])
            and (self.baseline is None or self.baseline.is_fixed(layout, types[name]))
            for name, layout in layouts.items()
        )

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
        of_errors = {} if errors is None else errors._collection.statistics
        new_scales = list_of_names("new_scales", new_scales)
        check_names("new_scales", new_scales, self._collection.layouts)
        in_data = self._collection.layouts
        check_subtracted(scaler, part, self.baseline, self.additive is not None, in_data)
        earlier = EarlierFit(scaler.targets, part, frozenset(new_scales), of_errors)
        refitted = self._fit(fixed_scales, unseen_types, scaler.settings.enabled, complete, earlier)
        refitted.targets = {**scaler.targets, **refitted.targets}
        refitted.units = {**scaler.units, **refitted.units}
        if scaler.declaration is not None:
            refitted.declaration = scaler.declaration.union(self.declaration)
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
        statistics = self._collection.statistics
        kept = {} if earlier is None else earlier.targets
        self._check_names(statistics, fixed, kept)
        if self.additive is not None:
            self._coverage.check_used(self.additive.name, statistics)
            for name, parameter in sorted(self._coverage.missing_gradients):
                warnings.warn(
                    f"additive module {self.additive.name}: it gives no gradient '{parameter}' of "
                    f"the target '{name}', which counts as zero although its values are "
                    "subtracted; give the gradient too, unless it is zero",
                    stacklevel=3,
                )
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
                scales[name], noise = self._fit_target(target_statistics, fixed.get(name), enabled)
            layout, types = scales[name].layout, scales[name].types
            below_noise[name] = layout.describe_properties(noise, types)
        warn_of_fit(
            scales, below_noise, statistics, None if self.additive is None else self.additive.name
        )
        warn_of_data(scales, statistics, {} if earlier is None else earlier.kept_types())
        baseline = "none" if self.baseline is None else "composition"
        settings = Settings(self.system_labels, unseen_types, enabled, cast(Any, baseline))
        scaler = Scaler(scales, settings, self.additive)
        scaler.declaration = self.declaration
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
        return {name: (one, self._fit_target(one)[0]) for name, one in self.statistics.items()}

    def _fit_target(
        self, statistics: TargetStatistics, fixed: FixedScale | None = None, enabled: bool = True
    ) -> tuple[TargetScales, dict[Key, Tensor]]:
        """The scales of one target, and its properties below the noise; see :func:`fit_target`."""
        name = statistics.layout.name
        scales, below_noise = fit_target(
            statistics,
            self._collection.is_extensive(statistics.layout),
            self.baseline,
            fixed,
            enabled,
            additive=self._coverage.covers(name),
        )
        if self.sample is not None and not self.sample.complete:
            errors = self.sample.errors[name]
            given = fixed if isinstance(fixed, dict) else {}
            exact = [isinstance(fixed, float) or z in given for z in scales.types.tolist()]
            errors = torch.where(torch.tensor(exact), 0.0, errors)
            scales = replace(scales, relative_errors=errors)
        return scales, below_noise

    def state(self) -> dict[str, Any]:
        """Everything collected, as plain Python objects and tensors, for :meth:`merge_state`."""
        return {
            "system_labels": self.system_labels,
            "coverage": self._coverage.state(),
            "ignored": sorted(self._ignored),
            "masked": sorted(self._masked),
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
        settings = {
            "targets": self.targets,
            "intensive_targets": sorted(self.intensive_targets),
            "baseline": self.baseline and asdict(self.baseline),
            "additive": self.additive and self.additive.state(),
            "units": self.units,
        }
        if self.declaration is not None:
            settings["declaration"] = self.declaration.state()
        content = {"settings": settings, "collected": self.state(), "parts": to_state(self.parts)}
        save_state(path, "ScaleAccumulator", content)

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
        content = load_state(path, "ScaleAccumulator")
        # What earlier versions did not have.
        nothing: dict[tuple[str, str], Any] = {
            ("settings", "declaration"): None,
            ("settings", "units"): {},
            ("collected", "sample"): None,
        }
        for (part, name), value in nothing.items():
            if isinstance(content, dict) and isinstance(content.get(part), dict):
                content[part].setdefault(name, value)
        with state_of(f"file '{os.fspath(path)}'"):
            if isinstance(content, dict):  # files without parts are of an earlier version
                content = {"parts": [], **content}
            saved: SavedAccumulator = from_state(SavedAccumulator, content)
            settings = saved.settings
            frozen = settings.additive
            if frozen is not None and additive is not None and frozen.needs_module(additive):
                frozen.attach_module(additive)
            declaration = settings.declaration
            accumulator = cls(
                settings.targets if declaration is None else declaration.targets,
                settings.intensive_targets,
                settings.baseline,
                additive=frozen,
                batch=None if declaration is None else declaration.batch,
                units=settings.units,
            )
            accumulator._set_state(saved.collected)
            accumulator.parts = saved.parts
        return accumulator

    def _set_state(self, collected: Collected) -> None:
        self.system_labels = collected.system_labels
        self._coverage = collected.coverage
        self._ignored = collected.ignored
        self._masked = collected.masked
        self._collection.load_state(collected.statistics)
        if collected.sample is not None and not collected.sample.complete:
            _check_errors(collected.sample, self._collection.statistics)
        self.sample = collected.sample

    def _settings(self, with_weights: bool) -> dict[str, Any]:
        additive = self.additive and self.additive.name
        declaration = self.declaration
        if self.additive is not None and with_weights:
            additive = f"{additive} with weights {digest(self.additive.state())[:8]}"
        return {
            "targets": self.targets and sorted(self.targets),
            "intensive_targets": sorted(self.intensive_targets),
            "baseline": self.baseline,
            "additive": additive,
            "declared targets": declaration and declaration.without_units.state()["targets"],
        }

    def _check_names(
        self, fitted: Iterable[str], fixed_scales: Iterable[str], kept: Iterable[str] = ()
    ) -> None:
        """Refuse settings that name targets without data."""
        fitted = set(fitted)
        seen = fitted | self._ignored
        for name in self.targets or ():
            if name not in fitted:
                missing = (self._missing_declared or {}).get(name)
                if missing is not None:
                    raise ValueError(f"no batch has a target of targets=…; {missing}")
                raise ValueError(
                    f"target '{name}' was requested in targets=[…] but does not occur in the "
                    f"{self._data}; {did_you_mean(name, seen)}"
                )
        if not fitted:
            raise ValueError("no target was seen in the data, so there is nothing to fit")
        fitted |= {*kept}
        check_names("a mask", sorted(self._masked), seen)
        check_names("intensive_targets", sorted(self.intensive_targets), fitted)
        check_names("fixed_scales", fixed_scales, fitted)
        known = seen | {*kept}
        check_names("units", (n for n in self.units if n.rpartition("/")[0] not in known), known)
        for name in self.units.keys() - known:
            target, _, parameter = name.rpartition("/")
            layout = self._collection.layouts.get(target)
            if layout is not None and parameter not in layout.gradients:
                gradients = [f"{target}/{gradient}" for gradient in layout.gradients]
                raise ValueError(
                    f"units names '{name}', a gradient that the data do not have; "
                    f"{did_you_mean(name, gradients)}"
                )
        if self.baseline is not None:
            check_names("fixed_baseline", self.baseline.fixed, fitted)
            check_names("baseline", self.baseline.excluded, fitted)


def _missing_in_first_batch(batch: DeclaredBatch, targets: Mapping[str, Any]) -> dict[str, str]:
    """What the first batch says of its missing targets; warns of those that seem to be others."""
    missing = batch.describe_missing_targets()
    # Some of a list of Atoms may have no value, and so may all of a batch.
    if missing and not targets and not batch.may_lack_targets:
        raise ValueError(next(iter(missing.values())))
    batch.declaration.warn_of_stresses_without_volume()
    warn_of_energies_per_atom(batch, targets)
    return missing


def _is_fixed(fixed: FixedScale | None, types: Iterable[int]) -> bool:
    """Whether a target has a fixed scale for each of these types."""
    return {*types} <= fixed.keys() if isinstance(fixed, dict) else fixed is not None


def _check_errors(sample: RandomSample, statistics: Mapping[str, TargetStatistics]) -> None:
    """Check that loaded errors are of the scales of loaded statistics."""
    for name, one in statistics.items():
        n_types = one.types.numel() if one.layout.sample_kind == "atom" else 1
        found = sample.errors.get(name)
        if found is None or found.numel() != n_types:
            raise InvalidStateError(f"sample: expected {n_types} errors of the target '{name}'")


def _check_tensormap(what: str, value: Any) -> None:
    if not is_tensormap(value):
        raise TypeError(f"{what}: expected a TensorMap, got {type(value).__name__}")
