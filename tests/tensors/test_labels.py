"""Labels of TensorMaps compared with each other and with the atoms of a batch."""

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
from metatensor.torch import TensorMap
from other_device import META, Readings

from lightning_scaler.tensors import blocks_in_batch_order, have_dtype, have_labels

POSITIONS = {"positions": [[[1, 2, 3]], []]}


def energy(gradient=POSITIONS, systems=(5, 3)):
    return structure_target([1.0, 2.0], systems, gradient=gradient)


def test_have_dtype_passes_over_targets_without_blocks():
    in_float32 = structure_target([1.0], dtype=torch.float32)
    empty = TensorMap(labels("_", []), [])
    assert have_dtype([], torch.float32) == []
    assert have_dtype([empty, in_float32, energy()], torch.float32) == [True, True, False]
    assert have_dtype([energy({})], torch.float64) == [True]


def test_blocks_in_batch_order_have_a_row_for_every_system_or_atom():
    tensors = [
        structure_target([1.0, 2.0]),
        structure_target([1.0, 2.0], [1, 0]),
        structure_target([1.0]),
        forces([[0, 0, 0]] * 3, 1, 2),
        atom_target([1.0], [[0, 0]]),
        atom_target([1.0] * 3, [[0, 0], [1, 1], [1, 0]]),
        atom_target([1.0] * 3, [[0, 0], [0, 1], [1, 0]]),
        pair_target([[1.0, 1.0]], [[0, 0, 0, 0, 0, 0]]),
    ]
    found = blocks_in_batch_order(tensors, torch.tensor([1, 2]), 3)
    expected = [True, False, False, True, False, False, False, False]
    assert found == [[in_order] for in_order in expected]


def test_atoms_are_in_batch_order_beside_a_system_without_atoms():
    tensors = [
        structure_target([1.0, 2.0, 3.0]),
        atom_target([1.0] * 4, atom_samples(1, 0, 3)),
        atom_target([1.0] * 4, atom_samples(1, 3)),
        atom_target([1.0] * 4, [[0, 0], [2, 0], [2, 2], [2, 1]]),
    ]
    found = blocks_in_batch_order(tensors, torch.tensor([1, 0, 3]), 4)
    assert found == [[True], [True], [False], [False]]


def test_each_block_has_an_order_of_its_own():
    scalar, vector = [torch.ones(2, 2 * o3_lambda + 1, 1) for o3_lambda in (0, 1)]
    in_order, swapped = labels("system", [0, 1]), labels("system", [1, 0])
    blocks = [
        spherical({0: scalar}, in_order).block(),
        spherical({1: vector}, swapped).block(),
        spherical({0: scalar}, in_order).block(),
    ]
    tensor = TensorMap(
        labels(["o3_lambda", "o3_sigma"], [[0, 1], [1, 1], [0, -1]]), [b.copy() for b in blocks]
    )
    assert blocks_in_batch_order([tensor], torch.tensor([1, 2]), 3) == [[True, False, True]]


@pytest.mark.parametrize(("systems", "in_order"), [([0, 1], True), ([1, 0], False)])
def test_targets_with_the_same_samples_have_the_same_order(systems, in_order):
    samples = labels("system", systems)
    tensors = [single(block([[1.0], [2.0]], samples)) for _ in range(3)]
    assert blocks_in_batch_order(tensors, torch.tensor([1, 2]), 3) == [[in_order]] * 3


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
def test_labels_differ(other):
    found = have_labels([energy(), energy(), energy()], [energy(), other, energy()])
    assert found == [True, False, True]


def test_labels_are_the_same_for_any_real_float_dtype():
    tensors = [structure_target([1.0, 2.0], dtype=d) for d in (torch.float32, torch.int64)]
    assert have_labels(tensors, [structure_target([1.0, 2.0])] * 2) == [True, False]


def test_labels_on_another_device_differ():
    assert have_labels([energy().to(device="meta")], [energy()]) == [False]


def test_gradients_of_gradients_count_as_different_labels():
    tensor = with_nested_gradient([1.0, 2.0])
    assert have_labels([tensor], [tensor]) == [False]


@pytest.mark.parametrize("different", [None, *range(6)])
def test_labels_on_a_device_are_compared_there_and_read_once(different):
    """Keys, samples and properties of an energy and of charges."""
    energies, charges = structure_target([1.0, 2.0]), atom_target([1.0] * 3, atom_samples(1, 2))
    pairs = [[tensor.to(device=META) for tensor in (energies, charges)] for _ in range(2)]
    with Readings([i == different for i in range(6)]) as readings:
        found = have_labels(*pairs)
    assert found == [different not in (0, 1, 2), different not in (3, 4, 5)]
    assert readings.n_read == 1


def test_labels_of_other_sizes_and_names_on_a_device_are_not_read():
    tensors = [
        structure_target([1.0]),
        structure_target([1.0, 2.0]),
        structure_target([1.0, 2.0], name="free_energy"),
        atom_target([1.0], [[0, 0]]),
    ]
    first, *others = (tensor.to(device=META) for tensor in tensors)
    with Readings([]) as readings:
        found = have_labels([first] * 3, others)
    assert found == [False, False, False]
    assert readings.n_read == 0
