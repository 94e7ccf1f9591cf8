"""Rows of targets and layouts of a batch, settled once; ids replaced by positions."""

import numpy as np
import torch
from builders import (
    atom_target,
    atomic_basis,
    block,
    cartesian,
    labels,
    pair_target,
    single,
    structure_target,
    system,
)
from metatensor.torch import TensorBlock, TensorMap

from lightning_scaler.batches import Atoms, SystemIndexing, index_targets, relabel_by_position
from lightning_scaler.tensors import TargetLayout

ATOMS = Atoms.from_systems([system(8), system(1, 8, 1), system(6, 8)])
BY_ID = SystemIndexing("id", torch.tensor([7, 3, 9]))


def test_ids_are_replaced_by_positions():
    energy = structure_target([1.0, 2.0], [9, 7], gradient={"strain": np.ones((2, 3, 3))})
    result = relabel_by_position("e", energy, BY_ID, ATOMS).block()
    assert result.samples == labels("system", [2, 0])
    assert result.values.flatten().tolist() == [1, 2]
    assert result.gradient("strain").samples == labels("sample", [0, 1])
    charges = atom_target([1.0, 2.0], [[3, 2], [9, 1]])
    expected = labels(["system", "atom"], [[1, 2], [2, 1]])
    assert relabel_by_position("q", charges, BY_ID, ATOMS).block().samples == expected


def test_ids_in_the_samples_of_gradients_are_replaced_by_positions():
    energy = block([1.0, 2.0], labels("system", [9, 7]), property_name="energy")
    rows = labels(["sample", "system", "atom"], [[0, 9, 0], [0, 9, 1], [1, 7, 0]])
    numbers = torch.ones(3, 3, 1).double()
    energy.add_gradient("positions", TensorBlock(numbers, rows, cartesian(), energy.properties))
    result = relabel_by_position("e", single(energy), BY_ID, ATOMS).block().gradient("positions")
    expected = [[0, 2, 0], [0, 2, 1], [1, 0, 0]]
    assert result.samples == labels(["sample", "system", "atom"], expected)


def test_ids_of_atom_pairs_are_replaced_by_positions():
    pairs = pair_target([1.0], [[3, 0, 2, 0, 0, 1]])
    samples = relabel_by_position("h", pairs, BY_ID, ATOMS).block().samples
    assert samples.values.tolist() == [[1, 0, 2, 0, 0, 1]]


def test_targets_with_positions_are_not_copied():
    energy = structure_target([1.0, 2.0], [2, 0])
    assert relabel_by_position("e", energy, SystemIndexing("position"), ATOMS) is energy


def test_blocks_of_a_target_have_rows_of_their_own():
    # The first atoms of the systems are atoms 0, 1 and 4.
    in_order, swapped = labels("system", [0, 1, 2]), labels("system", [2, 0, 1])
    blocks = [block([1.0, 2.0, 3.0], samples) for samples in (in_order, swapped)]
    targets = {
        "e": TensorMap(labels("part", [0, 1]), blocks),
        "q": atomic_basis(
            {(0, 1): np.ones((2, 1, 1)), (0, 8): np.ones((3, 1, 1))},
            {1: [[1, 0], [1, 2]], 8: [[2, 1], [0, 0], [1, 1]]},
        ),
    }
    layouts = {name: TargetLayout.of(name, tensor) for name, tensor in targets.items()}
    indexed = index_targets(ATOMS, targets, layouts).targets
    assert [rows.tolist() for rows in indexed["e"].rows] == [[0, 1, 2], [2, 0, 1]]
    assert [rows.tolist() for rows in indexed["q"].rows] == [[1, 3], [5, 0, 2]]
