"""The atoms of a batch."""

import pytest
import torch
from builders import system

from lightning_scaler.batches import LARGEST_IN_TABLE, read_atoms


def test_atoms_are_read_system_after_system():
    atoms = read_atoms([system(8), system(), system(1, 8, 1)])
    assert atoms.types.tolist() == [8, 1, 8, 1]
    assert atoms.types.dtype == torch.int64
    assert atoms.n_atoms.tolist() == [1, 0, 3]
    assert atoms.first_atom.tolist() == [0, 1, 1]
    assert atoms.system_of_atom.tolist() == [0, 2, 2, 2]
    assert atoms.n_systems == 3


def test_a_batch_without_systems_has_no_atoms():
    atoms = read_atoms([])
    assert atoms.n_systems == 0
    assert atoms.composition(torch.tensor([1, 8])).shape == (0, 2)


def test_systems_need_only_types_and_a_length():
    class Bare:
        types = torch.tensor([3, 0], dtype=torch.int16)

        def __len__(self):
            return 2

    assert read_atoms([Bare()]).types.tolist() == [3, 0]


def test_negative_types_are_refused():
    with pytest.raises(ValueError, match="expected non-negative atomic types, got -2"):
        read_atoms([system(1), system(8, -2)])


def test_systems_on_the_meta_device_are_refused():
    class Meta:
        types = torch.empty(2, dtype=torch.int64, device="meta")

    with pytest.raises(ValueError, match="meta device"):
        read_atoms([Meta()])


def test_composition_counts_the_requested_types():
    # Columns H, C, O; nitrogen is not requested.
    atoms = read_atoms([system(8), system(), system(1, 8, 1, 7), system(6, 6)])
    expected = [[0, 0, 1], [0, 0, 0], [2, 0, 1], [0, 2, 0]]
    assert atoms.composition(torch.tensor([1, 6, 8])).tolist() == expected
    # As many types as the batch has, one of them another.
    atoms = read_atoms([system(8, 6), system(8, 8)])
    assert atoms.composition(torch.tensor([1, 8])).tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize("types", [[1, 6, 8], [1, 8, LARGEST_IN_TABLE + 1]], ids=["small", "large"])
@pytest.mark.parametrize("n_atoms", [7, 3000], ids=["few", "many"])
def test_unique_types_and_the_type_index_of_every_atom(types, n_atoms):
    of_atoms = [types[(i + i // 5) % 3] for i in range(n_atoms)]
    atoms = read_atoms([system(*of_atoms[:3]), system(*of_atoms[3:])])
    assert atoms.unique_types.tolist() == types
    assert atoms.type_index.tolist() == [types.index(z) for z in of_atoms]
    assert atoms.system_of_atom.tolist() == [0] * 3 + [1] * (n_atoms - 3)
