"""Per-target and per-property scales from sums of squares."""

import math
from functools import partial

import by_hand
import pytest
import torch
from by_hand import double

from lightning_scaler.fitting.scale_formula import BlockSums, compute_scales

near = partial(by_hand.near, rel=1e-15)


def sums(sq_sum, counts, noise=None):
    """One block from nested lists, one row per type."""
    squares = double(sq_sum)
    return BlockSums(
        squares, double(counts), torch.zeros_like(squares) if noise is None else double(noise)
    )


# Two types; a block of two properties and a block of one.
TWO_BLOCKS = [sums([[4, 36], [9, 0]], [[1, 4], [1, 0]]), sums([[10], [16]], [[5], [1]])]
# Type 0: (4 + 36 + 10) / 10 = 5. Type 1: (9 + 16) / 2 = 12.5.
PER_TARGET = [math.sqrt(5), math.sqrt(12.5)]
# Over both types: 75 / 12.
POOLED = math.sqrt(75 / 12)


def test_per_target_scale_pools_blocks_and_properties_of_a_type():
    fitted = compute_scales(TWO_BLOCKS)
    assert fitted.per_target.tolist() == near(*PER_TARGET)
    assert fitted.pooled_target.item() == pytest.approx(POOLED, rel=1e-15)
    assert not any(part.any() for part in fitted.below_noise)


def test_per_property_scale_is_the_rms_within_one_block_relative_to_the_target():
    first, second = compute_scales(TWO_BLOCKS).per_property
    # RMS in each block and property: 2 and 3 | sqrt(2); 3 and no data | 4.
    assert first[0].tolist() == near(2 / PER_TARGET[0], 3 / PER_TARGET[0])
    assert first[1].tolist() == near(3 / PER_TARGET[1], 1 / PER_TARGET[1])
    assert second[:, 0].tolist() == near(math.sqrt(2) / PER_TARGET[0], 4 / PER_TARGET[1])


def test_per_property_scales_over_all_types():
    first, second = compute_scales(TWO_BLOCKS).pooled_property
    # (4 + 9) / 2 and 36 / 4 | (10 + 16) / 6.
    assert first.tolist() == near(math.sqrt(6.5) / POOLED, 3 / POOLED)
    assert second.tolist() == near(math.sqrt(26 / 6) / POOLED)


def test_fixed_scales_leave_the_ratio_of_property_and_target():
    fitted = compute_scales(TWO_BLOCKS, fixed=double([0.5, 8.0]))
    assert fitted.per_target.tolist() == [0.5, 8.0]
    assert fitted.pooled_target.item() == pytest.approx(POOLED, rel=1e-15)
    # Relative to the RMS of the data; the property without data has the full scale 8 / 8.
    assert fitted.per_property[0].flatten().tolist() == near(
        2 / PER_TARGET[0], 3 / PER_TARGET[0], 3 / PER_TARGET[1], 1 / 8.0
    )


def test_fixed_scale_over_all_types():
    block = sums([[8, 0]], [[2, 0]])
    fitted = compute_scales([block], fixed=double([4.0]), fixed_pooled=4.0)
    assert fitted.pooled_target.item() == 4.0
    # RMS 2, the same over all types; no data: 1 / 4.
    assert fitted.pooled_property[0].tolist() == [1.0, 0.25]


def test_property_of_zeros_has_the_scale_of_its_target():
    fitted = compute_scales([sums([[8, 0]], [[2, 2]])])
    # sqrt(8 / 4) for the target, sqrt(8 / 2) for the first property.
    assert fitted.per_target.tolist() == near(math.sqrt(2))
    assert fitted.per_property[0].tolist() == [near(math.sqrt(2), 1.0)]
    assert fitted.pooled_property[0].tolist() == near(math.sqrt(2), 1.0)
    assert fitted.below_noise[0].tolist() == [[False, True]]


def test_data_up_to_the_noise_count_as_zeros():
    block = sums([[8, 1e-4, 1e-3, 2e-3]], [[2, 2, 2, 2]], [[1e-3] * 4])
    fitted = compute_scales([block])
    assert fitted.below_noise[0].tolist() == [[False, True, True, False]]
    assert fitted.per_property[0][0, 1:3].tolist() == [1.0, 1.0]
    # They are zeros in the sum over properties too.
    assert fitted.per_target.tolist() == near(math.sqrt(8.002 / 8))


def test_type_of_zeros_has_the_rms_over_all_types():
    fitted = compute_scales([sums([[18.0], [0.0]], [[1], [1]])])
    assert fitted.per_target.tolist() == near(math.sqrt(18), 3.0)
    assert fitted.per_property[0].flatten().tolist() == near(1, 1)


def test_target_of_zeros_has_the_scale_one():
    fitted = compute_scales([sums([[0, 0], [0, 0]], [[3, 1], [0, 2]])])
    assert fitted.per_target.tolist() == [1, 1]
    assert fitted.per_property[0].tolist() == [[1, 1], [1, 1]]
    assert fitted.pooled_target.item() == 1
    assert fitted.below_noise[0].tolist() == [[True, True], [False, True]]


def test_type_without_data_has_the_scale_one():
    fitted = compute_scales([sums([[18, 2], [0, 0]], [[1, 1], [0, 0]])])
    assert fitted.per_target[1].item() == 1
    assert fitted.per_property[0][1].tolist() == [1, 1]
    assert not fitted.below_noise[0].any()


def test_per_property_scales_of_a_single_property_are_exactly_one():
    fitted = compute_scales([sums([[3.0], [0.7]], [[7], [3]])], single_property=True)
    assert fitted.per_property[0].flatten().tolist() == [1, 1]
    assert fitted.pooled_property[0].tolist() == [1]


@pytest.mark.parametrize("single_property", [False, True])
def test_target_without_any_types(single_property):
    n_properties = 1 if single_property else 2
    nothing = torch.zeros(0, n_properties).double()
    fitted = compute_scales([BlockSums(nothing, nothing, nothing)], single_property=single_property)
    assert fitted.per_target.shape == (0,)
    assert fitted.per_property[0].shape == (0, n_properties)
    assert fitted.pooled_target.item() == 1
    assert fitted.pooled_property[0].tolist() == [1] * n_properties
