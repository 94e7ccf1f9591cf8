"""The small network and trainer of the distribution ``pytorch_lightning``, whose classes differ."""

from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from small_training import PlainNet, SmallData, quiet_options

from lightning_scaler import TargetScalingMixin


class OtherNet(TargetScalingMixin, pytorch_lightning.LightningModule):
    """The small network as a module of the other distribution."""

    forward = PlainNet.forward
    configure_optimizers = PlainNet.configure_optimizers

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(3)
        self.weights = torch.nn.Parameter(torch.randn(3, 4))
        self.matrix = torch.nn.Parameter(torch.randn(3, 5))
        self.forward_dtypes: set[torch.dtype] = set()
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss


class OtherData(pytorch_lightning.LightningDataModule):
    """The small data as a datamodule of the other distribution."""

    def __init__(self, data: SmallData) -> None:
        super().__init__()
        self.train_dataloader = data.train_dataloader
        self.val_dataloader = data.val_dataloader
        self.test_dataloader = data.test_dataloader


def other_trainer(folder: Path, **options: Any) -> pytorch_lightning.Trainer:
    """A quiet trainer of the other distribution."""
    return pytorch_lightning.Trainer(**quiet_options(folder, **options))
