"""One example of every kind of target, its numbers derived by hand."""

import math

import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    cartesian,
    fit,
    labels,
    mask_of,
    pair_target,
    rank_two,
    scale,
    spherical,
    structure_target,
    system,
)
from by_hand import near
from metatensor.torch import TensorBlock, TensorMap

from lightning_scaler import CompositionBaseline, ScaleAccumulator

NAN = float("nan")
FITTED = CompositionBaseline()
SYSTEMS = [system(8), system(1, 8, 1)]
PER_TARGET, PER_PROPERTY = "per_target_scales", "per_property_scales"


def values(scaler, systems, tensor, source="physical", space="loss", block=0):
    converted = scaler.convert(systems, {"t": tensor}, source, space)["t"]
    return converted.block(block).values


def test_stress():
    # Two stresses, given as they are: 1 + 4 + 9 + 16 + 25 + 36 = 91 and 9 · 5² = 225 of 18 entries.
    numbers = [[[1, 2, 3], [0, 4, 5], [0, 0, 6]], [[5, -5, 5], [5, 5, -5], [5, 5, 5]]]
    stress = structure_target(numbers, name="stress", components=cartesian(2))
    scaler = fit(SYSTEMS, {"t": stress}, intensive_targets=["t"], baseline=FITTED)
    sigma = math.sqrt(316 / 18)
    assert scale(scaler, "t") == scale(scaler, "t", PER_TARGET) == [near(sigma)]
    assert scale(scaler, "t", PER_PROPERTY) == [[1.0]]
    # A matrix has no baseline, even its trace: 6 / sigma at (2, 2) of O.
    loss = values(scaler, SYSTEMS, stress)
    assert loss[0, 2, 2].item() == pytest.approx(6 / sigma, rel=1e-14)
    assert loss[1, 0, 1].item() == pytest.approx(-5 / sigma, rel=1e-14)


def test_virial():
    # Extensive: those of H2O are divided by 3. 4 · 4² = 64 of O and 9 · (6 / 3)² = 36 of H2O.
    numbers = [[[4, 0, 4], [0, 4, 0], [0, 4, 0]], [[6, -6, 6], [6, 6, -6], [6, 6, 6]]]
    virial = structure_target(numbers, name="virial", components=cartesian(2))
    scaler = fit(SYSTEMS, {"t": virial})
    assert scale(scaler, "t") == [near(10 / math.sqrt(18))]
    # The value itself is not divided by the number of atoms in loss space.
    loss = values(scaler, SYSTEMS, virial)
    assert loss[1, 0, 1].item() == pytest.approx(-6 * math.sqrt(18) / 10, rel=1e-14)


def test_dipoles():
    # Extensive: (3, 0, 4), and (12, 0, 9) / 3 = (4, 0, 3): 50 of six entries.
    dipole = structure_target([[3, 0, 4], [12, 0, 9]], components=cartesian())
    scaler = fit(SYSTEMS, {"t": dipole}, baseline=FITTED)
    assert scale(scaler, "t") == [near(math.sqrt(50 / 6))]


def test_pseudovectors_beside_vectors():
    # (λ, σ) = (1, -1): 9 + 16 of six. (1, 1): 25 + 144 of six. (0, -1): 4 + 36 of two.
    numbers = {
        (1, -1): [[[3.0], [0.0], [0.0]], [[0.0], [0.0], [4.0]]],
        (1, 1): [[[0.0], [5.0], [0.0]], [[12.0], [0.0], [0.0]]],
        (0, -1): [[[2.0]], [[6.0]]],
    }
    target = spherical(numbers, labels("system", [0, 1]))
    scaler = fit(SYSTEMS, {"t": target}, intensive_targets=["t"], baseline=FITTED)
    sigma = math.sqrt((25 + 169 + 40) / 14)
    raw = [5 / math.sqrt(6), 13 / math.sqrt(6), math.sqrt(20)]
    for row, rms in enumerate(raw):
        assert scale(scaler, "t", "scales", row) == [near(rms)]
        assert scale(scaler, "t", PER_TARGET, row) == [near(sigma)]
        assert scale(scaler, "t", PER_PROPERTY, row) == [near(rms / sigma)]
    # Pseudoscalars change sign under inversion: nothing is subtracted, 6 stays 6.
    assert scaler.targets["t"].weights == {}
    model = values(scaler, SYSTEMS, target, "physical", "model", block=2)
    assert model.flatten().tolist() == near(2 / math.sqrt(20), 6 / math.sqrt(20))


def test_trace_of_rank_two_blocks():
    # Atoms O | H O H.
    # O: diagonals (1, 2, 6) and (3, 4, 8), mean 4: 9 + 4 + 4 and 1 + 0 + 16, 34; plus 2² and 5²
    #    off the diagonal: 63 of 18.
    # H: diagonals (7, 7, 7) and (1, 1, 1), mean 4: 6 · 9 = 54; plus 3² off it: 63 of 18.
    numbers = np.zeros((4, 3, 3))
    for row, diagonal in enumerate([(1, 2, 6), (7, 7, 7), (3, 4, 8), (1, 1, 1)]):
        numbers[row] = np.diag(diagonal)
    numbers[0, 0, 2], numbers[2, 2, 1], numbers[3, 1, 0] = 2, 5, 3
    # A second block, of other sigmas: no baseline; 1 for O, 2 for H throughout.
    other = np.ones((4, 3, 3)) * np.array([1, 2, 1, 2]).reshape(4, 1, 1)
    target = rank_two({(1, 1, 1, 1): numbers, (1, 1, -1, 1): other}, atom_samples(1, 3))
    scaler = fit(SYSTEMS, {"t": target}, baseline=FITTED)
    sigma = [math.sqrt((63 + 72) / 36), math.sqrt((63 + 18) / 36)]  # H, O
    assert scale(scaler, "t", PER_TARGET, 0) == [near(sigma[0]), near(sigma[1])]
    assert scale(scaler, "t", "scales", 0) == [near(math.sqrt(3.5)), near(math.sqrt(3.5))]
    assert scale(scaler, "t", "scales", 1) == [near(2), near(1)]
    assert scaler.targets["t"].weights[1, 1, 1, 1].flatten().tolist() == near(4, 4)
    assert list(scaler.targets["t"].weights) == [(1, 1, 1, 1)]
    # Of the first O: (1 - 4) and (6 - 4) on the diagonal, 2 beside it.
    model = values(scaler, SYSTEMS, target, "physical", "model")[0, ..., 0] * math.sqrt(3.5)
    np.testing.assert_allclose(model.numpy(), [[-3, 0, 2], [0, -2, 0], [0, 0, 2]], atol=1e-14)


def test_trace_of_rank_two_blocks_of_structures():
    # Totals: per atom of O (3, 3, 6) and (5, 5, 8) of O2, of which each diagonal entry is one
    # observation: w = (3 + 3 + 6 + 2 (5 + 5 + 8)) / (3 + 3 · 4) = 48 / 15 = 3.2.
    numbers = np.zeros((2, 3, 3))
    numbers[0], numbers[1] = np.diag([3, 3, 6]), np.diag([5, 5, 8])
    numbers[1, 0, 1] = 4
    target = rank_two({(1, 1, 1, 1): numbers}, labels("system", [0, 1]))
    systems = [system(8), system(8, 8)]
    scaler = fit(systems, {"t": target}, baseline=FITTED)
    assert scaler.targets["t"].weights[1, 1, 1, 1].item() == pytest.approx(3.2, rel=1e-14)
    # Left of O: -0.2, -0.2, 2.8. Of O2 per atom: -0.7, -0.7, 0.8, and 4 / 2 beside the diagonal.
    squares = 0.04 + 0.04 + 7.84 + 0.49 + 0.49 + 0.64 + 4
    assert scale(scaler, "t") == [near(math.sqrt(squares / 18))]


def test_atomic_basis():
    # Atoms O | H O H. H: s 1, 7 | p (0, 0, 5) (0, 5, 0). O: s (3, 4) (0, 5), two functions.
    target = atomic_basis(
        {
            (0, 1): [[[1.0]], [[7.0]]],
            (1, 1): [[[0.0], [0.0], [5.0]], [[0.0], [5.0], [0.0]]],
            (0, 8): [[[3.0, 4.0]], [[0.0, 5.0]]],
        },
        {1: [[1, 0], [1, 2]], 8: [[0, 0], [1, 1]]},
    )
    scaler = fit(SYSTEMS, {"t": target})
    # H: 1 + 49 + 25 + 25 of 2 + 6 entries; O: 9 + 16 + 25 of 4.
    sigma = {1: math.sqrt(100 / 8), 8: math.sqrt(50 / 4)}
    for row in range(3):
        n_properties = 2 if row == 2 else 1
        assert scale(scaler, "t", PER_TARGET, row) == [
            near(*[sigma[z]] * n_properties) for z in (1, 8)
        ]
    assert scale(scaler, "t", "scales", 0) == [near(5), near(1)]
    assert scale(scaler, "t", "scales", 1) == [near(math.sqrt(50 / 6)), near(1)]
    assert scale(scaler, "t", "scales", 2) == [
        near(1, 1),
        near(3 / math.sqrt(2), math.sqrt(41 / 2)),
    ]
    model = values(scaler, SYSTEMS, target, "physical", "model", block=2)
    assert model[0].flatten().tolist() == near(3 * math.sqrt(2) / 3, 4 / math.sqrt(41 / 2))


@pytest.mark.parametrize("unseen_types", ["error", "pooled", "identity"])
def test_atomic_basis_of_an_unseen_type(unseen_types):
    # Carbon has blocks of its own, and there is no scale for them in any mode.
    basis = {(0, 1): [[[1.0]], [[7.0]]], (0, 8): [[[3.0]], [[5.0]]]}
    target = atomic_basis(basis, {1: [[1, 0], [1, 2]], 8: [[0, 0], [1, 1]]})
    scaler = fit(SYSTEMS, {"t": target}, unseen_types=unseen_types)
    carbon = atomic_basis({(0, 8): [[[5.0]]], (0, 6): [[[1.0]]]}, {8: [[0, 1]], 6: [[0, 0]]})
    words = r"no scale for the block \(o3_lambda=0, o3_sigma=1, atom_type=6\)"
    with pytest.raises(ValueError, match=words):
        values(scaler, [system(6, 8)], carbon)
    # Its presence in a system does not matter where its block is left out. O: 9 + 25 of two.
    oxygen = atomic_basis({(0, 8): [[[5.0]]]}, {8: [[0, 1]]})
    model = values(scaler, [system(6, 8)], oxygen, "physical", "model")
    assert model.item() == pytest.approx(5 / math.sqrt(17), rel=1e-14)


def test_atom_pairs():
    # Whatever their neighbours in the batch are: nothing is fitted, nothing is converted.
    rows = [[1, 0, 2, 0, 0, 0], [0, 0, 0, 1, 0, -1], [1, 1, 0, 0, 0, 0]]
    pairs = pair_target([[3.0, NAN], [-40.0, 5.0], [0.0, 7.0]], rows)
    charges = atom_target([2.0, 5.0, 4.0, 7.0], atom_samples(1, 3))
    scaler = fit(SYSTEMS, {"t": pairs, "q": charges}, baseline=FITTED, unseen_types="error")
    for which in (PER_TARGET, PER_PROPERTY, "scales"):
        assert scale(scaler, "t", which) == [[1.0, 1.0]]
        assert getattr(scaler, which)["t"].block().samples == labels("atomic_type", [-1])
    for source, space in (("physical", "model"), ("model", "physical"), ("loss", "physical")):
        # Unseen types and systems do not matter either.
        converted = values(scaler, [system(99)], pairs, source, space)
        torch.testing.assert_close(converted, pairs.block().values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("baseline", [None, CompositionBaseline({"t": {1: 1, 8: -100}})])
def test_energies_with_gradients(baseline):
    # Per atom 6 and 24 / 3 = 8, with the baseline -100 and 2 - 100 in front: sigma = sqrt(50).
    offsets = [0, 0] if baseline is None else [-100, -98]
    gradient = {
        "positions": [[[1.0, 2.0, 3.0]], [[0.0, 4.0, 0.0], [5.0, 0.0, 0.0], [-5.0, -4.0, 0.0]]],
        "strain": np.stack([np.diag([1.0, 2.0, 3.0]), np.full((3, 3), 7.0)]),
    }
    numbers = [6.0 + offsets[0], 24.0 + offsets[1]]
    energy = structure_target(numbers, gradient=gradient)
    scaler = fit(SYSTEMS, {"t": energy}, baseline=baseline)
    assert scale(scaler, "t") == [near(math.sqrt(50))]
    # All by the same factor: no atom count for the strain, no offset for either.
    loss_space = scaler.convert(SYSTEMS, {"t": energy})
    loss = loss_space["t"].block()
    assert loss.values.flatten().tolist() == near(6 / math.sqrt(50), 24 / math.sqrt(50))
    positions = loss.gradient("positions").values[..., 0]
    assert positions[2].tolist() == near(5 / math.sqrt(50), 0, 0)
    assert positions[3].tolist() == near(-5 / math.sqrt(50), -4 / math.sqrt(50), 0)
    strain = loss.gradient("strain").values[..., 0]
    assert strain[1, 2].tolist() == near(*[7 / math.sqrt(50)] * 3)
    back = scaler.convert(SYSTEMS, loss_space, "model", "physical")["t"].block()
    assert back.values.flatten().tolist() == near(*numbers)
    assert back.gradient("strain").values[0, :, :, 0].diag().tolist() == near(1, 2, 3)


def test_polarizabilities_with_gradients():
    # λ=0: 6 and 8, 100 of two. λ=2: (3, 4, 0, 0, 0) and (0, 0, 0, 5, 5), 75 of ten.
    numbers = {0: [[[6.0]], [[8.0]]], 2: [[[3], [4], [0], [0], [0]], [[0], [0], [0], [5], [5]]]}
    blocks = spherical(numbers, labels("system", [0, 1])).blocks()
    blocks = [of.copy() for of in blocks]
    # How each changes when atom 2 of H2O moves along z, and nothing else moves.
    for of, change in zip(blocks, (10.0, 30.0), strict=True):
        derivative = torch.full((1, 1, *of.values.shape[1:]), change, dtype=torch.float64)
        rows, direction = labels(["sample", "atom"], [[1, 2]]), labels("xyz", [2])
        components = [direction, *of.components]
        of.add_gradient("positions", TensorBlock(derivative, rows, components, of.properties))
    target = TensorMap(labels(["o3_lambda", "o3_sigma"], [[0, 1], [2, 1]]), blocks)
    scaler = fit(SYSTEMS, {"t": target}, intensive_targets=["t"])
    raw = [math.sqrt(50), math.sqrt(7.5)]
    assert [scale(scaler, "t", "scales", row)[0][0] for row in (0, 1)] == near(*raw)
    model = scaler.convert(SYSTEMS, {"t": target}, "physical", "model")["t"]
    for row, change in enumerate((10, 30)):
        gradient = model.block(row).gradient("positions").values
        assert gradient.flatten().tolist() == near(*[change / raw[row]] * (4 * row + 1))
    # In loss space both by the scale of the target: 175 of twelve.
    loss = scaler.convert(SYSTEMS, {"t": target}, "physical", "loss")["t"]
    for row, change in enumerate((10, 30)):
        gradient = loss.block(row).gradient("positions").values
        assert gradient.flatten().tolist() == near(*[change / math.sqrt(175 / 12)] * (4 * row + 1))


def test_several_properties_with_masks_and_missing_values():
    # Atoms O | H O H, a vector each with two properties; x is masked, - is missing.
    # First property:  O (3, 4, x) (0, -, 5)   H (1, x, x) (7, -, -)
    # Second property: O (x, 2, 2) (-, 2, 2)   H (x, x, x) (-, -, -)
    first = [[3, 4, 90], [1, 90, 90], [0, NAN, 5], [7, NAN, NAN]]
    second = [[90, 2, 2], [90, 90, 90], [NAN, 2, 2], [NAN, NAN, NAN]]
    numbers = torch.tensor([first, second]).double().permute(1, 2, 0)
    target = atom_target(numbers, atom_samples(1, 3), "v", cartesian())
    masks = {"t": mask_of(target, [numbers != 90])}
    scaler = fit(SYSTEMS, {"t": target}, masks)
    # O: 9 + 16 + 25 of four, 16 of four. H: 50 of two, nothing.
    assert scale(scaler, "t", PER_TARGET) == [near(5, 5), near(*[math.sqrt(66 / 8)] * 2)]
    assert scale(scaler, "t") == [near(5, 1), near(math.sqrt(12.5), 2)]
    assert scale(scaler, "t", PER_PROPERTY) == [
        near(1, 1 / 5),
        near(math.sqrt(12.5 / 8.25), 2 / math.sqrt(8.25)),
    ]


def test_masks_as_numbers():
    energy = structure_target([[3.0, 1.0], [90.0, 6.0]])
    keep = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    kept = TensorBlock(keep, energy.block().samples, [], energy.block().properties)
    scaler = fit(SYSTEMS, {"t": energy}, {"t": TensorMap(energy.keys, [kept])})
    assert scale(scaler, "t") == [near(3, 2)]


@pytest.mark.parametrize(
    ("compositions", "totals"),
    [
        ([(7, 0, 7), (0, 6, 0), (4, 1, 0)], [-14447.7, -6240.9, -1109.6]),
        # Of H -53, C -448, O 539: contributions far larger than their sums.
        ([(7, 4, 4), (5, 3, 3), (0, 6, 5)], [-7.0, 8.0, 7.0]),
    ],
)
def test_fit_that_leaves_nothing(compositions, totals):
    # As many structures as types: all that is left of the totals is rounding.
    systems = [system(*[1] * h, *[6] * c, *[8] * o) for h, c, o in compositions]
    with pytest.warns(UserWarning, match="rounding noise"):
        scaler = fit(systems, {"t": structure_target(totals)}, baseline=FITTED)
    assert scale(scaler, "t") == [[1.0]]


@pytest.mark.filterwarnings("ignore:the targets .* have no value at all")
def test_fixed_baseline_of_data_without_atoms():
    fixed = CompositionBaseline({"energy": {8: -2.0}, "charge": {8: 1.0}})
    accumulator = ScaleAccumulator(baseline=fixed)
    empty = {
        "energy": structure_target(np.zeros((0, 1)), []),
        "charge": atom_target(np.zeros((0, 1)), atom_samples()),
    }
    accumulator.update([], empty)
    scaler = accumulator.compute()
    assert scale(scaler, "energy") == [[1.0]]
    assert scaler.scales["charge"].block().values.shape == (0, 1)
