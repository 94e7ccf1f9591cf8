"""Arithmetic of the statistics."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_scaler.moments import (
    Means,
    fit_scales,
    group_means,
    merge_means,
    minimum_norm_weights,
    pooled_means,
    reduce_rows,
    square_sums,
    squares_about,
    squares_left,
)

NAN = float("nan")


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def test_squares_per_group_and_property():
    # (3 samples, 2 components, 2 properties); samples 0 and 2 in group 2, sample 1 in group 0.
    values = double([[[1, NAN], [2, 3]], [[NAN, NAN], [4, NAN]], [[5, 6], [NAN, 7]]])
    sums, counts = square_sums(values, torch.tensor([2, 0, 2]), 3)
    # Group 0: 16 of one entry, nothing. Group 2: 1 + 4 + 25 of three, 9 + 36 + 49 of three.
    assert sums.tolist() == [[16, 0], [0, 0], [30, 94]]
    assert counts.tolist() == [[1, 0], [0, 0], [3, 3]]


def test_squares_of_complete_data_without_groups():
    sums, counts = square_sums(double([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), None, 1)
    assert sums.tolist() == [[1 + 9 + 25 + 49, 4 + 16 + 36 + 64]]
    assert counts.tolist() == [[4, 4]]


def test_squares_of_nothing():
    sums, counts = square_sums(torch.zeros(0, 3, 2).double(), None, 1)
    assert sums.tolist() == counts.tolist() == [[0, 0]]
    sums, counts = square_sums(torch.zeros(0, 3, 2).double(), torch.zeros(0).long(), 0)
    assert sums.shape == counts.shape == (0, 2)


def test_means_and_centred_squares():
    values = double([[[1.0]], [[5.0]], [[NAN]], [[7.0]]])
    means = group_means(values, torch.tensor([1, 1, 1, 0]), 3)
    # Group 1: mean 3 of (1, 5), centred squares 4 + 4. Group 2 has nothing.
    assert means.number.flatten().tolist() == [1, 2, 0]
    assert means.mean.flatten().tolist() == [7, 3, 0]
    assert means.centred.flatten().tolist() == [0, 8, 0]


def test_means_over_several_entries_of_a_sample():
    # Two samples of two entries each: mean 4 of (1, 3, 5, 7), centred 9 + 1 + 1 + 9.
    means = group_means(double([[[1], [3]], [[5], [7]]]), torch.tensor([0, 0]), 1)
    assert [part.item() for part in means] == [4, 4, 0, 20]


def test_a_mean_is_told_beyond_its_rounding():
    numbers = [1e5 + 0.1 * i * i for i in range(3)]
    means = group_means(double([[[x]] for x in numbers]), None, 1)
    exact = sum(map(Fraction, numbers)) / 3
    assert Fraction(means.mean.item()) != exact
    assert float(exact - Fraction(means.mean.item())) == pytest.approx(means.rest.item(), rel=1e-3)


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
        merged = merge_means(merged, group_means(chunk, groups, 1))
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


def test_parts_of_large_data_add_up(monkeypatch):
    """Missing entries in one part only, by NaN or by a mask."""
    values, groups = torch.arange(1.0, 25.0).reshape(6, 2, 2), torch.tensor([0, 1, 1, 0, 2, 1])
    keep = torch.ones_like(values, dtype=torch.bool)
    keep[4, 1, 0] = False
    lost = torch.where(keep, values, NAN)
    expected = square_sums(lost, groups, 3)
    assert expected[1].tolist() == [[4, 4], [6, 6], [1, 2]]
    means = group_means(lost.double(), groups, 3)
    monkeypatch.setattr("lightning_scaler.moments.ENTRIES_AT_ONCE", 8)
    for arguments in ((lost, groups, 3), (values, groups, 3, keep)):
        for ours, whole in zip(square_sums(*arguments), expected, strict=True):
            assert ours.tolist() == whole.tolist()
        for ours, whole in zip(group_means(*arguments), means, strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-15, atol=1e-14)


def test_means_over_all_groups():
    values, groups = (
        double([[[1e5 + 1]], [[1e5 + 5]], [[NAN]], [[1e5 + 9]]]),
        torch.tensor([1, 1, 0, 3]),
    )
    pooled = pooled_means(group_means(values, groups, 4))
    assert pooled.number.tolist() == [[3]]
    assert float(pooled.mean + pooled.rest) == 1e5 + 5
    assert pooled_means(group_means(values[:0], groups[:0], 0)).number.tolist() == [[0]]
