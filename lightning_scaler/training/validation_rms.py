"""The RMS of the validation targets in loss space."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from metatensor.torch import TensorMap
from torch import Tensor

from ..batches import read_atoms
from ..scaling import Scaler
from ..steps import drop_systems, evaluation_loaders, logged_path, padded_positions


class ValidationRms:
    """Adds up the squares of the validation targets in loss space, over all processes.

    They are near 1 if the scales suit the validation data.
    """

    def __init__(self) -> None:
        # Sum of squares and number of values, by loader and target.
        self._sums: dict[tuple[int, str], Tensor] = {}
        # Index of the loader, the loader if it may repeat systems, and index of the batch. Not the
        # trainer, which would be part of copies of the module.
        self._place: tuple[int, Any, int] = 0, None, 0
        self._warned = False

    def reset(self) -> None:
        """Forget all batches."""
        self._sums = {}

    def begin_batch(self, trainer: Trainer, batch_idx: int, loader_idx: int) -> None:
        """Say which batch is added next."""
        repeating = evaluation_loaders(trainer)[loader_idx] if trainer.world_size > 1 else None
        self._place = loader_idx, repeating, batch_idx

    def add(self, scaler: Scaler, systems: Any, targets: Mapping[str, TensorMap]) -> None:
        """Add a batch, without its padding.

        Args:
            scaler: scaler of the module.
            systems: systems of the batch, or their atoms.
            targets: targets in loss space, by name.
        """
        loader_idx, loader, batch_idx = self._place
        known = {name: tensor for name, tensor in targets.items() if name in scaler.targets}
        with torch.inference_mode(False), torch.no_grad():
            n_systems = read_atoms(systems).n_systems
            padded = padded_positions(loader, batch_idx, n_systems)
            known = dict(drop_systems(known, known, padded, n_systems)[1])
            for name, tensor in known.items():
                if len(tensor.keys):
                    values = torch.cat([block.values.flatten() for block in tensor.blocks()])
                    squares = values.to(_summed_dtype(values.device)).square()
                    found = torch.stack([squares.nansum(), (~squares.isnan()).sum()])
                    key = loader_idx, name
                    self._sums[key] = self._sums[key] + found if key in self._sums else found

    def warn(self, error: Exception) -> None:
        """Warn once of a batch that is left out: steps may validate on something else."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                "TargetScaler(report=True): the RMS of a validation batch in loss space is not "
                f"known: {error}",
                stacklevel=2,
            )

    def compute(
        self, trainer: Trainer, names: Collection[str], device: torch.device
    ) -> dict[str, float]:
        """The RMS of each target by logged name, ``val/rms/energy``; a collective operation.

        With several loaders, the logged names have the suffix that Lightning gives to metrics.

        Args:
            trainer: trainer of the run.
            names: names of all targets, the same on every process.
            device: device of the module.
        """
        n_loaders = len(evaluation_loaders(trainer))
        keys = [(i, name) for i in range(n_loaders) for name in names]
        zero = torch.zeros(2, dtype=_summed_dtype(device), device=device)
        sums = torch.stack([self._sums.get(key, zero).to(zero) for key in keys])
        total: Any = trainer.strategy.reduce(sums, reduce_op="sum")
        found = {}
        for (i, name), (square, count) in zip(keys, total.tolist(), strict=True):
            suffix = f"/dataloader_idx_{i}" if n_loaders > 1 else ""
            if count:
                found[f"val/rms/{logged_path(name)}{suffix}"] = (square / count) ** 0.5
        return found


def _summed_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
