"""SystemIndexing and rebuilding TensorMaps."""

import pytest
import torch
from builders import (
    atom_samples,
    block,
    cartesian,
    forces,
    labels,
    mask_of,
    single,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorBlock, TensorMap

from lightning_scaler.tensors.tensormaps import (
    apply_mask,
    block_with_samples,
    check_gradients,
    describe,
    dtype_of,
    is_system,
    is_tensormap,
    map_blocks,
)

NAN = float("nan")


def test_kinds_of_objects():
    target = structure_target([1.0])
    assert is_tensormap(target)
    assert is_system(system(1))
    for other in (target.block(), target.keys, system(1), None, "energy", torch.zeros(1), {}):
        assert not is_tensormap(other)
    for other in (target, None, torch.zeros(1)):
        assert not is_system(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype(dtype):
    assert dtype_of(structure_target([1.0], dtype=dtype)) == dtype


def test_dtype_without_blocks():
    assert dtype_of(TensorMap(labels("_", []), [])) == torch.float64


def test_description_of_labels():
    assert describe(labels(["o3_lambda", "o3_sigma"], [[0, 1], [2, -1]]), 1) == (
        "o3_lambda=2, o3_sigma=-1"
    )


def test_map_blocks_gives_row_keys_and_block():
    target = spherical({1: torch.ones(1, 3, 2), 0: torch.ones(1, 1, 1)}, labels("system", [0]))
    seen = []

    def one(row, keys, old):
        seen.append((row, keys.values[row].tolist(), tuple(old.values.shape)))
        return block_with_samples(old, old.values + row, old.samples, {})

    mapped = map_blocks(target, one)
    assert seen == [(0, [1, 1], (1, 3, 2)), (1, [0, 1], (1, 1, 1))]
    assert mapped.keys == target.keys
    assert mapped.block({"o3_lambda": 0}).values.item() == 2.0


def test_gradients_of_gradients_are_refused():
    target = structure_target([1.0], gradient={"strain": torch.ones(1, 3, 3)})
    check_gradients("energy", target)
    inner = TensorBlock(
        torch.ones(1, 3, 3, 3, 1).double(),
        labels(["sample", "atom"], [[0, 0]]),
        [labels("xyz", [0, 1, 2]), *cartesian(2)],
        target.block().properties,
    )
    outer = target.block().gradient("strain").copy()
    outer.add_gradient("positions", inner)
    nested = block([1.0], labels("system", [0]), property_name="energy")
    nested.add_gradient("strain", outer)
    with pytest.raises(
        NotImplementedError, match=r"target 'energy', block \(_=0\).*'strain'.*\['positions'\]"
    ):
        check_gradients("energy", single(nested))


def test_mask_makes_entries_missing_in_a_copy():
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


def test_mask_keeps_the_gradients():
    target = structure_target([1.0, 2.0], gradient={"strain": torch.ones(2, 3, 3) * 7})
    masked = apply_mask("energy", target, mask_of(target, [[False, True]]))
    assert masked.block().values[0].isnan()
    assert masked.block().gradient("strain").values.unique().tolist() == [7.0]


def test_mask_of_several_blocks_and_components():
    target = spherical(
        {0: torch.full((2, 1, 1), 3.0), 1: torch.arange(6.0).reshape(2, 3, 1)}, atom_samples(2)
    )
    keep = [[[True], [False]], [[1, 1, 0], [0, 1, 1]]]
    masked = apply_mask("t", target, mask_of(target, keep))
    assert torch.equal(masked.block(0).values.isnan().flatten(), torch.tensor([False, True]))
    nans = masked.block(1).values.isnan().reshape(2, 3)
    assert nans.tolist() == [[False, False, True], [True, False, False]]


def test_mask_of_another_layout():
    target = forces(torch.zeros(3, 3), 1, 2)
    with pytest.raises(ValueError, match="mask of target 'forces': expected the keys"):
        apply_mask("forces", target, spherical({0: torch.zeros(3, 1, 1)}, atom_samples(3)))
    other_rows = mask_of(forces(torch.zeros(3, 3), 2, 1), [torch.ones(3, 3)])
    with pytest.raises(ValueError, match=r"block \(_=0\): expected the samples and shape"):
        apply_mask("forces", target, other_rows)
    other_shape = mask_of(structure_target([1.0]), [[True]])
    with pytest.raises(ValueError, match=r"shape \(3, 3, 1\) of the target, got \(1, 1\)"):
        apply_mask("forces", target, other_shape)
