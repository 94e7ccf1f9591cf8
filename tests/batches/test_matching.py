"""Predictions in the rows of their targets, per atom where extensive."""

import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    block,
    cartesian,
    forces,
    labels,
    pair_target,
    single,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorBlock

from lightning_scaler.batches.atoms import Atoms
from lightning_scaler.batches.matching import align_prediction, per_atom, relabel_by_position
from lightning_scaler.batches.system_labels import SystemIndexing

NAN = float("nan")
ATOMS = Atoms.from_systems([system(8), system(1, 8, 1), system(6, 8)])
BY_ID = SystemIndexing("id", torch.tensor([7, 3, 9]))


def with_positions(values, rows, gradient_rows, gradients):
    """Energies with a gradient whose rows come in any order."""
    energy = block(values, labels("system", rows), property_name="energy")
    samples = labels(["sample", "atom"], gradient_rows)
    numbers = torch.as_tensor(gradients, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, 3, 1)
    energy.add_gradient(
        "positions", TensorBlock(numbers.clone(), samples, cartesian(), energy.properties)
    )
    return single(energy)


def test_rows_in_another_order():
    target = atom_target([0.0, 0.0, 0.0], [[1, 2], [0, 0], [1, 0]])
    prediction = atom_target([1.0, 2.0, 3.0, 4.0], [[0, 0], [1, 0], [1, 1], [1, 2]])
    result = align_prediction("q", prediction, target).block()
    assert result.values.flatten().tolist() == [4, 1, 2]
    assert result.samples == target.block().samples


def test_same_rows_are_not_copied():
    target, prediction = structure_target([0.0, 0.0]), structure_target([1.0, 2.0])
    result = align_prediction("e", prediction, target).block().values
    assert result.data_ptr() == prediction.block().values.data_ptr()


def test_more_blocks_in_another_order():
    rows = labels("system", [0])
    target = spherical({2: np.zeros((1, 5, 1)), 0: [[[0.0]]]}, rows)
    prediction = spherical({0: [[[3.0]]], 1: np.full((1, 3, 1), 9), 2: np.full((1, 5, 1), 4)}, rows)
    result = align_prediction("t", prediction, target)
    assert result.keys == target.keys
    assert result.block(0).values.unique().item() == 4
    assert result.block(1).values.item() == 3


def test_gradient_rows_follow_their_samples():
    # Structure 1 before 0 in the target; the prediction has both in the usual order, and 2.
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


def test_gradient_rows_in_another_order_only():
    target = with_positions([0.0], [0], [[0, 1], [0, 0]], [0, 0])
    prediction = with_positions([1.0], [0], [[0, 0], [0, 1]], [5, 6])
    gradient = align_prediction("e", prediction, target).block().gradient("positions")
    assert gradient.values[:, 0, 0].tolist() == [6, 5]


def test_gradients_that_only_the_prediction_has():
    prediction = structure_target([1.0], gradient={"strain": np.ones((1, 3, 3))})
    assert align_prediction("e", prediction, structure_target([0.0])).block().gradients_list() == []


def test_dtype_of_the_target():
    target = structure_target([0.0], dtype=torch.float32)
    prediction = structure_target([1.0], dtype=torch.float64)
    assert align_prediction("e", prediction, target).block().values.dtype == torch.float32


def test_graph_goes_through():
    values = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64, requires_grad=True)
    prediction = structure_target(values)
    result = align_prediction("e", prediction, structure_target([0.0, 0.0], [2, 0])).block().values
    (result * torch.tensor([[10.0], [1.0]])).sum().backward()
    assert values.grad.flatten().tolist() == [1, 0, 10]


def test_target_without_rows():
    target = atom_target(np.zeros((0, 1)), atom_samples())
    result = align_prediction("q", atom_target([1.0, 2.0], atom_samples(2)), target)
    assert result.block().values.shape == (0, 1)


def test_rows_without_prediction():
    target = atom_target([0.0] * 3, [[1, 2], [0, 0], [2, 1]])
    prediction = atom_target([1.0, 2.0], [[0, 0], [1, 0]])
    words = r"target 'q', block \(_=0\): no prediction for 2 rows .* \(system=1, atom=2\)"
    with pytest.raises(ValueError, match=words):
        align_prediction("q", prediction, target)


def test_blocks_without_prediction():
    rows = labels("system", [0])
    with pytest.raises(ValueError, match=r"block \(o3_lambda=2, o3_sigma=1\): no such block"):
        align_prediction(
            "t", spherical({0: [[[1.0]]]}, rows), spherical({2: np.ones((1, 5, 1))}, rows)
        )


def test_gradients_without_prediction():
    target = structure_target([1.0], gradient={"strain": np.ones((1, 3, 3))})
    with pytest.raises(ValueError, match="no prediction of the gradient 'strain'"):
        align_prediction("e", structure_target([1.0]), target)
    target = with_positions([0.0], [0], [[0, 0], [0, 1]], [0, 0])
    prediction = with_positions([0.0], [0], [[0, 0]], [0])
    with pytest.raises(ValueError, match=r"gradient 'positions': no prediction for 1 rows"):
        align_prediction("e", prediction, target)


def test_other_layouts():
    energy = structure_target([1.0])
    with pytest.raises(ValueError, match=r"predictions with keys named \['_'\], got \['o3_lambda'"):
        align_prediction("e", spherical({0: [[[1.0]]]}, labels("system", [0])), energy)
    with pytest.raises(ValueError, match="expected predictions with components"):
        align_prediction("e", structure_target([[1.0, 2.0]]), energy)
    with pytest.raises(ValueError, match=r"samples named \['system'\], got \['system', 'atom'\]"):
        align_prediction("e", atom_target([1.0], [[0, 0]], "energy"), energy)


def test_averages_over_the_atoms():
    gradients = {
        "strain": np.full((3, 3, 3), 12.0),
        "positions": [[[1, 1, 1]], [[1, 1, 1]] * 3, [[1, 1, 1]] * 2],
    }
    energy = structure_target([5.0, 6.0, 8.0], gradient=gradients)
    result = per_atom(energy, ATOMS).block()
    assert result.values.flatten().tolist() == [5, 2, 4]
    # The strain gradient belongs to the whole structure, that of positions to one atom.
    assert result.gradient("strain").values[:, 1, 2, 0].tolist() == [12, 4, 6]
    assert result.gradient("positions").values.unique().tolist() == [1]


def test_averages_of_rows_in_another_order():
    gradients = {"strain": np.full((2, 3, 3), 12.0)}
    result = per_atom(structure_target([8.0, 6.0], [2, 1], gradient=gradients), ATOMS).block()
    assert result.values.flatten().tolist() == [4, 2]
    assert result.gradient("strain").values[:, 0, 0, 0].tolist() == [6, 4]


def test_averages_with_components():
    dipole = structure_target(np.full((3, 3), 6.0), components=cartesian(), dtype=torch.float32)
    result = per_atom(dipole, ATOMS).block().values
    assert result.dtype == torch.float32
    assert result[..., 0].tolist() == [[6] * 3, [2] * 3, [3] * 3]


def test_structures_without_atoms_have_no_average():
    atoms = Atoms.from_systems([system(), system(8, 1)])
    result = per_atom(structure_target([5.0, 6.0]), atoms).block().values.flatten()
    assert result[0].isnan()
    assert result[1] == 3


def test_ids_become_positions():
    energy = structure_target([1.0, 2.0], [9, 7], gradient={"strain": np.ones((2, 3, 3))})
    result = relabel_by_position("e", energy, BY_ID, ATOMS).block()
    assert result.samples == labels("system", [2, 0])
    assert result.values.flatten().tolist() == [1, 2]
    assert result.gradient("strain").samples == labels("sample", [0, 1])
    charges = atom_target([1.0, 2.0], [[3, 2], [9, 1]])
    expected = labels(["system", "atom"], [[1, 2], [2, 1]])
    assert relabel_by_position("q", charges, BY_ID, ATOMS).block().samples == expected


def test_ids_in_the_samples_of_gradients_become_positions():
    energy = block([1.0, 2.0], labels("system", [9, 7]), property_name="energy")
    rows = labels(["sample", "system", "atom"], [[0, 9, 0], [0, 9, 1], [1, 7, 0]])
    numbers = torch.ones(3, 3, 1).double()
    energy.add_gradient("positions", TensorBlock(numbers, rows, cartesian(), energy.properties))
    result = relabel_by_position("e", single(energy), BY_ID, ATOMS).block().gradient("positions")
    expected = [[0, 2, 0], [0, 2, 1], [1, 0, 0]]
    assert result.samples == labels(["sample", "system", "atom"], expected)


def test_ids_of_pairs_become_positions():
    pairs = pair_target([1.0], [[3, 0, 2, 0, 0, 1]])
    samples = relabel_by_position("h", pairs, BY_ID, ATOMS).block().samples
    assert samples.values.tolist() == [[1, 0, 2, 0, 0, 1]]


def test_positions_stay():
    energy = structure_target([1.0, 2.0], [2, 0])
    assert relabel_by_position("e", energy, SystemIndexing("position"), ATOMS) is energy


def test_inputs_are_not_written_to():
    target = with_positions([0.5, NAN], [1, 0], [[0, 2], [1, 0], [0, 1], [0, 0]], [1, 2, 3, 4])
    before = target.block().values.clone(), target.block().gradient("positions").values.clone()
    prediction = forces([[1, 2, 3]], 1)
    per_atom(target, ATOMS)
    align_prediction("f", prediction, forces([[0, 0, 0]], 1))
    assert torch.equal(target.block().values.view(torch.int64), before[0].view(torch.int64))
    assert torch.equal(target.block().gradient("positions").values, before[1])
    assert prediction.block().values.flatten().tolist() == [1, 2, 3]
