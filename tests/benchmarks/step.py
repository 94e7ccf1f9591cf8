"""What scaling costs a training step inside a Trainer, on the embedded molecules.

Run by hand:

    python tests/benchmarks/step.py --times 20

A Trainer with a logger trains the example on batches of 32 molecules that wait in memory. Rounds of
it take turns with rounds of the same network without this package: systems moved, a mean squared
error, no metrics, nothing logged. Machines are noisy, so medians of processor time are printed, and
differences to the other rounds. `--operations` also counts what each part dispatches.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from metatensor.torch import TensorMap
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader

from lightning_scaler import TargetScaler
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.model import MoleculesModel

PARTS = ("targets_to_loss", "predictions_to_loss", "compute_loss", "update_metrics")
TRANSFER, STEP, FORWARD, LIGHTNING = "transfer", "training_step", "forward", "results of Lightning"
WARM_UP = 6
BATCH = 32
COUNTED = 4


class Bare(LightningModule):
    """The network of the example on its own, with a plain mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.example = MoleculesModel()
        for name in ("scaler", "_scaling_metrics", "_scaling_logged_loss"):
            self.example._modules.pop(name, None)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Move what is no tensor."""
        moved = {k: v.to(device=device) for k, v in batch.items() if k != "system"}
        return {"system": [s.to(torch.float32, device) for s in batch["system"]], **moved}

    def forward(self, systems: Any) -> dict[str, TensorMap]:
        """Predict all targets."""
        return self.example(systems)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The mean squared error of all values and gradients."""
        outputs = self(batch["system"])
        losses = []
        for name, output in outputs.items():
            for predicted, block in zip(output.blocks(), batch[name].blocks(), strict=True):
                losses.append((predicted.values - block.values.float()).square().mean())
                for parameter in block.gradients_list():
                    found, given = predicted.gradient(parameter), block.gradient(parameter)
                    losses.append((found.values - given.values.float()).square().mean())
        return 1e-6 * torch.stack(losses).sum()

    def configure_optimizers(self) -> Any:
        """The optimizer of the example, and a schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Clock(Callback):
    """Processor time of the whole of every step, and of its parts; or a profile of the steps.

    Args:
        operations: profile the steps instead of timing them.
    """

    def __init__(self, operations: bool = False) -> None:
        self.taken: dict[str, list[float]] = {}
        self.operations = profile(activities=[ProfilerActivity.CPU]) if operations else None
        self._start = 0.0

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Keep the time of each call of a method."""
        part = getattr(owner, method)
        self.taken[name] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.operations is not None:
                with record_function(f"part {name}"):
                    return part(*args, **kwargs)
            start = time.process_time()
            result = part(*args, **kwargs)
            self.taken[name].append(1e3 * (time.process_time() - start))
            return result

        # The mixin asks whether the methods of its module are its own.
        timed: Any = call
        timed.__func__ = part.__func__
        setattr(owner, method, timed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training begins."""
        self.watch(pl_module, "transfer_batch_to_device", TRANSFER)
        self.watch(pl_module, "training_step", STEP)
        self.watch(pl_module, "forward", FORWARD)
        for part in PARTS if isinstance(pl_module, MoleculesModel) else ():
            self.watch(pl_module, part, part)
        self.watch(trainer._logger_connector, "on_batch_end", LIGHTNING)
        self.taken["step"] = []
        self._start = time.process_time()

    def on_train_batch_start(self, *args: Any) -> None:
        """Called before every step, after the end of the one before."""
        now = time.process_time()
        if args[3] > 0:
            self.taken["step"].append(1e3 * (now - self._start))
        self._start = now
        if self.operations is not None and args[3] == WARM_UP:
            self.operations.start()

    def on_train_epoch_end(self, *args: Any) -> None:
        """Called after the last step."""
        if self.operations is not None:
            self.operations.stop()


def batches() -> list[Any]:
    """Batches of molecules in an order that mixes them."""
    seed_everything(0)
    data = MoleculesDataModule(batch_size=BATCH)
    data.setup("fit")
    return [batch for batch in data.train_dataloader() if len(batch["system"]) == BATCH]


def run(module: LightningModule, data: list[Any], folder: Path, clock: Clock) -> None:
    """Train for one epoch with a logger."""
    seed_everything(0)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[
            clock,
            *(
                [TargetScaler(intensive_targets=["dipole"])]
                if isinstance(module, MoleculesModel)
                else []
            ),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=10,
    )
    loader = DataLoader(data, batch_size=None, collate_fn=lambda batch: batch)
    trainer.fit(module, loader)


def parts_of(taken: dict[str, list[float]]) -> dict[str, float]:
    """Median milliseconds of the parts of a step, without the warm-up."""
    columns = {name: values[WARM_UP:] for name, values in taken.items()}
    columns["step without forward"] = [
        a - b for a, b in zip(columns[STEP], columns[FORWARD], strict=True)
    ]
    return {name: statistics.median(values) for name, values in columns.items()}


def count_operations(found: Any, steps: int) -> dict[str, float]:
    """Operations of ATen per step, of those called from each part, not by another operation."""
    counts: dict[str, int] = {}
    for event in found.events():
        if not event.name.startswith("aten::"):
            continue
        parent, names, outer = event.cpu_parent, [], True
        while parent is not None:
            outer = outer and not parent.name.startswith("aten::")
            names.append(parent.name)
            parent = parent.cpu_parent
        if not outer:
            continue
        inside = [n.removeprefix("part ") for n in names if n.startswith("part ")]
        for name in inside:
            counts[name] = counts.get(name, 0) + 1
        if STEP in inside and FORWARD not in inside:
            counts["step without forward"] = counts.get("step without forward", 0) + 1
        counts["step"] = counts.get("step", 0) + 1
    return {name: count / steps for name, count in counts.items()}


def main() -> None:
    """Print what the parts of a step take and dispatch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="steps of a round, at least 10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operations", action="store_true", help="also count operations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    times = max(options.times, 10)
    data = batches()
    data = [data[i % len(data)] for i in range(WARM_UP + times + 1)]
    modules: dict[str, Callable[[], LightningModule]] = {"bare": Bare, "scaled": MoleculesModel}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in modules}
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, module in modules.items():
                run(module(), data, Path(folder), clock := Clock())
                found[name].append(parts_of(clock.taken))
        for name, module in modules.items() if options.operations else ():
            # The events of a step take tens of megabytes.
            few = data[: WARM_UP + COUNTED]
            run(module(), few, Path(folder), clock := Clock(operations=True))
            counts[name] = count_operations(clock.operations, COUNTED)
    medians = {
        name: {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}
        for name, rounds in found.items()
    }
    scaled, bare = medians["scaled"], medians["bare"]
    print(f"\n{'processor ms of a step':34s}{'scaled':>10s}{'bare':>10s}{'of a step':>12s}")
    for part, ms in scaled.items():
        other = f"{bare[part]:10.3f}" if part in bare else " " * 10
        print(f"{part:34s}{ms:10.3f}{other}{100 * ms / scaled['step']:10.2f} %")
    named = sum(scaled[part] for part in (TRANSFER, *PARTS))
    share = 100 * named / scaled["step"]
    print(f"{'transfer and the four parts':34s}{named:10.3f}{bare[TRANSFER]:10.3f}{share:10.2f} %")
    print(f"{'step, over the bare one':34s}{scaled['step'] - bare['step']:10.3f}")
    for name, by_part in counts.items():
        print(f"\noperations of a step, {name}")
        for part, count in by_part.items():
            print(f"{part:34s}{count:10.1f}")


if __name__ == "__main__":
    main()
