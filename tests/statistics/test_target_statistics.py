"""Statistics of one target."""

import copy
import math

import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    block,
    forces,
    labels,
    pair_target,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorMap

from lightning_scaler import ScaleAccumulator
from lightning_scaler.batches import Atoms, index_targets
from lightning_scaler.statistics import BlockValues, TargetStatistics
from lightning_scaler.tensors import InvalidStateError, TargetLayout, values_and_gradients

NAN, INF = float("nan"), float("inf")
KEY = (0,)


def read(systems, tensor, extensive=False, baseline=False):
    atoms = Atoms.from_systems(systems)
    layout = TargetLayout.of("t", tensor)
    indexed = index_targets(atoms, {"t": tensor}, {"t": layout}, "auto").targets
    values = values_and_gradients(tensor)[0]
    rows = indexed["t"].rows or [None] * len(values)
    blocks = [BlockValues(*block) for block in zip(values, rows, strict=True)]
    types = atoms.types.unique()
    return TargetStatistics.from_batch(
        layout,
        blocks,
        atoms,
        types,
        extensive=extensive,
        baseline=baseline,
        fractions=not extensive,
    )


def merged(first, second):
    total = copy.deepcopy(first)
    total.merge(second)
    return total


# Sums of squares and counts


def test_extensive_values_are_divided_by_the_number_of_atoms():
    systems, energy = [system(8), system(1, 8, 1)], structure_target([2.0, 12.0])
    totals, per_atom = read(systems, energy), read(systems, energy, extensive=True)
    assert totals.blocks[KEY].raw_sq_sum.tolist() == [[4 + 144]]
    assert per_atom.blocks[KEY].raw_sq_sum.tolist() == [[4 + 16]]
    assert totals.blocks[KEY].counts.tolist() == per_atom.blocks[KEY].counts.tolist() == [[2]]
    assert totals.types.tolist() == [1, 8]


def test_per_atom_values_are_summed_by_type_over_components():
    tensor = forces([[1, 2, 3], [4, NAN, 6], [7, 8, 9]], 1, 2)
    statistics = read([system(8), system(1, 8)], tensor)
    # Types H, O: 16 + 36 of two values; 1 + 4 + 9 + 49 + 64 + 81 of six.
    assert statistics.blocks[KEY].raw_sq_sum.tolist() == [[52], [208]]
    assert statistics.blocks[KEY].counts.tolist() == [[2], [6]]


def test_samples_of_atoms_in_any_order():
    shuffled = atom_target([30.0, 5.0, 7.0], [[1, 1], [1, 0], [0, 0]])
    statistics = read([system(8), system(1, 6)], shuffled)
    assert statistics.types.tolist() == [1, 6, 8]
    assert statistics.blocks[KEY].raw_sq_sum.tolist() == [[25], [900], [49]]


def test_samples_of_systems_in_any_order():
    # C2 with 30, O with 7.
    shuffled = structure_target([30.0, 7.0], [1, 0])
    systems = [system(8), system(6, 6), system(1)]
    statistics = read(systems, shuffled, extensive=True, baseline=True)
    weights = torch.tensor([[NAN], [14.0], [4.0]]).double()
    # (30 - 28) / 2 and 7 - 4.
    assert statistics.blocks[KEY].residual_sq_sum(weights).item() == pytest.approx(1 + 9)


def test_every_type_of_the_systems_has_its_row():
    statistics = read([system(8, 9), system(1)], atom_target([2.0], [[0, 0]]))
    assert statistics.types.tolist() == [1, 8, 9]
    assert statistics.blocks[KEY].counts.tolist() == [[0], [1], [0]]


def test_system_without_atoms_has_no_value_per_atom():
    statistics = read([system(), system(8, 1)], structure_target([5.0, 6.0]), extensive=True)
    assert statistics.blocks[KEY].counts.tolist() == [[1]]
    assert statistics.blocks[KEY].raw_sq_sum.tolist() == [[9]]


def test_large_float32_values_do_not_overflow():
    statistics = read([system(8)], structure_target([3e30], dtype=torch.float32))
    exact = float(torch.tensor(3e30, dtype=torch.float32).double())
    assert statistics.blocks[KEY].raw_sq_sum.item() == exact * exact


def test_atom_pairs_have_no_statistics():
    rows = [[0, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0]]
    statistics = read([system(8, 1), system(1, 8)], pair_target([1.0, INF], rows))
    assert statistics.blocks == {}


def test_gradients_do_not_enter_the_statistics():
    huge = structure_target([1.0, 2.0], gradient={"strain": torch.full((2, 3, 3), INF)})
    assert read([system(8), system(1)], huge).blocks[KEY].raw_sq_sum.item() == 5


def test_values_with_a_graph_are_detached():
    tensor = structure_target(torch.tensor([[1.0], [2.0]], requires_grad=True))
    statistics = read([system(8), system(1)], tensor, extensive=True, baseline=True)
    squares = statistics.blocks[KEY].raw_sq_sum
    assert not squares.requires_grad
    assert math.isfinite(squares.item())


def test_values_of_the_caller_are_not_changed():
    tensor = structure_target([1.5, NAN, 3.5], dtype=torch.float32)
    before = tensor.block().values.clone()
    read([system(8), system(1), system(1, 8)], tensor, extensive=True, baseline=True)
    assert torch.equal(tensor.block().values.view(torch.int32), before.view(torch.int32))


# Values that are refused


@pytest.mark.parametrize("value", [INF, -INF])
def test_infinite_values_are_an_error_that_counts_them(value):
    tensor = forces([[1, 2, value], [4, NAN, 6], [value, 8, -value]], 1, 2)
    words = r"target 't', block \(_=0\): expected finite numbers.* got 3 infinite values"
    with pytest.raises(ValueError, match=words):
        read([system(8), system(1, 8)], tensor)


@pytest.mark.parametrize("value", [INF, -INF])
def test_one_infinite_value_among_missing_ones_is_an_error(value):
    with pytest.raises(ValueError, match=r"target 't', .* got 1 infinite values"):
        read([system(8), system(1, 8)], forces([[1, 2, value], [4, NAN, 6], [7, 8, 9]], 1, 2))


def test_sum_of_squares_that_overflows_is_an_error():
    # Each square is finite, 1.44e308; their sum is not.
    with pytest.raises(ValueError, match=r"the sum of squares overflows.*1.200e\+154"):
        read([system(8), system(1)], structure_target([1.2e154, 1.2e154]))


def test_squares_that_overflow_are_an_error_with_the_largest_value():
    words = r"block \(_=0\): the sum of squares overflows.*2.000e\+200"
    with pytest.raises(ValueError, match=words):
        read([system(8), system(1)], structure_target([1.0, -2e200]))


# Baselines


def test_baseline_of_a_rank_two_block_is_subtracted_from_its_diagonal():
    # Diagonal 1, 2, 6: mean 3, squared deviations 4 + 1 + 9; all other components are 10.
    values = torch.full((1, 3, 3, 1), 10.0)
    for m, number in enumerate([1.0, 2.0, 6.0]):
        values[0, m, m] = number
    axes = [labels(f"o3_mu_{i}", [-1, 0, 1]) for i in (1, 2)]
    names = ["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"]
    tensor = TensorMap(labels(names, [[1, 1, 1, 1]]), [block(values, atom_samples(1), axes)])
    statistics = read([system(8)], tensor, baseline=True).blocks[1, 1, 1, 1]
    assert statistics.counts.item() == 9
    assert statistics.no_baseline_sq_sum.item() == 600
    assert [part.item() for part in statistics.means] == [3, 3, 0, 14]
    assert statistics.residual_sq_sum(torch.tensor([[3.0]]).double()).item() == 614
    # About zero: 1 + 4 + 36.
    assert statistics.residual_sq_sum(torch.tensor([[0.0]]).double()).item() == 641


def test_residuals_of_totals_and_per_atom():
    systems, energy = [system(8), system(1, 8, 1)], structure_target([2.0, 12.0])
    weights = torch.tensor([[1.0], [3.0]]).double()  # H, O
    # Of the fractions (0, 1) and (2/3, 1/3): residuals 2 - 3 = -1 and 12 - 5/3 = 31/3.
    intensive = read(systems, energy, baseline=True).blocks[KEY]
    assert intensive.residual_sq_sum(weights).item() == pytest.approx(1 + 31**2 / 9, rel=1e-14)
    # Of the counts: residuals 2 - 3 = -1 and 12 - 5 = 7, per atom -1 and 7 / 3.
    extensive = read(systems, energy, extensive=True, baseline=True).blocks[KEY]
    assert extensive.residual_sq_sum(weights).item() == pytest.approx(1 + 49 / 9, rel=1e-14)
    assert extensive.residual_sq_sum(None).item() == 0  # all values have a baseline


def test_rounding_is_that_of_the_terms_where_they_cancel():
    # O and CO with values 7 and 0: the baseline of CO adds up -7/2 and 7/2.
    systems, energy = [system(8), system(6, 8)], structure_target([7.0, 0.0])
    block = read(systems, energy, baseline=True).blocks[KEY]
    weights = torch.tensor([[-7.0], [7.0]]).double()  # C, O
    assert block.term_sq_sum(None).item() == 49
    # Columns (0, 1/2) of C and (1, 1/2) of O: 7 * 1/2 + 7 * sqrt(5/4).
    expected = (3.5 + 7 * math.sqrt(1.25)) ** 2
    assert block.term_sq_sum(weights).item() == pytest.approx(expected, rel=1e-14)


def test_missing_value_does_not_affect_other_properties():
    systems = [system(8), system(1, 8, 1), system(1, 1)]
    values = [[2.0, 1.0], [12.0, NAN], [3.0, 5.0]]
    statistics = read(systems, structure_target(values), baseline=True)
    matrix = np.array([[0, 1], [2 / 3, 1 / 3], [1, 0]])
    weights = np.array([[1.0, 2.0], [3.0, -1.0]])
    expected = np.nansum((np.array(values) - matrix @ weights) ** 2, axis=0)
    residual = statistics.blocks[KEY].residual_sq_sum(torch.from_numpy(weights))
    np.testing.assert_allclose(residual[0].numpy(), expected, rtol=1e-13)


# Merging; see also test_merging.py


def test_merge_where_a_block_is_missing_from_the_batch_with_a_new_type():
    rows = labels("system", [0, 1])
    vectors = torch.ones(2, 5, 1)
    both = spherical({0: [[[2.0]], [[12.0]]], 2: vectors}, rows)
    first = read([system(8), system(1, 8, 1)], both, baseline=True)
    second = read([system(6), system(6, 8)], spherical({2: vectors}, rows), baseline=True)
    # Weights for H, C, O: residuals 2 - 3 = -1 and 12 - 5/3 = 31/3.
    weights = torch.tensor([[1.0], [100.0], [3.0]]).double()
    for total in (merged(first, second), merged(second, first)):
        assert total.types.tolist() == [1, 6, 8]
        residual = total.blocks[0, 1].residual_sq_sum(weights)
        assert residual.item() == pytest.approx(1 + 31**2 / 9, rel=1e-13)


def test_block_taken_over_in_a_merge_is_not_shared():
    rows, types = labels("system", [0]), [system(8)]
    vector, both = {1: torch.ones(1, 3, 1)}, {0: [[[2.0]]], 1: torch.ones(1, 3, 1)}
    total = read(types, spherical(vector, rows), baseline=True)
    other = read(types, spherical(both, rows), baseline=True)
    total.merge(other)
    total.merge(read(types, spherical({0: [[[5.0]]]}, rows), baseline=True))
    weights = torch.tensor([[1.0]]).double()
    assert total.blocks[0, 1].residual_sq_sum(weights).item() == pytest.approx(1 + 16)
    assert other.blocks[0, 1].residual_sq_sum(weights).item() == pytest.approx(1)


def test_merge_keeps_the_coarsest_precision():
    first = read([system(8)], structure_target([1.0], dtype=torch.float64))
    second = read([system(8)], structure_target([1.0], dtype=torch.float32))
    for total in (merged(first, second), merged(second, first)):
        assert total.blocks[KEY].epsilon == 2.0**-23


def test_merge_with_another_layout_is_an_error_that_changes_nothing():
    first = read([system(8)], structure_target([3.0]))
    with pytest.raises(ValueError, match="target 't'"):
        first.merge(read([system(1)], structure_target([[1.0, 2.0]])))
    assert first.types.tolist() == [8]
    assert first.blocks[KEY].raw_sq_sum.tolist() == [[9]]


def test_earlier_sums_over_gradients_have_no_missing_values():
    energy = structure_target([1.0], gradient={"positions": [[[1.0, 0.0, torch.nan]]]})
    accumulator = ScaleAccumulator()
    accumulator.update([system(8)], {"energy": energy})
    state = accumulator.state()["statistics"]["energy"]
    gradient = TargetStatistics.from_state("energy", state).gradients["positions"]
    assert (gradient.counts.tolist(), gradient.missing.tolist()) == ([2.0], [1.0])
    sums = state["gradients"]["positions"]["sums"]
    earlier = {**state, "gradients": {"positions": {"sums": sums[:3]}}}
    gradient = TargetStatistics.from_state("energy", earlier).gradients["positions"]
    assert torch.equal(gradient.sums[:3], sums[:3])
    assert gradient.missing.tolist() == [0.0]


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (
            {"positions": torch.ones(4, 5).double()},
            r"expected the shape .* = \(4, 1\), got \(4, 5\)",
        ),
        ({"positions": torch.ones(4, 1)}, "expected torch.float64, got torch.float32"),
        ({"positions": torch.full((4, 1), torch.nan).double()}, "expected finite numbers"),
        ({"positions": -torch.ones(4, 1).double()}, "expected sums of at least 0"),
        ({"foo": torch.ones(4, 1).double()}, r"gradient 'foo': expected one of \['positions'\]"),
    ],
)
def test_sums_over_gradients_are_checked_when_statistics_are_loaded(sums, message):
    energy = structure_target([1.0], gradient={"positions": [[[1.0, 0.0, 0.0]]]})
    accumulator = ScaleAccumulator()
    accumulator.update([system(8)], {"energy": energy})
    state = accumulator.state()["statistics"]["energy"]
    assert TargetStatistics.from_state("energy", state).gradients.keys() == {"positions"}
    changed = {name: {"sums": values} for name, values in sums.items()}
    with pytest.raises(InvalidStateError, match=f"target 'energy': .*{message}"):
        TargetStatistics.from_state("energy", {**state, "gradients": changed})
