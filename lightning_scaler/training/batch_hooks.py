"""The hooks of training that change batches, applied to those of the data pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer

from ..plain_tensors import Declaration
from .scaled_module import ScaledModule, is_lightning, scaler_of

TRANSFER_HOOKS = ("transfer_batch_to_device", "on_after_batch_transfer")


class BatchHooks:
    """What training does to a batch before its step.

    Batches are moved to the device only if the module or the datamodule overrides a hook that
    Lightning calls then or afterwards, or the module predicts for them.

    Args:
        trainer: trainer that is starting a fit.
        module: module that is being trained.
        predicts: whether the module predicts for the batches.

    Attributes:
        moves: whether batches are moved to the device.
    """

    def __init__(self, trainer: Trainer, module: ScaledModule, predicts: bool = False) -> None:
        self._trainer, self._module = trainer, module
        owners = (module, trainer.datamodule)  # type: ignore[attr-defined]
        overridden = any(_overrides(owner, hook) for owner in owners for hook in TRANSFER_HOOKS)
        self.moves = overridden or predicts
        self._before = any(_overrides(owner, "on_before_batch_transfer") for owner in owners)

    def __call__(self, batch: Any) -> Any:
        """Return the batch as ``training_step`` receives it, perhaps on another device."""
        batch = self._trainer.precision_plugin.convert_input(batch)
        if not (self.moves or self._before):
            return batch
        with torch.enable_grad():
            batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
            if self.moves:
                batch = self._trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return batch


@contextmanager
def scaler_in_use(module: ScaledModule) -> Iterator[None]:
    """Refuse every use of the module's scaler, whose scales are being fitted."""
    modules, attribute = module._modules, module._scaler_attribute
    scaler = scaler_of(module)
    modules[attribute] = _ScalerInUse(type(module).__name__, scaler.declaration)
    try:
        yield
    finally:
        modules[attribute] = scaler


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
