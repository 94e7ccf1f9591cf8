"""The datamodule of the embedded molecules."""

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
    """Loaders of the embedded molecules; the data file fixes the splits.

    There are two test loaders, named in `test_names`: unseen conformers of the molecules in the
    training set, and unseen molecules.

    Args:
        batch_size: Number of molecules per batch.
        cutoff: Cutoff of the neighbor lists in Å; must be that of the model.
        num_workers: Number of processes that load batches; the dataset is small enough to need
            none.
        path: The data file.

    Attributes:
        units: Units of the targets, as `TargetScaler(units=...)` takes them.
        targets_only: Whether systems come without neighbor lists, which a pass over the targets
            alone does not need; set it before the first loader is made.
    """

    test_names: tuple[Split, Split] = ("conformers", "molecules")
    units: Mapping[str, str] = {
        "energy": "eV",
        "energy/positions": "eV/Å",
        "dipole": "e Å",
        "polarizability": "a0³",
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
        # A path is valid on one machine only, and reading it from a checkpoint requires pickle.
        self.save_hyperparameters(ignore="path")
        self.path = path
        self.targets_only = False
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
        """The dataset of a split, read at the first call and then reused."""
        if split not in self._datasets:
            cutoff = None if self.targets_only else self.hparams["cutoff"]
            self._datasets[split] = MoleculesDataset(split, cutoff, self.path)
        return self._datasets[split]

    def _loader(self, split: Split, **options: Any) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self.dataset(split),
            batch_size=self.hparams["batch_size"],
            num_workers=self.hparams["num_workers"],
            persistent_workers=self.hparams["num_workers"] > 0,
            **{"collate_fn": collate, **options},
        )
