"""The atoms of a batch."""

import pytest
import torch
from builders import (
    PAIR_NAMES,
    atom_samples,
    labels,
    system,
)

from lightning_scaler.batches.atomic_types import find_types
from lightning_scaler.batches.atoms import Atoms
from lightning_scaler.batches.systems import IdentifiedSystems

# O, H2O (oxygen in the middle) and CO: other sizes, other types, other orders.
BATCH = [system(8), system(1, 8, 1), system(6, 8)]


def atoms_of(systems):
    return Atoms.from_systems(systems)


def test_atoms_one_after_the_other():
    atoms = atoms_of([system(8), system(), system(1, 8, 1)])
    assert atoms.types.tolist() == [8, 1, 8, 1]
    assert atoms.types.dtype == torch.int64
    assert atoms.counts.tolist() == [1, 0, 3]
    assert atoms.offsets.tolist() == [0, 1, 1]
    assert atoms.system_of_atom.tolist() == [0, 2, 2, 2]
    assert len(atoms) == 3


def test_no_systems():
    atoms = atoms_of([])
    assert len(atoms) == 0
    assert atoms.composition(torch.tensor([1, 8])).shape == (0, 2)


def test_only_types_and_length_are_asked_of_a_system():
    class Bare:
        types = torch.tensor([3, 0], dtype=torch.int16)

        def __len__(self):
            return 2

    assert atoms_of([Bare()]).types.tolist() == [3, 0]


def test_negative_types_are_refused():
    with pytest.raises(ValueError, match="expected non-negative atomic types, got -2"):
        atoms_of([system(1), system(8, -2)])


def test_systems_without_data_are_refused():
    class Meta:
        types = torch.empty(2, dtype=torch.int64, device="meta")

    with pytest.raises(ValueError, match="meta device"):
        atoms_of([Meta()])


def test_composition_counts_the_types_asked_for():
    # Columns H, C, O; nitrogen is not asked for and left out.
    atoms = atoms_of([system(8), system(), system(1, 8, 1, 7), system(6, 6)])
    expected = [[0, 0, 1], [0, 0, 0], [2, 0, 1], [0, 2, 0]]
    assert atoms.composition(torch.tensor([1, 6, 8])).tolist() == expected


def test_types_are_found_in_a_sorted_list():
    index, known = find_types(torch.tensor([8, 1, 99, 0, 6]), torch.tensor([1, 6, 8]))
    assert known.tolist() == [True, True, False, False, True]
    assert index[known].tolist() == [2, 0, 1]
    assert not find_types(torch.tensor([1]), torch.empty(0, dtype=torch.int64))[1].any()


def test_usual_rows():
    atoms = atoms_of([system(8), system(), system(1, 8, 1)])
    assert atoms.usual_rows(labels("system", [0, 1, 2]))
    assert not atoms.usual_rows(labels("system", [0, 1]))
    assert not atoms.usual_rows(labels("system", [0, 2, 1]))
    assert atoms.usual_rows(atom_samples(1, 0, 3))
    assert not atoms.usual_rows(atom_samples(1, 3))
    assert not atoms.usual_rows(labels(["system", "atom"], [[0, 0], [2, 0], [2, 2], [2, 1]]))
    assert not atoms.usual_rows(labels(PAIR_NAMES, [[0, 0, 0, 0, 0, 0]]))


def test_ids_that_are_no_match_for_the_systems():
    with pytest.raises(ValueError, match=r"sample_id for each of the 3 systems .*, got 2"):
        IdentifiedSystems(BATCH, sample_id=[1, 2])


@pytest.mark.parametrize("types", [[1, 6, 8], [1, 8, 5000]], ids=["small", "large"])
@pytest.mark.parametrize("n_atoms", [7, 3000], ids=["few", "many"])
def test_kinds_of_atoms(types, n_atoms):
    of_atoms = [types[(i + i // 5) % 3] for i in range(n_atoms)]
    atoms = atoms_of([system(*of_atoms[:3]), system(*of_atoms[3:])])
    seen = sorted(set(of_atoms))
    assert atoms.kinds.tolist() == seen
    assert atoms.kind_of_atom.tolist() == [seen.index(z) for z in of_atoms]
    assert atoms.system_of_atom.tolist() == [0] * 3 + [1] * (n_atoms - 3)
