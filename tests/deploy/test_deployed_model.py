"""Scales frozen in TorchScript give the bits of ``Scaler.convert``."""

import io
import itertools
import math

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    fit,
    labels,
    spherical,
    structure_target,
    system,
)
from cases import cases, over
from hypothesis import given
from target_kinds import BATCHES, KINDS, random_numbers

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.deploy.deployed_model import FrozenScaler

WATER, CARBON_MONOXIDE = system(1, 8, 1), system(6, 8)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def frozen_scaler(scaler, types, dtype=torch.float64, names=("t",)):
    """The module as an engine has it: compiled, saved, and loaded."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(FrozenScaler(scaler, names, types, dtype).eval()), file)
    file.seek(0)
    return torch.jit.load(file)


def physical(scaler, systems, tensor, types=(1, 6, 8), selected=None):
    """A target in model space converted by the frozen scaler."""
    return frozen_scaler(scaler, types)(systems, {"t": tensor}, {}, selected)["t"]


def assert_same_bits(found, expected):
    assert found.keys == expected.keys
    for one, other in zip(found.blocks(), expected.blocks(), strict=True):
        assert one.samples == other.samples
        assert one.components == other.components
        assert one.properties == other.properties
        assert one.gradients_list() == other.gradients_list()
        parts = [(one, other)]
        parts += [(one.gradient(p), other.gradient(p)) for p in one.gradients_list()]
        for a, b in parts:
            assert a.values.dtype == b.values.dtype
            assert torch.equal(a.values.nan_to_num(nan=1.5e300), b.values.nan_to_num(nan=1.5e300))


def values(tensor, block=0):
    return tensor.block(block).values.flatten().tolist()


@pytest.mark.parametrize("intensive", [[], ["t"]], ids=["extensive", "intensive"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target_has_the_bits_of_convert(kind, intensive):
    numbers = random_numbers(seed=3)
    accumulator = ScaleAccumulator(intensive_targets=intensive, baseline=CompositionBaseline())
    for systems in BATCHES:
        accumulator.update(systems, {"t": KINDS[kind](systems, numbers)})
    scaler = accumulator.compute()
    frozen = frozen_scaler(scaler, [1, 6, 8], torch.float32)
    for systems, dtype in itertools.product(BATCHES, DTYPES):
        prediction = KINDS[kind](systems, numbers).to(dtype=dtype)
        expected = scaler.convert(systems, {"t": prediction}, "model", "physical")["t"]
        assert_same_bits(frozen(systems, {"t": prediction}, {}, None)["t"], expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # about zeros and types without data
@over(80)
@given(cases(exponents=(-20, 20), readings=("position",)))
def test_random_targets_have_the_bits_of_convert(case):
    """Any keys, shapes, types, orders of rows, missing values, fixed scales and baselines."""
    if not case.blocks:
        return
    scaler = case.accumulated().compute(None if case.fixed is None else {"t": case.fixed})
    scales = scaler.targets["t"]
    known = {z for types in case.compositions for z in types}
    if case.per_atom:
        known &= {*scales.types.tolist()}
    if scales.weights:
        known &= {*scales.baseline_types.tolist()}
    if not known:
        return
    frozen = FrozenScaler(scaler, ["t"], sorted(known), case.dtype)
    for k, chosen in enumerate(case.batches):
        blocks = case.blocks_of(k)
        if blocks and {z for i in chosen for z in case.compositions[i]} <= known:
            _, prediction, _ = case.tensors(chosen, blocks, shuffled=True)
            systems = [system(*case.compositions[i]) for i in chosen]
            expected = scaler.convert(systems, prediction, "model", "physical")["t"]
            assert_same_bits(frozen(systems, prediction, {}, None)["t"], expected)


# What happens to types is settled when the scaler is frozen.


@pytest.mark.parametrize(("policy", "factor"), [("pooled", math.sqrt(10)), ("identity", 1.0)])
def test_unseen_types_follow_the_policy_of_the_fit(policy, factor):
    # Scales: O 2, H 4; over all types sqrt((4 + 16) / 2) = sqrt(10).
    charges = atom_target([2.0, 4.0], atom_samples(2))
    scaler = fit([system(8, 1)], {"t": charges}, unseen_types=policy)
    ones = atom_target([1.0, 1.0], atom_samples(2))
    assert values(physical(scaler, [CARBON_MONOXIDE], ones)) == pytest.approx([factor, 2.0])


def test_an_unseen_type_is_refused_before_anything_is_written():
    charges = atom_target([2.0, 4.0], atom_samples(2))
    scaler = fit([system(8, 1)], {"t": charges})
    with pytest.raises(ValueError, match=r"'t': no scale for the atomic types \[6\].*'pooled'"):
        FrozenScaler(scaler, ["t"], [1, 6, 8], torch.float64)
    fixed = CompositionBaseline({"t": {8: -70.0}})
    energies = {"t": structure_target([-75.0])}
    scaler = fit([system(8)], energies, baseline=fixed, unseen_types="pooled")
    with pytest.raises(ValueError, match=r"no baseline for the atomic types \[6\].*'identity'"):
        FrozenScaler(scaler, ["t"], [6, 8], torch.float64)


def test_identity_subtracts_no_baseline_for_an_unseen_type():
    # The mean charge of O is 2, and so is its weight; its residuals ±1 have the RMS 1.
    charges = atom_target([1.0, 3.0], atom_samples(1, 1))
    systems = [system(8), system(8)]
    scaler = fit(systems, {"t": charges}, baseline=CompositionBaseline(), unseen_types="identity")
    ones = atom_target([1.0, 1.0], atom_samples(2))
    assert values(physical(scaler, [CARBON_MONOXIDE], ones, (6, 8))) == pytest.approx([1.0, 3.0])


def test_types_with_a_fixed_scale_only():
    charges = atom_target([2.0, 4.0], atom_samples(2))
    scaler = fit([system(8, 1)], {"t": charges}, fixed_scales={"t": {1: 3, 6: 5, 8: 7}})
    ones = atom_target([1.0, 1.0], atom_samples(2))
    assert values(physical(scaler, [CARBON_MONOXIDE], ones)) == [5.0, 7.0]


def test_a_type_outside_the_list_is_an_error_at_run_time():
    charges = atom_target([2.0, 4.0], atom_samples(2))
    frozen = frozen_scaler(fit([system(8, 1)], {"t": charges}), [1, 8])
    with pytest.raises(
        torch.jit.Error, match=r"no scales for the atomic types \[6\], only for \[1, 8\]"
    ):
        frozen([CARBON_MONOXIDE], {"t": charges}, {}, None)


@pytest.mark.filterwarnings("ignore:some atomic types have no data")
def test_an_unknown_weight_makes_only_its_own_property_nan():
    # The second property was never measured for carbon.
    numbers = [[1.0, 2.0], [3.0, 4.0], [4.0, 4.5], [5.0, math.nan], [6.0, math.nan]]
    systems = [system(8), system(8, 1), system(8, 1), system(6), system(6)]
    scaler = fit(systems, {"t": structure_target(numbers)}, baseline=CompositionBaseline())
    zeros = structure_target(torch.zeros(2, 2))
    found = physical(scaler, [WATER, CARBON_MONOXIDE], zeros).block().values
    assert found.isnan().tolist() == [[False, False], [False, True]]
    shares = atom_target(torch.zeros(2, 2), atom_samples(2))
    found = physical(scaler, [CARBON_MONOXIDE], shares).block().values
    assert found.isnan().tolist() == [[False, True], [False, False]]


def test_enabled_false_leaves_the_baseline():
    accumulator = ScaleAccumulator(baseline=CompositionBaseline({"t": {8: -75.0}}))
    accumulator.update([system(8, 8)], {"t": structure_target([-160.0])})
    scaler = accumulator.compute(enabled=False)
    prediction = structure_target([0.25])
    assert values(physical(scaler, [system(8)], prediction, [8])) == pytest.approx([-74.75])


@pytest.mark.filterwarnings("ignore:some atomic types have no data for a property")
def test_the_weight_of_an_unseen_type_is_0_beside_one_that_is_unknown():
    """-1 and -3 for H and H2 give H a weight of -7 / 5; the only structure with O has no label."""
    scaler = fit(
        [system(1), system(1, 1), system(1, 8)],
        {"t": structure_target([-1.0, -3.0, math.nan])},
        baseline=CompositionBaseline(),
        unseen_types="identity",
    )
    sigma = math.sqrt((0.4**2 + 0.1**2) / 2)
    found = physical(scaler, [system(9), system(8)], structure_target([0.5, 0.5]), (1, 8, 9))
    assert values(found) == pytest.approx([0.5 * sigma, math.nan], nan_ok=True)


# Shares of atoms, and selected atoms.


def energies():
    """The scaler of three energies, with the weights -10 of O, -1 of H and -5 of C."""
    fixed = CompositionBaseline({"t": {8: -10.0, 1: -1.0, 6: -5.0}})
    return fit([WATER], {"t": structure_target([-6.0])}, baseline=fixed)


def test_shares_of_atoms_have_the_weight_of_their_type():
    # The scale is |(-6 + 12) / 3| = 2.
    scaler = energies()
    shares = atom_target([0.5, 0.25, 0.0], [[0, 1], [0, 2], [0, 0]])
    found = physical(scaler, [WATER], shares)
    assert values(found) == pytest.approx([-9.0, -0.5, -1.0])
    total = physical(scaler, [WATER], structure_target([0.75]))
    assert values(total) == pytest.approx([sum(values(found))])


@pytest.mark.slow
def test_totals_of_two_selections_add_up():
    scaler = energies()
    systems = [WATER, CARBON_MONOXIDE]
    parts = []
    for rows, numbers in (([[0, 0], [0, 1]], [0.5, 0.0]), ([[0, 2], [1, 0], [1, 1]], [0.25, 1.0])):
        selected = labels(["system", "atom"], rows)
        found = physical(scaler, systems, structure_target(numbers), selected=selected)
        parts.append(found.block().values)
    # H O | H, C O
    assert parts[0].flatten().tolist() == pytest.approx([2 * 0.5 - 11, 0.0])
    assert parts[1].flatten().tolist() == pytest.approx([2 * 0.25 - 1, 2 * 1.0 - 15])
    whole = physical(scaler, systems, structure_target([0.75, 1.0])).block().values
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-15, atol=0)


@pytest.mark.slow
def test_fractions_of_an_intensive_target_are_of_all_atoms():
    # Gaps are means over atoms: 3 for O, 5 for H.
    scaler = fit(
        [system(8)],
        {"t": structure_target([4.0])},
        intensive_targets=["t"],
        baseline=CompositionBaseline({"t": {8: 3.0, 1: 5.0}}),
    )
    zeros = structure_target([0.0])
    whole = values(physical(scaler, [WATER], zeros, (1, 8)))
    assert whole == pytest.approx([(5 + 3 + 5) / 3])
    parts = []
    for rows in ([[0, 0]], [[0, 1], [0, 2]]):
        selected = labels(["system", "atom"], rows)
        parts += values(physical(scaler, [WATER], zeros, (1, 8), selected))
    assert parts == pytest.approx([5 / 3, 8 / 3])
    shares = physical(scaler, [WATER], atom_target([0.0] * 3, atom_samples(3)), (1, 8))
    assert values(shares) == pytest.approx([5 / 3, 1.0, 5 / 3])
    empty = physical(scaler, [system(), WATER], structure_target([0.0, 0.0]), (1, 8))
    assert values(empty) == pytest.approx([0.0, 13 / 3])


def test_no_systems_at_all():
    frozen = frozen_scaler(energies(), [1, 6, 8])
    nothing = structure_target(torch.zeros(0, 1), systems=[])
    assert frozen([], {"t": nothing}, {}, None)["t"].block().values.shape == (0, 1)


def test_other_names_pass_through():
    frozen = frozen_scaler(energies(), [1, 6, 8])
    other = structure_target([1.0])
    assert_same_bits(frozen([WATER], {"features": other}, {}, None)["features"], other)


# Precision.


@pytest.mark.parametrize("cast", ["half", "float"])
def test_casts_do_not_round_the_tables(cast):
    # A third is not representable in either format.
    scaler = fit([WATER], {"t": structure_target([1.0])})
    frozen = getattr(frozen_scaler(scaler, [1, 8]), cast)()
    found = frozen([WATER], {"t": structure_target([1.0])}, {}, None)["t"].block().values
    assert found.dtype == torch.float64
    assert found.item() == 1.0 / 3.0


def test_a_scale_that_float32_cannot_hold_is_refused():
    scaler = fit([WATER], {"t": structure_target([3e-50])})
    with pytest.raises(ValueError, match=r"'t': expected scales within the range of torch.float32"):
        FrozenScaler(scaler, ["t"], [1, 8], torch.float32)
    FrozenScaler(scaler, ["t"], [1, 8], torch.float64)


# Blocks that were not fitted.


def test_blocks_in_another_order_and_blocks_that_are_absent():
    numbers = {0: [[[2.0]]], 1: [[[6.0]] * 3], 2: [[[8.0]] * 5]}
    scaler = fit([system(8)], {"t": spherical(numbers, labels("system", [0]))})
    some = {2: [[[1.0]] * 5], 0: [[[1.0]]]}
    found = physical(scaler, [system(8)], spherical(some, labels("system", [0])), [8])
    assert [values(found, 0), values(found, 1)] == [[8.0] * 5, [2.0]]


def test_predictions_that_do_not_have_the_layout_of_the_fit_are_refused():
    numbers = {0: [[[2.0]]], 1: [[[6.0]] * 3]}
    frozen = frozen_scaler(fit([WATER], {"t": spherical(numbers, labels("system", [0]))}), [1, 8])
    wrong = {
        r"'t': no scale for the block \[2, 1\]": spherical(
            {2: [[[1.0]] * 5]}, labels("system", [0])
        ),
        r"expected keys named \[o3_lambda, o3_sigma\], as in the fit, got \[_\]": (
            structure_target([1.0])
        ),
        "expected 1 properties, as in the fit, got 2": spherical(
            {0: [[[1.0, 2.0]]]}, labels("system", [0])
        ),
    }
    for words, tensor in wrong.items():
        with pytest.raises(torch.jit.Error, match=words):
            frozen([WATER], {"t": tensor}, {}, None)
