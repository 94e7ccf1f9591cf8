"""Pairs and samples as simulation engines have them."""

import pytest
import torch
from metatensor.torch import Labels
from metatomic.torch import NeighborListOptions, System
from vesin.metatomic import NeighborList

from lightning_scaler.batches import neighbor_vectors, selected_samples

FULL = NeighborListOptions(cutoff=2.5, full_list=True, strict=True)
HALF = NeighborListOptions(cutoff=2.5, full_list=False, strict=True)


def with_neighbors(*systems: System) -> list[System]:
    for options in (FULL, HALF):
        NeighborList(options, length_unit="angstrom").add_neighbor_list(list(systems))
    return list(systems)


def atoms_in_cells() -> list[System]:
    generator = torch.Generator().manual_seed(0)
    cell = torch.tensor([[3.0, 0.1, 0.0], [0.0, 2.7, 0.2], [0.3, 0.0, 3.2]]).double()
    systems = []
    for n_atoms, box in ((3, torch.zeros(3, 3).double()), (4, cell), (2, 1.1 * cell)):
        types = torch.ones(n_atoms, dtype=torch.int32)
        positions = torch.rand(n_atoms, 3, generator=generator).double()
        systems.append(System(types, positions, box, torch.tensor([bool(box.any())] * 3)))
    return with_neighbors(*systems)


@pytest.mark.parametrize("options", [FULL, HALF], ids=["full", "half"])
def test_vectors_equal_those_of_the_neighbor_lists_across_cell_boundaries(options):
    systems = atoms_in_cells()
    positions = torch.cat([system.positions for system in systems])
    first, second, vectors = neighbor_vectors(systems, positions, options)
    lists = [system.get_neighbor_list(options) for system in systems]
    torch.testing.assert_close(vectors, torch.cat([each.values.squeeze(-1) for each in lists]))
    offsets = (0, 3, 7)
    pairs = [each.samples.values[:, :2] + n for each, n in zip(lists, offsets, strict=True)]
    assert torch.equal(torch.stack([first, second], 1), torch.cat(pairs))
    assert lists[1].samples.values[:, 2:].any()  # images, too


def test_a_missing_neighbor_list_is_an_error():
    (system, *_) = atoms_in_cells()
    longer = NeighborListOptions(cutoff=4.0, full_list=False, strict=True)
    message = r"a half, strict neighbor list with cutoff 4\.0 .* cutoffs \[2\.5, 2\.5\]"
    with pytest.raises(ValueError, match=message):
        neighbor_vectors([system], system.positions, longer)


def test_samples_without_a_selection_are_those_of_all_atoms():
    structures, atoms, index, row = selected_samples([2, 0, 1], None)
    assert structures == Labels(["system"], torch.tensor([[0], [1], [2]]))
    assert atoms == Labels(["system", "atom"], torch.tensor([[0, 0], [0, 1], [2, 0]]))
    assert index.tolist() == [0, 1, 2]
    assert row.tolist() == [0, 0, 2]


def test_samples_of_a_selection_leave_out_systems_without_selected_atoms():
    selected = Labels(["system", "atom"], torch.tensor([[3, 1], [0, 1], [3, 0]]))
    structures, atoms, index, row = selected_samples([2, 2, 1, 3], selected)
    assert structures == Labels(["system"], torch.tensor([[0], [3]]))
    assert set(map(tuple, atoms.values.tolist())) == {(0, 1), (3, 0), (3, 1)}
    of_sample = {(0, 1): (1, 0), (3, 0): (5, 1), (3, 1): (6, 1)}
    for sample, *places in zip(atoms.values.tolist(), index.tolist(), row.tolist(), strict=True):
        assert of_sample[tuple(sample)] == tuple(places)
