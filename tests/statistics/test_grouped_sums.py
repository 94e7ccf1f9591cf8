"""Sums, means and numbers of entries by group."""

from fractions import Fraction

import pytest
import torch

from lightning_scaler.statistics.grouped_sums import group_means, square_sums
from lightning_scaler.statistics.moments import Means

NAN = float("nan")


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def test_squares_per_group_and_property():
    # (3 samples, 2 components, 2 properties); samples 0 and 2 in group 2, sample 1 in group 0.
    values = double([[[1, NAN], [2, 3]], [[NAN, NAN], [4, NAN]], [[5, 6], [NAN, 7]]])
    sums, counts = square_sums([values], torch.tensor([2, 0, 2]), 3)
    # Group 0: 16 of one entry, nothing. Group 2: 1 + 4 + 25 of three, 9 + 36 + 49 of three.
    assert sums.tolist() == [[16, 0], [0, 0], [30, 94]]
    assert counts.tolist() == [[1, 0], [0, 0], [3, 3]]


def test_squares_of_complete_data_without_groups():
    sums, counts = square_sums([double([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])], None, 1)
    assert sums.tolist() == [[1 + 9 + 25 + 49, 4 + 16 + 36 + 64]]
    assert counts.tolist() == [[4, 4]]


def test_squares_of_nothing():
    sums, counts = square_sums([torch.zeros(0, 3, 2).double()], None, 1)
    assert sums.tolist() == counts.tolist() == [[0, 0]]
    sums, counts = square_sums([torch.zeros(0, 3, 2).double()], torch.zeros(0).long(), 0)
    assert sums.shape == counts.shape == (0, 2)


def test_means_and_centred_squares():
    values = double([[[1.0]], [[5.0]], [[NAN]], [[7.0]]])
    means = Means(*group_means([values], torch.tensor([1, 1, 1, 0]), 3))
    # Group 1: mean 3 of (1, 5), centred squares 4 + 4. Group 2 has nothing.
    assert means.number.flatten().tolist() == [1, 2, 0]
    assert means.mean.flatten().tolist() == [7, 3, 0]
    assert means.centred.flatten().tolist() == [0, 8, 0]


def test_means_over_several_entries_of_a_sample():
    # Two samples of two entries each: mean 4 of (1, 3, 5, 7), centred 9 + 1 + 1 + 9.
    means = Means(*group_means([double([[[1], [3]], [[5], [7]]])], torch.tensor([0, 0]), 1))
    assert [part.item() for part in means] == [4, 4, 0, 20]


def test_a_mean_is_told_beyond_its_rounding():
    numbers = [1e5 + 0.1 * i * i for i in range(3)]
    means = Means(*group_means([double([[[x]] for x in numbers])], None, 1))
    exact = sum(map(Fraction, numbers)) / 3
    assert Fraction(means.mean.item()) != exact
    assert float(exact - Fraction(means.mean.item())) == pytest.approx(means.rest.item(), rel=1e-3)


def test_centred_squares_are_about_the_mean_that_is_not_rounded():
    # The mean of 1 and 1 + 2 u is 1 + u, which rounds to 1: twice u squared.
    values = double([[[1.0]], [[1.0 + 2.0**-52]]])
    _, mean, rest, centred = group_means([values], None, 1)
    assert (mean.item(), rest.item(), centred.item()) == (1.0, 2.0**-53, 2.0**-105)


@pytest.mark.parametrize("entries_at_once", [1, 8, 1000])
def test_parts_of_large_data_add_up(entries_at_once):
    """Blocks of two, one and three entries; missing ones late in two of them, NaN or masked."""
    groups = torch.tensor([0, 1, 1, 0, 2, 1])
    shapes = [(6, 2, 2), (6, 1, 1), (6, 3, 1)]
    values = [torch.arange(1.0, 1.0 + 6 * c * p).reshape(6, c, p) for _, c, p in shapes]
    keep = [torch.ones_like(of_block, dtype=torch.bool) for of_block in values]
    keep[0][4, 1, 0] = keep[2][5, :2] = False
    lost = [torch.where(kept, of_block, NAN) for kept, of_block in zip(keep, values, strict=True)]
    columns = [entries[:, :, p] for entries in lost for p in range(entries.shape[2])]
    for blocks, masks in ((lost, None), (values, keep)):
        sums, numbers = square_sums(blocks, groups, 3, masks, entries_at_once)
        number, mean, rest, centred = group_means(blocks, groups, 3, masks, entries_at_once)
        assert torch.equal(number, numbers)
        for column, entries in enumerate(columns):
            for group in range(3):
                of_group = entries[groups == group].flatten()
                present = of_group[~of_group.isnan()].double()
                assert numbers[group, column] == len(present)
                assert sums[group, column] == present.square().sum()
                found = mean[group, column] + rest[group, column]
                torch.testing.assert_close(found, present.mean(), rtol=1e-15, atol=0.0)
                expected = (present - present.mean()).square().sum()
                torch.testing.assert_close(centred[group, column], expected, rtol=1e-13, atol=1e-13)
