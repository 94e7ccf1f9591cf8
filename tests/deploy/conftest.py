"""A trained module and the file that was exported from it, for all tests of engines."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from deployable import OUTPUTS, Net, batches
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_scaler import TargetScaler, export


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
