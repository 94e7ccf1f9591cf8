"""Arithmetic of the statistics."""

import math

import numpy as np
import pytest
import torch

from lightning_scaler.statistics.grouped_sums import group_means
from lightning_scaler.statistics.moments import (
    Means,
    fit_scales,
    merge_means,
    minimum_norm_weights,
    pooled_means,
    reduce_rows,
    squares_about,
    squares_left,
)

NAN = float("nan")


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def test_merged_means_are_those_of_all_data():
    # (1, 5) and (6): mean 4, centred 9 + 1 + 4.
    first = Means(double([[2]]), double([[3]]), double([[0]]), double([[8]]))
    second = Means(double([[1]]), double([[5]]), double([[1]]), double([[0]]))
    for merged in (merge_means(first, second), merge_means(second, first)):
        assert merged.number.item() == 3
        assert (merged.mean + merged.rest).item() == pytest.approx(4, rel=1e-15)
        assert merged.centred.item() == 14


def test_merging_nothing_changes_nothing():
    full = Means(double([[3]]), double([[0.1]]), double([[1e-19]]), double([[0.7]]))
    empty = Means(*(torch.zeros(1, 1).double() for _ in range(4)))
    for merged in (merge_means(full, empty), merge_means(empty, full)):
        assert all(torch.equal(a, b) for a, b in zip(merged, full, strict=True))
    assert [part.item() for part in merge_means(empty, empty)] == [0, 0, 0, 0]


def test_merged_means_do_not_cancel():
    offset, numbers = -1e5, [0.001 * math.sin(3.7 * i) for i in range(60)]
    merged = Means(*(torch.zeros(1, 1).double() for _ in range(4)))
    for start in range(0, 60, 7):
        chunk = double(numbers[start : start + 7])[:, None, None] + offset
        groups = torch.zeros(len(chunk), dtype=torch.int64)
        merged = merge_means(merged, Means(*group_means([chunk], groups, 1)))
    stored = [offset + number for number in numbers]
    mean = math.fsum(stored) / 60
    expected = math.fsum((number - mean) ** 2 for number in stored)
    assert merged.centred.item() == pytest.approx(expected, rel=1e-12)


def test_squares_about_another_centre():
    # (1, 5) about 2: 1 + 9.
    means = Means(double([[2]]), double([[2.5]]), double([[0.5]]), double([[8]]))
    assert squares_about(means, double([[2]])).item() == 10


def test_reduced_rows_have_the_same_residuals():
    rng = np.random.default_rng(3)
    matrix, values = rng.integers(0, 5, (9, 3)).astype(float), rng.normal(size=(9, 2))
    rows = reduce_rows(torch.from_numpy(matrix), torch.from_numpy(values))
    assert rows.matrix.shape == (3, 3)
    assert rows.values.shape == (3, 2)
    for weights in rng.normal(size=(4, 3, 2)):
        expected = ((values - matrix @ weights) ** 2).sum(0)
        left = squares_left(rows, torch.from_numpy(weights))
        np.testing.assert_allclose(left.numpy(), expected, rtol=1e-12)


def test_weights_of_least_squares():
    rng = np.random.default_rng(4)
    matrix, values = rng.integers(0, 5, (7, 3)).astype(float), rng.normal(size=(7, 2))
    expected = np.linalg.lstsq(matrix, values)[0]
    weights = minimum_norm_weights(
        reduce_rows(torch.from_numpy(matrix), torch.from_numpy(values))
    ).numpy()
    np.testing.assert_allclose(weights, expected, rtol=1e-11)


def test_weights_of_smallest_norm():
    # Only the sum 2 h + o = 5 is known: the solution parallel to (2, 1) is (2, 1).
    rows = reduce_rows(double([[2, 1], [4, 2], [2, 1]]), double([[5], [10], [5]]))
    np.testing.assert_allclose(minimum_norm_weights(rows).flatten().numpy(), [2, 1], rtol=1e-13)
    assert squares_left(rows, minimum_norm_weights(rows)).item() < 1e-26


def test_no_columns_and_no_rows():
    rows = reduce_rows(torch.zeros(2, 0).double(), double([[3], [4]]))
    weights = minimum_norm_weights(rows)
    assert weights.shape == (0, 1)
    assert squares_left(rows, weights).tolist() == [25]
    assert reduce_rows(torch.zeros(0, 2).double(), torch.zeros(0, 1).double()).rest.item() == 0


def test_unit_change_by_a_power_of_two_is_exact():
    rng = np.random.default_rng(5)
    matrix = torch.from_numpy(rng.integers(0, 5, (11, 3)).astype(float))
    values = torch.from_numpy(rng.normal(size=(11, 2)))
    scaled = values * double([1.0, 2.0**-30])
    rows, other = reduce_rows(matrix, values), reduce_rows(matrix, scaled)
    weights, other_weights = minimum_norm_weights(rows), minimum_norm_weights(other)
    assert torch.equal(other_weights, weights * double([1.0, 2.0**-30]))
    assert torch.equal(
        squares_left(other, other_weights), squares_left(rows, weights) * double([1.0, 2.0**-60])
    )


# Two groups (types), a block of two properties and a block of one.
SQUARES = [double([[4, 36], [9, 0]]), double([[10], [16]])]
COUNTS = [double([[1, 4], [1, 0]]), double([[5], [1]])]
NO_NOISE = [double([[0, 0], [0, 0]]), double([[0], [0]])]


def test_scales_of_two_types_and_two_blocks():
    fitted = fit_scales(SQUARES, COUNTS, NO_NOISE)
    # Type 0: (4 + 36 + 10) / 10 = 5. Type 1: (9 + 16) / 2 = 12.5.
    sigma = [math.sqrt(5), math.sqrt(12.5)]
    assert fitted.per_target.tolist() == pytest.approx(sigma, rel=1e-15)
    # RMS inside one block and one property: 2, 3 | sqrt(2); 3, no data | 4.
    first, second = fitted.per_property
    assert first.flatten().tolist() == pytest.approx(
        [2 / sigma[0], 3 / sigma[0], 3 / sigma[1], 1 / sigma[1]], rel=1e-15
    )
    assert second.flatten().tolist() == pytest.approx(
        [math.sqrt(2) / sigma[0], 4 / sigma[1]], rel=1e-15
    )
    # Over both types: 75 / 12; (4 + 9) / 2 and 36 / 4 | (10 + 16) / 6.
    pooled = math.sqrt(75 / 12)
    assert fitted.pooled_target.item() == pytest.approx(pooled, rel=1e-15)
    assert fitted.pooled_property[0].tolist() == pytest.approx(
        [math.sqrt(6.5) / pooled, 3 / pooled], rel=1e-15
    )
    assert fitted.pooled_property[1].item() == pytest.approx(math.sqrt(26 / 6) / pooled, rel=1e-15)
    assert not any(part.any() for part in fitted.vanishing)


def test_fixed_scales_keep_the_relation_of_properties_to_their_target():
    fitted = fit_scales(SQUARES, COUNTS, NO_NOISE, fixed=double([0.5, 8.0]))
    assert fitted.per_target.tolist() == [0.5, 8.0]
    sigma = [math.sqrt(5), math.sqrt(12.5)]
    # The property without data has the full scale 1 whatever the target's is.
    assert fitted.per_property[0].flatten().tolist() == pytest.approx(
        [2 / sigma[0], 3 / sigma[0], 3 / sigma[1], 1 / 8.0], rel=1e-15
    )


def test_vanishing_property_takes_the_scale_of_its_target():
    fitted = fit_scales([double([[8, 0]])], [double([[2, 2]])], [double([[0, 0]])])
    # sigma = sqrt(8 / 4); the first property: sqrt(8 / 2) / sigma.
    assert fitted.per_target.item() == pytest.approx(math.sqrt(2), rel=1e-15)
    assert fitted.per_property[0].tolist() == [[pytest.approx(math.sqrt(2), rel=1e-15), 1.0]]
    assert fitted.vanishing[0].tolist() == [[False, True]]


def test_data_below_their_noise_vanish():
    noise = [double([[1e-3, 1e-3]])]
    fitted = fit_scales([double([[8, 1e-4]])], [double([[2, 2]])], noise)
    assert fitted.vanishing[0].tolist() == [[False, True]]
    assert fitted.per_property[0][0, 1].item() == 1.0


def test_vanishing_type_takes_the_rms_over_all_types():
    fitted = fit_scales([double([[18.0], [0.0]])], [double([[1], [1]])], [double([[0], [0]])])
    assert fitted.per_target.tolist() == pytest.approx([math.sqrt(18), 3.0], rel=1e-15)
    assert fitted.per_property[0].flatten().tolist() == pytest.approx([1, 1], rel=1e-15)


def test_target_of_zeros_has_the_scale_one():
    zeros, counts = [double([[0, 0], [0, 0]])], [double([[3, 1], [0, 2]])]
    fitted = fit_scales(zeros, counts, zeros)
    assert fitted.per_target.tolist() == [1, 1]
    assert fitted.per_property[0].tolist() == [[1, 1], [1, 1]]
    assert fitted.pooled_target.item() == 1
    assert fitted.vanishing[0].tolist() == [[True, True], [False, True]]


def test_types_without_data_have_the_scale_one():
    fitted = fit_scales(
        [double([[18, 2], [0, 0]])], [double([[1, 1], [0, 0]])], [double([[0] * 2] * 2)]
    )
    assert fitted.per_target[1].item() == 1
    assert fitted.per_property[0][1].tolist() == [1, 1]
    assert not fitted.vanishing[0].any()


def test_single_property_scales_are_exactly_one():
    fitted = fit_scales(
        [double([[3.0], [0.7]])], [double([[7], [3]])], [double([[0], [0]])], single_property=True
    )
    assert fitted.per_property[0].flatten().tolist() == [1, 1]
    assert fitted.pooled_property[0].tolist() == [1]


def test_no_types_at_all():
    nothing = [torch.zeros(0, 2).double()]
    fitted = fit_scales(nothing, nothing, nothing)
    assert fitted.per_target.shape == (0,)
    assert fitted.pooled_target.item() == 1
    assert fitted.pooled_property[0].tolist() == [1, 1]


def test_means_over_all_groups():
    values, groups = (
        double([[[1e5 + 1]], [[1e5 + 5]], [[NAN]], [[1e5 + 9]]]),
        torch.tensor([1, 1, 0, 3]),
    )
    pooled = pooled_means(Means(*group_means([values], groups, 4)))
    assert pooled.number.tolist() == [[3]]
    assert float(pooled.mean + pooled.rest) == 1e5 + 5
    assert pooled_means(Means(*group_means([values[:0]], groups[:0], 0))).number.tolist() == [[0]]
