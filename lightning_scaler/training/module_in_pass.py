"""The module during a data pass: what it does to batches, and what it must not do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer
from metatensor.torch import TensorMap

from ..batches import Batch
from ..plain_tensors import Declaration
from ..steps import ScaledModule, is_lightning, scaler_of

TRANSFER_HOOKS = ("transfer_batch_to_device", "on_after_batch_transfer")


class ModuleInPass:
    """Does to the batches of a data pass what training does before its step, and unpacks them.

    Batches are moved to the device only if the module or the datamodule overrides a hook that
    Lightning calls then or afterwards, or the module predicts for them.

    Args:
        trainer: trainer that is starting a fit.
        module: module that is being trained.
        predicts: whether the module predicts for the batches, now or afterwards.
    """

    def __init__(self, trainer: Trainer, module: ScaledModule, predicts: bool = False) -> None:
        self._trainer, self._module = trainer, module
        self._scaler = scaler_of(module)
        owners = (module, trainer.datamodule)  # type: ignore[attr-defined]
        overridden = any(_overrides(owner, hook) for owner in owners for hook in TRANSFER_HOOKS)
        self._moves = overridden or predicts
        self._before = any(_overrides(owner, "on_before_batch_transfer") for owner in owners)

    def unpack(self, batch: Any) -> Batch:
        """Systems, targets and masks of a batch as in ``training_step``, TensorMaps on the CPU."""
        batch = self._trainer.precision_plugin.convert_input(batch)
        if self._moves or self._before:
            with torch.enable_grad():
                batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
                if self._moves:
                    batch = self._trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        unpacked = self._module._scaling_read(batch)
        return unpacked.with_tensors_on_cpu() if self._moves else unpacked

    def predict(self, batch: Batch) -> tuple[Batch, Mapping[str, TensorMap]]:
        """The batch on the device, and the predictions for it in model space, as in validation."""
        moved = self._module._scaling_move(batch)
        with (
            self._replaced_scaler(self._scaler),
            evaluation_mode(self._module),
            self._trainer.precision_plugin.val_step_context(),
        ):
            return moved, self._module._scaling_predict(moved.systems)

    @contextmanager
    def scaler_in_use(self) -> Iterator[None]:
        """Refuse every use of the module's scaler, whose scales are being fitted."""
        stand_in = _ScalerInUse(type(self._module).__name__, self._scaler.declaration)
        with self._replaced_scaler(stand_in):
            yield

    @contextmanager
    def _replaced_scaler(self, scaler: torch.nn.Module) -> Iterator[None]:
        modules, attribute = self._module._modules, self._module._scaling_attribute
        before, modules[attribute] = modules[attribute], scaler
        try:
            yield
        finally:
            modules[attribute] = before


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Set a module and all its parts to evaluation mode, without gradients; undone afterwards."""
    training = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, flag in training.items():
            part.training = flag


class _ScalerInUse(torch.nn.Module):
    """Stands for the scaler during the data pass: it is not fitted and does nothing."""

    fitted = False

    def __init__(self, owner: str, declaration: Declaration | None) -> None:
        super().__init__()
        self._owner = owner
        self.declaration = declaration

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError(
            f"{self._owner} uses its scaler ('{name}') while the scales are being fitted, in a "
            "hook such as on_after_batch_transfer or in unpack_batch; leave the targets in the "
            "units of the data there, or convert them only if self.scaler.fitted"
        )


def _overrides(owner: Any, hook: str) -> bool:
    """Whether a hook of a module or datamodule is the user's own."""
    if owner is None:
        return False
    if hook in vars(owner):
        return True
    defined_by = next(base for base in type(owner).__mro__ if hook in vars(base))
    return not is_lightning(defined_by) and ScaledModule not in defined_by.__bases__
