"""Masks of targets."""

import pytest
import torch
from builders import atom_samples, forces, mask_of, spherical, structure_target

from lightning_scaler.tensors import apply_mask

NAN = float("nan")


def test_masked_values_are_nan_in_a_copy():
    target = structure_target(
        [[1.0, 2.0], [NAN, 4.0], [5.0, 6.0]], dtype=torch.float32, systems=[4, 0, 2]
    )
    before = target.block().values.clone()
    masked = apply_mask("t", target, mask_of(target, [[[1, 0], [1, 1], [0, 1]]]))
    values = masked.block().values
    assert values.dtype == torch.float32
    assert masked.block().samples == target.block().samples
    expected = torch.tensor([[1.0, NAN], [NAN, 4.0], [NAN, 6.0]])
    torch.testing.assert_close(values, expected, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(target.block().values, before, equal_nan=True, rtol=0, atol=0)


def test_masks_leave_the_gradients():
    target = structure_target([1.0, 2.0], gradient={"strain": torch.ones(2, 3, 3) * 7})
    masked = apply_mask("energy", target, mask_of(target, [[False, True]]))
    assert masked.block().values[0].isnan()
    assert masked.block().gradient("strain").values.unique().tolist() == [7.0]


def test_masks_of_several_blocks_and_components():
    target = spherical(
        {0: torch.full((2, 1, 1), 3.0), 1: torch.arange(6.0).reshape(2, 3, 1)}, atom_samples(2)
    )
    keep = [[[True], [False]], [[1, 1, 0], [0, 1, 1]]]
    masked = apply_mask("t", target, mask_of(target, keep))
    assert torch.equal(masked.block(0).values.isnan().flatten(), torch.tensor([False, True]))
    nans = masked.block(1).values.isnan().reshape(2, 3)
    assert nans.tolist() == [[False, False, True], [True, False, False]]


def test_masks_with_other_labels_or_shapes_are_refused():
    target = forces(torch.zeros(3, 3), 1, 2)
    with pytest.raises(ValueError, match="mask of target 'forces': expected the keys"):
        apply_mask("forces", target, spherical({0: torch.zeros(3, 1, 1)}, atom_samples(3)))
    other_rows = mask_of(forces(torch.zeros(3, 3), 2, 1), [torch.ones(3, 3)])
    with pytest.raises(ValueError, match=r"block \(_=0\): .* got \(3, 3, 1\) with other samples"):
        apply_mask("forces", target, other_rows)
    other_shape = mask_of(structure_target([1.0]), [[True]])
    with pytest.raises(ValueError, match=r"shape \(3, 3, 1\) of the target, got \(1, 1\)"):
        apply_mask("forces", target, other_shape)
