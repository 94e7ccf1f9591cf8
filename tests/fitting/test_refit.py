"""Fits that keep a part of an earlier one: new atomic types, a new baseline, new scales."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from builders import (
    Springs,
    atom_samples,
    atom_target,
    atomic_basis,
    fit,
    forces,
    four_targets,
    labels,
    pair_target,
    scale,
    spherical,
    structure_target,
    system,
)
from by_hand import near, rms
from metatensor.torch import TensorMap

from lightning_scaler import CompositionBaseline, PerStructure, ScaleAccumulator, Scaler
from lightning_scaler.scaling.scaler_state import write_target_scales

NAN = float("nan")
FITTED = CompositionBaseline()
# Small data are explained exactly.
pytestmark = pytest.mark.filterwarnings("ignore:these data are zero")

SPACES = ("physical", "loss", "model")


def refit(scaler, systems, targets, part="types", masks=None, errors=None, **options):
    """The scaler after a fit to one batch; ``errors`` are TensorMaps of the same systems."""
    names = ("fixed_scales", "unseen_types", "new_scales")
    of_refit = {name: options.pop(name) for name in names if name in options}
    options = {"baseline": FITTED, **options}
    accumulator = ScaleAccumulator(**options)
    accumulator.update(systems, targets, masks)
    if errors is not None:
        of_refit["errors"] = ScaleAccumulator(**options)
        of_refit["errors"].update(systems, errors)
    return accumulator.refit(scaler, part, **of_refit)


def weights(scaler, name, block=0):
    """The weights of a block by type; one list per type."""
    scales = scaler.targets[name]
    table = list(scales.weights.values())[block]
    return dict(zip(scales.baseline_types.tolist(), table.tolist(), strict=True))


def new_elements(generator_seed=1):
    """Systems with the types of ``four_targets`` and with N and F, and their targets."""
    rng = np.random.default_rng(generator_seed)
    systems = [system(7), system(9, 8), system(1, 7, 1), system(7, 9)]
    targets = {
        "energy": structure_target([-54.0, -174.0, -55.2, -153.9]),
        "alpha": spherical(
            {0: rng.normal(size=(4, 1, 2)) + 4, 2: rng.normal(size=(4, 5, 1))},
            labels("system", [0, 1, 2, 3]),
        ),
        "charges": atom_target(rng.normal(size=(8, 2)), atom_samples(1, 2, 3, 2)),
        "basis": atomic_basis(
            {(1, 7): rng.normal(size=(3, 3, 2)), (1, 9): rng.normal(size=(2, 3, 1))},
            {7: [[0, 0], [2, 1], [3, 0]], 9: [[1, 0], [3, 1]]},
        ),
    }
    return systems, targets


# New types


def test_weights_of_new_types_are_fitted_to_what_the_others_leave():
    # H and O: 1 and -3, exactly.
    old = fit([system(8), system(1, 8, 1)], {"e": structure_target([-3.0, -1.0])}, baseline=FITTED)
    systems = [system(7), system(7, 7), system(7, 1)]
    scaler = refit(old, systems, {"e": structure_target([-50.0, -104.0, -46.0])})
    # N: -50, -104 and -47 with counts of 1, 2 and 1: (-50 - 208 - 47) / 6.
    found = weights(scaler, "e")
    assert {z: found[z] for z in (1, 8)} == weights(old, "e")
    assert found[7] == near(-305 / 6)
    assert scaler.targets["e"].rms_after == old.targets["e"].rms_after


def test_every_number_and_every_conversion_of_known_types_stays_to_the_bit():
    systems, targets = four_targets()
    old = fit(systems, targets, baseline=FITTED)
    before = old.state()
    scaler = refit(old, *new_elements())
    assert str(old.state()) == str(before)
    for name, scales in scaler.targets.items():
        earlier = old.targets[name]
        same = [z in earlier.types.tolist() for z in scales.types.tolist()]
        rows = torch.tensor([*same, True, True])  # over all types, and ones
        assert torch.equal(scales.per_target[rows], earlier.per_target)
        for key, table in earlier.per_property.items():
            assert torch.equal(scales.per_property[key][rows], table)
        assert scales.mean_squares == earlier.mean_squares
        assert scales.rms_before == earlier.rms_before
    assert scaler.targets["charges"].types.tolist() == [1, 6, 7, 8, 9]
    assert scaler.targets["energy"].types.tolist() == [-1]
    for source in SPACES:
        for space in SPACES:
            ours = scaler.convert(systems, targets, source, space)
            theirs = old.convert(systems, targets, source, space)
            for name in targets:
                for first, second in zip(ours[name].blocks(), theirs[name].blocks(), strict=True):
                    assert torch.equal(first.values, second.values)


def test_scales_of_new_types_are_their_rms_after_their_baseline():
    old = fit([system(8, 1)], {"q": atom_target([[2.0], [4.0]], atom_samples(2))}, baseline=FITTED)
    q = atom_target([9.0, 1.0, 5.0, 70.0], atom_samples(4))
    scaler = refit(old, [system(7, 7, 7, 8)], {"q": q})
    # N: 9, 1, 5 with the mean 5 and the RMS sqrt((16 + 16 + 0) / 3); O had the weight 2.
    assert weights(scaler, "q") == {1: [4.0], 7: near(5), 8: [2.0]}
    assert scale(scaler, "q")[1] == near(math.sqrt(32 / 3))
    assert [scale(scaler, "q")[row] for row in (0, 2)] == scale(old, "q")


def test_properties_of_new_types_have_scales_relative_to_their_type():
    values = [[2.0, 1.0], [4.0, 7.0]]
    old = fit([system(8, 1)], {"q": atom_target(values, atom_samples(2))})
    scaler = refit(
        old, [system(7)], {"q": atom_target([[3.0, 5.0]], atom_samples(1))}, baseline=None
    )
    sigma = rms(3, 5)
    assert scale(scaler, "q", "per_target_scales")[1] == near(sigma, sigma)
    assert scale(scaler, "q")[1] == near(3, 5)


def test_blocks_of_a_new_type_are_added_to_an_atomic_basis():
    old = fit(*four_targets(), baseline=FITTED)
    systems, targets = new_elements()
    scaler = refit(old, systems, targets)
    layout = scaler.targets["basis"].layout
    assert list(layout.blocks) == [(1, 1, 8), (1, 1, 1), (1, 1, 7), (1, 1, 9)]
    nitrogen = targets["basis"].block({"atom_type": 7}).values
    expected = [rms(*nitrogen[:, :, p].flatten().tolist()) for p in range(2)]
    types = scaler.targets["basis"].types.tolist()
    assert scale(scaler, "basis", block=2)[types.index(7)] == near(*expected)
    # Types that a block is not for have full scales of 1.
    assert scale(scaler, "basis", block=2)[types.index(8)] == near(1, 1)
    assert scale(scaler, "basis", block=0)[types.index(7)] == near(1, 1)
    again = Scaler()
    again.set_extra_state(scaler.get_extra_state())
    in_model = again.convert(systems, targets, target="model")["basis"]
    found = in_model.block({"atom_type": 7}).values
    torch.testing.assert_close(found, nitrogen / torch.tensor(expected).double())


def test_blocks_absent_from_the_new_data_keep_their_numbers():
    systems, targets = four_targets()
    old = fit(systems, targets, baseline=FITTED)
    nitrogen = spherical({2: torch.ones(1, 5, 1)}, labels("system", [0]))
    with pytest.warns(UserWarning, match=r"some atomic types have no data.*types \[7\]"):
        scaler = refit(old, [system(7, 8)], {"alpha": nitrogen})
    assert scale(scaler, "alpha") == scale(old, "alpha")
    # Nothing is known about the first block of N.
    assert weights(scaler, "alpha")[8] == weights(old, "alpha")[8]
    one = spherical({0: torch.ones(1, 1, 2), 2: torch.ones(1, 5, 1)}, labels("system", [0]))
    with pytest.warns(UserWarning, match=r"predictions are NaN.*types \[7\]"):
        alpha = scaler.convert([system(7)], {"alpha": one}, "model", "physical")["alpha"]
    assert alpha.block(0).values.isnan().all()
    assert not alpha.block(1).values.isnan().any()


def test_properties_that_are_zero_are_listed_for_old_and_new_types():
    old = fit([system(8, 1)], {"q": atom_target([[0.0, 1.0], [4.0, 7.0]], atom_samples(2))})
    nitrogen = {"q": atom_target([[3.0, 0.0], [2.0, 5.0]], atom_samples(2))}
    scaler = refit(old, [system(7, 8)], nitrogen, baseline=None)
    # H, N, O: the first property of O was zero, the second of N is.
    expected = [[False, False], [False, True], [True, False]]
    assert scaler.targets["q"].zeros[(0,)].tolist() == expected


def test_weights_that_were_unknown_are_fitted():
    shielding = spherical({0: [[[1.0, 4.0]], [[NAN, 9.0]]]}, labels("system", [0, 1]))
    with pytest.warns(UserWarning, match="some atomic types have no data"):
        old = fit([system(8), system(1, 8)], {"s": shielding}, baseline=FITTED)
    assert old.targets["s"].unknown_types == [1]
    new = spherical({0: [[[3.0, 0.0]]]}, labels("system", [0]))
    scaler = refit(old, [system(1, 8)], {"s": new})
    # The first property has O = 1 and now H = 3 - 1; the second stays at O = 4, H = 5.
    assert weights(scaler, "s") == {1: near(2, 5), 8: weights(old, "s")[8]}
    assert scaler.targets["s"].unknown_types == []


def test_fixed_numbers_of_new_types_need_no_data():
    systems, targets = (
        [system(8), system(1, 8)],
        {
            "e": structure_target([-3.0, -1.0]),
            "q": atom_target([2.0, 4.0, 5.0], atom_samples(1, 2)),
        },
    )
    old = fit(systems, targets, baseline=CompositionBaseline({"e": {8: -3.0}}))
    fixed = CompositionBaseline({"e": {8: -3.0, 7: -54.0}, "q": {7: 1.0}})
    scaler = refit(old, systems, targets, fixed_scales={"q": {7: 0.5}}, baseline=fixed)
    assert weights(scaler, "e") == {**weights(old, "e"), 7: [-54.0]}
    zero = {"q": atom_target([0.0, 2.0], atom_samples(2))}
    found = scaler.convert([system(7, 7)], zero, "model", "physical")["q"].block().values
    assert found.flatten().tolist() == [1.0, 2.0]
    # A later fit with data of N keeps both numbers.
    q = {"q": atom_target([9.0, 7.0], atom_samples(2))}
    again = refit(scaler, [system(7, 8)], q, fixed_scales={"q": {7: 0.5}}, baseline=fixed)
    assert weights(again, "q")[7] == [1.0]
    assert scale(again, "q")[1] == [0.5]
    assert again.targets["q"].types.tolist() == [1, 7, 8]
    assert again.targets["q"].fixed_only_types.tolist() == []


def test_an_earlier_fixed_scale_counts_where_another_is_given_now():
    old = fit([system(8)], {"q": atom_target([3.0], atom_samples(1))}, fixed_scales={"q": {8: 2.0}})
    new = {"q": atom_target([4.0, 5.0], atom_samples(2))}
    scaler = refit(old, [system(1, 8)], new, baseline=None, fixed_scales={"q": {1: 0.5, 8: 7.0}})
    assert scaler.targets["q"].fixed == {1: 0.5, 8: 2.0}
    assert scale(scaler, "q", "per_target_scales") == [[0.5], [2.0]]


def test_only_new_types_are_said_to_be_zero():
    """Of O, new data are the mean of the earlier ones: 0 after subtracting the baseline."""
    old = fit([system(8, 8)], {"q": atom_target([3.0, 5.0], atom_samples(2))}, baseline=FITTED)
    charges = {"q": atom_target([4.0, 5.0, 9.0], atom_samples(1, 2))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler = refit(old, [system(8), system(1, 1)], charges)
    assert scale(scaler, "q") == [[2.0], [1.0]]
    with pytest.warns(UserWarning, match="these data are zero.*type H"):
        refit(old, [system(8), system(1)], {"q": atom_target([4.0, 5.0], atom_samples(1, 1))})


def test_targets_without_scales_are_fitted_and_absent_ones_kept():
    old = fit([system(8, 1)], {"q": atom_target([2.0, 4.0], atom_samples(2))})
    new = structure_target([3.0, 12.0])
    scaler = refit(old, [system(8), system(1, 8, 1)], {"e": new}, baseline=None)
    assert scale(scaler, "e") == [near(rms(3, 4))]
    assert str(write_target_scales(scaler.targets["q"])) == str(
        write_target_scales(old.targets["q"])
    )


def test_atom_pairs_and_disabled_scales_stay_as_they_are():
    pairs = pair_target([1.0], [[0, 0, 1, 0, 0, 0]])
    accumulator = ScaleAccumulator(baseline=FITTED)
    q = atom_target([2.0, 4.0], atom_samples(2))
    accumulator.update([system(8, 1)], {"pairs": pairs, "q": q})
    old = accumulator.compute(enabled=False)
    scaler = refit(old, [system(7, 7)], {"pairs": pairs, "q": q})
    assert scale(scaler, "pairs") == [[1.0]]
    assert scale(scaler, "q") == [[1.0]] * 3
    assert weights(scaler, "q")[7] == near(3)
    assert scaler.mean_squares["pairs"] == old.mean_squares["pairs"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            {"alpha": spherical({3: torch.ones(1, 7, 1)}, labels("system", [0]))},
            r"'alpha': the data have the block (o3_lambda=3, o3_sigma=1), which was not in the "
            "data of the scales that are kept; known: ['o3_lambda=0, o3_sigma=1'",
        ),
        (
            {"charges": atom_target([[1.0]], atom_samples(1))},
            "target 'charges', block (_=0): expected properties",
        ),
        ({"energy": atom_target([1.0], atom_samples(1))}, "as in the scales that are kept"),
    ],
)
def test_another_layout_is_refused(targets, message):
    old = fit(*four_targets(), baseline=FITTED)
    with pytest.raises(ValueError, match=re.escape(message)):
        refit(old, [system(7)], targets)


def test_an_intensive_target_on_counts_stays_on_counts():
    counted = CompositionBaseline(counted=("gap",))
    systems, gap = [system(8), system(8, 8, 1)], {"gap": structure_target([2.0, 7.0])}
    old = fit(systems, gap, baseline=counted, intensive_targets=["gap"])
    assert old.targets["gap"].composition == "counts"
    assert weights(old, "gap") == {1: near(3), 8: near(2)}
    new = {"gap": structure_target([14.0])}
    settings = {"baseline": counted, "intensive_targets": ["gap"]}
    # On fractions N would have 2 · 14 - 2.
    assert weights(refit(old, [system(7, 8)], new, **settings), "gap")[7] == near(12)


def test_settings_saved_before_the_choice_of_counts_are_read():
    saved = {"fixed": {"e": {1: -1.0}}, "excluded": ["gap"]}
    assert CompositionBaseline.from_state(saved) == CompositionBaseline({"e": {1: -1}}, ("gap",))


# A new baseline


def test_a_new_baseline_keeps_the_scales_and_the_weights_of_types_without_data():
    systems, targets = four_targets()
    old = fit(systems, targets, baseline=FITTED)
    shifted = {"energy": structure_target([-80.0, -82.0, -170.0])}
    scaler = refit(old, [system(8), system(1, 8, 1), system(8, 8, 1)], shifted, "baseline")
    counts = [[0, 1], [2, 1], [1, 2]]
    expected = np.linalg.lstsq(np.array(counts, float), [-80, -82, -170.0], rcond=None)[0]
    found = weights(scaler, "energy")
    np.testing.assert_allclose([found[1][0], found[8][0]], expected, rtol=1e-12)
    assert found[6] == weights(old, "energy")[6]
    assert scale(scaler, "energy") == scale(old, "energy")
    left = [-80 - expected[1], (-82 - expected @ [2, 1]) / 3, (-170 - expected @ [1, 2]) / 3]
    assert scaler.targets["energy"].rms_after == pytest.approx(rms(*left), rel=1e-9)
    sigma = scale(old, "energy")[0][0]
    assert scaler.mean_squares["energy"] == pytest.approx((rms(*left) / sigma) ** 2, rel=1e-8)
    assert str(write_target_scales(scaler.targets["charges"])) == str(
        write_target_scales(old.targets["charges"])
    )


def test_a_new_baseline_brings_weights_and_scales_of_new_types():
    old = fit([system(8, 1)], {"q": atom_target([2.0, 4.0], atom_samples(2))}, baseline=FITTED)
    q = atom_target([9.0, 1.0, 70.0], atom_samples(3))
    scaler = refit(old, [system(7, 7, 8)], {"q": q}, "baseline")
    assert weights(scaler, "q") == {1: [4.0], 7: near(5), 8: near(70)}
    assert scale(scaler, "q")[1] == near(4)
    assert [scale(scaler, "q")[row] for row in (0, 2)] == scale(old, "q")


def test_errors_correct_the_weights_of_their_types():
    systems, targets = four_targets()
    old = fit(systems, {"energy": targets["energy"]}, baseline=FITTED)
    before = weights(old, "energy")
    new = [system(8), system(1, 8, 1)]
    energy = {"energy": structure_target([-80.0, -82.0])}
    # Errors of 2 for O and -1 for H2O: 2 for O and -1.5 for H.
    errors = {"energy": structure_target([2.0, -1.0])}
    scaler = refit(old, new, energy, "baseline", errors=errors)
    expected = {1: near(before[1][0] - 1.5), 6: before[6], 8: near(before[8][0] + 2)}
    assert weights(scaler, "energy") == expected
    # With O fixed at 1 more than before, an error of -2 is left for two H.
    fixed = CompositionBaseline({"energy": {8: before[8][0] + 1}})
    scaler = refit(old, new, energy, "baseline", errors=errors, baseline=fixed)
    assert weights(scaler, "energy")[1] == near(before[1][0] - 1)
    assert weights(scaler, "energy")[8] == [before[8][0] + 1]


def test_errors_of_molecules_of_one_kind_change_no_more_than_needed():
    old = fit([system(8), system(1, 8)], {"e": structure_target([-3.0, -1.0])}, baseline=FITTED)
    water, errors = [system(1, 8, 1)], {"e": structure_target([10.0])}
    scaler = refit(old, water, {"e": structure_target([11.0])}, "baseline", errors=errors)
    # The correction of smallest norm is (2, 1) · 10 / 5.
    assert weights(scaler, "e") == {1: near(2 + 4), 8: near(-3 + 2)}


def test_errors_of_atoms_correct_the_weight_of_their_type():
    old = fit([system(8, 1)], {"q": atom_target([2.0, 4.0], atom_samples(2))}, baseline=FITTED)
    q, errors = ({"q": atom_target(v, atom_samples(2))} for v in ([5.0, 5.0], [0.5, 1.5]))
    scaler = refit(old, [system(8, 8)], q, "baseline", errors=errors)
    assert weights(scaler, "q") == {1: [4.0], 8: near(3)}


# New scales


def test_new_scales_of_one_target_keep_its_baseline_and_the_other_targets():
    systems, targets = four_targets()
    old = fit(systems, targets, baseline=FITTED)
    scaler = refit(old, systems, four_targets(10.0)[1], "scales", new_scales=["energy"])
    assert weights(scaler, "energy") == weights(old, "energy")
    totals = np.array([-750.0, -764.0, -1133.0, -391.0])
    counts = np.array([[0, 0, 1], [2, 0, 1], [0, 1, 1], [2, 1, 0]])
    baseline = counts @ [weights(old, "energy")[z][0] for z in (1, 6, 8)]
    expected = rms(*((totals - baseline) / [1, 3, 2, 3]))
    assert scale(scaler, "energy") == [near(expected)]
    for name in ("alpha", "charges", "basis"):
        assert scale(scaler, name) == scale(old, name)
    fixed = refit(
        old, systems, targets, "scales", new_scales=["energy"], fixed_scales={"energy": 2}
    )
    assert scale(fixed, "energy") == [[2.0]]


def test_a_scale_fixed_for_all_types_is_that_of_new_types():
    targets = {"q": atom_target([0.5, 0.25], atom_samples(1, 1))}
    old = fit([system(8), system(1)], targets, fixed_scales={"q": 0.5})
    new = {"q": atom_target([3.0], atom_samples(1))}
    before, after = old, refit(old, [system(7)], new, baseline=None)
    converted = [scaler.convert([system(7)], new)["q"].block().values for scaler in (before, after)]
    assert torch.equal(*converted)
    assert scale(after, "q", "per_target_scales") == [[0.5]] * 3


@pytest.mark.parametrize("against", ["targets", "predictions"])
def test_a_block_without_new_data_keeps_its_weights(against):
    def two_scalars(*values):
        samples = labels("system", range(len(values[0])))
        tensor = spherical({0: torch.zeros(len(values[0]), 1, 1)}, samples)
        (one,) = tensor.blocks()
        blocks = []
        for numbers in values:
            blocks.append(one.copy())
            blocks[-1].values[:] = torch.tensor(numbers, dtype=torch.float64)[:, None, None]
        keys = [[0, 1, kind] for kind in range(len(values))]
        return TensorMap(labels(["o3_lambda", "o3_sigma", "kind"], keys), blocks)

    systems = [system(8), system(1)]
    old = fit(systems, {"t": two_scalars([1.0, 2.0], [4.0, 5.0])}, baseline=FITTED)
    errors = {"t": two_scalars([0.5, 0.25])} if against == "predictions" else None
    scaler = refit(old, systems, {"t": two_scalars([1.5, 2.25])}, "baseline", errors=errors)
    assert weights(scaler, "t", block=1) == weights(old, "t", block=1)
    found = weights(scaler, "t", block=0)
    assert [*found[1], *found[8]] == near(2.25, 1.5)


# What is subtracted from the new data


@pytest.mark.parametrize("part", ["types", "scales"])
@pytest.mark.parametrize("before", [FITTED, None, CompositionBaseline(excluded=["e"])])
@pytest.mark.parametrize("now", [FITTED, None, CompositionBaseline(excluded=["e"])])
def test_scales_are_kept_only_with_the_baseline_they_were_fitted_with(part, before, now):
    systems, targets = [system(8), system(1)], {"e": structure_target([-3.0, 2.0])}
    old = fit(systems, targets, baseline=before)
    if (before is FITTED) == (now is FITTED):
        assert refit(old, systems, targets, part, baseline=now).fitted
        return
    with pytest.raises(ValueError, match=r"target 'e': its scales are kept, .* baseline; .* it"):
        refit(old, systems, targets, part, baseline=now)


def test_a_target_that_cannot_have_a_baseline_need_not_say_so_twice():
    systems, targets = (
        [system(8), system(1)],
        {"f": forces([[1.0, 2.0, 3.0], [0.5, 0.0, 1.0]], 1, 1)},
    )
    old = fit(systems, targets, baseline=FITTED)
    assert refit(old, systems, targets, baseline=CompositionBaseline(excluded=["f"])).fitted


def test_a_target_without_new_data_keeps_its_baseline_under_settings_that_can_be_saved():
    systems, targets = [system(8), system(1)], {"e": structure_target([-3.0, 2.0])}
    old = fit(systems, targets, baseline=FITTED)
    other = {"q": atom_target([0.5, 0.25], atom_samples(1, 1))}
    with pytest.raises(ValueError, match=r"'e': it is not in the data and keeps its baseline"):
        refit(old, systems, other, "baseline", baseline=None)
    scaler = refit(old, systems, other, "baseline", baseline=CompositionBaseline(excluded=["q"]))
    loaded = Scaler()
    loaded.set_extra_state(scaler.get_extra_state())
    assert weights(loaded, "e") == weights(old, "e")


def test_an_additive_module_belongs_to_the_scales_that_are_kept():
    systems, targets = [system(8, 1), system(1)], {"energy": structure_target([-3.0, 2.0])}
    old = fit(systems, targets, baseline=FITTED, additive=Springs(k=1e-3))
    with pytest.raises(ValueError, match=r"'energy': .* additive module; give it for the new data"):
        refit(old, systems, targets)
    assert refit(old, systems, targets, additive=Springs(k=1e-3)).additive is not None


def test_declared_targets_without_new_data_stay_declared():
    batch = {"z": torch.tensor([8, 1, 1, 8]), "n_atoms": torch.tensor([1, 3])}
    batch |= {"e": torch.tensor([-3.0, 6.0]), "q": torch.tensor([1.0, 2.0])}
    both, one = ({name: PerStructure() for name in names} for names in ("eq", "e"))
    accumulator = ScaleAccumulator(targets=both)
    accumulator.update(batch)
    old = accumulator.compute()
    accumulator = ScaleAccumulator(targets=one)
    accumulator.update(batch)
    scaler = accumulator.refit(old)
    # Of q per atom, 1 and 2/3.
    expected = [1 / rms(1, 2 / 3), 2 / rms(1, 2 / 3)]
    assert scaler.convert(batch, batch)["q"].tolist() == pytest.approx(expected, rel=1e-6)
