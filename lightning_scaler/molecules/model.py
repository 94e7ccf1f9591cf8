"""A small O(3)-equivariant network for all targets of the embedded molecules."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from e3nn.math import soft_one_hot_linspace
from e3nn.o3 import Irreps, Linear, spherical_harmonics
from lightning.pytorch import LightningModule
from metatensor.torch import TensorMap
from metatomic.torch import System
from torch import Tensor, nn
from torchmetrics import MetricCollection
from typing_extensions import override

from ..training import TargetScalingMixin
from .dataset import neighbor_pairs
from .interaction import HARMONICS, Interaction, sum_by_owner
from .targets import TARGETS, tensor_maps

READOUTS = {"energy": "0e", "dipole": "0e + 1o", "polarizability": "0e + 2e", "charges": "0e"}
READOUTS |= {"populations": "2x0e", "atomic_dipoles": "1o"}  # the scalar of a dipole is a charge


class MoleculesModel(TargetScalingMixin, LightningModule):
    """A message-passing network with scalars, vectors and second-rank tensors on the atoms.

    Energy, dipole and polarizability are sums over atoms; forces are the gradient of the energy by
    autograd. Outputs are in model space, of order one before training.

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
        self.embedding = nn.Embedding(n_types, channels)
        hidden = Irreps([(channels, ir) for _, ir in HARMONICS])
        inputs = [hidden[:1], *[hidden] * (layers - 1)]
        self.layers = nn.ModuleList(Interaction(irreps, hidden, n_radial) for irreps in inputs)
        self.readouts = nn.ModuleDict({k: Linear(hidden, irreps) for k, irreps in READOUTS.items()})

    @override
    def forward(self, systems: Sequence[System]) -> dict[str, TensorMap]:
        """Predict every target of every system, in model space."""
        n_atoms, training = [len(system) for system in systems], torch.is_grad_enabled()
        owner = torch.arange(len(systems)).repeat_interleave(torch.tensor(n_atoms)).to(self.device)
        with torch.enable_grad():
            positions = torch.cat([s.positions for s in systems]).detach().requires_grad_()
            tables = self._atomic_tables(systems, positions, owner)
            energy = tables["energy"].sum()
            gradient = torch.autograd.grad(energy, positions, create_graph=training)[0]
        for name, table in tables.items():
            total = table if TARGETS[name].per_atom else sum_by_owner(table, owner, len(systems))
            tables[name] = total if training else total.detach()
        return tensor_maps(n_atoms, tables, gradient)

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

    def _atomic_tables(
        self, systems: Sequence[System], positions: Tensor, owner: Tensor
    ) -> dict[str, Tensor]:
        """The contribution of each atom to each target, `(n_atoms, n_columns)`."""
        cutoff, n_radial = self.hparams["cutoff"], self.hparams["n_radial"]
        center, neighbor = neighbor_pairs(systems, cutoff)
        vectors = positions[neighbor] - positions[center]
        features = types = self.embedding(torch.cat([s.types for s in systems]).int())
        harmonics = spherical_harmonics(HARMONICS, vectors[:, [1, 2, 0]], True, "component")
        lengths = vectors.norm(dim=1)
        radial = soft_one_hot_linspace(lengths, 0.0, cutoff, n_radial, "smooth_finite", True)
        edges = center, neighbor, harmonics.to(features), n_radial**0.5 * radial.to(features)
        for layer in self.layers:
            features = layer(features, types, edges)
        tables = {name: readout(features).to(positions) for name, readout in self.readouts.items()}
        n_atoms = owner.bincount(minlength=len(systems)).unsqueeze(1)
        centroids = sum_by_owner(positions, owner, len(systems)) / n_atoms
        centered = (positions - centroids[owner]).detach()
        charge, dipole = tables["dipole"].split([1, 3], dim=1)
        tables["dipole"] = charge * centered + dipole[:, [2, 0, 1]]  # from y z x
        return tables
