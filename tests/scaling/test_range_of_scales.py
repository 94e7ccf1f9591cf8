"""Scales that the dtype of a tensor cannot hold are refused where they are used."""

import re

import pytest
import torch
from builders import atom_samples, atom_target, fit, structure_target, system

from lightning_scaler import CompositionBaseline
from lightning_scaler.scaling import targets_to_loss

OXYGEN = [system(8), system(8)]


def scaled(number, **settings):
    values = structure_target([1.0, 2.0])
    return fit(OXYGEN, {"e": values}, fixed_scales={"e": number}, **settings)


def energies(dtype):
    return {"e": structure_target([1.0, 2.0], dtype=dtype)}


@pytest.mark.parametrize("number", [1e-50, 1e45, 1e-39])
@pytest.mark.parametrize(
    ("source", "space"), [("physical", "loss"), ("loss", "physical"), ("model", "physical")]
)
def test_scales_outside_of_float32_are_an_error_for_float32_tensors(number, source, space):
    scaler = scaled(number)
    message = r"target 'e': expected scales within the range of torch.float32 .* got "
    message += re.escape(f"{number:.4g}")
    with pytest.raises(ValueError, match=message):
        scaler.convert(OXYGEN, energies(torch.float32), source, space)
    # The way out:
    values = scaler.convert(OXYGEN, energies(torch.float64), source, space)["e"].block().values
    expected = 1.0 / number if source == "physical" else number
    assert values[0].item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("number", [2e-38, 3e38])
def test_scales_at_the_ends_of_float32_are_none(number):
    values = scaled(number).convert(OXYGEN, energies(torch.float32), "loss", "physical")
    assert values["e"].block().values[0].item() == pytest.approx(number, rel=1e-6)


def test_float16_predictions_are_not_rounded_to_zero():
    with pytest.raises(ValueError, match=r"range of torch.float16 .* got 1e-09"):
        scaled(1e-9).convert(OXYGEN, energies(torch.float16), "loss", "physical")


def test_targets_in_float64_reach_a_loss_in_float32():
    in_loss = targets_to_loss(scaled(1e-50), OXYGEN, {"e": structure_target([1e-50, 2e-50])})
    values = in_loss["e"].block().values
    assert values.dtype == torch.float32
    assert values.ravel().tolist() == [1.0, 2.0]


def test_a_target_with_a_baseline_enters_physical_space_in_float64():
    baseline = CompositionBaseline({"e": {8: 1e-50}})
    scaler = fit(OXYGEN, {"e": structure_target([1e-50, 4e-50])}, baseline=baseline)
    found = scaler.convert(OXYGEN, energies(torch.float32), "loss", "physical")["e"].block().values
    sigma = scaler.scales["e"].block().values.item()
    assert found[0].item() == pytest.approx(1e-50 + sigma, rel=1e-7)


def test_only_types_of_the_batch_need_a_scale_within_the_range():
    target = {"q": atom_target([1.0, 2.0], atom_samples(2), dtype=torch.float32)}
    scaler = fit([system(1, 8)], target, fixed_scales={"q": {1: 1e-50, 8: 2.0}})
    one = {"q": atom_target([1.0], atom_samples(1), dtype=torch.float32)}
    found = scaler.convert([system(8)], one, "loss", "physical")["q"].block().values
    assert found.item() == 2.0
    with pytest.raises(ValueError, match="got 1e-50"):
        scaler.convert([system(1)], one, "loss", "physical")


@pytest.mark.parametrize("number", [1e-50, 1e45])
def test_scales_that_make_a_loss_in_float32_infinite_or_zero_are_an_error(number):
    """1 / 1e-50 is infinite in float32, and 1 / 1e45 is 0."""
    message = r"target 'e': expected values within the range of torch.float32 in loss space, got "
    with pytest.raises(ValueError, match=message):
        targets_to_loss(scaled(number), OXYGEN, energies(torch.float64))
    in_float64 = targets_to_loss(
        scaled(number), OXYGEN, energies(torch.float64), dtype=torch.float64
    )
    assert in_float64["e"].block().values[0].item() == pytest.approx(1.0 / number, rel=1e-14)


def test_targets_that_are_zero_are_no_error():
    zeros = {"e": structure_target([0.0, 0.0])}
    in_loss = targets_to_loss(scaled(1e-6), OXYGEN, zeros)["e"].block().values
    assert in_loss.ravel().tolist() == [0.0, 0.0]
