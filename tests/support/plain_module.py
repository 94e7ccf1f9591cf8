"""A LightningModule that knows nothing of target scaling, and batches of plain tensors for it."""

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lightning_scaler import PerAtom, PerStructure

DECLARED = {
    "energy": PerStructure(gradients={"positions": "-forces"}),
    "populations": PerAtom(properties=2),
}
# Energies are -100 Z for every atom, and the squares of all positions.
PER_ATOM = -100.0


class OtherModule(LightningModule):
    """Energies with forces by autograd, populations, and steps of its own, which are recorded."""

    def __init__(self, hparams=None):
        super().__init__()
        self.save_hyperparameters({"width": 3} if hparams is None else hparams)
        torch.manual_seed(0)
        self.weights = torch.nn.Embedding(9, 4)
        self.seen, self.outputs = [], []

    def forward(self, batch):
        with torch.enable_grad():
            positions = batch["positions"].detach().requires_grad_()
            weights = self.weights(batch["z"])
            atomic = weights[:, 0] + weights[:, 1] * positions.square().sum(1)
            energy = atomic.new_zeros(len(batch["n_atoms"]))
            energy = energy.index_add(0, torch.repeat_interleave(batch["n_atoms"]), atomic)
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return {"energy": energy, "forces": -gradient, "populations": weights[:, 2:]}

    def loss(self, batch):
        output = self(batch)
        self.seen.append(batch)
        self.outputs.append({name: tensor.detach() for name, tensor in output.items()})
        errors = [(output[n] - batch[n]).square().mean() for n in ("energy", "forces")]
        return sum(errors) + (output["populations"] - batch["populations"]).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, batch_size=len(batch["n_atoms"]))
        return loss

    def validation_step(self, batch, batch_idx):
        output = self(batch)
        self.seen.append(batch)
        self.outputs.append(output)
        for name in ("energy", "forces", "populations"):
            error = (output[name] - batch[name]).abs().mean()
            self.log(f"val/{name}", error, batch_size=len(batch["n_atoms"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def batches(n_batches=4, size=5, seed=0, dtype=torch.float64):
    """Batches as dicts of plain tensors."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n_batches):
        n_atoms = torch.randint(1, 5, (size,), generator=generator)
        z = torch.randint(1, 9, (int(n_atoms.sum()),), generator=generator)
        positions = torch.randn(len(z), 3, generator=generator, dtype=dtype)
        atomic = PER_ATOM * z + positions.square().sum(1)
        energy = torch.zeros(size, dtype=dtype)
        energy.index_add_(0, torch.repeat_interleave(n_atoms), atomic)
        populations = torch.stack([z + positions[:, 0], 0.01 * positions[:, 1]], 1)
        found.append(
            {
                "z": z,
                "n_atoms": n_atoms,
                "positions": positions,
                "energy": energy,
                "forces": -2 * positions,
                "populations": populations,
            }
        )
    return found


def loader_of(found):
    """A loader that hands out the same batches in every epoch."""
    return DataLoader(found, batch_size=None)


def structures(number, seed=3):
    """Single structures of three atoms, for :func:`collate_structures`."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        z = torch.randint(1, 9, (3,), generator=generator)
        positions = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        energy = PER_ATOM * z.sum() + positions.square().sum()
        populations = torch.stack([z + positions[:, 0], 0.01 * positions[:, 1]], 1)
        found.append((z, positions, energy.reshape(1), -2 * positions, populations))
    return found


def collate_structures(items):
    """A batch as a dict of plain tensors."""
    names = ("z", "positions", "energy", "forces", "populations")
    parts = [torch.cat(tensors) for tensors in zip(*items, strict=True)]
    return {**dict(zip(names, parts, strict=True)), "n_atoms": torch.tensor([3] * len(items))}
