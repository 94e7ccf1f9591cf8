"""A small network for an extxyz file read with ASE; its predictions go into another one."""

import ase.build
import ase.io
import lightning
import numpy as np
import torch
from ase.calculators.emt import EMT
from torch.utils.data import DataLoader

from lightning_scaler import PerStructure, TargetScaler, TargetScalingMixin


def alloy(rng):
    crystal = ase.build.bulk("Cu", cubic=True, a=rng.uniform(3.8, 4.1)) * (1, 1, 2)
    cluster = ase.Atoms(rng.choice(["Cu", "Ag", "Au"], 8), crystal.positions, calculator=EMT())
    cluster.rattle(0.1, rng=rng)
    cluster.get_forces()  # with the energy, in the results of the calculator
    return cluster


class Model(TargetScalingMixin, lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.elements, self.neighbors = torch.nn.Embedding(100, 16), torch.nn.Embedding(100, 16)
        layers = torch.nn.Linear(32, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)
        self.energy_of_atoms = torch.nn.Sequential(*layers)

    def energy(self, numbers, positions):
        i, j = (1 - torch.eye(len(numbers))).nonzero().T
        distances = (positions[i] - positions[j]).norm(dim=1, keepdim=True)
        pairs = torch.exp(-4 * (distances - torch.linspace(1, 6, 16)) ** 2)
        environments = torch.zeros(len(numbers), 16)
        environments = environments.index_add(0, i, pairs * self.neighbors(numbers[j]))
        return self.energy_of_atoms(torch.cat([self.elements(numbers), environments], 1)).sum()

    def forward(self, batch):
        with torch.enable_grad():
            numbers = [torch.tensor(atoms.numbers) for atoms in batch]
            positions = [torch.tensor(atoms.positions).float().requires_grad_() for atoms in batch]
            energy = torch.stack([*map(self.energy, numbers, positions)])
            gradients = torch.autograd.grad(energy.sum(), positions, create_graph=self.training)
        return {"energy": energy, "forces": -torch.cat(gradients)}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


rng = np.random.default_rng(lightning.seed_everything(0))
ase.io.write("alloys.extxyz", [alloy(rng) for _ in range(250)])
train, test = ase.io.read("alloys.extxyz", ":200"), ase.io.read("alloys.extxyz", "200:")
scaler = TargetScaler(targets={"energy": PerStructure(gradients={"positions": "-forces"})})
trainer = lightning.Trainer(max_epochs=10, accelerator="cpu", logger=False, callbacks=[scaler])
model = Model()
trainer.fit(model, DataLoader(train, batch_size=10, shuffle=True, collate_fn=list))
predictions = trainer.predict(model, DataLoader(test, collate_fn=list))
for atoms, predicted in zip(test, predictions, strict=True):
    atoms.info["predicted_energy"] = predicted["energy"].item()
    atoms.arrays["predicted_forces"] = predicted["forces"].numpy()
ase.io.write("predicted.extxyz", test)
