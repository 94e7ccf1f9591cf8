"""TensorMaps as lists of tensors and back, in TorchScript."""

import torch
from builders import structure_target

from lightning_scaler.tensors.labels import have_labels
from lightning_scaler.tensors.torchscript import (
    names_of_gradients,
    scripted,
    values_and_gradients,
    with_values,
)

POSITIONS = {"positions": [[[1, 2, 3]], []]}


def energy(gradient=POSITIONS, systems=(5, 3)):
    return structure_target([1.0, 2.0], systems, gradient=gradient)


def test_compiled_at_the_first_call():
    def twice(number: int) -> int:
        return 2 * number

    assert scripted(twice)(3) == 6
    assert scripted(twice).__name__ == "twice"


def test_other_numbers_under_the_same_labels():
    old = energy()
    values, gradients = values_and_gradients(old)
    new = with_values(old, [10 * v for v in values], [100 * g for g in gradients])
    assert have_labels([new], [old]) == [True]
    assert new.block().values.tolist() == [[10.0], [20.0]]
    assert new.block().gradient("positions").values.flatten().tolist() == [100, 200, 300]
    assert old.block().values.tolist() == [[1.0], [2.0]]


def test_autograd_passes_through():
    weight = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    new = with_values(energy({}), [weight[:, None]], [])
    new.block().values.square().sum().backward()
    assert weight.grad.tolist() == [6.0, 8.0]


def test_names_of_gradients():
    strain = {"positions": [[[1, 2, 3]], [[4, 5, 6]]], "strain": torch.ones(2, 3, 3)}
    blocks, names = names_of_gradients(energy(strain))
    assert (blocks, sorted(names)) == ([0, 0], ["positions", "strain"])
