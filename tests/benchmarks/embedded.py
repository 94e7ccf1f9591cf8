"""The fit pass over the embedded molecules; ``step.py`` measures their training steps."""

import inspect
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.molecules.dataset import MoleculesDataset, collate
from lightning_scaler.molecules.model import MoleculesModel

INTENSIVE = ("dipole",)


def fit_pass() -> tuple[int, dict[str, Callable[[], Callable[[], Any]]]]:
    """Number of batches of 32, and the two ways through them."""
    cutoff = inspect.signature(MoleculesModel.__init__).parameters["cutoff"].default
    data, model = MoleculesDataset("train", cutoff), MoleculesModel()
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
