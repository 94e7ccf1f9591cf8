"""Whether a fit is needed, of which targets, and with which of the requested settings."""

from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer

from ..baselines import CompositionBaseline, FrozenModule
from ..fitting import ScaleAccumulator
from ..scaling import Scaler
from ..settings import FixedScale, RefitPart
from .fit_settings import FitSettings
from .restored_settings import check_restored


@dataclass(frozen=True)
class FitDecision:
    """The task of a fit for one module; see :func:`decide_fit`.

    Attributes:
        request: settings of the callback.
        keep_existing: keep the scales that the module already has.
        targets: names of the targets to fit; ``None``: all.
        part: the part of existing scales that is fitted again, if there is one.
    """

    request: FitSettings
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


def decide_fit(request: FitSettings, scaler: Scaler, is_dev_run: bool) -> FitDecision:
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
    check_restored(scaler, request)
    if request.part is not None:
        return FitDecision(request, keep_existing=True, targets=request.targets, part=request.part)
    missing = tuple(name for name in request.targets or () if name not in scaler.targets)
    return FitDecision(request, keep_existing=True, targets=missing)
