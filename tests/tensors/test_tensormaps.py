"""TensorMaps read and rebuilt, and functions compiled by TorchScript."""

import pytest
import torch
from builders import (
    labels,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorMap

from lightning_scaler.tensors import (
    block_with_samples,
    describe,
    dtype_of,
    gradients_of_blocks,
    have_labels,
    is_tensormap,
    map_blocks,
    rebuild,
    script_class_name,
    scripted,
    scripted_arithmetic,
    scripted_gradients_of_blocks,
    values_and_gradients,
)


def test_is_tensormap():
    target = structure_target([1.0])
    assert is_tensormap(target)
    for other in (target.block(), target.keys, system(1), None, "energy", torch.zeros(1), {}):
        assert not is_tensormap(other)


def test_class_names_of_torchscript_objects():
    assert script_class_name(structure_target([1.0])) == "TensorMap"
    assert script_class_name(system(1)) == "System"
    assert script_class_name(torch.zeros(1)) is None


def energy_with_positions():
    """Two structures, the first with one atom, the second without."""
    return structure_target([1.0, 2.0], [5, 3], gradient={"positions": [[[1, 2, 3]], []]})


def test_rebuild_keeps_the_labels_and_replaces_the_values():
    old = energy_with_positions()
    values, gradients = values_and_gradients(old)
    new = rebuild(old, [10 * v for v in values], [100 * g for g in gradients])
    assert have_labels([new], [old]) == [True]
    assert new.block().values.tolist() == [[10.0], [20.0]]
    assert new.block().gradient("positions").values.flatten().tolist() == [100, 200, 300]
    assert old.block().values.tolist() == [[1.0], [2.0]]


def test_autograd_follows_rebuilt_values():
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    new = rebuild(structure_target([1.0, 2.0]), [weight[:, None]], [])
    new.block().values.square().sum().backward()
    assert weight.grad.tolist() == [6.0, 8.0]


def test_gradients_are_listed_by_block_and_parameter():
    gradients = {"positions": [[[1, 2, 3]], [[4, 5, 6]]], "strain": torch.full((2, 3, 3), 7.0)}
    target = structure_target([1.0, 2.0], gradient=gradients)
    blocks, parameters = gradients_of_blocks(target)
    assert (blocks, sorted(parameters)) == ([0, 0], ["positions", "strain"])
    assert scripted_gradients_of_blocks(target) == (blocks, parameters)
    # Values of gradients come in the same order.
    first_values = [values.flatten()[0].item() for values in values_and_gradients(target)[1]]
    assert dict(zip(parameters, first_values, strict=True)) == {"positions": 1, "strain": 7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_of_a_tensormap_is_that_of_its_values(dtype):
    assert dtype_of(structure_target([1.0], dtype=dtype)) == dtype


def test_dtype_of_a_tensormap_without_blocks_is_float64():
    assert dtype_of(TensorMap(labels("_", []), [])) == torch.float64


def test_describe_gives_one_row_of_labels_in_words():
    assert describe(labels(["o3_lambda", "o3_sigma"], [[0, 1], [2, -1]]), 1) == (
        "o3_lambda=2, o3_sigma=-1"
    )


def test_map_blocks_passes_index_keys_and_block():
    target = spherical({1: torch.ones(1, 3, 2), 0: torch.ones(1, 1, 1)}, labels("system", [0]))
    seen = []

    def one(row, keys, old):
        seen.append((row, keys.values[row].tolist(), tuple(old.values.shape)))
        return block_with_samples(old, old.values + row, old.samples, {})

    mapped = map_blocks(target, one)
    assert seen == [(0, [1, 1], (1, 3, 2)), (1, [0, 1], (1, 1, 1))]
    assert mapped.keys == target.keys
    assert mapped.block({"o3_lambda": 0}).values.item() == 2.0


def test_scripted_functions_are_compiled_by_the_first_call():
    def twice(number: int) -> int:
        return 2 * number

    compiled = scripted(twice)
    assert compiled.__name__ == "twice"
    assert compiled(3) == 6


def test_autograd_follows_scripted_arithmetic():
    def square(values: torch.Tensor) -> torch.Tensor:
        return values * values if torch.jit.is_scripting() else values

    values = torch.tensor([3.0, 4.0], requires_grad=True)
    scripted_arithmetic(square)(values).sum().backward()
    assert values.grad.tolist() == [6.0, 8.0]
