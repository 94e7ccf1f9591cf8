"""The atoms of users' own batches."""

import re

import ase
import numpy as np
import pytest
import torch
from builders import system
from torch_geometric.data import Batch, Data

from lightning_scaler import PerAtom, ScaleAccumulator
from lightning_scaler.plain_tensors.structures import find_atoms

TYPES = torch.tensor([8, 1, 1, 6])
COUNTS = [3, 1]
OWNERS = torch.tensor([0, 0, 0, 1])
GRAPHS = [
    Data(z=torch.tensor([8, 1, 1]), pos=torch.zeros(3, 3)),
    Data(z=torch.tensor([6]), pos=torch.zeros(1, 3)),
]

BATCHES = {
    "PyTorch Geometric": (Batch.from_data_list(GRAPHS), {}),
    "without ptr": (Data(z=TYPES, batch=OWNERS), {}),
    "counts": ({"atomic_numbers": TYPES, "n_atoms": torch.tensor(COUNTS)}, {}),
    "counts in a list": ({"Z": TYPES, "natoms": COUNTS}, {}),
    "a column of counts": ({"z": TYPES, "n_atoms": torch.tensor(COUNTS)[:, None]}, {}),
    "SchNetPack": ({"_atomic_numbers": TYPES, "_idx_m": OWNERS, "_n_atoms": COUNTS}, {}),
    "owners": ({"z": TYPES, "batch": OWNERS}, {}),
    "arrays": ({"z": TYPES.numpy(), "batch": OWNERS.numpy()}, {}),
    "int32": ({"z": TYPES.int(), "idx_m": OWNERS.int()}, {}),
    "named": ({"a": {"b": TYPES}, "c": OWNERS}, {"types": ("a", "b"), "structure": ("c",)}),
    "named counts": (({"z": TYPES}, COUNTS), {"types": (0, "z"), "structure": (1,)}),
    "n_atoms named": ((TYPES, COUNTS), {"types": (0,), "n_atoms": (1,)}),
    "ASE": ([ase.Atoms("OHH"), ase.Atoms("C")], {}),
    "systems": ({"system": [system(8, 1, 1), system(6)]}, {}),
    "systems first": (([system(8, 1, 1), system(6)], {"energy": 1.0}), {}),
}


@pytest.mark.parametrize(("batch", "addresses"), BATCHES.values(), ids=BATCHES)
def test_the_atoms_of_a_batch_are_found(batch, addresses):
    atoms = find_atoms(batch, addresses)
    assert atoms.types.tolist() == TYPES.tolist()
    assert atoms.n_atoms.tolist() == COUNTS
    assert atoms.types.dtype == torch.int64


SINGLE = {
    "graph": Data(z=TYPES, pos=torch.zeros(4, 3)),
    "one count": {"z": TYPES, "n_atoms": 4},
    "table of one": {"z": TYPES[None]},
}


@pytest.mark.parametrize("batch", SINGLE.values(), ids=SINGLE)
def test_a_single_structure_is_a_batch_of_one(batch):
    assert find_atoms(batch, {}).n_atoms.tolist() == [4]


def test_structures_of_equal_size_may_be_a_table():
    atoms = find_atoms({"z": torch.tensor([[8, 1, 1], [7, 1, 6]])}, {})
    assert atoms.types.tolist() == [8, 1, 1, 7, 1, 6]
    assert atoms.n_atoms.tolist() == [3, 3]


def test_an_empty_structure_counts_where_offsets_or_counts_say_so():
    # [1, 1] may be two atoms of the second structure, or two structures of one atom.
    types = torch.tensor([8, 1])
    assert find_atoms({"z": types, "n_atoms": [0, 2]}, {}).n_atoms.tolist() == [0, 2]
    graphs = [Data(z=torch.zeros(0, dtype=torch.int64), num_nodes=0), Data(z=types, num_nodes=2)]
    assert find_atoms(Batch.from_data_list(graphs), {}).n_atoms.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"'batch': \[1, 1\] may be the structure of each atom or"):
        find_atoms({"z": types, "batch": torch.tensor([1, 1])}, {})
    named = {"types": ("z",), "n_atoms": ("batch",)}
    assert find_atoms({"z": types, "batch": torch.tensor([1, 1])}, named).n_systems == 2


REFUSED = {
    "no types": (
        {"pos": torch.zeros(4, 3)},
        {},
        TypeError,
        "expected the atomic types of the batch .* got a dict with pos; .*batch={'types'",
    ),
    "no structures": (
        {"z": TYPES, "energy": torch.zeros(2)},
        {},
        TypeError,
        "expected the structure of each of the 4 atoms .* got a dict with energy, z; .*'structure'",
    ),
    "another address": (
        {"z": TYPES, "batch": OWNERS},
        {"types": ("Z",)},
        TypeError,
        r"batch={'types': 'Z'}: there is no such member; the batch is a dict with batch, z",
    ),
    "floating-point types": (
        {"z": TYPES.float(), "batch": OWNERS},
        {},
        TypeError,
        "the types of the batch, 'z': expected integers, got float32",
    ),
    "types by component": (
        {"z": torch.zeros(2, 2, 1).long() + 1, "batch": OWNERS},
        {},
        ValueError,
        r"'z': expected the types of all atoms, \(n_atoms,\), got \(2, 2, 1\)",
    ),
    "counts that do not add up": (
        {"z": TYPES, "n_atoms": [3, 2]},
        {},
        ValueError,
        "'n_atoms': expected integers that add up to the 4 atoms .* got .3, 2. with the sum 5",
    ),
    "owners of other atoms": (
        {"z": TYPES, "batch": OWNERS[:3]},
        {},
        ValueError,
        "'batch': expected the structure of each of the 4 atoms .* got 3 values with the sum 0",
    ),
    "owners out of order": (
        {"z": TYPES, "batch": torch.tensor([0, 1, 0, 1])},
        {},
        ValueError,
        "'batch': .* whose atoms do not follow each other; sort the atoms by structure",
    ),
    "one-hot types": (
        {"z": torch.nn.functional.one_hot(TYPES), "batch": OWNERS},
        {},
        ValueError,
        r"'z': expected an atomic number for each atom, got the shape \(4, \d\) .*one-hot encoding",
    ),
    "one-hot types in floating point": (
        {"z": torch.nn.functional.one_hot(TYPES).float(), "batch": OWNERS},
        {},
        ValueError,
        r"'z': expected an atomic number for each atom, got the shape \(4, \d\) .*one-hot encoding",
    ),
    "padding with 0": (
        {"z": torch.tensor([[8, 1, 1], [6, 0, 0]])},
        {},
        ValueError,
        "'z': expected positive atomic numbers, got 0; batches with padding are not supported",
    ),
    "padding with -1": (
        {"z": torch.tensor([8, 1, -1]), "batch": torch.tensor([0, 0, 0])},
        {},
        ValueError,
        "'z': expected positive atomic numbers, got -1; batches with padding",
    ),
}


@pytest.mark.parametrize(("batch", "addresses", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_batches_that_cannot_be_understood_are_refused(batch, addresses, error, message):
    with pytest.raises(error, match=message):
        find_atoms(batch, addresses)


def test_types_that_are_indices_are_warned_of_unless_they_are_named():
    batch = {"atom_types": torch.tensor([0, 1, 1]), "n_atoms": [3], "q": torch.ones(3)}
    with pytest.warns(UserWarning, match=re.escape("batch={'types': 'atom_types', …}")):
        assert find_atoms(batch, {}).unique_types.tolist() == [0, 1]
    accumulator = ScaleAccumulator({"q": PerAtom()}, batch={"types": "atom_types"})
    accumulator.update(batch)
    assert accumulator.compute().targets["q"].types.tolist() == [0, 1]


def test_counts_as_numpy_integers_are_understood():
    batch = {"z": np.array([8, 1, 1, 6]), "n_atoms": np.array(COUNTS, dtype=np.int32)}
    assert find_atoms(batch, {}).n_atoms.tolist() == COUNTS
