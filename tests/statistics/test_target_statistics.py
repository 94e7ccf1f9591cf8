"""What is kept of one target while the data pass by."""

import copy
import math

import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    block,
    cartesian,
    forces,
    labels,
    pair_target,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorMap

from lightning_scaler.batches.atoms import Atoms
from lightning_scaler.batches.system_labels import infer_system_indexing, rows_of_blocks
from lightning_scaler.statistics.target_statistics import TargetStatistics
from lightning_scaler.tensors.layout import TargetLayout
from lightning_scaler.tensors.torchscript import values_and_gradients

NAN, INF = float("nan"), float("inf")
KEY = (0,)


def read(systems, tensor, extensive=False, baseline=False, labels_are="auto"):
    atoms = Atoms.from_systems(systems)
    reading = infer_system_indexing(atoms, {"t": tensor}, labels_are)
    layout = TargetLayout.of("t", tensor)
    values, rows = values_and_gradients(tensor)[0], rows_of_blocks(layout, tensor, atoms, reading)
    return TargetStatistics.of_batch(layout, values, rows, atoms, atoms.kinds, extensive, baseline)


def merged(*parts):
    total = copy.deepcopy(parts[0])
    for part in parts[1:]:
        total.merge(copy.deepcopy(part))
    return total


def test_structures_as_they_are_and_per_atom():
    systems, energy = [system(8), system(1, 8, 1)], structure_target([2.0, 12.0])
    plain, per_atom = read(systems, energy), read(systems, energy, extensive=True)
    assert plain.blocks[KEY].squares.tolist() == [[4 + 144]]
    assert per_atom.blocks[KEY].squares.tolist() == [[4 + 16]]
    assert plain.blocks[KEY].counts.tolist() == per_atom.blocks[KEY].counts.tolist() == [[2]]
    assert plain.types.tolist() == [1, 8]


def test_atoms_by_type_with_components():
    tensor = forces([[1, 2, 3], [4, NAN, 6], [7, 8, 9]], 1, 2)
    statistics = read([system(8), system(1, 8)], tensor)
    # Types H, O: 16 + 36 of two entries; 1 + 4 + 9 + 49 + 64 + 81 of six.
    assert statistics.blocks[KEY].squares.tolist() == [[52], [208]]
    assert statistics.blocks[KEY].counts.tolist() == [[2], [6]]


def test_rows_of_atoms_in_any_order():
    shuffled = atom_target([30.0, 5.0, 7.0], [[1, 1], [1, 0], [0, 0]])
    statistics = read([system(8), system(1, 6)], shuffled)
    assert statistics.types.tolist() == [1, 6, 8]
    assert statistics.blocks[KEY].squares.tolist() == [[25], [900], [49]]


def test_every_type_of_the_systems_has_its_row():
    statistics = read([system(8, 9), system(1)], atom_target([2.0], [[0, 0]]))
    assert statistics.types.tolist() == [1, 8, 9]
    assert statistics.blocks[KEY].counts.tolist() == [[0], [1], [0]]


def test_structures_without_atoms_have_no_value_per_atom():
    statistics = read([system(), system(8, 1)], structure_target([5.0, 6.0]), extensive=True)
    assert statistics.blocks[KEY].counts.tolist() == [[1]]
    assert statistics.blocks[KEY].squares.tolist() == [[9]]


@pytest.mark.parametrize("value", [INF, -INF])
def test_infinite_entries_are_refused(value):
    tensor = forces([[1, 2, value], [4, NAN, 6], [value, 8, -value]], 1, 2)
    words = r"target 't', block \(_=0\): expected finite numbers.* got 3 infinite entries"
    with pytest.raises(ValueError, match=words):
        read([system(8), system(1, 8)], tensor)


def test_squares_that_overflow_are_refused():
    with pytest.raises(
        ValueError, match=r"block \(_=0\): the sum of squares overflows.*2.000e\+200"
    ):
        read([system(8), system(1)], structure_target([1.0, -2e200]))


def test_large_float32_values_do_not_overflow():
    statistics = read([system(8)], structure_target([3e30], dtype=torch.float32))
    exact = float(torch.tensor(3e30, dtype=torch.float32).double())
    assert statistics.blocks[KEY].squares.item() == exact * exact


def test_atom_pairs_have_no_statistics():
    rows = [[0, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0]]
    statistics = read([system(8, 1), system(1, 8)], pair_target([1.0, INF], rows))
    assert statistics.blocks == {}


def test_invariant_and_other_parts_of_a_rank_two_block():
    # Diagonal 1, 2, 6: mean 3, centred 4 + 1 + 9; the other entries are all 10.
    values = torch.full((1, 3, 3, 1), 10.0)
    for m, number in enumerate([1.0, 2.0, 6.0]):
        values[0, m, m] = number
    axes = [labels(f"o3_mu_{i}", [-1, 0, 1]) for i in (1, 2)]
    names = ["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"]
    tensor = TensorMap(labels(names, [[1, 1, 1, 1]]), [block(values, atom_samples(1), axes)])
    one = read([system(8)], tensor, baseline=True).blocks[1, 1, 1, 1]
    assert one.counts.item() == 9
    assert one.squares.item() == 600
    assert [part.item() for part in one.means] == [3, 3, 0, 14]
    assert one.residual(torch.tensor([[3.0]]).double()).item() == 614
    # About zero: 1 + 4 + 36.
    assert one.residual(torch.tensor([[0.0]]).double()).item() == 641


def test_residuals_of_weights():
    systems, energy = [system(8), system(1, 8, 1)], structure_target([2.0, 12.0])
    weights = torch.tensor([[1.0], [3.0]]).double()  # H, O
    # Residuals 2 - 3 = -1 and 12 - 5 = 7, per atom -1 and 7 / 3.
    intensive = read(systems, energy, baseline=True).blocks[KEY]
    assert intensive.residual(weights).item() == pytest.approx(50, rel=1e-14)
    extensive = read(systems, energy, extensive=True, baseline=True).blocks[KEY]
    assert extensive.residual(weights).item() == pytest.approx(1 + 49 / 9, rel=1e-14)
    assert extensive.residual(None).item() == 0  # nothing is left out of the baseline


def test_missing_value_leaves_its_own_column_only():
    systems = [system(8), system(1, 8, 1), system(1, 1)]
    values = [[2.0, 1.0], [12.0, NAN], [3.0, 5.0]]
    statistics = read(systems, structure_target(values), baseline=True)
    matrix = np.array([[0, 1], [2, 1], [2, 0]])
    weights = np.array([[1.0, 2.0], [3.0, -1.0]])
    expected = np.nansum((np.array(values) - matrix @ weights) ** 2, axis=0)
    residual = statistics.blocks[KEY].residual(torch.from_numpy(weights))
    np.testing.assert_allclose(residual[0].numpy(), expected, rtol=1e-13)


def test_missing_values_of_other_columns_in_every_batch():
    rng = np.random.default_rng(0)
    systems = [system(8), system(1, 8, 1), system(1, 1), system(6, 1), system(6, 6, 8)]
    matrix = np.array([[0, 0, 1], [2, 0, 1], [2, 0, 0], [1, 1, 0], [0, 2, 1]])
    values = rng.normal(size=(5, 3))
    values[[0, 3], [1, 2]] = NAN
    parts = [
        read(systems[rows], structure_target(values[rows]), True, True)
        for rows in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    weights = rng.normal(size=(3, 3))
    counts = matrix.sum(1, keepdims=True)
    expected = np.nansum(((values - matrix @ weights) / counts) ** 2, axis=0)
    for order in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]:
        total = merged(*(parts[i] for i in order))
        assert total.types.tolist() == [1, 6, 8]
        residual = total.blocks[KEY].residual(torch.from_numpy(weights))
        np.testing.assert_allclose(residual[0].numpy(), expected, rtol=1e-12)


def test_merge_of_batches_with_other_types():
    first = read([system(8), system(6)], atom_target([2.0, 3.0], atom_samples(1, 1)))
    second = read([system(1, 8)], atom_target([5.0, 7.0], atom_samples(2)))
    for total in (merged(first, second), merged(second, first)):
        assert total.types.tolist() == [1, 6, 8]
        assert total.blocks[KEY].squares.tolist() == [[25], [9], [4 + 49]]
        assert total.blocks[KEY].counts.tolist() == [[1], [1], [2]]


def test_merge_of_batches_with_other_blocks():
    rows = atom_samples(1)
    first = read([system(8)], spherical({0: [[[2.0]]]}, rows), baseline=True)
    second = read([system(1)], spherical({1: [[[1.0], [2.0], [3.0]]]}, rows), baseline=True)
    total = merged(first, second)
    assert list(total.blocks) == [(0, 1), (1, 1)]
    assert total.blocks[0, 1].counts.tolist() == [[0], [1]]
    assert total.blocks[1, 1].squares.tolist() == [[14], [0]]
    assert total.blocks[0, 1].means.mean.tolist() == [[0], [2]]


def test_block_missing_where_a_type_first_appears():
    rows = labels("system", [0, 1])
    first = read(
        [system(8), system(1, 8, 1)],
        spherical({0: [[[2.0]], [[12.0]]], 2: torch.ones(2, 5, 1)}, rows),
        baseline=True,
    )
    second = read(
        [system(6), system(6, 8)], spherical({2: torch.ones(2, 5, 1)}, rows), baseline=True
    )
    # Weights for H, C, O: residuals 2 - 3 = -1 and 12 - 5 = 7.
    weights = torch.tensor([[1.0], [100.0], [3.0]]).double()
    for total in (merged(first, second), merged(second, first)):
        assert total.types.tolist() == [1, 6, 8]
        assert total.blocks[0, 1].residual(weights).item() == pytest.approx(50, rel=1e-13)


def test_coarsest_dtype_counts():
    first = read([system(8)], structure_target([1.0], dtype=torch.float64))
    second = read([system(8)], structure_target([1.0], dtype=torch.float32))
    for total in (merged(first, second), merged(second, first)):
        assert total.blocks[KEY].epsilon == 2.0**-23


def test_state_comes_back(tmp_path):
    systems = [system(8), system(1, 8, 1)]
    for tensor in (
        structure_target([[2.0, NAN], [12.0, 1.0]]),
        atom_target([1.0, 2.0, NAN, 3.0], atom_samples(1, 3)),
        atom_target(torch.ones(4, 3), atom_samples(1, 3), "f", cartesian()),
    ):
        statistics = read(systems, tensor, baseline=True)
        torch.save(statistics.state(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        again = TargetStatistics.from_state("t", state)
        again.merge(copy.deepcopy(statistics))
        expected = merged(statistics, statistics)
        weights = torch.ones(2, tensor.block().values.shape[-1]).double()
        ours, theirs = again.blocks[KEY], expected.blocks[KEY]
        assert torch.equal(ours.counts, theirs.counts)
        torch.testing.assert_close(
            ours.residual(weights), theirs.residual(weights), rtol=1e-13, atol=0
        )


def test_inputs_are_not_written_to():
    tensor = structure_target([1.5, NAN, 3.5], dtype=torch.float32)
    before = tensor.block().values.clone()
    read([system(8), system(1), system(1, 8)], tensor, extensive=True, baseline=True)
    assert torch.equal(tensor.block().values.view(torch.int32), before.view(torch.int32))


def test_gradients_of_values_take_no_part():
    systems = [system(8), system(1)]
    huge = structure_target([1.0, 2.0], gradient={"strain": torch.full((2, 3, 3), INF)})
    assert read(systems, huge).blocks[KEY].squares.item() == 5


def test_values_with_a_graph():
    tensor = structure_target(torch.tensor([[1.0], [2.0]], requires_grad=True))
    squares = (
        read([system(8), system(1)], tensor, extensive=True, baseline=True).blocks[KEY].squares
    )
    assert not squares.requires_grad
    assert math.isfinite(squares.sum().item())
