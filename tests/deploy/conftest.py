"""A trained module and the file that was exported from it, for all tests of engines."""

import copy
from typing import Any, NamedTuple

import metatensor.torch as mts
import pytest
import torch
from deployable import SmallNetwork, add_neighbors, molecules
from lightning.pytorch import LightningModule, Trainer
from metatensor.torch import TensorMap
from metatomic.torch import ModelOutput
from torch.utils.data import DataLoader

from lightning_scaler import TargetScaler, TargetScalingMixin, export

TARGETS = ("energy", "charges", "polarizability")
OUTPUTS = {"energy": "kcal/mol", "charges": "e", "polarizability": "bohr^3"}
MOLECULES = [(1, 8, 1), (6, 1, 1, 1, 1), (6, 8), (8, 6, 1, 1), (6, 6, 8, 1, 1, 1, 1, 1, 1)]
MOLECULES += [(8, 8), (6, 8, 8), (1, 6, 8), (6, 6, 1, 1), (8, 1, 8, 1)]
# kcal/mol
COMPOSITION = {1: -313.0, 6: -23720.0, 8: -47150.0}


class Net(TargetScalingMixin, LightningModule):
    """Wraps the small network in float32 for training."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallNetwork(torch.float32)

    def forward(self, systems) -> dict[str, TensorMap]:
        return self.network(list(systems), {name: ModelOutput() for name in TARGETS})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def batches():
    """Ten batches of three molecules with total energies, charges and polarizabilities."""
    teacher = SmallNetwork(seed=1)
    for k in range(10):
        chosen = [MOLECULES[(3 * k + i) % len(MOLECULES)] for i in range(3)]
        systems = add_neighbors(molecules(*chosen, seed=k), teacher)
        with torch.no_grad():
            targets = teacher(systems, {name: ModelOutput() for name in TARGETS})
        energy = mts.multiply(targets["energy"], 5.0)
        totals = [[sum(COMPOSITION[z] for z in of)] for of in chosen]
        energy.block().values.add_(torch.tensor(totals, dtype=torch.float64))
        yield {"system": systems, **targets, "energy": energy}


class Trained(NamedTuple):
    """A trained module, the file exported from it, and batches of new molecules."""

    module: Any
    path: Any
    batches: Any


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    module, data = Net(), list(batches())
    loader = DataLoader(data, batch_size=None)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[TargetScaler()],
        default_root_dir=folder,
    )
    trainer.fit(module, loader, loader)
    path = folder / "model.pt"
    export(
        module.network,
        module.scaler,
        path,
        outputs=OUTPUTS,
        length_unit="angstrom",
        interaction_range=4.0,
    )
    return Trained(module, path, data)


@pytest.fixture(scope="session")
def predictions(trained):
    """What ``Trainer.predict`` gives for the batches, in the units of the data."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    return trainer.predict(trained.module, DataLoader(trained.batches, batch_size=None))


@pytest.fixture(scope="session")
def float64_model(trained):
    """The same network in float64, exported, for derivatives by finite differences."""
    path = trained.path.with_name("float64.pt")
    network = copy.deepcopy(trained.module.network).double()
    outputs = {"energy": "kcal/mol"}
    scaler = trained.module.scaler
    export(network, scaler, path, outputs=outputs, length_unit="A", interaction_range=4.0)
    return path
