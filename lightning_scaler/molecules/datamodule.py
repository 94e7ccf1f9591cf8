"""The embedded molecules for Lightning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from torch.utils.data import DataLoader
from typing_extensions import override

from .dataset import (
    MOLECULES_FILE,
    MoleculesDataset,
    Split,
    collate,
    collate_systems,
)


class MoleculesDataModule(lightning.LightningDataModule):
    """Loaders of the embedded molecules, split once and for all by the data file.

    Tests come in two loaders, named by `test_names`: unseen conformers of the molecules of the
    training set, and unseen molecules.

    Args:
        batch_size: Number of molecules in a batch.
        cutoff: Cutoff of the neighbor lists in Å, the same as the model's.
        num_workers: Number of loading processes; the data are small enough for none.
        path: The data file.
    """

    test_names: tuple[Split, Split] = ("conformers", "molecules")
    units: Mapping[str, str] = {
        "energy": "eV",
        "energy/positions": "eV/Å",
        "dipole": "e Å",
        "polarizability": "a0³",
        "polarizability/o3_lambda_0": "a0³",
        "polarizability/o3_lambda_2": "a0³",
        "charges": "e",
        "populations": "e",
        "atomic_dipoles": "e Å",
    }

    def __init__(
        self,
        batch_size: int = 32,
        cutoff: float = 5.0,
        num_workers: int = 0,
        path: str | Path = MOLECULES_FILE,
    ) -> None:
        super().__init__()
        # A path belongs to one machine, and checkpoints that hold one need pickle to be read.
        self.save_hyperparameters(ignore="path")
        self.path = path
        self._datasets: dict[Split, MoleculesDataset] = {}

    @override
    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader("train", shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader("validation")

    @override
    def test_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        return [self._loader(name) for name in self.test_names]

    @override
    def predict_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        return [self._loader(name, collate_fn=collate_systems) for name in self.test_names]

    def dataset(self, split: Split) -> MoleculesDataset:
        """The dataset behind a loader, read at the first call and kept."""
        if split not in self._datasets:
            self._datasets[split] = MoleculesDataset(split, self.hparams["cutoff"], self.path)
        return self._datasets[split]

    def _loader(self, split: Split, **options: Any) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self.dataset(split),
            batch_size=self.hparams["batch_size"],
            num_workers=self.hparams["num_workers"],
            persistent_workers=self.hparams["num_workers"] > 0,
            **{"collate_fn": collate, **options},
        )
