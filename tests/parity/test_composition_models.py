"""Composition baselines and scales equal those of metatrain, where its fit is accurate."""

import pytest
import torch
from builders import structure_target, system
from metatensor.torch import TensorBlock, TensorMap
from metatomic.torch import ModelOutput
from metatrain.composition._base_composition import BaseCompositionModel
from reference import convert_metatrain, copies, fit_metatrain, layout_of
from target_kinds import BATCHES, KINDS, random_numbers

from lightning_scaler import CompositionBaseline, ScaleAccumulator

# metatrain solves normal equations, which square the condition number.
ACCURACY = 1e-8

WITH_INVARIANTS = [
    "energy",
    "properties of structures",
    "irreps of structures",
    "rank 2 of structures",
    "charges",
    "properties of atoms",
    "irreps of atoms",
    "rank 2 of atoms",
    "atomic basis",
]


def fit_composition(batches, types):
    layouts = {name: layout_of(tensor) for name, tensor in batches[0][1].items()}
    model = BaseCompositionModel(list(types), layouts)
    for systems, targets in batches:
        model.accumulate(systems, copies(targets))
    model.fit()
    return model


def composition_of(model, systems, targets):
    kinds = {
        name: "atom" if "atom" in tensor.sample_names else "system"
        for name, tensor in targets.items()
    }
    outputs = {name: ModelOutput(sample_kind=kind) for name, kind in kinds.items()}
    return model(systems, outputs)


def with_composition(model, systems, targets, sign=1.0):
    baseline = composition_of(model, systems, targets)
    changed = {}
    for name, tensor in targets.items():
        blocks = []
        for row, key in enumerate(tensor.keys):
            block = tensor.block_by_id(row)
            values = block.values.clone()
            if key in baseline[name].keys:
                values = values + sign * baseline[name].block(key).values
            blocks.append(TensorBlock(values, block.samples, block.components, block.properties))
        changed[name] = TensorMap(tensor.keys, blocks)
    return changed


def without_composition(model, systems, targets):
    return with_composition(model, systems, targets, sign=-1.0)


@pytest.mark.parametrize("kind", WITH_INVARIANTS)
def test_composition_weights_scales_and_predictions(agree, kind):
    numbers = random_numbers(seed=11)
    batches = [(systems, {"target": KINDS[kind](systems, numbers)}) for systems in BATCHES]
    model = fit_composition(batches, (1, 6, 8))
    left = [(systems, without_composition(model, systems, targets)) for systems, targets in batches]
    theirs = fit_metatrain([(*batch, {}) for batch in left])
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    for batch in batches:
        accumulator.update(*batch)
    ours = accumulator.compute()
    compared = f"{kind}, after the baseline"
    layout = ours.targets["target"].layout
    for row, key in enumerate(theirs.scales["target"].keys):
        values = ours.scales["target"].block_by_id(row).values
        expected = theirs.scales["target"].block(key).values
        rows = [(1, 6, 8).index(key["atom_type"])] if kind == "atomic basis" else slice(None)
        agree(compared, values[rows], expected[rows], ACCURACY)
        if key in model.weights["target"].keys:
            assert layout.invariance(tuple(key.values.tolist())) is not None
            weights = ours.targets["target"].weights[tuple(key.values.tolist())][rows]
            stored = model.weights["target"].block(key).values[rows]
            if stored.dim() == 4:
                stored = stored.diagonal(dim1=1, dim2=2).mean(-1)
            agree(compared, weights, stored.reshape(weights.shape), ACCURACY)
    for systems, targets in batches:
        mine = ours.convert(systems, targets, "model", "physical")["target"]
        yours = convert_metatrain(theirs, systems, targets, "model", "physical")
        yours = with_composition(model, systems, yours)["target"]
        for one, other in zip(mine.blocks(), yours.blocks(), strict=True):
            agree(compared, one.values, other.values, ACCURACY)


def test_large_totals_with_small_residuals(agree):
    # -1e4 eV with residuals of 1e-2 eV. Compared with a fit in 60 digits, the error of metatrain is
    # 2e-9, ours is 1e-10: normal equations square the condition number.
    numbers = random_numbers(seed=2)
    systems = [one for batch in BATCHES for one in batch]
    atomic = {1: -13.6, 6: -1030.5, 8: -2041.8}
    totals = [sum(atomic[z] for z in one.types.tolist()) for one in systems]
    totals = [total + 0.01 * float(numbers(1)) for total in totals]
    batch = (systems, {"energy": structure_target(totals)})
    model = fit_composition([batch], (1, 6, 8))
    theirs = fit_metatrain([(systems, without_composition(model, *batch), {})])
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    accumulator.update(*batch)
    ours = accumulator.compute()
    agree(
        "totals of 1e4 eV, after the baseline",
        ours.scales["energy"].block().values,
        theirs.scales["energy"].block().values,
        1e-7,
    )


def test_a_missing_total_is_left_out():
    # A NaN in the normal equations of metatrain makes all its weights NaN.
    systems = [system(8), system(1, 1), system(1, 8, 1), system(1, 8)]
    energy = {"energy": structure_target([-2041.0, -27.0, -2070.0, float("nan")])}
    assert (
        fit_composition([(systems, energy)], (1, 8)).weights["energy"].block().values.isnan().all()
    )
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    accumulator.update(systems, energy)
    weights = accumulator.compute().targets["energy"].weights[(0,)]
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    accumulator.update(systems[:3], {"energy": structure_target([-2041.0, -27.0, -2070.0])})
    assert torch.equal(weights, accumulator.compute().targets["energy"].weights[(0,)])


def test_weights_of_a_single_composition():
    # Both give -2069 eV for water. Our weights have the minimum norm: 2/5 and 1/5 of the total.
    # Those of metatrain depend on its regulariser and on rounding.
    systems = [system(1, 8, 1), system(1, 1, 8), system(8, 1, 1)]
    energy = {"energy": structure_target([-2069.0, -2070.0, -2068.0])}
    model = fit_composition([(systems, energy)], (1, 8))
    total_of_water = composition_of(model, systems[:1], energy)["energy"].block().values
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    accumulator.update(systems, energy)
    weights = accumulator.compute().targets["energy"].weights[(0,)]
    torch.testing.assert_close(weights, torch.tensor([[-827.6], [-413.8]]).double())
    assert float(total_of_water) == pytest.approx(-2069.0, rel=1e-3)
