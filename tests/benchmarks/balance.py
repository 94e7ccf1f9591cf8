"""Test errors of the embedded molecules with the loss balanced in several ways.

Run by hand, 25 minutes on one core:

    python tests/benchmarks/balance.py

Each set-up is trained with every seed; the numbers are the root mean square errors of unseen
conformers and of unseen molecules in physical units, mean and standard deviation over the seeds.
"Unscaled" has scales of 1, with the composition baseline subtracted as in all others.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

import lightning
import torch

from lightning_scaler import TargetScaler
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.model import MoleculesModel

SETUPS: dict[str, dict[str, Any]] = {
    "unscaled": {"enabled": False, "balance_loss": False},
    "unscaled, weights 1/RMS²": {"enabled": False},
    "scaled, m = 1": {"balance_loss": False},
    "balanced": {},
    "balanced, forces 4": {"loss_weights": {"energy/positions": 4}},
    "balanced, forces 10": {"loss_weights": {"energy/positions": 10}},
}
ERRORS = {
    "energy": "energy/rmse_per_atom",
    "forces": "energy/positions/rmse",
    "dipole": "dipole/rmse",
    "polarizability": "polarizability/rmse_per_atom",
    "charges": "charges/rmse",
    "populations": "populations/rmse",
    "atomic dipoles": "atomic_dipoles/rmse",
}
UNITS = ("eV/atom", "eV/Å", "e Å", "a0³/atom", "e", "e", "e Å")


def test_errors(setup: Mapping[str, Any], seed: int, epochs: int, folder: str) -> list[list[float]]:
    """Train once and return the errors of each of the two test sets, in the order of ``ERRORS``."""
    lightning.seed_everything(seed, verbose=False)
    data, model = MoleculesDataModule(), MoleculesModel()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[TargetScaler(intensive_targets=["dipole"], **setup)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        gradient_clip_val=10.0,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(model, data)
    return [
        [result[f"test/{path}/dataloader_idx_{i}"] for path in ERRORS.values()]
        for i, result in enumerate(trainer.test(model, data, verbose=False))
    ]


def print_table(title: str, runs: Mapping[str, Iterable[Iterable[float]]]) -> None:
    """A line for every set-up, in the form of a table of Markdown."""
    print(f"\n{title}\n")
    columns = [f"{name}, {unit}" for name, unit in zip(ERRORS, UNITS, strict=True)]
    print(f"| | {' | '.join(columns)} |")
    print("| --- " * (len(columns) + 1) + "|")
    for name, errors in runs.items():
        cells = []
        for values in zip(*errors, strict=True):
            mean, spread = statistics.mean(values), statistics.pstdev(values)
            cells.append(f"{mean:.3g} ± {spread:.1g}")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Train every set-up with every seed, and print a table for each test set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--setups", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs: dict[str, list[list[list[float]]]] = {name: [] for name in options.setups}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for name in options.setups:
                start = time.process_time()
                errors = test_errors(SETUPS[name], seed, options.epochs, folder)
                runs[name].append(errors)
                seconds, first = time.process_time() - start, [f"{e:.4g}" for e in errors[0]]
                print(f"seed {seed}, {name}, {seconds:.0f} s: {', '.join(first)}", flush=True)
    print(f"\n{options.epochs} epochs, seeds {', '.join(map(str, options.seeds))}")
    for i, title in enumerate(("unseen conformers", "unseen molecules")):
        print_table(f"RMSE, {title}", {name: [run[i] for run in of] for name, of in runs.items()})


if __name__ == "__main__":
    main()
