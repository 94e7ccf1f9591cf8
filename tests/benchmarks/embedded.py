"""What scaling costs a training on the embedded molecules."""

import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from workloads import WARM_UP

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.molecules.dataset import MoleculesDataset, collate
from lightning_scaler.molecules.model import MoleculesModel

INTENSIVE = ("dipole",)
CONVERSIONS = ("targets_to_loss", "predictions_to_loss", "update_metrics")


class SilentModel(MoleculesModel):
    """The example model outside of a Trainer."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing: there is no Trainer."""


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


class TimedModel(SilentModel):
    """The example model, which keeps how many milliseconds the parts of its steps take."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, list[float]] = {}
        for name in ("transfer_batch_to_device", *CONVERSIONS, "compute_loss"):
            setattr(self, name, self.timed(name, getattr(self, name)))

    def timed(self, name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, the time of each call being kept."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = part(*args, **kwargs)
            self.taken.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
            return result

        return call


def training_step(times: int) -> dict[str, float]:
    """Median milliseconds of a training step of 32 molecules, and of its parts in their place."""
    cutoff = inspect.signature(MoleculesModel.__init__).parameters["cutoff"].default
    data, model = MoleculesDataset("train", cutoff), TimedModel()
    # Neighbours in the dataset are the same molecule.
    batch = collate([data[i] for i in range(0, len(data), len(data) // 32)][:32])
    accumulator = ScaleAccumulator(None, INTENSIVE, CompositionBaseline())
    accumulator.update(*model.unpack_batch(batch))
    model.scaler = accumulator.compute()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        moved = model.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        model.training_step(moved, 0).backward()
        optimizer.step()

    step = model.timed("step", step)
    for turn in range(WARM_UP + times):
        step()
        if turn < WARM_UP:
            model.taken.clear()
    conversions = zip(*(model.taken[part] for part in CONVERSIONS), strict=True)
    medians = {name: statistics.median(each) for name, each in model.taken.items()}
    return {**medians, "conversions": statistics.median(map(sum, conversions))}
