"""What scaling costs a training on the embedded molecules."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.atoms import read_atoms
from lightning_scaler.molecules.dataset import MoleculesDataset, collate
from lightning_scaler.molecules.model import MoleculesModel

INTENSIVE = ("dipole", "polarizability")


class SilentModel(MoleculesModel):
    """The example model outside of a Trainer."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Nowhere."""


def fit_pass() -> tuple[int, dict[str, Callable[[], Callable[[], Any]]]]:
    """Number of batches of 32, and the two ways through them."""
    cutoff = inspect.signature(MoleculesModel.__init__).parameters["cutoff"].default
    data, model = MoleculesDataset("train", cutoff), SilentModel()
    loader = DataLoader(data, 32, collate_fn=collate)

    def bare() -> None:
        for batch in loader:
            model.unpack_batch(batch)

    def fitted() -> None:
        accumulator = ScaleAccumulator(None, INTENSIVE, CompositionBaseline())
        for batch in loader:
            accumulator.update(*model.unpack_batch(batch))
        accumulator.compute()

    return len(loader), {"bare iteration": lambda: bare, "fit pass": lambda: fitted}


def training_step() -> dict[str, Callable[[], Callable[[], Any]]]:
    """A training step of 32 molecules, and those parts of it that scaling adds."""
    cutoff = inspect.signature(MoleculesModel.__init__).parameters["cutoff"].default
    data, model = MoleculesDataset("train", cutoff), SilentModel()
    # Neighbours in the data set are the same molecule.
    batch = collate([data[i] for i in range(0, len(data), len(data) // 32)][:32])
    accumulator = ScaleAccumulator(None, INTENSIVE, CompositionBaseline())
    accumulator.update(*model.unpack_batch(batch))
    model.scaler = accumulator.compute()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    cpu = torch.device("cpu")

    def step() -> None:
        optimizer.zero_grad()
        moved = model.transfer_batch_to_device(batch, cpu, 0)
        model.training_step(moved, 0).backward()
        optimizer.step()

    moved = model.transfer_batch_to_device(batch, cpu, 0)
    systems, given, masks = model.unpack_batch(moved)
    raw = model(systems)
    targets = model.targets_to_loss(systems, given, masks)
    predictions = model.predictions_to_loss(systems, raw, targets)

    def conversions() -> None:
        atoms = read_atoms(systems)
        in_loss = model.targets_to_loss(atoms, given, masks)
        ours = model.predictions_to_loss(atoms, raw, in_loss)
        model.update_metrics("train", atoms, ours, in_loss)

    return {
        "step": lambda: step,
        "conversions": lambda: conversions,
        "transfer": lambda: lambda: model.transfer_batch_to_device(batch, cpu, 0),
        "targets_to_loss": lambda: lambda: model.targets_to_loss(systems, given, masks),
        "predictions_to_loss": lambda: lambda: model.predictions_to_loss(systems, raw, targets),
        "loss": lambda: lambda: model.compute_loss(predictions, targets),
        "update_metrics": lambda: (
            lambda: model.update_metrics("train", systems, predictions, targets)
        ),
    }
