"""Whether a fit is needed, of which targets, and with which of the requested settings."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from ..baselines import CompositionBaseline, FrozenModule, class_name
from ..batches import Declaration
from ..scaling import ScaleAccumulator, Scaler
from ..settings import FixedScale, Settings, check_names


@dataclass(frozen=True)
class FitRequest:
    """What a ``TargetScaler`` requests at the start of a fit.

    Attributes:
        settings: general settings of the fit.
        targets: names of the targets to fit; ``None``: all.
        intensive_targets: names of the targets that are not divided by the number of atoms.
        fixed_scales: per-target scales by target name.
        baseline: composition baseline; ``None``: no baseline.
        additive: additive module that is subtracted before the baseline, if any.
        limit_batches: maximum number of batches to read; ``None``: all.
        refit: fit all targets again, even if the module already has scales.
        declaration: declared targets, if they are plain tensors.
    """

    settings: Settings
    targets: tuple[str, ...] | None
    intensive_targets: frozenset[str]
    fixed_scales: dict[str, FixedScale]
    baseline: CompositionBaseline | None
    additive: torch.nn.Module | None
    limit_batches: int | None
    refit: bool
    declaration: Declaration | None = None

    @property
    def fixed_baseline(self) -> dict[str, dict[int, float]]:
        """Fixed contributions per atomic type, by target name."""
        return {} if self.baseline is None else dict(self.baseline.fixed)

    @property
    def without_baseline(self) -> tuple[str, ...]:
        """Names of the targets that are excluded from the composition baseline."""
        return () if self.baseline is None else tuple(self.baseline.excluded)

    @property
    def additive_name(self) -> str | None:
        """The class name of the additive module."""
        return None if self.additive is None else class_name(self.additive)

    def by_setting(self) -> dict[str, Any]:
        """The values that must be the same on all processes, by name."""
        return {
            "settings": self.settings,
            "fixed_scales": self.fixed_scales,
            "fixed_baseline": self.fixed_baseline,
            "targets without a baseline": self.without_baseline,
            "additive module": self.additive_name,
            "intensive_targets": sorted(self.intensive_targets),
            "limit_batches": self.limit_batches,
            "declared targets": self.declaration and self.declaration.state(),
        }


@dataclass(frozen=True)
class FitDecision:
    """What a fit has to do for one module; see :func:`decide_fit`.

    Attributes:
        request: request that was decided on.
        keep_existing: keep the scales that the module already has.
        targets: names of the targets to fit; ``None``: all.
    """

    request: FitRequest
    keep_existing: bool
    targets: tuple[str, ...] | None

    @property
    def fit_needed(self) -> bool:
        """Whether there is anything to fit."""
        return not self.keep_existing or bool(self.targets)

    def applies_to(self, name: str) -> bool:
        """Whether the settings of a target are needed: all but those of targets that are kept."""
        return (
            self.targets is None or name in self.targets or name not in (self.request.targets or ())
        )

    def fixed_scales(self) -> dict[str, FixedScale]:
        """The fixed scales that the fit uses, by target name."""
        fixed = self.request.fixed_scales
        return {name: scale for name, scale in fixed.items() if self.applies_to(name)}

    def accumulator(self, scaler: Scaler, device: torch.device) -> ScaleAccumulator:
        """An empty accumulator for the targets to fit.

        Args:
            scaler: scaler of the module. Its additive module is used if its scales are kept, or if
                the code of the module provides one and the request does not.
            device: device on which the additive module runs.
        """
        request, baseline = self.request, self.request.baseline
        if baseline is not None:
            fixed = {n: w for n, w in request.fixed_baseline.items() if self.applies_to(n)}
            excluded = tuple(name for name in baseline.excluded if self.applies_to(name))
            baseline = CompositionBaseline(fixed, excluded)
        additive = scaler.additive if self.keep_existing else scaler.provided_module
        if request.additive is not None and not self.keep_existing:
            additive = FrozenModule(request.additive)
        return ScaleAccumulator(
            self.targets,
            [name for name in request.intensive_targets if self.applies_to(name)],
            baseline,
            request.settings.system_labels,
            additive and additive.to(device),
        )


def restores_later(trainer: Trainer) -> bool:
    """Whether a checkpoint is restored, in whole or in part, after ``on_fit_start``.

    Some strategies restore the weights then; the state of loops and loaders always comes later.
    """
    return trainer.strategy.restore_checkpoint_after_setup or trainer.ckpt_path is not None


def decide_fit(request: FitRequest, scaler: Scaler, is_dev_run: bool) -> FitDecision:
    """Decide whether scales are missing.

    Existing scales are kept unless ``refit`` is set. Provisional scales, from a ``fast_dev_run``,
    are only kept in another one.

    Args:
        request: settings of the callback.
        scaler: scaler of the module, fitted or not.
        is_dev_run: whether the Trainer runs with ``fast_dev_run``.

    Raises:
        ValueError: if existing scales are to be kept and the settings contradict them.
    """
    provisional = scaler.settings.provisional and not is_dev_run
    if not scaler.fitted or request.refit or provisional:
        return FitDecision(request, keep_existing=False, targets=request.targets)
    targets = request.targets or ()
    check_restored(
        scaler,
        request.settings,
        targets,
        request.intensive_targets,
        request.fixed_scales,
        request.fixed_baseline,
        request.additive_name,
        request.without_baseline,
    )
    missing = tuple(name for name in targets if name not in scaler.targets)
    return FitDecision(request, keep_existing=True, targets=missing)


def check_restored(
    scaler: Scaler,
    requested: Settings,
    targets: Iterable[str],
    intensive_targets: Iterable[str],
    fixed_scales: dict[str, FixedScale],
    fixed_baseline: dict[str, dict[int, float]],
    additive: str | None = None,
    without_baseline: Collection[str] = (),
) -> None:
    """Check that the settings of restored scales are those requested now.

    Args:
        scaler: restored scaler.
        requested: general settings; ``system_labels="auto"`` matches any.
        targets: names of the targets to fit.
        intensive_targets: names of the targets that are not divided by the number of atoms.
        fixed_scales: per-target scales by target name, as ``settings.parse_fixed_scales`` returns
            them.
        fixed_baseline: contributions per atomic type by target name, as
            ``settings.parse_fixed_baseline`` returns them.
        additive: class name of the additive module; ``None`` matches one that the network provides.
        without_baseline: names of the targets that are excluded from the composition baseline.

    Raises:
        ValueError: for names of unknown targets, and if settings differ: each with both values.
    """
    known = {*scaler.targets, *targets}
    check_names("intensive_targets", sorted(intensive_targets), known)
    check_names("fixed_scales", fixed_scales, known)
    check_names("fixed_baseline", fixed_baseline, known)
    check_names("baseline", without_baseline, known)
    restored = scaler.settings
    pairs = {
        name: (getattr(restored, name), getattr(requested, name))
        for name in ("enabled", "baseline")
    }
    if not restored.provisional:  # those are "pooled", whatever was requested
        pairs["unseen_types"] = (restored.unseen_types, requested.unseen_types)
    if "auto" not in (restored.system_labels, requested.system_labels):
        pairs["system_labels"] = (restored.system_labels, requested.system_labels)
    restored_additive = None
    if scaler.additive is not None and any(scales.additive for scales in scaler.targets.values()):
        restored_additive = scaler.additive.name
        if additive is None and scaler.provided_module is not None:
            additive = scaler.provided_module.name
    pairs["additive module"] = (restored_additive, additive)
    intensive = set(intensive_targets)
    for name, scales in scaler.targets.items():
        if scales.layout.sample_kind == "structure":
            pairs[f"intensive_targets: {name}"] = (not scales.extensive, name in intensive)
        if scales.weights or scales.composition == "none":
            now = "none" if name in without_baseline else "composition"
            before = "none" if scales.composition == "none" else "composition"
            pairs[f"baseline: {name}"] = (before, now)
        pairs[f"fixed_scales: {name}"] = (scales.fixed, fixed_scales.get(name))
        pairs[f"fixed_baseline: {name}"] = (scales.fixed_weights, fixed_baseline.get(name))
    differences = [
        f"{name} was {before!r} and is {now!r}"
        for name, (before, now) in pairs.items()
        if before != now
    ]
    if differences:
        raise ValueError(
            "the settings of TargetScaler contradict those of the scales that the module already "
            f"has (from a checkpoint or an earlier fit): {'; '.join(differences)}; use the same "
            "settings, or set refit=True to fit again"
        )
