"""Predictions in the blocks, rows and dtype of their targets."""

import re

import metatensor.torch
import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    block,
    cartesian,
    labels,
    single,
    spherical,
    structure_target,
)
from metatensor.torch import Labels, TensorBlock

from lightning_scaler.scaling import align_prediction

NAN = float("nan")


def with_positions(values, rows, gradient_rows, gradients):
    """Energies with a gradient whose rows come in any order."""
    energy = block(values, labels("system", rows), property_name="energy")
    samples = labels(["sample", "atom"], gradient_rows)
    numbers = torch.as_tensor(gradients, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, 3, 1)
    energy.add_gradient(
        "positions", TensorBlock(numbers.clone(), samples, cartesian(), energy.properties)
    )
    return single(energy)


def test_predictions_take_the_rows_of_the_target():
    target = atom_target([0.0, 0.0, 0.0], [[1, 2], [0, 0], [1, 0]])
    prediction = atom_target([1.0, 2.0, 3.0, 4.0], [[0, 0], [1, 0], [1, 1], [1, 2]])
    result = align_prediction("q", prediction, target).block()
    assert result.values.flatten().tolist() == [4, 1, 2]
    assert result.samples == target.block().samples


def test_predictions_in_the_rows_of_the_target_are_not_copied():
    target, prediction = structure_target([0.0, 0.0]), structure_target([1.0, 2.0])
    result = align_prediction("e", prediction, target).block().values
    assert result.data_ptr() == prediction.block().values.data_ptr()


def test_predictions_take_the_blocks_of_the_target():
    rows = labels("system", [0])
    target = spherical({2: np.zeros((1, 5, 1)), 0: [[[0.0]]]}, rows)
    prediction = spherical({0: [[[3.0]]], 1: np.full((1, 3, 1), 9), 2: np.full((1, 5, 1), 4)}, rows)
    result = align_prediction("t", prediction, target)
    assert result.keys == target.keys
    assert result.block(0).values.unique().item() == 4
    assert result.block(1).values.item() == 3


def test_gradients_take_the_rows_of_the_target():
    # Structure 1 before 0 in the target; the prediction has both in batch order, and 2.
    target = with_positions([0.0, 0.0], [1, 0], [[0, 2], [1, 0], [0, 1], [0, 0]], [0] * 4)
    prediction = with_positions(
        [10.0, 11.0, 12.0],
        [0, 1, 2],
        [[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]],
        [100, 110, 111, 112, 120, 121],
    )
    result = align_prediction("e", prediction, target).block()
    assert result.values.flatten().tolist() == [11, 10]
    gradient = result.gradient("positions")
    assert gradient.values[:, 0, 0].tolist() == [112, 100, 111, 110]
    assert gradient.samples == target.block().gradient("positions").samples


def test_gradients_take_the_rows_of_the_target_where_the_values_are_in_order():
    target = with_positions([0.0], [0], [[0, 1], [0, 0]], [0, 0])
    prediction = with_positions([1.0], [0], [[0, 0], [0, 1]], [5, 6])
    gradient = align_prediction("e", prediction, target).block().gradient("positions")
    assert gradient.values[:, 0, 0].tolist() == [6, 5]


def test_gradients_that_the_target_does_not_have_are_dropped():
    prediction = structure_target([1.0], gradient={"strain": np.ones((1, 3, 3))})
    assert align_prediction("e", prediction, structure_target([0.0])).block().gradients_list() == []


def test_predictions_take_the_dtype_of_the_target():
    target = structure_target([0.0], dtype=torch.float32)
    prediction = structure_target([1.0], dtype=torch.float64)
    assert align_prediction("e", prediction, target).block().values.dtype == torch.float32


def test_autograd_follows_aligned_predictions():
    values = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)
    prediction = structure_target(values)
    result = align_prediction("e", prediction, structure_target([0.0, 0.0], [2, 0])).block().values
    (result * torch.tensor([[10.0], [1.0]])).sum().backward()
    assert values.grad.flatten().tolist() == [1, 0, 10]


def test_a_target_without_rows_takes_no_prediction():
    target = atom_target(np.zeros((0, 1)), atom_samples())
    result = align_prediction("q", atom_target([1.0, 2.0], atom_samples(2)), target)
    assert result.block().values.shape == (0, 1)


def test_rows_without_a_prediction_are_refused():
    target = atom_target([0.0] * 3, [[1, 2], [0, 0], [2, 1]])
    prediction = atom_target([1.0, 2.0], [[0, 0], [1, 0]])
    words = (
        r"prediction of 'q', block \(_=0\): no prediction for 2 of 3 rows .* \(system=1, atom=2\)"
    )
    with pytest.raises(ValueError, match=words):
        align_prediction("q", prediction, target)


def test_blocks_without_a_prediction_are_refused():
    rows = labels("system", [0])
    with pytest.raises(ValueError, match=r"block \(o3_lambda=2, o3_sigma=1\): expected this block"):
        align_prediction(
            "t", spherical({0: [[[1.0]]]}, rows), spherical({2: np.ones((1, 5, 1))}, rows)
        )


def test_gradients_without_a_prediction_are_refused():
    target = structure_target([1.0], gradient={"strain": np.ones((1, 3, 3))})
    with pytest.raises(ValueError, match="expected the gradient 'strain', which the target has"):
        align_prediction("e", structure_target([1.0]), target)
    target = with_positions([0.0], [0], [[0, 0], [0, 1]], [0, 0])
    prediction = with_positions([0.0], [0], [[0, 0]], [0])
    with pytest.raises(ValueError, match=r"gradient 'positions': no prediction for 1 of 2 rows"):
        align_prediction("e", prediction, target)


def test_predictions_with_other_labels_are_refused():
    energy = structure_target([1.0])
    with pytest.raises(ValueError, match=r"keys named \['_'\], as in the target, got \['o3_lam"):
        align_prediction("e", spherical({0: [[[1.0]]]}, labels("system", [0])), energy)
    with pytest.raises(
        ValueError, match=r"prediction of 'e', .*: expected properties energy=\[0\]"
    ):
        align_prediction("e", structure_target([[1.0, 2.0]]), energy)
    with pytest.raises(ValueError, match=r"samples named \['system'\], got \['system', 'atom'\]"):
        align_prediction("e", atom_target([1.0], [[0, 0]], "energy"), energy)


def test_predictions_and_targets_are_not_written_to():
    target = with_positions([0.5, NAN], [1, 0], [[0, 2], [1, 0], [0, 1], [0, 0]], [1, 2, 3, 4])
    prediction = with_positions([1.0, 2.0], [0, 1], [[0, 0], [1, 0], [1, 1], [1, 2]], [5, 6, 7, 8])
    numbers = [
        values
        for tensor in (target, prediction)
        for values in (tensor.block().values, tensor.block().gradient("positions").values)
    ]
    before = [values.clone() for values in numbers]
    align_prediction("e", prediction, target)
    for values, old in zip(numbers, before, strict=True):
        assert torch.equal(values.view(torch.int64), old.view(torch.int64))


@pytest.mark.parametrize("predicted_with_system", [False, True])
@pytest.mark.parametrize("target_with_system", [False, True])
def test_samples_of_gradients_with_and_without_system_are_the_same(
    predicted_with_system, target_with_system
):
    """metatrain's readers and models label gradients [sample, system, atom]."""
    zeros = [[[0.0] * 3] * 2, [[0.0] * 3]]
    target = structure_target(
        [0.0, 0.0], [1, 0], gradient={"positions": zeros}, gradient_systems=target_with_system
    )
    numbers = [[[1, 2, 3]], [[4, 5, 6], [7, 8, 9]]]
    prediction = structure_target(
        [10.0, 11.0], gradient={"positions": numbers}, gradient_systems=predicted_with_system
    )
    aligned = align_prediction("e", prediction, target).block()
    assert aligned.values.flatten().tolist() == [11, 10]
    gradient = aligned.gradient("positions")
    assert gradient.values[..., 0].tolist() == [[4, 5, 6], [7, 8, 9], [1, 2, 3]]
    assert gradient.samples == target.block().gradient("positions").samples


def test_the_error_for_a_missing_gradient_says_how_to_add_it():
    """Both ways out, as they are in the message."""
    target = structure_target([1.0], gradient={"positions": [[[1, 2, 3], [4, 5, 6]]]})
    with pytest.raises(ValueError, match=r"prediction of 'e'.*got the gradients \[\]") as caught:
        align_prediction("e", structure_target([2.0]), target)
    add, remove = re.search(
        r"(block\.add_.*\)), or .*: (metatensor\..*)$", str(caught.value)
    ).groups()
    block = structure_target([2.0]).block().copy()
    names = {"block": block, "values": torch.ones(2, 3, 1).double(), "torch": torch}
    names |= {"rows": torch.tensor([[0, 0], [0, 1]]), "Labels": Labels, "TensorBlock": TensorBlock}
    exec(add, names)
    aligned = align_prediction("e", single(block), target).block()
    assert aligned.gradient("positions").values.tolist() == [[[1.0]] * 3] * 2
    target = eval(remove, {"metatensor": metatensor, "target": target})
    assert align_prediction("e", structure_target([2.0]), target).block().values.item() == 2


def test_gradients_with_other_components_are_refused():
    target = structure_target([1.0], gradient={"strain": np.ones((1, 3, 3))})
    like = target.block().gradient("strain")
    block = structure_target([1.0]).block().copy()
    transposed = TensorBlock(like.values, like.samples, like.components[::-1], like.properties)
    block.add_gradient("strain", transposed)
    words = r"gradient 'strain': expected components xyz_1=.* × xyz_2=.*, got xyz_2=.* × xyz_1="
    with pytest.raises(ValueError, match=words):
        align_prediction("e", single(block), target)


def test_errors_about_labels_are_one_line():
    other = structure_target([1.0], name="property")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        align_prediction("e", other, structure_target([1.0]))
    words = "expected properties energy=[0], as in the target, got property=[0]"
    assert str(caught.value) == f"prediction of 'e', block (_=0): {words}"


def test_predictions_on_another_device_are_refused():
    prediction = structure_target([1.0]).to(device="meta")
    with pytest.raises(ValueError, match=r"expected the device of the target, cpu, got meta"):
        align_prediction("e", prediction, structure_target([1.0]))
