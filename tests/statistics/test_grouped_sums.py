"""Sums, counts and means by atomic type."""

import math
from fractions import Fraction

import pytest
import torch
from by_hand import double

from lightning_scaler.statistics.grouped_sums import compute_means, sum_squares

NAN = float("nan")


def test_squares_by_type_and_property_without_missing_values():
    # (3 samples, 2 components, 2 properties); samples 0 and 2 have type 2, sample 1 has type 0.
    values = double([[[1, NAN], [2, 3]], [[NAN, NAN], [4, NAN]], [[5, 6], [NAN, 7]]])
    sums, counts = sum_squares([values], torch.tensor([2, 0, 2]), 3)
    # Type 0: 16 of one value, nothing. Type 2: 1 + 4 + 25 of three, 9 + 36 + 49 of three.
    assert sums.tolist() == [[16, 0], [0, 0], [30, 94]]
    assert counts.tolist() == [[1, 0], [0, 0], [3, 3]]


def test_squares_of_complete_data_without_types():
    sums, counts = sum_squares([double([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])], None, 1)
    assert sums.tolist() == [[1 + 9 + 25 + 49, 4 + 16 + 36 + 64]]
    assert counts.tolist() == [[4, 4]]


def test_no_samples_and_no_types():
    sums, counts = sum_squares([torch.zeros(0, 3, 2).double()], None, 1)
    assert sums.tolist() == counts.tolist() == [[0, 0]]
    sums, counts = sum_squares([torch.zeros(0, 3, 2).double()], torch.zeros(0).long(), 0)
    assert sums.shape == counts.shape == (0, 2)


def test_block_without_properties_has_no_columns():
    blocks = [torch.ones(2, 3, 0).double(), double([[[3]], [[4]]])]
    sums, counts = sum_squares(blocks, None, 1)
    assert (sums.tolist(), counts.tolist()) == ([[25]], [[2]])


def test_means_and_squared_deviations_by_type():
    values = double([[[1.0]], [[5.0]], [[NAN]], [[7.0]]])
    counts, mean, _, sum_sq_dev = compute_means([values], torch.tensor([1, 1, 1, 0]), 3)
    # Type 1: mean 3 of (1, 5), squared deviations 4 + 4. Type 2 has no values.
    assert counts.flatten().tolist() == [1, 2, 0]
    assert mean.flatten().tolist() == [7, 3, 0]
    assert sum_sq_dev.flatten().tolist() == [0, 8, 0]


def test_components_are_further_observations_of_a_sample():
    # Two samples of two components: mean 4 of (1, 3, 5, 7), squared deviations 9 + 1 + 1 + 9.
    means = compute_means([double([[[1], [3]], [[5], [7]]])], torch.tensor([0, 0]), 1)
    assert [part.item() for part in means] == [4, 4, 0, 20]


def test_correction_holds_what_rounding_takes_from_the_mean():
    numbers = [1e5 + 0.1 * i * i for i in range(3)]
    _, mean, correction, _ = compute_means([double([[[x]] for x in numbers])], None, 1)
    exact = sum(map(Fraction, numbers)) / 3
    assert Fraction(mean.item()) != exact
    lost = float(exact - Fraction(mean.item()))
    assert correction.item() == pytest.approx(lost, rel=1e-3)


def test_squared_deviations_are_about_the_exact_mean():
    # The mean of 1 and 1 + 2 u is 1 + u, which rounds to 1: twice u squared.
    values = double([[[1.0]], [[1.0 + 2.0**-52]]])
    _, mean, correction, sum_sq_dev = compute_means([values], None, 1)
    assert (mean.item(), correction.item(), sum_sq_dev.item()) == (1.0, 2.0**-53, 2.0**-105)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values_at_once", [1, 8, 1000])
@pytest.mark.parametrize("missing", ["none", "NaN", "masked"])
def test_sums_and_means_of_several_blocks_in_parts(missing, values_at_once, dtype):
    """Blocks of two, one and three components, with the missing values late in two of them."""
    type_index = torch.tensor([0, 1, 1, 0, 2, 1])
    shapes = [(6, 2, 2), (6, 1, 1), (6, 3, 1)]
    blocks = [torch.arange(1.0, 1.0 + math.prod(s)).reshape(s).to(dtype) / 3 for s in shapes]
    masks = [torch.ones_like(block, dtype=torch.bool) for block in blocks]
    if missing != "none":
        masks[0][4, 1, 0] = masks[2][5, :2] = False
    kept = [torch.where(mask, block, NAN) for mask, block in zip(masks, blocks, strict=True)]
    arguments = (blocks, type_index, 3, masks) if missing == "masked" else (kept, type_index, 3)
    sums, counts = sum_squares(*arguments, values_at_once=values_at_once)
    means = compute_means(*arguments, values_at_once=values_at_once)
    assert torch.equal(means[0], counts)
    columns = [block[:, :, p] for block in kept for p in range(block.shape[2])]
    for column, values in enumerate(columns):
        for row in range(3):
            of_type = values[type_index == row].flatten().tolist()
            present = [number for number in of_type if not math.isnan(number)]
            exact_mean = math.fsum(present) / len(present)
            assert counts[row, column] == len(present)
            near = pytest.approx(math.fsum(x * x for x in present), rel=1e-14)
            assert sums[row, column].item() == near
            mean = (means[1] + means[2])[row, column].item()
            assert mean == pytest.approx(exact_mean, rel=1e-15)
            near = pytest.approx(math.fsum((x - exact_mean) ** 2 for x in present), rel=1e-13)
            assert means[3][row, column].item() == near
