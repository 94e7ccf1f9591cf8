"""TensorMaps compared with layouts, with the atoms of a batch and with each other."""

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    block,
    forces,
    labels,
    pair_target,
    single,
    spherical,
    structure_target,
    with_nested_gradient,
)

from lightning_scaler.tensors.labels import have_labels, have_one_dtype, have_rows
from lightning_scaler.tensors.layout import TargetLayout, names_with_layout

POSITIONS = {"positions": [[[1, 2, 3]], []]}


def energy(gradient=POSITIONS, systems=(5, 3)):
    return structure_target([1.0, 2.0], systems, gradient=gradient)


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


def test_rows_that_targets_share():
    """What is known of the rows of one target is known of another with the same labels."""
    for systems, usual in (([0, 1], True), ([1, 0], False)):
        samples = labels("system", systems)
        tensors = [single(block([[1.0], [2.0]], samples)) for _ in range(3)]
        assert have_rows(tensors, torch.tensor([1, 2]), 3, [])[0] == [usual] * 3


@pytest.mark.parametrize(
    "other",
    [
        energy(systems=(5, 4)),
        energy({}),
        structure_target([1.0, 2.0], [5, 3], "dipole", POSITIONS),
        structure_target([1.0, 2.0], [5, 3], gradient={"positions": [[], [[1, 2, 3]]]}),
    ],
    ids=["samples", "gradients", "properties", "gradient samples"],
)
def test_labels_that_differ(other):
    found = have_labels([energy(), energy(), energy()], [energy(), other, energy()])
    assert found == [True, False, True]


def test_labels_are_the_same_whatever_the_dtype_of_real_floats():
    tensors = [structure_target([1.0, 2.0], dtype=d) for d in (torch.float32, torch.int64)]
    assert have_labels(tensors, [structure_target([1.0, 2.0])] * 2) == [True, False]


def test_labels_elsewhere_are_not_the_same():
    assert have_labels([energy().to(device="meta")], [energy()]) == [False]


def test_gradients_of_gradients_are_not_the_same():
    tensor = with_nested_gradient([1.0, 2.0])
    assert have_labels([tensor], [tensor]) == [False]


def test_a_layout_holds_what_it_was_read_from():
    samples = labels("system", [0, 1])
    scalar, matrix = torch.ones(2, 1, 1), torch.ones(2, 5, 3)
    tensor = spherical({0: scalar, 2: matrix}, samples)
    tensors = {
        "same": tensor,
        "no rows": spherical({0: scalar[:0], 2: matrix[:0]}, labels("system", [])),
        "other order": spherical({2: matrix, 0: scalar}, samples),
        "no block": spherical({0: scalar}, samples),
        "other properties": spherical({0: scalar, 2: matrix[..., :2]}, samples),
        "other samples": spherical({0: scalar, 2: matrix}, atom_samples(2)),
        "integers": spherical({0: scalar, 2: matrix}, samples, dtype=torch.int32),
    }
    layouts = dict.fromkeys(tensors, TargetLayout.of("t", tensor))
    assert names_with_layout(layouts, {**tensors, "unknown": tensor}) == {"same", "no rows"}
    without_gradient = {"e": TargetLayout.of("e", energy({}))}
    assert names_with_layout(without_gradient, {"e": energy({})}) == {"e"}
    assert not names_with_layout(without_gradient, {"e": energy()})
