"""Layouts, values, splits and loaders of the embedded molecules."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lightning_scaler.commands.config_files import command_configs
from lightning_scaler.molecules.datamodule import MoleculesDataModule
from lightning_scaler.molecules.dataset import (
    MOLECULES_FILE,
    MoleculesDataset,
    collate,
)
from lightning_scaler.molecules.targets import TARGETS, neighbor_list_options

CUTOFF = 2.0
N_ATOMS = [3, 2, 4, 1, 5]
SPLITS = [0, 1, 2, 3, 0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five structures with distinct values, two of them for training."""
    rng = np.random.default_rng(0)
    n, total = len(N_ATOMS), sum(N_ATOMS)
    np.savez(
        tmp_path / "few.npz",
        molecule_names=np.array(["HCN", "H2"]),
        molecule=np.array([0, 1, 0, 1, 1], dtype=np.uint8),
        n_atoms=np.array(N_ATOMS, dtype=np.uint8),
        split=np.array(SPLITS, dtype=np.uint8),
        types=rng.choice([1, 6, 7, 8, 9], total).astype(np.uint8),
        positions=rng.normal(scale=1.5, size=(total, 3)).astype(np.float32),
        energy=rng.normal(size=n),
        forces=rng.normal(size=(total, 3)).astype(np.float32),
        dipole=rng.normal(size=(n, 3)).astype(np.float32),
        polarizability=rng.normal(size=(n, 6)).astype(np.float32),
        charges=rng.normal(size=total).astype(np.float32),
        populations=rng.normal(size=(total, 2)).astype(np.float32),
        atomic_dipoles=rng.normal(size=(total, 3)).astype(np.float32),
    )
    return tmp_path / "few.npz"


@pytest.fixture
def dataset(path: Path) -> MoleculesDataset:
    return MoleculesDataset("train", CUTOFF, path)


def test_items_are_the_structures_of_the_split(dataset, path):
    data = np.load(path)
    assert len(dataset) == 2
    assert dataset.molecules == ["HCN", "H2"]
    assert [len(system) for system in dataset.systems] == [3, 5]
    last = dataset[1]
    np.testing.assert_array_equal(last["system"].positions, data["positions"][-5:])
    np.testing.assert_array_equal(last["system"].types, data["types"][-5:])
    np.testing.assert_array_equal(last["forces"], data["forces"][-5:])
    assert last["energy"].item() == data["energy"][4]
    with pytest.raises(IndexError):
        dataset[2]


def test_systems_are_float64_without_a_cell(dataset):
    for system in dataset.systems:
        assert system.positions.dtype == torch.float64
        assert not system.cell.any()
        assert not system.pbc.any()


def test_neighbor_lists_hold_every_ordered_pair_within_the_cutoff(dataset):
    for system in dataset.systems:
        block = system.get_neighbor_list(neighbor_list_options(CUTOFF))
        distances = torch.cdist(system.positions, system.positions)
        expected = {(i, j) for i, j in (distances < CUTOFF).nonzero().tolist() if i != j}
        assert {(i, j) for i, j, *_ in block.samples.values.tolist()} == expected
        first, second = block.samples.values[:, :2].long().unbind(1)
        vectors = system.positions[second] - system.positions[first]
        torch.testing.assert_close(block.values.squeeze(-1), vectors)


def test_an_unknown_split_is_refused(path):
    with pytest.raises(ValueError, match=r"split must be one of train, validation, .* got 'test'"):
        MoleculesDataset("test", CUTOFF, path)


def test_layouts_of_a_batch(dataset):
    batch = collate([dataset[0], dataset[1]])
    assert set(batch) == {"system", *TARGETS}
    per_structure, per_atom = [[0], [1]], [[0, a] for a in range(3)] + [[1, a] for a in range(5)]
    shapes = {
        "energy": [(2, 1)],
        "dipole": [(2, 3, 1)],
        "polarizability": [(2, 1, 1), (2, 5, 1)],
        "charges": [(8, 1)],
        "populations": [(8, 2)],
        "atomic_dipoles": [(8, 3, 1)],
    }
    for name, expected in shapes.items():
        blocks = batch[name].blocks()
        assert [tuple(block.values.shape) for block in blocks] == expected
        for block in blocks:
            assert block.values.dtype == torch.float64
            names = ["system", "atom"] if expected[0][0] == 8 else ["system"]
            assert block.samples.names == names
            rows = per_atom if expected[0][0] == 8 else per_structure
            assert block.samples.values.tolist() == rows
    assert batch["dipole"].keys.names == ["_"]
    assert batch["polarizability"].keys.names == ["o3_lambda", "o3_sigma"]
    assert batch["polarizability"].keys.values.tolist() == [[0, 1], [2, 1]]
    (mu,) = batch["polarizability"][1].components
    assert mu.names == ["o3_mu"]
    assert mu.values.flatten().tolist() == [-2, -1, 0, 1, 2]
    assert batch["atomic_dipoles"].keys.values.tolist() == [[1, 1]]
    assert batch["populations"][0].properties.names == ["orbital"]


def test_values_of_a_shuffled_batch(dataset, path):
    data = np.load(path)
    batch = collate([dataset[1], dataset[0]])
    energy = batch["energy"][0]
    np.testing.assert_array_equal(energy.values[:, 0], data["energy"][[4, 0]])
    gradient = energy.gradient("positions")
    np.testing.assert_array_equal(
        gradient.values[..., 0], -np.concatenate([data["forces"][-5:], data["forces"][:3]])
    )
    assert gradient.samples.names == ["sample", "system", "atom"]
    assert gradient.samples.values[5].tolist() == [1, 1, 0]
    assert gradient.components[0].names == ["xyz"]
    np.testing.assert_array_equal(
        batch["polarizability"][1].values[..., 0], data["polarizability"][[4, 0], 1:]
    )
    np.testing.assert_array_equal(batch["populations"][0].values[:5], data["populations"][-5:])


def test_layouts_of_a_batch_with_one_atom(path):
    (item,) = [MoleculesDataset("molecules", CUTOFF, path)[0]]
    batch = collate([item])
    assert batch["charges"][0].samples.values.tolist() == [[0, 0]]
    assert batch["energy"][0].gradient("positions").values.shape == (1, 3, 1)
    assert len(batch["system"][0].get_neighbor_list(neighbor_list_options(CUTOFF)).samples) == 0


def test_loaders_have_the_structures_of_their_splits(path):
    data = MoleculesDataModule(batch_size=1, cutoff=CUTOFF, path=path)
    assert len(data.train_dataloader()) == 2
    assert len(data.val_dataloader()) == 1
    assert data.test_names == ("conformers", "molecules")
    sizes = [[len(b["system"][0]) for b in loader] for loader in data.test_dataloader()]
    assert sizes == [[4], [1]]
    for loader in data.predict_dataloader():
        assert [set(batch) for batch in loader] == [{"system"}]


def test_hyperparameters_load_without_pickled_code(path):
    data = MoleculesDataModule(batch_size=1, cutoff=CUTOFF, path=path)
    assert data.hparams == {"batch_size": 1, "cutoff": CUTOFF, "num_workers": 0}


def test_worker_processes_return_the_same_batches(path):
    data = MoleculesDataModule(batch_size=2, cutoff=CUTOFF, num_workers=1, path=path)
    (batch,) = data.val_dataloader()
    (expected,) = MoleculesDataModule(batch_size=2, cutoff=CUTOFF, path=path).val_dataloader()
    for name in TARGETS:
        ours, theirs = batch[name][0], expected[name][0]
        torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=0)
        assert ours.samples == theirs.samples
    assert batch["energy"][0].gradients_list() == ["positions"]
    options = neighbor_list_options(CUTOFF)
    block, reference = (b["system"][0].get_neighbor_list(options) for b in (batch, expected))
    assert block.samples == reference.samples


@pytest.mark.slow
def test_unseen_molecules_are_only_in_their_split():
    parts = {
        split: MoleculesDataset(split, CUTOFF)
        for split in ("train", "validation", "conformers", "molecules")
    }
    assert all(len(part) > 0 for part in parts.values())
    trained = set(parts["train"].molecules)
    assert set(parts["conformers"].molecules) <= trained
    assert not trained & set(parts["molecules"].molecules)
    assert not set(parts["validation"].molecules) & set(parts["molecules"].molecules)
    with np.load(MOLECULES_FILE) as data:
        assert len(data["split"]) == sum(map(len, parts.values()))


@pytest.mark.slow
def test_shipped_energies_agree_with_the_forces():
    """Gradients predict the energy difference of two conformers of a molecule.

    Conformers are aligned first, because they are randomly rotated.
    """
    dataset = MoleculesDataset("train", CUTOFF)
    energy = collate([dataset[i] for i in range(len(dataset))])["energy"][0]
    n_atoms = [len(system) for system in dataset.systems]
    gradients = energy.gradient("positions").values.squeeze(-1).split(n_atoms)
    differences, predicted = [], []
    for first, second in itertools.pairwise(range(len(dataset))):
        if dataset.molecules[first] == dataset.molecules[second]:
            a, b = (dataset.systems[i].positions for i in (first, second))
            u, _, vh = torch.linalg.svd(b.T @ a)
            rotation = u @ torch.diag(torch.tensor([1, 1, torch.det(u @ vh)], dtype=a.dtype)) @ vh
            differences.append((energy.values[second] - energy.values[first]).item())
            # The trapezoidal rule between the two.
            slopes = gradients[first] + gradients[second] @ rotation
            predicted.append((slopes * (b @ rotation - a)).sum().item() / 2)
    assert len(differences) > 700
    assert np.corrcoef(differences, predicted)[0, 1] > 0.9


def test_the_command_has_the_units_of_the_datamodule():
    config = OmegaConf.load(command_configs() / "train.yaml")
    assert config.callbacks.target_scaler.units == MoleculesDataModule.units
