"""One pass over the data gives the baseline and all scales."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from metatensor.torch import TensorMap

from ..baselines import AdditiveCoverage, CompositionBaseline, FrozenModule, contributions, frozen
from ..batches import Atoms, HasTypes, infer_system_indexing
from ..settings import (
    Numbers,
    Settings,
    SystemLabels,
    UnseenTypes,
    check_choice,
    check_names,
    did_you_mean,
    fixed_scales as plain_fixed_scales,
    list_of_names,
)
from ..tensors import is_tensormap, mask_values
from .fit import fit_target
from .gathered import GatheredStatistics
from .scaler import Scaler


class ScaleAccumulator:
    """Gathers the statistics of targets batch by batch, and turns them into a :class:`Scaler`.

    For each block, property and (per-atom targets) atomic type the sum of squares and the number
    of entries are kept after the baseline comes off, which gives per-target and per-property
    scales in one pass. Nothing is written into the tensors that come in, and an error leaves the
    accumulator as it was. Memory does not grow with the number of samples or batches.

    Args:
        targets: names that must be fitted; other TensorMaps are passed over. ``None``: all.
        intensive_targets: names of per-structure targets that are not divided by the number of
            atoms before any statistic.
        baseline: the additive part that is removed before the scales are taken; ``None``: none.
        system_labels: what the ``system`` label of targets is: the ``"position"`` in the batch, an
            ``"id"`` of the data set (numbered by first appearance), or ``"auto"``: whichever the
            first batch that only one of them fits says.
        additive: a module that gives an additive part of some targets; it is frozen, and its part
            comes off before the baseline. See :meth:`Scaler.set_additive`.

    Example:
        Energies of -3 for O and 6 for H2O; the scale is the un-centred RMS of those per atom.

        >>> import torch
        >>> from metatensor.torch import Labels, TensorBlock, TensorMap
        >>> from metatomic.torch import System
        >>> def system(*types):
        ...     n, cell, pbc = len(types), torch.zeros(3, 3), torch.tensor([False] * 3)
        ...     return System(torch.tensor(types), torch.zeros(n, 3), cell, pbc)
        >>> block = TensorBlock(
        ...     torch.tensor([[-3.0], [6.0]]).double(),
        ...     samples=Labels("system", torch.tensor([[0], [1]])),
        ...     components=[],
        ...     properties=Labels("energy", torch.tensor([[0]])),
        ... )
        >>> energy = TensorMap(Labels("_", torch.tensor([[0]])), [block])
        >>> accumulator = ScaleAccumulator(baseline=None)
        >>> accumulator.update([system(8), system(1, 1, 8)], {"energy": energy})
        >>> accumulator.compute().per_target_scales["energy"].block().values
        tensor([[2.5495]], dtype=torch.float64)
    """

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        intensive_targets: Iterable[str] = (),
        baseline: CompositionBaseline | None = None,
        system_labels: SystemLabels = "auto",
        additive: torch.nn.Module | FrozenModule | None = None,
    ) -> None:
        check_choice("system_labels", system_labels, SystemLabels)
        if baseline is not None and not isinstance(baseline, CompositionBaseline):
            raise TypeError(
                f"baseline: expected a CompositionBaseline or None, got {baseline!r}; give a "
                "module as additive="
            )
        self.targets = None if targets is None else list_of_names("targets", targets)
        self.intensive_targets = frozenset(list_of_names("intensive_targets", intensive_targets))
        self.baseline = baseline
        self.system_labels: SystemLabels = system_labels
        self.additive = frozen(additive)
        self._contributed = AdditiveCoverage()
        self._passed_over: set[str] = set()
        self._masked: set[str] = set()
        self._gathered = GatheredStatistics(self.intensive_targets, baseline is not None)

    def fresh(self) -> "ScaleAccumulator":
        """An empty accumulator with the same settings."""
        return ScaleAccumulator(
            self.targets, self.intensive_targets, self.baseline, self.system_labels, self.additive
        )

    def update(
        self,
        systems: Sequence[HasTypes],
        targets: Mapping[str, TensorMap],
        masks: Mapping[str, TensorMap] | None = None,
    ) -> None:
        """Take in one batch.

        Args:
            systems: each with ``.types`` of shape ``(n_atoms,)`` and a length.
            targets: by name; a target or some of its blocks may be missing from a batch, NaN
                entries are missing values.
            masks: by target name; entries where a mask is ``False`` (or 0) are missing values.

        Raises:
            TypeError: for a target that is not a TensorMap.
            ValueError: for infinite entries, an unknown kind of samples, samples that are not in
                the batch, or a layout other than before.
        """
        chosen = {
            name: tensor
            for name, tensor in targets.items()
            if self.targets is None or name in self.targets
        }
        for name, tensor in chosen.items():
            _check_tensormap(f"target '{name}'", tensor)
        chosen, layouts = self._gathered.recognised(chosen)
        # A target without any block is one that the batch lacks.
        chosen = {name: tensor for name, tensor in chosen.items() if layouts[name].blocks}
        kept = {}
        for name, mask in (masks or {}).items():
            if name in chosen:
                _check_tensormap(f"mask of target '{name}'", mask)
                kept[name] = mask_values(name, chosen[name], mask.to(device="cpu"))
        atoms = Atoms.from_systems(systems).to("cpu")
        reading = infer_system_indexing(atoms, chosen, self.system_labels)
        # Asked for all targets: one that is not fitted here tells of a module that knows targets.
        given = {} if self.additive is None else self.additive(atoms, targets)
        parts = contributions(given, chosen, atoms, reading)
        contributed = AdditiveCoverage()
        if self.additive is not None and len(atoms):
            of_chosen = {name: layouts[name] for name in chosen}
            contributed = AdditiveCoverage.of_batch(given, of_chosen, parts)
            self._contributed.check(contributed, self.additive.name, layouts)
        self._gathered.update(layouts, chosen, atoms, reading, kept, parts)
        self._contributed.merge(contributed)
        self.system_labels = reading.labels
        self._passed_over |= targets.keys() - chosen.keys()
        self._masked |= (masks or {}).keys()

    def merge(self, other: "ScaleAccumulator") -> None:
        """Take over all that another accumulator has seen; the other stays as it is.

        Raises:
            ValueError: if its settings are others, or a target has another layout there.
        """
        settled = {self.system_labels, other.system_labels} - {"auto"}
        if len(settled) > 1 or self._settings() != other._settings():
            raise ValueError(
                "expected an accumulator with the same settings, got "
                f"{self._settings()} with system_labels={self.system_labels!r} and "
                f"{other._settings()} with system_labels={other.system_labels!r}"
            )
        ours, theirs = self._gathered.layouts, other._gathered.layouts
        for name in ours.keys() & theirs.keys():
            ours[name].union(theirs[name])
        if self.additive is not None:
            self._contributed.check(other._contributed, self.additive.name, theirs)
        self.system_labels = settled.pop() if settled else "auto"
        self._contributed.merge(other._contributed)
        self._passed_over |= other._passed_over
        self._masked |= other._masked
        self._gathered.merge(other._gathered)

    def all_fixed(self, fixed_scales: Numbers | None) -> bool:
        """Whether the targets seen so far need no more data, all their numbers being given.

        That is so if the targets that must be fitted were named and seen, each with a single
        property and a fixed scale, its baseline being none or fixed.
        """
        fixed = plain_fixed_scales(fixed_scales)
        layouts = self._gathered.layouts
        if self.targets is None or not {*self.targets} <= layouts.keys():
            return False
        return all(
            name in fixed
            and layout.single_property
            and (
                self.baseline is None
                or name in self.baseline.fixed
                or not any(layout.invariance(key) for key in layout.blocks)
            )
            for name, layout in layouts.items()
        )

    def compute(
        self,
        fixed_scales: Numbers | None = None,
        unseen_types: UnseenTypes = "error",
        enabled: bool = True,
    ) -> Scaler:
        """Fit the baseline and the scales; the accumulator can go on afterwards.

        Args:
            fixed_scales: per-target scales that replace the fitted ones, a number for a target or
                a number per type: ``{"energy": 0.5, "forces": {1: 0.2, 8: 1.1}}``.
            unseen_types: what the Scaler does with types that were not in the data: ``"error"``,
                ``"pooled"`` (the RMS over all types) or ``"identity"``.
            enabled: ``False`` sets every scale to 1; the baseline is the same.

        Raises:
            ValueError: without any data; for a named target that was never seen, masks of one,
                or settings that name unknown targets or do not suit them.
        """
        check_choice("unseen_types", unseen_types, UnseenTypes)
        gathered = self._gathered.statistics
        fixed = plain_fixed_scales(fixed_scales)
        for name in self.targets or ():
            if name not in gathered:
                seen = {*gathered, *self._passed_over}
                raise ValueError(
                    f"the target '{name}' is to be fitted and was never seen in the data; "
                    f"{did_you_mean(name, seen)}"
                )
        if not gathered:
            raise ValueError("no target was seen in the data, so there is nothing to fit")
        check_names("a mask", sorted(self._masked), {*gathered, *self._passed_over})
        check_names("intensive_targets", sorted(self.intensive_targets), gathered)
        check_names("fixed_scales", fixed, gathered)
        if self.baseline is not None:
            check_names("fixed_baseline", self.baseline.fixed, gathered)
        if self.additive is not None:
            self._contributed.check_used(self.additive.name, gathered)
            for name, parameter in sorted(self._contributed.lacking):
                warnings.warn(
                    f"additive module {self.additive.name}: it gives no gradient '{parameter}' of "
                    f"the target '{name}', which is taken for zero while its values come off; give "
                    "the gradient too, unless it is zero",
                    stacklevel=2,
                )
        scales, vanishing = {}, []
        for name, statistics in gathered.items():
            extensive = self._gathered.is_extensive(statistics.layout)
            scales[name], words = fit_target(
                statistics,
                extensive,
                self.baseline,
                fixed.get(name),
                enabled,
                additive=self._contributed.to(name),
            )
            vanishing += words
        if vanishing:
            warnings.warn(
                "these data are zero, or below their rounding noise once the baseline is off; they "
                "take the scale of their target (a type: the RMS over all types; a whole target: "
                "1): " + "; ".join(vanishing),
                stacklevel=2,
            )
        settings = Settings(
            self.system_labels,
            unseen_types,
            enabled,
            baseline="none" if self.baseline is None else "composition",
        )
        return Scaler(scales, settings, self.additive)

    def state(self) -> dict[str, Any]:
        """All that was gathered, as plain Python objects and tensors, for :meth:`merge_state`."""
        return {
            "system_labels": self.system_labels,
            "contributed": self._contributed.state(),
            "passed_over": sorted(self._passed_over),
            "masked": sorted(self._masked),
            "statistics": self._gathered.state(),
        }

    def merge_state(self, state: dict[str, Any]) -> None:
        """Merge the :meth:`state` of an accumulator of the same settings in another process."""
        other = self.fresh()
        other.system_labels = state["system_labels"]
        other._contributed = AdditiveCoverage.from_state(state["contributed"])
        other._passed_over = set(state["passed_over"])
        other._masked = set(state["masked"])
        other._gathered.take_state(state["statistics"])
        self.merge(other)

    def _settings(self) -> dict[str, Any]:
        return {
            "targets": self.targets,
            "intensive_targets": sorted(self.intensive_targets),
            "baseline": self.baseline,
            "additive": self.additive and self.additive.name,
        }


def _check_tensormap(what: str, value: Any) -> None:
    if not is_tensormap(value):
        raise TypeError(f"{what}: expected a TensorMap, got {type(value)}")
