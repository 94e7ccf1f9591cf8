"""The targets of validation: compared with the scales, and their RMS in loss space."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from metatensor.torch import TensorMap

from ..batches import clone_inference_tensors
from ..scaling import Scaler, targets_to_loss
from ..steps import ScaledModule, ScaledSteps, scaler_of
from .fit_decision import is_dev_run
from .validation_check import ValidationCheck
from .validation_rms import ValidationRms


class ValidationTargets:
    """Passes the targets of validation to the check of their scales, and to the sums of their RMS.

    The steps of the mixin pass them on; for steps of the module's own, they are read here again.

    Args:
        reports: whether the RMS of the targets in loss space is reported.
    """

    def __init__(self, reports: bool) -> None:
        self._check, self._rms = ValidationCheck(), ValidationRms()
        self._compares, self._reports = False, reports

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
        on_rank_zero = trainer.is_global_zero and not is_dev_run(trainer)
        self._compares = on_rank_zero and not self._check.finished
        self._check.postpone(later)
        self._rms.reset()
        if self._compares or self._reports:
            module._scaling_observer = self._add

    def start_batch(
        self, trainer: Trainer, module: ScaledModule, batch: Any, batch_idx: int, loader_idx: int
    ) -> None:
        """Pass on the targets of a batch, if the module does not do so itself."""
        if self._reports:
            self._rms.begin_batch(trainer, batch_idx, loader_idx)
        if isinstance(module, ScaledSteps) and (self._reports or self._compares):
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self._add_batch(module, clone_inference_tensors(batch))
            except Exception as error:
                # The module's own step may not need what is missing here.
                self._compares, self._check.finished = False, True
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
        if self._compares:
            several = trainer.world_size > 1
            self._check.finish(scaler_of(module), bool(trainer.sanity_checking), several)

    @staticmethod
    def detach(module: ScaledModule) -> None:
        """Receive no more targets of a module."""
        module._scaling_observer = None

    def _add_batch(self, module: ScaledModule, batch: Any) -> None:
        scaler, (systems, targets, masks) = scaler_of(module), module._scaling_unpack(batch)
        in_loss: Mapping[str, TensorMap] = {}
        if self._reports:
            in_loss = targets_to_loss(scaler, systems, targets, masks, torch.float64)
        self._add(scaler, systems, targets, masks, in_loss)

    def _add(
        self,
        scaler: Scaler,
        systems: Any,
        targets: Mapping[str, TensorMap],
        masks: Mapping[str, TensorMap] | None,
        in_loss: Mapping[str, TensorMap],
    ) -> None:
        """Add the targets of a batch, in physical space and in loss space."""
        if self._compares:
            self._check.add(scaler, systems, targets, masks)
        if self._reports:
            self._rms.add(scaler, systems, in_loss)
