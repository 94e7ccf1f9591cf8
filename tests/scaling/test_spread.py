"""Spreads of ensembles and predicted variances in physical units."""

import math
import re

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    fit,
    forces,
    four_targets,
    labels,
    scale,
    spherical,
    structure_target,
    system,
)

from lightning_scaler import CompositionBaseline, PerAtom, PerStructure, ScaleAccumulator

SPACES = ("physical", "loss", "model")
FITTED = CompositionBaseline()


def values(tensor):
    return [block.values for block in tensor.blocks()]


def members(seed, n_members=5):
    """Predictions in model space for the systems of ``four_targets``, in the layouts of these."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(n_members, *shape, generator=generator).double()

    energy, charges, scalars, tensors = random(4), random(9, 2), random(4, 1, 2), random(4, 5, 1)
    systems = labels("system", range(4))
    return [
        {
            "energy": structure_target(energy[i]),
            "charges": atom_target(charges[i], atom_samples(1, 3, 2, 3)),
            "alpha": spherical({0: scalars[i], 2: tensors[i]}, systems),
        }
        for i in range(n_members)
    ]


def spread_of(ensemble, power=1):
    """The standard deviation over the members, or its square, in the layouts of the targets."""
    found = {}
    for name in ensemble[0]:
        by_block = zip(*(values(one[name]) for one in ensemble), strict=True)
        stds = [torch.stack(of_block).std(0) ** power for of_block in by_block]
        found[name] = stds
    systems = labels("system", range(4))
    return {
        "energy": structure_target(found["energy"][0]),
        "charges": atom_target(found["charges"][0], atom_samples(1, 3, 2, 3)),
        "alpha": spherical(dict(zip((0, 2), found["alpha"], strict=True)), systems),
    }


@pytest.mark.parametrize("variance", [False, True])
def test_the_converted_spread_is_the_spread_of_the_converted_members(variance):
    systems, targets = four_targets()
    scaler = fit(systems, targets, baseline=FITTED)
    ensemble, power = members(0), 1 + variance
    physical = [scaler.convert(systems, one, "model", "physical") for one in ensemble]
    found = scaler.convert_spread(systems, spread_of(ensemble, power), variance=variance)
    for name, expected in spread_of(physical, power).items():
        for ours, theirs in zip(values(found[name]), values(expected), strict=True):
            # The totals of the members are about 100.
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_spreads_are_multiplied_by_the_scale_of_their_type_and_variances_by_its_square():
    f = forces([[2.0, 0.0, 0.0], [0.0, 6.0, 0.0]], 2)
    scaler = fit([system(8, 1)], {"f": f})
    sigma = [2 / math.sqrt(3), 6 / math.sqrt(3)]  # O, H
    ones = {"f": forces(torch.ones(2, 3), 2)}
    for variance, power in ((False, 1), (True, 2)):
        found = scaler.convert_spread([system(8, 1)], ones, variance=variance)["f"].block().values
        expected = [[s**power] * 3 for s in sigma]
        torch.testing.assert_close(found[..., 0], torch.tensor(expected).double())


@pytest.mark.parametrize("variance", [False, True])
def test_spreads_return_from_every_space(variance):
    systems, targets = four_targets()
    scaler = fit(systems, targets, baseline=FITTED)
    spreads = spread_of(members(1))
    for source in SPACES:
        for space in SPACES:
            there = scaler.convert_spread(systems, spreads, source, space, variance)
            back = scaler.convert_spread(systems, there, space, source, variance)
            for name, tensor in spreads.items():
                for ours, theirs in zip(values(back[name]), values(tensor), strict=True):
                    torch.testing.assert_close(ours, theirs)


def test_spreads_keep_their_dtype_and_need_no_weights():
    scaler = fit(
        [system(8), system(8, 8)], {"e": structure_target([-75.0, -149.0])}, baseline=FITTED
    )
    spread = {"e": structure_target([0.5], dtype=torch.float32), "other": structure_target([-1.0])}
    # Carbon has no contribution to the energy.
    found = scaler.convert_spread([system(6)], spread)
    assert found["e"].block().values.dtype == torch.float32
    sigma = scale(scaler, "e")[0][0]
    assert found["e"].block().values.item() == pytest.approx(0.5 * sigma, rel=1e-6)
    assert found["other"].block().values.item() == -1.0


@pytest.mark.parametrize(("variance", "what"), [(False, "spreads"), (True, "variances")])
def test_negative_spreads_are_refused_and_missing_ones_kept(variance, what):
    scaler = fit([system(8), system(8)], {"e": structure_target([1.0, 3.0])})
    message = f"target 'e', block (_=0): expected {what} of at least 0, got 1 that are negative"
    negative = {"e": structure_target([1.0, -0.1])}
    with pytest.raises(ValueError, match=re.escape(message)):
        scaler.convert_spread([system(8), system(8)], negative, variance=variance)
    missing = {"e": structure_target([math.nan, 1.0])}
    found = scaler.convert_spread([system(8), system(8)], missing, variance=variance)
    assert found["e"].block().values.isnan().flatten().tolist() == [True, False]


@pytest.mark.parametrize("variance", [False, True])
def test_plain_tensors_at_the_addresses_of_predictions_are_converted(variance):
    batch = {"z": torch.tensor([8, 1, 1, 8]), "n_atoms": torch.tensor([1, 3])}
    batch |= {"energy": torch.tensor([-3.0, 6.0]), "q": torch.tensor([2.0, 1.0, 1.0, 2.0])}
    declared = {"energy": PerStructure(prediction=("std", "e")), "q": PerAtom(prediction="q_std")}
    accumulator = ScaleAccumulator(targets=declared)
    accumulator.update(batch)
    output = {"std": {"e": torch.tensor([0.5, 2.0])}, "q_std": torch.tensor([1.0, 2.0, 3.0, 0.5])}
    found = accumulator.compute().convert_spread(batch, output, variance=variance)
    # Scales: the RMS of -3 and 2 per atom; 2 for O and 1 for H.
    power, sigma = 1 + variance, math.sqrt(13 / 2)
    energy = [0.5 * sigma**power, 2.0 * sigma**power]
    assert found["std"]["e"].tolist() == pytest.approx(energy, rel=1e-6)
    assert found["q_std"].tolist() == pytest.approx([2.0**power, 2.0, 3.0, 0.5 * 2.0**power])
    output["q_std"][0] = -1.0
    with pytest.raises(ValueError, match=r"target 'q', block .*: expected .* of at least 0"):
        accumulator.compute().convert_spread(batch, output, variance=variance)
