"""Data of another kind for a network that was trained on the small data, and a layered network."""

import torch
from builders import atom_samples, cartesian, labels, single
from lightning.pytorch import LightningModule
from metatensor.torch import TensorBlock
from metatomic.torch import System
from small_training import SmallData
from torch import nn

from lightning_scaler import TargetScalingMixin

PROPERTY = labels("property", [0])


def with_nitrogen(**options):
    """Data whose carbon atoms are nitrogen."""
    data = SmallData(**options)
    for dataset in (data.train, data.held_out):
        dataset.items = [(as_nitrogen(system), numbers) for system, numbers in dataset.items]
    return data


def as_nitrogen(system):
    types = torch.where(system.types == 6, 7, system.types).int()
    return System(types, system.positions, system.cell, system.pbc)


def other_level(**options):
    """Data in which each type contributes more to the energy: 5, -3 and 40 for H, C and O."""
    data = SmallData(**options)
    for dataset in (data.train, data.held_out):
        for system, numbers in dataset.items:
            shift = sum({1: 5.0, 6: -3.0, 8: 40.0}[int(z)] for z in system.types)
            numbers["energy"] = numbers["energy"] + shift
    return data


class LayeredNet(TargetScalingMixin, LightningModule):
    """Energies with gradients by autograd, and charges, each from a layer of its own."""

    def __init__(self, energy=None):
        super().__init__()
        torch.manual_seed(2)
        self.hidden = nn.Linear(4, 5)
        layers = {"energy": energy or nn.Linear(5, 1), "charges": nn.Linear(5, 1)}
        self.readouts = nn.ModuleDict(layers)
        self.steps = 0

    def forward(self, systems):
        n_atoms = [len(system) for system in systems]
        owner = torch.arange(len(systems)).repeat_interleave(torch.tensor(n_atoms))
        types = torch.cat([system.types for system in systems])
        with torch.enable_grad():
            r = torch.cat([system.positions for system in systems]).detach().requires_grad_()
            features = self.hidden(torch.cat([r, types[:, None].to(r) / 8.0], 1)).tanh()
            atomic = self.energies(features)
            slope = self.slope(atomic, r)
        total = atomic.new_zeros(len(systems), 1).index_add_(0, owner, atomic)
        energy = TensorBlock(total, labels("system", range(len(systems))), [], PROPERTY)
        rows = [[i, i, atom] for i, count in enumerate(n_atoms) for atom in range(count)]
        samples = labels(["sample", "system", "atom"], rows)
        gradient = TensorBlock(slope[:, :, None], samples, cartesian(), PROPERTY)
        energy.add_gradient("positions", gradient)
        charges = self.charges(features)
        charges = TensorBlock(charges, atom_samples(*n_atoms), [], PROPERTY)
        return {"energy": single(energy), "charges": single(charges)}

    def slope(self, atomic, r):
        return torch.autograd.grad(atomic.sum(), r, create_graph=self.training)[0]

    def energies(self, features):
        return self.readouts["energy"](features)

    def charges(self, features):
        return self.readouts["charges"](features)

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)
