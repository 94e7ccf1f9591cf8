"""TensorMaps as lists of tensors and back, in TorchScript."""

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    forces,
    labels,
    pair_target,
    spherical,
    structure_target,
)

from lightning_scaler.target import TargetLayout
from lightning_scaler.torchscript import (
    have_labels,
    have_one_dtype,
    have_rows,
    keys_and_gradients,
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


def test_keys_and_gradients():
    tensor = spherical({0: torch.ones(1, 1, 1), 2: torch.ones(1, 5, 1)}, labels("system", [0]))
    found = keys_and_gradients([tensor, energy()])
    assert found == [([[0, 1], [2, 1]], ([], [])), ([[0]], ([0], ["positions"]))]


def test_one_dtype():
    single = structure_target([1.0], dtype=torch.float32)
    assert have_one_dtype([])
    assert have_one_dtype([energy(), energy({})])
    assert not have_one_dtype([energy(), single, energy()])


def test_rows_are_compared_by_their_width():
    tensors = [
        structure_target([1.0, 2.0]),
        structure_target([1.0, 2.0], [1, 0]),
        forces([[0, 0, 0]] * 3, 1, 2),
        atom_target([1.0], [[0, 0]]),
        atom_target([1.0] * 3, [[0, 0], [1, 1], [1, 0]]),
        atom_target([1.0] * 3, [[0, 0], [0, 1], [1, 0]]),
        pair_target([[1.0, 1.0]], [[0, 0, 0, 0, 0, 0]]),
    ]
    found, numbered = have_rows(tensors, torch.tensor([1, 2]), 3, [])
    assert found == [True, False, True, False, False, False, False]
    found, again = have_rows(tensors, torch.tensor([1, 2]), 3, numbered)
    assert [column.tolist() for column in again] == [[0, 1], [0, 1, 1], [0, 0, 1]]
    assert found == [True, False, True, False, False, False, False]


@pytest.mark.parametrize(
    "other",
    [
        energy(systems=(5, 4)),
        energy({}),
        structure_target([1.0, 2.0], [5, 3], "dipole", POSITIONS),
        structure_target([1.0, 2.0], [5, 3], gradient=POSITIONS, dtype=torch.float32),
        structure_target([1.0, 2.0], [5, 3], gradient={"positions": [[], [[1, 2, 3]]]}),
    ],
    ids=["samples", "gradients", "properties", "dtype", "gradient samples"],
)
def test_labels_that_differ(other):
    assert have_labels([energy(), energy(), energy()], [energy(), other, energy()]) == [
        True,
        False,
        True,
    ]


def test_a_layout_holds_what_it_was_read_from():
    samples = labels("system", [0, 1])
    tensor = spherical({0: torch.ones(2, 1, 1), 2: torch.ones(2, 5, 3)}, samples)
    layout = TargetLayout.of("t", tensor)
    assert layout.holds(tensor)
    assert layout.holds(
        spherical({0: torch.zeros(0, 1, 1), 2: torch.zeros(0, 5, 3)}, labels("system", []))
    )
    for different in (
        spherical({2: torch.ones(2, 5, 3), 0: torch.ones(2, 1, 1)}, samples),
        spherical({0: torch.ones(2, 1, 1)}, samples),
        spherical({0: torch.ones(2, 1, 1), 2: torch.ones(2, 5, 2)}, samples),
        spherical({0: torch.ones(2, 1, 1), 2: torch.ones(2, 5, 3)}, atom_samples(2)),
        spherical({0: torch.ones(2, 1, 1), 2: torch.ones(2, 5, 3)}, samples, dtype=torch.int32),
    ):
        assert not layout.holds(different)
    assert not TargetLayout.of("e", energy({})).holds(energy())
