"""Intended differences from metatrain: each test shows both results and says why."""

import math

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    atomic_basis,
    block,
    labels,
    mask_of,
    scale,
    spherical,
    structure_target,
    system,
)
from metatensor.torch import TensorMap
from reference import convert_metatrain, fit_metatrain
from test_composition_models import composition_of, fit_composition, without_composition

from lightning_scaler import CompositionBaseline, ScaleAccumulator

NAN, INF = float("nan"), float("inf")
LARGEST = torch.finfo(torch.float64).max
WATER = [system(8), system(1, 8, 1)]
CHARGES = [3.0, 1.0, 4.0, -1.0]  # O | H O H
RMS_OF_OXYGEN = math.sqrt((3.0**2 + 4.0**2) / 2)


def ours(*batches, fixed_scales=None, unseen_types="error", **settings):
    accumulator = ScaleAccumulator(**settings)
    for batch in batches:
        accumulator.update(*batch)
    return accumulator.compute(fixed_scales, unseen_types)


def theirs(*batches, types=(1, 8), **settings):
    return fit_metatrain([(*batch, {}) for batch in batches], atomic_types=types, **settings)


def charges(values=CHARGES):
    return {"charges": atom_target(values, atom_samples(1, 3))}


def test_rule_1_missing_values_stay_missing():
    # metatrain overwrites NaNs in the data with 0, so that later readers train on zeros.
    data = charges([3.0, NAN, 4.0, 1.0])
    fit_metatrain([(WATER, {"charges": data["charges"].copy()}, {})], atomic_types=(1, 8))
    ours((WATER, data))
    assert math.isnan(data["charges"].block().values[1])
    scaler = theirs((WATER, data))
    scaler.accumulate(WATER, data)
    assert data["charges"].block().values[1] == 0.0


def test_rule_1_missing_values_that_a_mask_keeps():
    # metatrain counts a NaN that the mask keeps as a value of 0, which makes the scale smaller.
    data = charges([3.0, 1.0, NAN, -1.0])
    mask = {"charges": mask_of(data["charges"], [[True, True, True, True]])}
    reference = fit_metatrain([(WATER, data, mask)], atomic_types=(1, 8))
    assert float(reference.scales["charges"].block().values[1]) == math.sqrt(9.0 / 2)
    assert scale(ours((WATER, data, mask)), "charges")[1] == [3.0]


@pytest.mark.parametrize("infinite", [INF, -INF])
def test_rule_2_infinite_values(infinite):
    # metatrain continues with a scale of 1.8e308: every target of the type becomes 0.
    data = charges([3.0, 1.0, infinite, -1.0])
    assert theirs((WATER, data)).scales["charges"].block().values.tolist() == [[1.0], [LARGEST]]
    with pytest.raises(ValueError, match=r"'charges', block \(_=0\).* 1 infinite"):
        ours((WATER, data))


def test_rule_3_a_property_without_data():
    # Both leave its predictions unchanged (full scale 1). The per-property scale of metatrain is 1,
    # so the product with the per-target scale is 3, not the full scale.
    data = {"alpha": structure_target([[3.0, NAN], [3.0, NAN]])}
    reference = theirs((WATER[:1] * 2, data), intensive_targets=["alpha"])
    scaler = ours((WATER[:1] * 2, data), intensive_targets=["alpha"])
    assert reference.scales["alpha"].block().values.tolist() == [[3.0, 1.0]]
    assert scale(scaler, "alpha") == [[3.0, 1.0]]
    assert reference.per_target_scales["alpha"].block().values.tolist() == [[3.0, 3.0]]
    assert reference.per_property_scales["alpha"].block().values.tolist() == [[1.0, 1.0]]
    assert scale(scaler, "alpha", "per_property_scales") == [[1.0, 1.0 / 3.0]]


def test_rule_3_types_without_data():
    # Both agree; hydrogen has no charge in the data.
    data = charges([3.0, NAN, 4.0, NAN])
    expected = [[1.0], [RMS_OF_OXYGEN]]
    assert theirs((WATER, data)).scales["charges"].block().values.tolist() == expected
    assert scale(ours((WATER, data)), "charges") == expected


def test_rule_4_a_type_whose_data_are_zero():
    # metatrain divides by 0: the targets of hydrogen become NaN, and so does the loss.
    data = charges([3.0, 0.0, 4.0, 0.0])
    reference = theirs((WATER, data))
    assert reference.scales["charges"].block().values.tolist() == [[0.0], [RMS_OF_OXYGEN]]
    loss = convert_metatrain(reference, WATER, data, "physical", "loss")["charges"].block().values
    assert loss[:, 0].isnan().tolist() == [False, True, False, True]
    scaler = ours((WATER, data))
    assert scale(scaler, "charges") == [[math.sqrt(25.0 / 4)], [RMS_OF_OXYGEN]]
    assert not scaler.convert(WATER, data)["charges"].block().values.isnan().any()


def test_rule_4_a_property_whose_data_are_zero():
    # metatrain multiplies its prediction by 0, so that its gradient is 0 too.
    data = {"alpha": structure_target([[3.0, 0.0], [3.0, 0.0]])}
    reference = theirs((WATER[:1] * 2, data), intensive_targets=["alpha"])
    assert reference.scales["alpha"].block().values.tolist() == [[pytest.approx(3.0), 0.0]]
    scaler = ours((WATER[:1] * 2, data), intensive_targets=["alpha"])
    sigma = math.sqrt(9.0 / 2)
    assert scale(scaler, "alpha") == [[pytest.approx(3.0), pytest.approx(sigma)]]


def test_rule_4_totals_without_a_residual():
    # The composition explains these totals; metatrain divides by their rounding noise. Its scale is
    # fitted to the residuals of its own composition.
    systems = [system(8), system(1, 1), system(1, 8, 1), system(1, 1, 1, 1, 8)]
    energy = {"energy": structure_target([-2041.84, -27.2, -2069.04, -2096.24])}
    model = fit_composition([(systems, energy)], (1, 8))
    left = without_composition(model, systems, energy)
    noise = float(theirs((systems, left)).scales["energy"].block().values)
    assert 0.0 < noise < 1e-9
    with pytest.warns(UserWarning, match="below their rounding noise"):
        assert scale(ours((systems, energy), baseline=CompositionBaseline()), "energy") == [[1.0]]


def test_rule_6_types_without_data():
    # Carbon is in the list of types of metatrain, which has no data for it and converts by 1.
    data, carbon = charges(), {"charges": atom_target([2.0], atom_samples(1))}
    reference = theirs((WATER, data), types=(1, 6, 8))
    converted = convert_metatrain(reference, [system(6)], carbon, "physical", "loss")["charges"]
    assert converted.block().values.tolist() == [[2.0]]
    with pytest.raises(ValueError, match=r"no scale for the atomic types \[6\]"):
        ours((WATER, data)).convert([system(6)], carbon)
    pooled = ours((WATER, data), unseen_types="pooled").convert([system(6)], carbon)["charges"]
    assert pooled.block().values.tolist() == [[pytest.approx(2.0 / math.sqrt(27.0 / 4))]]
    identity = ours((WATER, data), unseen_types="identity").convert([system(6)], carbon)["charges"]
    assert identity.block().values.tolist() == [[2.0]]


def test_rule_6_types_without_a_weight():
    # The weight of carbon is 0 in metatrain: 1030 eV are silently missing in the total of methane.
    systems = [*WATER, system(1, 1)]
    energy = {"energy": structure_target([-2041.0, -2069.0, -27.5])}
    model = fit_composition([(systems, energy)], (1, 6, 8))
    methane = system(6, 1, 1, 1, 1)
    missing = float(composition_of(model, [methane], energy)["energy"].block().values)
    assert missing == pytest.approx(4 * -14.0, rel=0.02)
    scaler = ours((systems, energy), baseline=CompositionBaseline())
    with pytest.raises(ValueError, match=r"no baseline for the atomic types \[6\]"):
        scaler.convert([methane], {"energy": structure_target([1.0])}, "model", "physical")


def test_rule_7_other_types_of_an_atomic_basis():
    # No block has rows of another type. Both have the full scale 1 there, ours as a product.
    rows = {1: [[1, 0], [1, 2]], 8: [[0, 0], [1, 1]]}
    target = atomic_basis({(0, 1): [[[3.0]], [[3.0]]], (0, 8): [[[2.0]], [[2.0]]]}, rows)
    reference, scaler = theirs((WATER, {"n": target})), ours((WATER, {"n": target}))
    assert reference.scales["n"].block(0).values.tolist() == [[3.0], [1.0]]
    assert scale(scaler, "n") == [[3.0], [1.0]]
    assert reference.per_property_scales["n"].block(0).values.tolist() == [[1.0], [1.0]]
    assert scale(scaler, "n", "per_property_scales") == [[1.0], [0.5]]


def test_rule_7_a_batch_without_one_of_the_types():
    # metatrain fails on a block without rows, here that of hydrogen in a batch of one oxygen.
    rows = {1: [], 8: [[0, 0]]}
    shape = torch.empty(0, 1, 1)
    target = {"n": atomic_basis({(0, 1): shape, (0, 8): [[[2.0]]]}, rows)}
    with pytest.raises(IndexError):
        theirs((WATER[:1], target))
    assert scale(ours((WATER[:1], target)), "n", block=1) == [[2.0]]


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        pytest.param([[1, 0], [0, 0], [1, 1], [1, 2]], [1.0, 3.0, 4.0, -1.0], id="reordered"),
        pytest.param([[1, 0], [1, 1], [1, 2], [0, 0]], [1.0, 4.0, -1.0, 3.0], id="systems"),
    ],
)
def test_rule_11_rows_in_another_order(rows, values):
    # metatrain uses the index of a row, so that charges of oxygen count as those of hydrogen.
    in_order, reordered = charges(), {"charges": atom_target(values, rows)}
    reference = theirs((WATER, reordered)).scales["charges"].block().values
    assert not torch.allclose(reference, theirs((WATER, in_order)).scales["charges"].block().values)
    scaler = ours((WATER, reordered))
    assert scale(scaler, "charges") == scale(ours((WATER, in_order)), "charges")
    assert scale(scaler, "charges") == [[1.0], [RMS_OF_OXYGEN]]


def test_rule_11_a_subset_of_the_atoms():
    # metatrain needs a row for every atom; it fails on charges of oxygen alone.
    subset = {"charges": atom_target([3.0, 4.0], [[0, 0], [1, 1]])}
    with pytest.raises(IndexError):
        theirs((WATER, subset))
    assert scale(ours((WATER, subset)), "charges") == [[1.0], [RMS_OF_OXYGEN]]


def test_rule_11_totals_of_some_systems_in_another_order():
    # metatrain divides the -9 eV of H2O by one atom, and the -4 eV of O by three.
    energy = {"energy": structure_target([-9.0, -4.0], systems=[1, 0])}
    reference = float(theirs((WATER, energy)).scales["energy"].block().values)
    assert reference == pytest.approx(math.sqrt((81.0 + 16.0 / 9) / 2))
    expected = math.sqrt((9.0 + 16.0) / 2)
    scaler = ours((WATER, energy), system_labels="position")
    assert scale(scaler, "energy") == [[pytest.approx(expected)]]


def test_rule_10_fixed_scales_of_several_properties():
    # metatrain refuses them; ours keep the ratios of the properties to the RMS of the data.
    data = {"alpha": structure_target([[3.0, 4.0]])}
    with pytest.raises(NotImplementedError, match="Multiple properties"):
        theirs((WATER[:1], data), fixed={"alpha": 2.0}, intensive_targets=["alpha"])
    sigma = math.sqrt(12.5)
    scaler = ours((WATER[:1], data), fixed_scales={"alpha": 2.0}, intensive_targets=["alpha"])
    assert scale(scaler, "alpha") == [[pytest.approx(6.0 / sigma), pytest.approx(8.0 / sigma)]]


def test_rule_12_a_batch_without_systems():
    # metatrain fails to read the types of an empty batch; ours skip it.
    empty = ([], {"charges": atom_target([], torch.empty(0, 2))})
    with pytest.raises(IndexError):
        theirs(empty, (WATER, charges()))
    assert scale(ours(empty, (WATER, charges())), "charges") == [[1.0], [RMS_OF_OXYGEN]]


def test_trace_of_a_block_of_two_pseudovectors():
    # Its trace is invariant, since the two parities cancel. metatrain fits a baseline to it; ours
    # leaves it to the network, with a larger scale.
    names = ["o3_lambda_1", "o3_lambda_2", "o3_sigma_1", "o3_sigma_2"]
    mu = [labels("o3_mu_1", [-1, 0, 1]), labels("o3_mu_2", [-1, 0, 1])]
    values = (5.0 * torch.eye(3))[None, :, :, None].repeat(2, 1, 1, 1)
    target = TensorMap(labels(names, [[1, 1, -1, -1]]), [block(values, atom_samples(1, 1), mu)])
    systems = [system(8), system(8)]
    weights = fit_composition([(systems, {"t": target})], (8,)).weights["t"].block().values
    assert torch.equal(weights[0, :, :, 0], 5.0 * torch.eye(3).double())
    scaler = ours((systems, {"t": target}), baseline=CompositionBaseline())
    assert scaler.targets["t"].weights == {}
    assert scale(scaler, "t") == [[pytest.approx(5.0 / math.sqrt(3))]]


def test_pseudoscalars_have_no_baseline_in_either():
    target = {
        "chi": spherical({(0, -1): [[[5.0]], [[6.0]]]}, structure_target([0, 0]).block().samples)
    }
    scaler = ours((WATER, target), baseline=CompositionBaseline())
    assert scaler.targets["chi"].weights == {}
