"""Scales and conversions of every kind of target equal those of metatrain."""

import itertools

import pytest
import torch
from reference import convert_metatrain, fit_metatrain
from target_kinds import BATCHES, KINDS, mask_out, random_numbers, with_nan

from lightning_scaler import ScaleAccumulator

SPACES = ("physical", "loss", "model")
INTENSIVE = {"energy": ("target",), "irreps of structures": ("target",)}


def batches_of(kind, variant):
    numbers = random_numbers(seed=3)
    for systems in BATCHES:
        target, masks = KINDS[kind](systems, numbers), {}
        if variant == "missing":
            target = with_nan(target)
        if variant == "masked":
            masks = {"target": mask_out(target)}
        yield systems, {"target": target}, masks


def both(kind, variant, intensive=()):
    batches = list(batches_of(kind, variant))
    accumulator = ScaleAccumulator(intensive_targets=intensive)
    for batch in batches:
        accumulator.update(*batch)
    return batches, accumulator.compute(), fit_metatrain(batches, intensive)


def compare(agree, name, ours, theirs):
    assert ours.keys == theirs.keys
    for key in ours.keys:
        one, other = ours.block(key), theirs.block(key)
        agree(name, one.values, other.values)
        assert one.gradients_list() == other.gradients_list()
        for parameter in one.gradients_list():
            agree(name, one.gradient(parameter).values, other.gradient(parameter).values)


@pytest.mark.parametrize("variant", ["complete", "missing", "masked"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "atom pairs"])
def test_scales_of_every_kind(agree, kind, variant):
    _, ours, theirs = both(kind, variant)
    compare(agree, kind, ours.per_target_scales["target"], theirs.per_target_scales["target"])
    for name, stored in (("scales", theirs.scales), ("per_property_scales", None)):
        tensor = getattr(ours, name)["target"]
        stored = (stored or theirs.per_property_scales)["target"]
        for row, key in enumerate(tensor.keys):
            one, other = tensor.block_by_id(row).values, stored.block(key).values
            # The rows of other types are compared in test_differences.
            rows = [(1, 6, 8).index(key["atom_type"])] if kind == "atomic basis" else slice(None)
            agree(kind, one[rows], other[rows])


@pytest.mark.parametrize("kind", INTENSIVE)
def test_scales_of_intensive_targets(agree, kind):
    _, ours, theirs = both(kind, "complete", INTENSIVE[kind])
    compare(agree, f"{kind}, intensive", ours.scales["target"], theirs.scales["target"])


@pytest.mark.parametrize("variant", ["complete", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_of_every_kind(agree, kind, variant):
    batches, ours, theirs = both(kind, variant)
    for systems, targets, _ in batches:
        for source, target in itertools.permutations(SPACES, 2):
            mine = ours.convert(systems, targets, source, target)["target"]
            yours = convert_metatrain(theirs, systems, targets, source, target)["target"]
            compare(agree, kind, mine, yours)


@pytest.mark.parametrize("kind", ["energy, positions and strain", "forces", "atomic basis"])
def test_conversions_of_float32_targets(kind):
    batches, ours, _ = both(kind, "complete")
    batches = [
        (systems, {"target": targets["target"].to(torch.float32)}, masks)
        for systems, targets, masks in batches
    ]
    theirs = fit_metatrain(batches)
    for systems, targets, _ in batches:
        mine = ours.convert(systems, targets, "physical", "loss")["target"]
        yours = convert_metatrain(theirs, systems, targets, "physical", "loss")["target"]
        for one, other in zip(mine.blocks(), yours.blocks(), strict=True):
            assert one.values.dtype == other.values.dtype == torch.float32
            torch.testing.assert_close(one.values, other.values, rtol=1e-6, atol=0.0)
