"""Means and squared deviations that merge exactly."""

import pytest
import torch
from by_hand import double

from lightning_scaler.statistics.means import Means, merge_means, pool_means, sum_sq_about


def means(counts, mean, correction, sum_sq_dev):
    return Means(*(double([[number]]) for number in (counts, mean, correction, sum_sq_dev)))


def test_merged_means_are_those_of_all_values():
    # (1, 5) and (6): mean 4, squared deviations 9 + 1 + 4. The correction is part of the mean.
    first, second = means(2, 3, 0, 8), means(1, 5, 1, 0)
    for merged in (merge_means(first, second), merge_means(second, first)):
        assert merged.counts.item() == 3
        assert (merged.mean + merged.mean_correction).item() == pytest.approx(4, rel=1e-15)
        assert merged.sum_sq_dev.item() == 14


def test_merging_with_no_values_changes_nothing():
    full, empty = means(3, 0.1, 1e-19, 0.7), means(0, 0, 0, 0)
    for merged in (merge_means(full, empty), merge_means(empty, full)):
        assert all(torch.equal(a, b) for a, b in zip(merged, full, strict=True))
    assert [part.item() for part in merge_means(empty, empty)] == [0, 0, 0, 0]


def test_mean_of_no_values_is_not_used_in_a_merge():
    merged = merge_means(means(0, 7, 0, 0), means(2, 3, 0.5, 8))
    assert [part.item() for part in merged] == [2, 3, 0.5, 8]


def test_sum_of_squares_about_another_centre():
    # (1, 5) about 2: 1 + 9; the mean 3 is 2.5 and a correction of 0.5.
    assert sum_sq_about(means(2, 2.5, 0.5, 8), double([[2]])).item() == 10


def test_pooled_means_are_those_over_all_types():
    # Types with no value, (1, 5), none, and (9): mean 5, squared deviations 16 + 0 + 16, beside a
    # large common part that would leave no digit to a sum of squares.
    large = 1e9
    by_type = Means(
        double([[0], [2], [0], [1]]),
        double([[0], [large + 3], [0], [large + 9]]),
        double([[0]] * 4),
        double([[0], [8], [0], [0]]),
    )
    pooled = pool_means(by_type)
    assert pooled.counts.tolist() == [[3]]
    assert (pooled.mean + pooled.mean_correction).item() == large + 5
    assert pooled.sum_sq_dev.item() == 32


def test_pooled_means_include_the_corrections_of_the_types():
    by_type = Means(*map(double, ([[1], [1]], [[1], [3]], [[0.5], [0]], [[0], [0]])))
    # Means 1.5 and 3: pooled 2.25, deviations 2 * 0.75^2.
    pooled = pool_means(by_type)
    assert (pooled.mean + pooled.mean_correction).item() == 2.25
    assert pooled.sum_sq_dev.item() == 1.125


def test_pooled_means_of_no_types():
    pooled = pool_means(Means(*(torch.zeros(0, 2).double() for _ in range(4))))
    assert [part.tolist() for part in pooled] == [[[0, 0]]] * 4
