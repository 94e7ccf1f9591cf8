"""Whether a fit is needed, of which targets, and with which of the requested settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer

from ..baselines import CompositionBaseline, FrozenModule, class_name
from ..fitting import ScaleAccumulator
from ..plain_tensors import Declaration
from ..scaling import Scaler
from ..settings import Against, FixedScale, RefitPart, Settings
from .restored_settings import check_restored


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
        refit: ``True``: fit all targets again, even if the module already has scales; or the part
            of its scales that is fitted again.
        against: what a new baseline is fitted to: the ``"targets"``, or what the ``"predictions"``
            of the module leave over.
        declaration: declared targets, if they are plain tensors.
        output_layers: by target name the submodule that absorbs a new scale.
        cache: statistics file to use, and to write; ``None``: none.
        report: whether the data pass keeps a sample of the data for a report.
        relative_error: standard error of the scales, relative to them, that is enough; ``None``:
            read all data.
        units: units in the data by target or gradient, where they are known.
    """

    settings: Settings
    targets: tuple[str, ...] | None
    intensive_targets: frozenset[str]
    fixed_scales: dict[str, FixedScale]
    baseline: CompositionBaseline | None
    additive: torch.nn.Module | None
    limit_batches: int | None
    refit: bool | RefitPart
    against: Against = "targets"
    declaration: Declaration | None = None
    output_layers: Mapping[str, str] = field(default_factory=dict)
    cache: str | None = None
    report: bool = False
    relative_error: float | None = None
    units: Mapping[str, str] = field(default_factory=dict)

    @property
    def part(self) -> RefitPart | None:
        """The part of the scales that is fitted again, if not all or nothing is."""
        return self.refit if isinstance(self.refit, str) else None

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
            "relative_error": self.relative_error,
            "declared targets": self.declaration and self.declaration.state(),
            "refit": self.refit,
            "against": self.against,
            "output_layers": dict(self.output_layers),
            "cache": "none" if self.cache is None else "a file",
            "report": self.report,
            "units": dict(self.units),
        }


@dataclass(frozen=True)
class FitDecision:
    """What a fit has to do for one module; see :func:`decide_fit`.

    Attributes:
        request: request that was decided on.
        keep_existing: keep the scales that the module already has.
        targets: names of the targets to fit; ``None``: all.
        part: the part of existing scales that is fitted again, if there is one.
    """

    request: FitRequest
    keep_existing: bool
    targets: tuple[str, ...] | None
    part: RefitPart | None = None

    @property
    def fit_needed(self) -> bool:
        """Whether there is anything to fit."""
        return not self.keep_existing or self.part is not None or bool(self.targets)

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
        request = self.request
        fixed = {n: w for n, w in request.fixed_baseline.items() if self.applies_to(n)}
        units = {n: u for n, u in request.units.items() if self.applies_to(n.partition("/")[0])}
        additive = scaler.additive if self.keep_existing else scaler.provided_module
        if request.additive is not None and not self.keep_existing:
            additive = FrozenModule(request.additive)
        return ScaleAccumulator(
            self.targets,
            [name for name in request.intensive_targets if self.applies_to(name)],
            self._baseline(scaler, fixed),
            request.settings.system_labels,
            additive and additive.to(device),
            units=units,
        )

    def errors_accumulator(self, scaler: Scaler) -> ScaleAccumulator:
        """An empty accumulator for the errors of predictions.

        Args:
            scaler: scaler of the module.
        """
        baseline = self._baseline(scaler, {})
        return ScaleAccumulator(None, self.request.intensive_targets, baseline, "position")

    def _baseline(
        self, scaler: Scaler, fixed: dict[str, dict[int, float]]
    ) -> CompositionBaseline | None:
        """The composition to fit. Where weights are kept, so is what they are multiplied by."""
        baseline, counted = self.request.baseline, []
        if baseline is None:
            return None
        if self.part is not None:
            intensive = {n: s for n, s in scaler.targets.items() if not s.extensive}
            counted = [
                name for name, s in intensive.items() if s.weights and s.composition == "counts"
            ]
        excluded = tuple(name for name in baseline.excluded if self.applies_to(name))
        return CompositionBaseline(fixed, excluded, tuple(counted))


def is_dev_run(trainer: Trainer) -> bool:
    """Whether the Trainer only tries a few batches, with ``fast_dev_run``."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def restores_later(trainer: Trainer) -> bool:
    """Whether a checkpoint is restored, in whole or in part, after ``on_fit_start``.

    Some strategies restore the weights then; the state of loops and loaders always comes later.
    """
    return trainer.strategy.restore_checkpoint_after_setup or trainer.ckpt_path is not None


def decide_fit(request: FitRequest, scaler: Scaler, is_dev_run: bool) -> FitDecision:
    """Decide whether scales are missing.

    Existing scales are kept unless ``refit`` is set, in whole or in part. Provisional scales, from
    a ``fast_dev_run``, are only kept in another one.

    Args:
        request: settings of the callback.
        scaler: scaler of the module, fitted or not.
        is_dev_run: whether the Trainer runs with ``fast_dev_run``.

    Raises:
        ValueError: if existing scales are to be kept and the settings contradict them, or there are
            none of which a part could be kept.
    """
    provisional = scaler.settings.provisional and not is_dev_run
    if request.part is not None and (not scaler.fitted or provisional):
        raise ValueError(
            f"refit={request.part!r} keeps a part of the scales that the module already has, but "
            "it has none; load them with load_from_checkpoint(...), ckpt_path=... or module.scaler "
            "= Scaler.load(...), or fit all of them without refit"
        )
    if not scaler.fitted or request.refit is True or provisional:
        return FitDecision(request, keep_existing=False, targets=request.targets)
    check_restored(
        scaler,
        request.settings,
        request.targets or (),
        request.intensive_targets,
        request.fixed_scales,
        request.fixed_baseline,
        request.additive_name,
        request.without_baseline,
        request.part,
        request.output_layers,
    )
    if request.part is not None:
        return FitDecision(request, keep_existing=True, targets=request.targets, part=request.part)
    missing = tuple(name for name in request.targets or () if name not in scaler.targets)
    return FitDecision(request, keep_existing=True, targets=missing)
