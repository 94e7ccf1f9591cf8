"""Fine-tuning on another level of theory against training from scratch, on the embedded molecules.

Run by hand, 10 minutes on one core:

    python tests/benchmarks/fine_tuning.py

A network is trained on the energies and forces of all 825 molecules of the training set. From there
it is fine-tuned on 104 of them at another level of theory with each `refit`, and another network is
trained on the same 104 from scratch. The other level is a known map: energies and forces are
multiplied by 0.9, and each atom adds an energy of its type. The numbers are root mean square
errors of unseen conformers at that level: before the first step, after the last epoch, and the
first epoch in which both are as low as those of the network from scratch at its end. Mean and
standard deviation over the seeds.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from metatensor.torch import TensorMap
from metatomic.torch import System
from torch.utils.data import DataLoader, Dataset

from lightning_scaler import TargetScaler
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.dataset import MoleculesDataset, Split, collate
from lightning_scaler.molecules.model import MoleculesModel

CUTOFF = 5.0
EVERY = 8
# The other level: energies multiplied by the factor, plus a shift in eV for each atom.
FACTOR = 0.9
SHIFTS = {1: 0.8, 6: 12.0, 7: -9.0, 8: 20.0, 9: 5.0}
ERRORS = {"energy, eV/atom": "energy/rmse_per_atom", "forces, eV/Å": "energy/positions/rmse"}

# Settings of the callback; `None`: from scratch.
SETUPS: dict[str, dict[str, Any] | None] = {
    "from scratch": None,
    "refit=False": {},
    "refit=True": {"refit": True},
    'refit="baseline"': {"refit": "baseline"},
    '…, against="predictions"': {"refit": "baseline", "against": "predictions"},
}


class EnergyModel(MoleculesModel):
    """The example network, which predicts energies and forces alone."""

    def forward(self, systems: Sequence[System]) -> dict[str, TensorMap]:
        """Predict the energies and their gradients, in model space."""
        return {"energy": super().forward(systems)["energy"]}


class OtherLevel(Dataset[dict[str, Any]]):
    """Molecules with the energies and forces of the other level of theory.

    Args:
        split: name of the split.
        every: step between the molecules taken.
    """

    def __init__(self, split: Split, every: int = 1) -> None:
        molecules = MoleculesDataset(split, CUTOFF)
        self.items = [self._relabel(molecules[i]) for i in range(0, len(molecules), every)]

    def _relabel(self, item: dict[str, Any]) -> dict[str, Any]:
        shift = sum(SHIFTS[z] for z in item["system"].types.tolist())
        energy = FACTOR * item["energy"] + shift
        return {**item, "energy": energy, "forces": FACTOR * item["forces"]}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


class FewMolecules(lightning.LightningDataModule):
    """Training on few molecules, validation on unseen conformers, both at the other level."""

    def __init__(self) -> None:
        super().__init__()
        self.train, self.validation = OtherLevel("train", EVERY), OtherLevel("conformers", 2)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(self.train, 16, shuffle=True, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(self.validation, 32, collate_fn=collate)


class ErrorsByEpoch(lightning.Callback):
    """Keeps the errors of each validation, the first of which is before any step."""

    def __init__(self) -> None:
        self.errors: list[list[float]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when validation ends. Keeps its errors."""
        found = trainer.callback_metrics
        self.errors.append([float(found[f"val/{name}"]) for name in ERRORS.values()])


def train(
    model: EnergyModel,
    data: lightning.LightningDataModule,
    folder: str,
    epochs: int,
    validate: bool,
    **settings: Any,
) -> list[list[float]]:
    """Train a network, and return the errors before the first step and after every epoch."""
    kept = ErrorsByEpoch()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[TargetScaler(targets=["energy"], **settings), kept],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        gradient_clip_val=10.0,
        num_sanity_val_steps=-1 if validate else 0,
        limit_val_batches=None if validate else 0,
        default_root_dir=folder,
    )
    trainer.fit(model, data)
    return kept.errors


def epochs_until(errors: Sequence[Sequence[float]], wanted: Sequence[float]) -> int | None:
    """The first epoch in which every error is as low as wanted; 0: before the first step."""
    for epoch, found in enumerate(errors):
        if all(error <= limit for error, limit in zip(found, wanted, strict=True)):
            return epoch
    return None


def print_table(runs: Mapping[str, list[list[list[float]]]]) -> None:
    """A line for every set-up, in the form of a table of Markdown."""
    columns = [f"{when}: {name}" for when in ("before", "after") for name in ERRORS]
    print(f"\n| | {' | '.join(columns)} | epochs to the errors from scratch |")
    print("| --- " * (len(columns) + 2) + "|")
    scratch = [errors[-1] for errors in runs["from scratch"]]
    for name, of_seeds in runs.items():
        cells = []
        for when in (0, -1):
            for values in zip(*(errors[when] for errors in of_seeds), strict=True):
                cells.append(f"{statistics.mean(values):.3g} ± {statistics.pstdev(values):.1g}")
        reached = [epochs_until(e, limit) for e, limit in zip(of_seeds, scratch, strict=True)]
        words = ", ".join("never" if epoch is None else str(epoch) for epoch in reached)
        print(f"| {name} | {' | '.join(cells)} | {words} |")


def main() -> None:
    """Train every set-up with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-epochs", type=int, default=24, help="of the first training")
    parser.add_argument("--epochs", type=int, default=16, help="of fine-tuning and from scratch")
    parser.add_argument("--lr", type=float, default=0.01, help="of fine-tuning; 0.06 from scratch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    refits = list(SETUPS)[1:]
    parser.add_argument("--setups", nargs="+", default=refits, choices=refits)
    options = parser.parse_args()
    setups = {name: SETUPS[name] for name in ("from scratch", *options.setups)}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = FewMolecules()
    runs: dict[str, list[list[list[float]]]] = {name: [] for name in setups}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            lightning.seed_everything(seed, verbose=False)
            first = EnergyModel()
            train(first, MoleculesDataModule(), folder, options.first_epochs, validate=False)
            state = first.state_dict()
            for name, settings in setups.items():
                start = time.process_time()
                lightning.seed_everything(seed, verbose=False)
                model = EnergyModel(lr=0.06 if settings is None else options.lr)
                if settings is not None:
                    model.load_state_dict(state)
                errors = train(model, data, folder, options.epochs, True, **(settings or {}))
                runs[name].append(errors)
                seconds, last = time.process_time() - start, [f"{e:.4g}" for e in errors[-1]]
                print(f"seed {seed}, {name}, {seconds:.0f} s: {', '.join(last)}", flush=True)
    print(
        f"\n{options.first_epochs} epochs of the first training, then {options.epochs}; seeds "
        f"{', '.join(map(str, options.seeds))}"
    )
    print_table(runs)


if __name__ == "__main__":
    main()
