"""What identifies the training data, and what does not."""

import hashlib
import random

import numpy as np
import pytest
import torch
from builders import mask_of
from lightning.pytorch.callbacks import Callback
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, Subset

from lightning_scaler import ScaleAccumulator, TargetScaler
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.dataset import MOLECULES_FILE
from lightning_scaler.molecules.model import MoleculesModel

SIZE = 50


class Seeds(Callback):
    """Seeds like an application that is started with another seed."""

    def __init__(self, seed):
        self.seed = seed

    def setup(self, trainer, pl_module, stage):
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(self.seed)


def identity(folder, data, seed=0, **options):
    """What identifies the data in the statistics of a fit."""
    callback = scaler_callback(cache=folder / "cache.st", **options)
    (folder / "cache.st").unlink(missing_ok=True)
    trainer = quiet_trainer(
        folder, callbacks=[Seeds(seed), callback], max_epochs=0, limit_val_batches=0
    )
    trainer.fit(SmallNet(), data)
    (part,) = ScaleAccumulator.load(folder / "cache.st").parts
    return part.data


class Loaded(SmallData):
    """A datamodule with a loader of its own."""

    def __init__(self, make, size=SIZE):
        super().__init__(size)
        self.make = make

    def train_dataloader(self):
        return self.make(self.train, self.collate_fn)


@pytest.mark.slow
def test_it_names_numbers_and_hashes(tmp_path):
    found = identity(tmp_path, SmallData(SIZE))
    assert found["samples"] == "50"
    assert found["targets"] == "charges, dipole, energy, polarizability"
    assert found["fingerprint of the dataset"] == "none"
    hashes = ("selected samples", "layouts", "values of 32 samples")
    assert all(len(found[name]) == 64 for name in hashes)


@pytest.mark.slow
def test_a_change_that_leaves_the_32_samples_alone_is_seen_only_by_a_fingerprint(tmp_path):
    """Of 50 samples in 32 equal parts, the middles are 0, 2, 3, 5, …; 1 is none of them."""
    found = []
    for charge, fingerprint in ((0.0, None), (1.0, None), (0.0, "a"), (1.0, "b")):
        data = SmallData(SIZE)
        data.train.items[1][1]["charges"] += charge
        if fingerprint:
            data.train.fingerprint = fingerprint
        found.append(identity(tmp_path, data))
    assert found[0] == found[1]
    assert found[2] != found[3]


def test_masks_count_as_values_do(tmp_path):
    """The same values with and without one of the charges masked."""

    def with_mask(masked):
        def make(dataset, collate_fn):
            def collate(items):
                batch = collate_fn(items)
                keep = torch.ones_like(batch["charges"].block().values, dtype=torch.bool)
                keep[0] = not masked
                return {**batch, "charges_mask": mask_of(batch["charges"], [keep])}

            return DataLoader(dataset, 4, collate_fn=collate)

        return identity(tmp_path, Loaded(make))

    found = {masked: with_mask(masked) for masked in (False, True)}
    differing = [name for name in found[True] if found[False][name] != found[True][name]]
    assert differing == ["values of 32 samples"]


@pytest.mark.slow
def test_the_selected_samples_count_and_not_their_order(tmp_path):
    chosen = list(range(0, SIZE, 2))
    orders = {
        "subset": chosen,
        "backwards": chosen[::-1],
        "others": list(range(1, SIZE, 2)),
    }
    found = {
        name: identity(tmp_path, Loaded(loader_of_batches(order))) for name, order in orders.items()
    }
    assert found["subset"] == found["backwards"]
    assert found["subset"]["samples"] == found["others"]["samples"] == "25"
    assert found["subset"]["selected samples"] != found["others"]["selected samples"]


def loader_of_batches(indices):
    def make(dataset, collate_fn):
        batches = [indices[i : i + 4] for i in range(0, len(indices), 4)]
        return DataLoader(dataset, batch_sampler=batches, collate_fn=collate_fn)

    return make


@pytest.mark.slow
def test_a_subset_of_a_dataset_with_a_fingerprint_has_one_of_its_own(tmp_path):
    def subset(indices):
        def make(dataset, collate_fn):
            dataset.fingerprint = "of the file"
            return DataLoader(Subset(dataset, indices), 4, collate_fn=collate_fn)

        return identity(tmp_path, Loaded(make))["fingerprint of the dataset"]

    found = subset(range(30))
    assert found == subset(range(30)) != subset(range(1, 31))
    assert found.startswith("of the file, ")


def test_a_loader_without_automatic_batching_is_identified(tmp_path):
    def make(dataset, collate_fn):
        batches = BatchSampler(SequentialSampler(dataset), 4, drop_last=False)

        class Batches(torch.utils.data.Dataset):
            def __len__(self):
                return len(batches)

            def __getitem__(self, index):
                return collate_fn([dataset[i] for i in list(batches)[index]])

        return DataLoader(Batches(), batch_size=None)

    assert identity(tmp_path, Loaded(make))["samples"] == "13"  # batches of four


class Noisy(torch.utils.data.Dataset):
    """Adds noise from the global generators."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        system, numbers = self.dataset[index]
        noise = torch.randn(()).double() + np.random.randn() + random.random()
        return system, {**numbers, "charges": numbers["charges"] + noise}


@pytest.mark.slow
def test_noise_of_the_global_generators_is_the_same_under_any_seed(tmp_path):
    def make(dataset, collate_fn):
        return DataLoader(Noisy(dataset), 4, shuffle=True, collate_fn=collate_fn)

    assert identity(tmp_path, Loaded(make), 1) == identity(tmp_path, Loaded(make), 2)


@pytest.mark.slow
def test_finding_it_leaves_the_random_states_alone(tmp_path):
    drawn = []
    for cache in (None, tmp_path / "cache.st"):
        torch.manual_seed(0)
        callback = scaler_callback(cache=cache)
        trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0)
        trainer.fit(SmallNet(), SmallData(SIZE))
        drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))
    assert drawn[0][0] == drawn[1][0]


@pytest.mark.slow
@pytest.mark.parametrize("targets", [None, ["energy"]])
def test_targets_that_are_not_fitted_do_not_count(tmp_path, targets):
    found = []
    options = {"targets": targets, "intensive_targets": []}
    for charge in (0.0, 1.0):
        data = SmallData(SIZE)
        data.train.items[0][1]["charges"] += charge
        found.append(identity(tmp_path, data, **options))
    assert (found[0] == found[1]) is (targets is not None)


@pytest.mark.slow
def test_positions_count_only_with_an_additive_module(tmp_path):
    from builders import Springs

    for baseline, same in (("composition", True), (Springs(k=1e-3), False)):
        found = []
        for shift in (0.0, 1.0):
            data = SmallData(SIZE)
            data.train.items[0][0].positions[0] += shift
            found.append(identity(tmp_path, data, baseline=baseline))
        assert (found[0] == found[1]) is same


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:these data are zero")
def test_the_embedded_molecules_have_a_fingerprint_of_their_file(tmp_path):
    callback = TargetScaler(intensive_targets=["dipole"], cache=tmp_path / "cache.st")
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=0, limit_val_batches=0)
    trainer.fit(MoleculesModel(channels=4), MoleculesDataModule())
    (part,) = ScaleAccumulator.load(tmp_path / "cache.st").parts
    of_file = hashlib.sha256(MOLECULES_FILE.read_bytes()).hexdigest()
    assert part.data["fingerprint of the dataset"] == of_file
