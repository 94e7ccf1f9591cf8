"""The example model: a network, its optimizer and its metrics."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from metatensor.torch import TensorMap, detach
from metatomic.torch import ModelOutput, System
from torchmetrics import MetricCollection
from typing_extensions import override

from ..steps import TargetScalingMixin
from .network import MoleculesNetwork
from .targets import TARGETS, add_positions_gradient

OUTPUTS = {
    name: ModelOutput(sample_kind="atom" if target.per_atom else "system")
    for name, target in TARGETS.items()
}
"""What training asks of the network."""


class MoleculesModel(TargetScalingMixin, LightningModule):
    """Train a `MoleculesNetwork` on all targets, and on forces as the gradient of the energy.

    Args:
        channels: Number of scalars, of vectors and of tensors on each atom.
        layers: Number of message-passing rounds.
        cutoff: Cutoff of the neighbor lists in Å; must be that of the data.
        n_radial: Number of radial functions.
        lr: Maximum learning rate.
        n_types: Number of atomic types; they run from 0 to `n_types - 1`.
        metrics: Metrics of every target in physical units; `None`: MAE and RMSE.
        metrics_per_block: Names of targets whose metrics are also logged for each block.
    """

    def __init__(
        self,
        channels: int = 24,
        layers: int = 2,
        cutoff: float = 5.0,
        n_radial: int = 6,
        lr: float = 0.06,
        n_types: int = 10,
        metrics: MetricCollection | None = None,
        metrics_per_block: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["metrics", "metrics_per_block"])
        self.metrics, self.metrics_per_block = metrics, metrics_per_block
        self.network = MoleculesNetwork(channels, layers, cutoff, n_radial, n_types)

    @override
    def forward(self, systems: Sequence[System]) -> dict[str, TensorMap]:
        """Predict every target of every system, and the gradient of the energy, in model space."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = torch.cat([system.positions for system in systems])
            if not positions.requires_grad:
                positions.requires_grad_()
            predictions = self.network.predict(list(systems), positions, OUTPUTS, None)
            energy = predictions["energy"].block().values.sum()
            (gradient,) = torch.autograd.grad(energy, positions, create_graph=differentiable)
        if not differentiable:
            predictions = {name: detach(tensor) for name, tensor in predictions.items()}
        predictions["energy"] = add_positions_gradient(
            predictions["energy"], predictions["charges"].block().samples, gradient
        )
        return predictions

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint is loaded; in version 0.1.0 the model itself was the network."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        for name in self.network.state_dict():
            if name in state:
                state[f"network.{name}"] = state.pop(name)

    @override
    def configure_optimizers(self) -> Any:
        """AdamW; the learning rate rises over the first tenth of training, then falls to zero."""
        steps = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            progress = min(step / steps, 1.0)
            return min(10 * progress + 1 / steps, 0.5 * (1 + math.cos(math.pi * progress)))

        optimizer = torch.optim.AdamW(self.parameters(), self.hparams["lr"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def configure_metrics(self) -> MetricCollection:
        """The `metrics` argument, or the default metrics."""
        return super().configure_metrics() if self.metrics is None else self.metrics
