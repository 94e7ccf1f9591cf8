"""SchNet of PyTorch Geometric, trained on energies, forces and dipoles of small molecules."""

import lightning
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SchNet, global_add_pool

from lightning_scaler import PerStructure, TargetScaler, TargetScalingMixin
from lightning_scaler.molecules.dataset import MoleculesDataset


def graph(item):
    z, pos = item["system"].types.long(), item["system"].positions.float()
    return Data(z=z, pos=pos, energy=item["energy"], forces=item["forces"], dipole=item["dipole"])


def loader(split, shuffle=False):
    graphs = [graph(item) for item in MoleculesDataset(split, cutoff=6.0)]
    return DataLoader(graphs, batch_size=32, shuffle=shuffle)


def all_pairs(pos, batch):
    same = (batch[:, None] == batch) & ~torch.eye(len(batch), dtype=torch.bool)
    pairs = same.nonzero().T
    return pairs, (pos[pairs[0]] - pos[pairs[1]]).norm(dim=1)


class EachAtom(torch.nn.Module):
    def forward(self, atoms, batch, dim):
        return atoms


class Model(TargetScalingMixin, lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.schnet = SchNet(64, 64, 3, 32, cutoff=6.0, interaction_graph=all_pairs)
        self.schnet.lin2, self.schnet.readout = torch.nn.Linear(32, 2), EachAtom()

    def forward(self, batch):
        with torch.enable_grad():
            pos = batch.pos.detach().requires_grad_()
            energies, charges = self.schnet(batch.z, pos, batch.batch).split(1, dim=1)
            energy = global_add_pool(energies, batch.batch)
            (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=self.training)
        dipole = global_add_pool(charges * pos, batch.batch)
        return {"energy": energy, "forces": -gradient, "dipole": dipole}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


lightning.seed_everything(0)
model = Model()
energy = PerStructure(gradients={"positions": "-forces"})
dipole = PerStructure(components="xyz", intensive=True)
scaler = TargetScaler(targets={"energy": energy, "dipole": dipole})
trainer = lightning.Trainer(max_epochs=5, accelerator="cpu", logger=False, callbacks=[scaler])
trainer.fit(model, loader("train", shuffle=True), loader("validation"))
trainer.test(model, loader("conformers"))
