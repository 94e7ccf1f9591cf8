"""Predictions and targets from loss space in physical units, for metrics."""

import numpy as np
import pytest
import torch
from builders import (
    atom_target,
    block,
    cartesian,
    fit,
    labels,
    single,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorBlock, TensorMap

from lightning_scaler.scaling import (
    errors_in_physical_units,
    predictions_to_loss,
    targets_to_loss,
    values_in_physical_units,
)

NAN = float("nan")
SYSTEMS = [system(8), system(1, 8, 1), system(6, 8)]


def averages(tensor, systems=SYSTEMS):
    """Values of an extensive target with a scale of 1, per atom, by gradient."""
    scaler = fit(systems, {"t": tensor}, fixed_scales={"t": 1.0})
    tensors = {"t": tensor}
    parts = values_in_physical_units(scaler, systems, tensors, tensors, per_atom=True)["t"]
    for part in parts:
        assert torch.equal(part.prediction, part.target)
    return {part.gradient: part.target for part in parts}


def test_extensive_values_and_strain_are_divided_by_the_number_of_atoms():
    gradients = {
        "strain": np.full((3, 3, 3), 12.0),
        "positions": [[[1, 1, 1]], [[1, 1, 1]] * 3, [[1, 1, 1]] * 2],
    }
    found = averages(structure_target([5.0, 6.0, 8.0], gradient=gradients))
    # The systems have 1, 3 and 2 atoms.
    assert found[None].tolist() == [5, 2, 4]
    # The strain gradient belongs to the whole structure, that of positions to one atom.
    assert found["strain"].tolist() == [12] * 9 + [4] * 9 + [6] * 9
    assert found["positions"].tolist() == [1] * 18


def test_rows_in_any_order_are_divided_by_their_own_number_of_atoms():
    gradients = {"strain": np.full((2, 3, 3), 12.0)}
    found = averages(structure_target([8.0, 6.0], [2, 1], gradient=gradients))
    assert found[None].tolist() == [4, 2]
    assert found["strain"].tolist() == [6] * 9 + [4] * 9


def test_strain_of_some_structures_is_divided_by_their_own_number_of_atoms():
    energy = block([5.0, 6.0, 8.0], labels("system", [0, 1, 2]))
    strain = block(np.full((2, 3, 3, 1), 12.0), labels("sample", [1, 2]), cartesian(2))
    energy.add_gradient("strain", strain)
    # Of the last two systems, with 3 and 2 atoms.
    assert averages(single(energy))["strain"].tolist() == [4] * 9 + [6] * 9


def test_all_components_are_divided_by_the_number_of_atoms():
    found = averages(
        structure_target(np.full((3, 3), 6.0), components=cartesian(), dtype=torch.float32)
    )
    assert found[None].dtype == torch.float64
    assert found[None].tolist() == [6] * 3 + [2] * 3 + [3] * 3


def test_structures_without_atoms_have_no_average():
    systems, target = [system(), system(8, 1)], structure_target([5.0, 6.0])
    assert averages(target, systems)[None].tolist() == [3]
    scaler = fit(systems, {"t": target}, fixed_scales={"t": 1.0})
    in_loss = targets_to_loss(scaler, systems, {"t": target})["t"].block().values.flatten()
    assert in_loss[0].isnan()
    assert in_loss[1] == 3


def test_values_are_detached_and_have_no_missing_entries():
    scaler = fit(SYSTEMS[:2], {"energy": structure_target([2.0, 2.0])})
    values = torch.tensor([[1.0], [3.0]], requires_grad=True)
    missing = structure_target([NAN, 4.0], dtype=torch.float32)
    predictions, targets = {"energy": structure_target(values)}, {"energy": missing}
    (found,) = values_in_physical_units(scaler, SYSTEMS[:2], predictions, targets)["energy"]
    assert (found.key, found.gradient) == ({"_": 0}, None)
    # Energies per atom 2 / 1 and 2 / 3: their RMS is sqrt((4 + 4/9) / 2) = sqrt(20) / 3.
    sigma = 20**0.5 / 3
    assert found.prediction.tolist() == pytest.approx([3.0 * sigma], rel=1e-14)
    assert found.target.tolist() == pytest.approx([4.0 * sigma], rel=1e-14)
    for numbers in (found.prediction, found.target):
        assert numbers.dtype == torch.float64
        assert not numbers.requires_grad


def test_missing_entries_are_left_out_of_each_block_and_gradient():
    """Gradients have the key of their own block, in the order of blocks."""
    samples = labels("system", [0, 1])
    scalar, vector = torch.ones(2, 1, 1), torch.ones(2, 3, 1)
    mu = spherical({0: scalar, 1: vector}, samples)
    scaler = fit(SYSTEMS[:2], {"energy": structure_target([2.0, 2.0]), "mu": mu})
    vector = vector.clone()
    vector[1, 2] = NAN
    blocks = [of_key.copy() for of_key in spherical({0: scalar, 1: vector}, samples).blocks()]
    for of_key in blocks:
        each = labels("sample", [0, 1])
        strain = torch.ones_like(of_key.values)
        strain = TensorBlock(strain, each, of_key.components, of_key.properties)
        of_key.add_gradient("strain", strain)
    tensors = {"energy": structure_target([2.0, 2.0]), "mu": TensorMap(mu.keys, blocks)}
    found = values_in_physical_units(scaler, SYSTEMS[:2], tensors, tensors)
    assert [len(part.target) for part in found["energy"]] == [2]
    assert [
        (part.key["o3_lambda"], part.gradient, len(part.prediction), len(part.target))
        for part in found["mu"]
    ] == [(0, None, 2, 2), (1, None, 5, 5), (0, "strain", 2, 2), (1, "strain", 6, 6)]


def test_rows_of_a_replaced_target_are_settled_again():
    """The scales of H and O are 5 and 2 (RMS of 1, 7 and of 2, 2)."""
    systems = [system(8), system(1, 1, 8)]
    in_order = [[0, 0], [1, 0], [1, 1], [1, 2]]
    charges = atom_target([2.0, 1.0, 7.0, 2.0], in_order)
    scaler = fit(systems, {"q": charges})
    targets = targets_to_loss(scaler, systems, {"q": charges})
    reversed_rows = atom_target([1.0] * 4, in_order[::-1])
    targets["q"] = reversed_rows
    # One unit of loss space is 2, 5, 5 and 2 in the rows O, H, H and O.
    (found,) = values_in_physical_units(scaler, systems, {"q": reversed_rows}, targets)["q"]
    assert found.target.tolist() == pytest.approx([2, 5, 5, 2], rel=1e-12)
    hydrogens = atom_target([1.0, 1.0], [[1, 1], [1, 0]])
    targets["q"] = hydrogens
    (found,) = values_in_physical_units(scaler, systems, {"q": hydrogens}, targets)["q"]
    assert found.target.tolist() == pytest.approx([5, 5], rel=1e-12)


def test_energies_of_a_replaced_target_are_divided_by_their_own_number_of_atoms():
    target = structure_target([5.0, 6.0, 8.0])
    scaler = fit(SYSTEMS, {"t": target}, fixed_scales={"t": 1.0})
    targets = targets_to_loss(scaler, SYSTEMS, {"t": target})
    targets["t"] = structure_target([0.0, 0.0], [2, 1], dtype=torch.float32)
    # Model space is loss space for a single property; then per atom: 8 / 2 and 6 / 3.
    predictions = {"t": structure_target([8.0, 6.0], [2, 1])}
    in_loss = predictions_to_loss(scaler, SYSTEMS, predictions, targets)["t"].block().values
    assert in_loss.flatten().tolist() == [4, 2]


def test_errors_of_every_block_have_the_scales_of_its_own_rows():
    """Errors of 1 in loss space; the scale is 10 for H and 2 for O."""
    systems = [system(8), system(1, 8)]
    rows = [labels(["system", "atom"], of) for of in ([[0, 0], [1, 1]], [[1, 0], [0, 0]])]
    keys = labels(["o3_lambda", "o3_sigma"], [[0, 1], [0, -1]])

    def target(number):
        values = {0: [[[number]], [[number]]]}
        return {"t": TensorMap(keys, [spherical(values, of).block().copy() for of in rows])}

    scaler = fit(systems, target(1.0), fixed_scales={"t": {"H": 10.0, "O": 2.0}})
    parts, sums = errors_in_physical_units(scaler, systems, target(1.0), target(0.0))
    assert [part.key for part in parts] == [(0, 1), (0, -1)]
    assert sums.tolist() == [[2 + 2, 4 + 4, 2], [10 + 2, 100 + 4, 2]]
