"""The targets of validation: compared with the scales, and their RMS in loss space."""

from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch import Trainer

from ..batches import clone_inference_tensors
from ..scaling import targets_to_loss
from ..steps import ScaledModule, ScaledSteps, ValidationCheck, ValidationRms, scaler_of
from .fit_decision import is_dev_run


class ValidationTargets:
    """Passes the targets of validation to the check of their scales, and to the sums of their RMS.

    The steps of the mixin pass them on; for steps of the module's own, they are read here again.

    Args:
        reports: whether the RMS of the targets in loss space is reported.
    """

    def __init__(self, reports: bool) -> None:
        self._check, self._rms = ValidationCheck(), ValidationRms()
        self._reports = reports

    def leave_out(self, names: Collection[str]) -> None:
        """Do not compare these targets, about which there was a warning."""
        self._check.leave_out(names)

    def start(self, trainer: Trainer, module: ScaledModule, later: Collection[str]) -> None:
        """Begin a validation.

        Args:
            trainer: trainer of the run.
            module: module with scales.
            later: names of the targets that are compared in the next one.
        """
        if self._compares(trainer):
            self._check.postpone(later)
            module._scaling_check = self._check
        if self._reports:
            self._rms.reset()
            module._scaling_rms = self._rms

    def start_batch(
        self, trainer: Trainer, module: ScaledModule, batch: Any, batch_idx: int, loader_idx: int
    ) -> None:
        """Pass on the targets of a batch, if the module does not do so itself."""
        if self._reports:
            self._rms.begin_batch(trainer, batch_idx, loader_idx)
        if isinstance(module, ScaledSteps) and (self._reports or self._compares(trainer)):
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self._pass_on(trainer, module, clone_inference_tensors(batch))
            except Exception as error:
                # The module's own step may not need what is missing here.
                self._check.finished = True
                if self._reports:
                    self._rms.warn(error)

    def rms(self, trainer: Trainer, module: ScaledModule) -> dict[str, float]:
        """The RMS of each target by logged name, if they are reported; a collective operation."""
        if not self._reports:
            return {}
        return self._rms.compute(trainer, scaler_of(module).targets, module.device)

    def finish(self, trainer: Trainer, module: ScaledModule) -> None:
        """End a validation. Warns if the data of the first one do not suit the scales."""
        self.detach(module)
        if self._compares(trainer):
            self._check.finish(scaler_of(module), bool(trainer.sanity_checking))

    @staticmethod
    def detach(module: ScaledModule) -> None:
        """Receive no more targets of a module."""
        module._scaling_check = module._scaling_rms = None

    def _pass_on(self, trainer: Trainer, module: ScaledModule, batch: Any) -> None:
        scaler = scaler_of(module)
        systems, targets, masks = module._scaling_unpack(batch)
        if self._compares(trainer):
            self._check.add(scaler, systems, targets, masks)
        if self._reports:
            in_loss = targets_to_loss(scaler, systems, targets, masks, torch.float64)
            self._rms.add(scaler, systems, in_loss)

    def _compares(self, trainer: Trainer) -> bool:
        compares = trainer.is_global_zero and not is_dev_run(trainer)
        return compares and not self._check.finished
