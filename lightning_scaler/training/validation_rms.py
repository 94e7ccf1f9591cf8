"""The RMS of the validation targets in loss space."""

import copy
import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ..batches import clone_inference_tensors, read_atoms
from ..scaling import targets_to_loss
from .metric_scopes import logged_path
from .padding import drop_systems, padded_positions
from .scaled_module import ScaledModule, scaler_of
from .training_loader import flat_loaders


class ValidationRms:
    """Adds up the squares of the validation targets in loss space, over all processes.

    They are near 1 if the scales suit the validation data.
    """

    def __init__(self) -> None:
        # Sum of squares and number of values, by loader and target.
        self._sums: dict[tuple[int, str], Tensor] = {}
        self._warned = False

    def reset(self) -> None:
        """Forget all batches."""
        self._sums = {}

    def update(
        self, trainer: Trainer, module: ScaledModule, batch: Any, batch_idx: int, loader_idx: int
    ) -> None:
        """Add a validation batch, as the step of the module receives it.

        A batch that cannot be converted is left out, with one warning: a module with steps of its
        own may validate on something else.
        """
        try:
            with torch.inference_mode(False), torch.no_grad():
                targets = _targets_in_loss_space(trainer, module, batch, batch_idx, loader_idx)
                for name, tensor in targets.items():
                    values = [block.values.flatten() for block in tensor.blocks()]
                    joined = torch.cat(values) if values else torch.empty(0)
                    found = torch.stack([joined.square().nansum(), (~joined.isnan()).sum()])
                    key = loader_idx, name
                    self._sums[key] = self._sums[key] + found if key in self._sums else found
        except Exception as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    "TargetScaler(report=True): the RMS of a validation batch in loss space is not "
                    f"known: {error}",
                    stacklevel=2,
                )

    def compute(self, trainer: Trainer, module: ScaledModule) -> dict[str, float]:
        """The RMS of each target by logged name, ``val/rms/energy``; a collective operation.

        With several loaders, the names have the suffix that Lightning gives to metrics.
        """
        n_loaders = len(flat_loaders(trainer._evaluation_loop._combined_loader))
        keys = [(i, name) for i in range(n_loaders) for name in scaler_of(module).targets]
        dtype = torch.float32 if module.device.type == "mps" else torch.float64
        zero = torch.zeros(2, dtype=dtype, device=module.device)
        sums = torch.stack([self._sums.get(key, zero).to(zero) for key in keys])
        total: Any = trainer.strategy.reduce(sums, reduce_op="sum")
        found = {}
        for (i, name), (square, count) in zip(keys, total.tolist(), strict=True):
            suffix = f"/dataloader_idx_{i}" if n_loaders > 1 else ""
            if count:
                found[f"val/rms/{logged_path(name)}{suffix}"] = (square / count) ** 0.5
        return found


def _targets_in_loss_space(
    trainer: Trainer, module: ScaledModule, batch: Any, batch_idx: int, loader_idx: int
) -> dict[str, Any]:
    """The targets of a batch that have scales, without those of padding, in loss space."""
    scaler = scaler_of(module)
    # An unpack_batch may take the members out of the batch that the step needs next.
    batch = module._read_batch(copy.copy(clone_inference_tensors(batch)))
    known = {name: tensor for name, tensor in batch.targets.items() if name in scaler.targets}
    atoms = read_atoms(batch.systems)
    in_loss = targets_to_loss(scaler, atoms, known, batch.masks, torch.float64)
    loaders = flat_loaders(trainer._evaluation_loop._combined_loader)
    padded = []
    if trainer.world_size > 1:
        padded = padded_positions(loaders[loader_idx], batch_idx, atoms.n_systems)
    return dict(drop_systems(in_loss, in_loss, padded, atoms.n_systems)[1])
