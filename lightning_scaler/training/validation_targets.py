"""The targets of validation: compared with the scales, and their RMS in loss space."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import clone_inference_tensors, read_atoms
from ..scaling import Scaler, targets_to_loss
from ..steps import (
    ScaledModule,
    ScaledSteps,
    drop_systems,
    evaluation_loaders,
    logged_path,
    padded_positions,
    scaler_of,
)
from .fit_decision import is_dev_run
from .validation_check import ValidationCheck


class ValidationTargets:
    """Passes the targets of validation to the check of their scales, and sums up their squares.

    The steps of the mixin pass them on; for steps of the module's own, they are read here again.
    The squares are those in loss space, over all processes; their mean is near 1 if the scales suit
    the validation data.

    Args:
        reports: whether the RMS of the targets in loss space is reported.
    """

    def __init__(self, reports: bool) -> None:
        self._check = ValidationCheck()
        self._compares, self._reports = False, reports
        # Sum of squares and number of values, by loader and target.
        self._sums: dict[tuple[int, str], Tensor] = {}
        # Index of the loader, the loader if it may repeat systems, and index of the batch. Not the
        # trainer, which would be part of copies of the module.
        self._place: tuple[int, Any, int] = 0, None, 0
        self._warned = False

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
        self._sums = {}
        if self._compares or self._reports:
            module._scaling_observer = self._add

    def start_batch(
        self, trainer: Trainer, module: ScaledModule, batch: Any, batch_idx: int, loader_idx: int
    ) -> None:
        """Pass on the targets of a batch, if the module does not do so itself."""
        if self._reports:
            repeating = evaluation_loaders(trainer)[loader_idx] if trainer.world_size > 1 else None
            self._place = loader_idx, repeating, batch_idx
        if isinstance(module, ScaledSteps) and (self._reports or self._compares):
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self._add_batch(module, clone_inference_tensors(batch))
            except Exception as error:
                # The module's own step may not need what is missing here.
                self._compares, self._check.finished = False, True
                if self._reports and not self._warned:
                    self._warned = True
                    warnings.warn(
                        "TargetScaler(report=True): the RMS of a validation batch in loss space is "
                        f"not known: {error}",
                        stacklevel=2,
                    )

    def rms(self, trainer: Trainer, module: ScaledModule) -> dict[str, float]:
        """The RMS of each target by logged name, ``val/rms/energy``, if they are reported.

        A collective operation. With several loaders, the logged names have the suffix that
        Lightning gives to metrics.
        """
        if not self._reports:
            return {}
        n_loaders = len(evaluation_loaders(trainer))
        keys = [(i, name) for i in range(n_loaders) for name in scaler_of(module).targets]
        zero = torch.zeros(2, dtype=_summed_dtype(module.device), device=module.device)
        sums = torch.stack([self._sums.get(key, zero).to(zero) for key in keys])
        total: Any = trainer.strategy.reduce(sums, reduce_op="sum")
        found = {}
        for (i, name), (square, count) in zip(keys, total.tolist(), strict=True):
            suffix = f"/dataloader_idx_{i}" if n_loaders > 1 else ""
            if count:
                found[f"val/rms/{logged_path(name)}{suffix}"] = (square / count) ** 0.5
        return found

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
            with torch.inference_mode(False), torch.no_grad():
                self._add_squares(scaler, systems, in_loss)

    def _add_squares(self, scaler: Scaler, systems: Any, in_loss: Mapping[str, TensorMap]) -> None:
        """Add the squares of a batch without its padding."""
        loader_idx, loader, batch_idx = self._place
        known = {name: tensor for name, tensor in in_loss.items() if name in scaler.targets}
        n_systems = read_atoms(systems).n_systems
        padded = padded_positions(loader, batch_idx, n_systems)
        for name, tensor in drop_systems(known, known, padded, n_systems)[1].items():
            if len(tensor.keys):
                values = torch.cat([block.values.flatten() for block in tensor.blocks()])
                squares = values.to(_summed_dtype(values.device)).square()
                found = torch.stack([squares.nansum(), (~squares.isnan()).sum()])
                key = loader_idx, name
                self._sums[key] = self._sums[key] + found if key in self._sums else found


def _summed_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
