"""Baselines of intensive targets, per target, and with fixed weights for some types."""

import math
import warnings

import mpmath
import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    cartesian,
    fit,
    labels,
    scale,
    spherical,
    structure_target,
    system,
)

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler
from lightning_scaler.scaling.scaler_state import read_target_scales, write_target_scales

NAN = float("nan")
FITTED = CompositionBaseline()


def water(n):
    return system(*[8, 1, 1] * n)


def gaps(seed=0):
    """The clusters of 1 to 8 waters, five of each, and their gaps of 5.0 ± 0.3 eV."""
    sizes = np.repeat(np.arange(1, 9), 5)
    return [water(int(n)) for n in sizes], 5.0 + 0.3 * np.random.default_rng(seed).normal(size=40)


def test_the_gap_of_a_hundred_waters_is_that_of_a_few():
    systems, values = gaps()
    target = {"gap": structure_target(values)}
    scaler = fit(systems, target, baseline=FITTED, intensive_targets=["gap"])
    # All fractions are (2/3, 1/3), so that the baseline is the mean, and the scale the deviation.
    mean = math.fsum(values) / 40
    sigma = math.sqrt(math.fsum((values - mean) ** 2) / 40)
    assert 0.2 < sigma < 0.4
    assert scale(scaler, "gap")[0] == pytest.approx([sigma], rel=1e-12)
    zero = {"gap": structure_target([0.0, 0.0])}
    found = scaler.convert([water(100), water(1)], zero, "model", "physical")["gap"]
    np.testing.assert_allclose(found.block().values.ravel(), [mean, mean], rtol=1e-12)


def test_scales_fitted_on_counts_before_keep_their_counts(tmp_path):
    systems, values = gaps()
    target = {"gap": structure_target(values)}
    fitted = fit(systems, target, baseline=FITTED, intensive_targets=["gap"])
    state = write_target_scales(fitted.targets["gap"])
    assert state["composition"] == "fractions"
    # As version 0.1.0 saved them, with weights of 1.0 and 3.0 eV for H and O.
    for name in ("composition", "unknown", "zeros"):
        del state[name]
    state["weights"] = [([0], torch.tensor([[1.0], [3.0]]).double())]
    old = Scaler({"gap": read_target_scales("gap", state, complete=False)}, fitted.settings)
    old.save(tmp_path / "scaler")
    for scaler in (old, Scaler.load(tmp_path / "scaler")):
        assert scaler.targets["gap"].composition == "counts"
        zero = {"gap": structure_target([0.0])}
        found = scaler.convert([water(100)], zero, "loss", "physical")["gap"].block().values
        assert found.item() == pytest.approx(100 * 5.0, rel=1e-15)


def test_fractions_are_part_of_the_state(tmp_path):
    systems, values = gaps()
    scaler = fit(
        systems, {"gap": structure_target(values)}, baseline=FITTED, intensive_targets=["gap"]
    )
    scaler.save(tmp_path / "scaler")
    restored = Scaler.load(tmp_path / "scaler")
    assert restored.targets["gap"].composition == "fractions"
    zero = {"gap": structure_target([0.0])}
    both = [s.convert([water(7)], zero, "loss", "physical")["gap"] for s in (scaler, restored)]
    assert torch.equal(both[0].block().values, both[1].block().values)


COUNTS = np.array([[0, 0, 1], [2, 0, 1], [0, 1, 1], [4, 1, 0], [2, 0, 0], [2, 1, 3], [1, 1, 1]])
SYSTEMS = [
    system(*[z for z, n in zip((1, 6, 8), row, strict=True) for _ in range(n)]) for row in COUNTS
]


def test_weights_of_fractions_are_those_of_two_passes_in_60_digits():
    rng = np.random.default_rng(3)
    systems, rows = [], []
    for _ in range(60):
        counts = rng.integers(0, 9, 3) + np.array([0, 1, 0])
        rows.append(counts)
        systems.append(
            system(*[z for z, n in zip((1, 6, 8), counts, strict=True) for _ in range(n)])
        )
    rows = np.array(rows)
    # Values of 1e5 with residuals of 1e-3.
    values = rows / rows.sum(1, keepdims=True) @ [1e5, -2e5, 4e5] + 1e-3 * rng.normal(size=60)
    with mpmath.workdps(60):
        matrix = mpmath.matrix(
            [[mpmath.mpf(int(n)) / int(sum(row)) for n in row] for row in rows.tolist()]
        )
        right = mpmath.matrix([[x] for x in values.tolist()])
        weights = mpmath.lu_solve(matrix.T * matrix, matrix.T * right)
        left = right - matrix * weights
        sigma = float(mpmath.sqrt(sum(x * x for x in left) / 60))
        expected = [float(w) for w in weights]
    accumulator = ScaleAccumulator(baseline=FITTED, intensive_targets=["t"])
    for start in range(0, 60, 7):
        part = accumulator.fresh()
        part.update(systems[start : start + 7], {"t": structure_target(values[start : start + 7])})
        other = accumulator.fresh()
        other.merge_state(part.state())
        accumulator.merge(other)
    scaler = accumulator.compute()
    assert scale(scaler, "t")[0] == pytest.approx([sigma], rel=1e-8)
    found = scaler.targets["t"].weights[(0,)].ravel().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_system_without_atoms_has_fractions_of_0():
    values = [4.0, 5.0, 7.0]
    systems = [system(), system(8), system(1, 8, 1)]
    target = {"t": structure_target(values)}
    scaler = fit(systems, target, baseline=FITTED, intensive_targets=["t"])
    # O has 5.0; 2/3 H + 1/3 O = 7, so that H has 8.0. Only the 4.0 is left.
    weights = scaler.targets["t"].weights[(0,)].ravel().tolist()
    assert weights == pytest.approx([8.0, 5.0], rel=1e-12)
    assert scale(scaler, "t")[0] == pytest.approx([4.0 / math.sqrt(3)], rel=1e-12)
    zero = {"t": structure_target([0.0] * 3)}
    found = scaler.convert(systems, zero, "loss", "physical")["t"].block().values.ravel()
    assert found.tolist() == pytest.approx([0.0, 5.0, 7.0], abs=1e-12)


def test_fixed_weights_of_an_intensive_target_are_averaged():
    fixed = CompositionBaseline({"gap": {1: 3.0, 8: 9.0}})
    target = {"gap": structure_target([10.0, 6.0])}
    scaler = fit([water(1), water(5)], target, baseline=fixed, intensive_targets=["gap"])
    # 2/3 · 3 + 1/3 · 9 = 5: 5 and 1 are left.
    assert scale(scaler, "gap")[0] == pytest.approx([math.sqrt(26 / 2)], rel=1e-13)


def test_invariant_blocks_of_intensive_spherical_targets_are_fitted_to_fractions():
    values = np.random.default_rng(1).normal(size=(7, 1, 1)) + 3
    target = spherical({0: values, 2: np.ones((7, 5, 1))}, labels("system", range(7)))
    scaler = fit(SYSTEMS, {"t": target}, baseline=FITTED, intensive_targets=["t"])
    expected = np.linalg.lstsq(COUNTS / COUNTS.sum(1, keepdims=True), values.ravel(), rcond=None)[0]
    found = scaler.targets["t"].weights[(0, 1)].ravel().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_targets_in_loss_space_are_those_of_the_fractions_in_any_rows():
    values = np.random.default_rng(2).normal(size=7) + 5
    options = {"baseline": FITTED, "intensive_targets": ["t"]}
    scaler = fit(SYSTEMS, {"t": structure_target(values)}, **options)
    matrix = COUNTS / COUNTS.sum(1, keepdims=True)
    left = values - matrix @ np.linalg.lstsq(matrix, values, rcond=None)[0]
    rows = [5, 0, 3]
    part = {"t": structure_target(values[rows], rows)}
    found = scaler.convert(SYSTEMS, part)["t"].block().values.ravel().numpy()
    np.testing.assert_allclose(found, left[rows] / scale(scaler, "t")[0][0], rtol=1e-9)


# A baseline per target.


def test_a_target_without_a_baseline_beside_one_with():
    values = np.random.default_rng(5).normal(size=7) + 5
    targets = {"gap": structure_target(values), "e": structure_target(values)}
    baseline = CompositionBaseline(excluded=["gap"])
    scaler = fit(SYSTEMS, targets, baseline=baseline, intensive_targets=["gap", "e"])
    assert scaler.targets["gap"].weights == {}
    assert scaler.targets["gap"].composition == "none"
    assert list(scaler.targets["e"].weights) == [(0,)]
    assert scale(scaler, "gap")[0] == pytest.approx([math.sqrt((values**2).mean())], rel=1e-13)
    zero = {"gap": structure_target([0.0])}
    out = scaler.convert(SYSTEMS[:1], zero, "loss", "physical")["gap"].block().values
    assert out.item() == 0.0


def test_a_target_without_a_baseline_that_does_not_occur_is_an_error():
    with pytest.raises(ValueError, match=r"baseline names the target 'gpa'.*did you mean 'gap'"):
        fit(
            [water(1)],
            {"gap": structure_target([5.0])},
            baseline=CompositionBaseline(excluded=["gpa"]),
        )


def test_accumulators_with_other_targets_without_a_baseline_do_not_merge():
    with pytest.raises(ValueError, match=r"same settings.*excluded=\('gap',\)"):
        ScaleAccumulator(baseline=CompositionBaseline(excluded=["gap"])).merge(
            ScaleAccumulator(baseline=FITTED)
        )


def test_a_fixed_baseline_of_a_target_without_one_is_an_error():
    with pytest.raises(ValueError, match=r"target 'gap' has no baseline and a fixed_baseline"):
        CompositionBaseline({"gap": {1: 1.0}}, excluded=["gap"])
    with pytest.raises(TypeError, match="excluded: expected a list of names, got the string 'gap'"):
        CompositionBaseline(excluded="gap")


# Fixed weights for some types; all others are fitted.


@pytest.mark.parametrize("intensive", [False, True])
def test_types_without_a_fixed_weight_are_fitted_to_what_the_fixed_ones_leave(intensive):
    values = np.array([-75.1, -76.9, -113.2, -40.6, -1.05, -265.0, -114.0])
    baseline = CompositionBaseline({"t": {8: -75.0, 9: -99.0}})
    options = {"intensive_targets": ["t"] if intensive else []}
    scaler = fit(SYSTEMS, {"t": structure_target(values)}, baseline=baseline, **options)
    matrix = COUNTS / COUNTS.sum(1, keepdims=True) if intensive else COUNTS
    fitted = np.linalg.lstsq(matrix[:, :2], values + 75.0 * matrix[:, 2], rcond=None)[0]
    assert scaler.targets["t"].baseline_types.tolist() == [1, 6, 8, 9]
    found = scaler.targets["t"].weights[(0,)].ravel().numpy()
    np.testing.assert_allclose(found, [*fitted, -75.0, -99.0], rtol=1e-12)
    left = values - matrix @ [*fitted, -75.0]
    left = left if intensive else left / COUNTS.sum(1)
    expected = math.sqrt(math.fsum(left**2) / 7)
    assert scale(scaler, "t")[0] == pytest.approx([expected], rel=1e-10)


def test_atoms_without_a_fixed_weight_have_their_mean():
    target = atom_target([1.0, 2.0, 6.0, 7.0], atom_samples(1, 3))
    systems = [system(8), system(1, 8, 1)]
    scaler = fit(systems, {"t": target}, baseline=CompositionBaseline({"t": {8: 3.0}}))
    # H: 2 and 7, mean 4.5, deviation 2.5. O: 1 and 6 less 3.
    assert scaler.targets["t"].weights[(0,)].ravel().tolist() == pytest.approx([4.5, 3.0])
    assert scale(scaler, "t") == [pytest.approx([2.5]), pytest.approx([math.sqrt(13 / 2)])]


def test_a_fixed_baseline_of_some_types_needs_the_data_of_the_others():
    accumulator = ScaleAccumulator(["t"], baseline=CompositionBaseline({"t": {8: -75.0}}))
    accumulator.update([system(8)], {"t": structure_target([-75.1])})
    assert accumulator.all_fixed({"t": 1.0})
    accumulator.update([system(8, 1)], {"t": structure_target([-75.6])})
    assert not accumulator.all_fixed({"t": 1.0})


def test_a_target_that_can_have_no_baseline_needs_no_data_for_one():
    """Dipoles change under rotation; the energy beside them has weights to fit."""
    systems = [system(8), system(1, 8)]
    targets = {
        "dipole": structure_target([[[1.0], [2.0], [2.0]]] * 2, components=cartesian()),
        "energy": structure_target([1.0, 2.0]),
    }
    for name, fixed in (("dipole", True), ("energy", False)):
        accumulator = ScaleAccumulator([name], baseline=CompositionBaseline())
        accumulator.update(systems, targets)
        assert accumulator.all_fixed({name: 1.0}) is fixed


def test_unseen_types_and_the_ways_out_of_their_error():
    values = structure_target([-75.1, -150.3])
    oxygen, other = [system(8), system(8, 8)], [system(9, 8)]
    zero = {"t": structure_target([0.0])}
    scaler = fit(oxygen, {"t": values}, baseline=FITTED)
    message = r"no baseline for the atomic types \[9\].*fixed_baseline.*unseen_types='identity'"
    with pytest.raises(ValueError, match=message):
        scaler.convert(other, zero, "loss", "physical")
    # By a fixed baseline of the type:
    scaler = fit(oxygen, {"t": values}, baseline=CompositionBaseline({"t": {9: -99.0}}))
    # O: (75.1 + 2 · 150.3) / 5 = 75.14
    found = scaler.convert(other, zero, "loss", "physical")["t"].block().values.item()
    assert found == pytest.approx(-99.0 - 75.14, rel=1e-12)
    # By "identity", with one warning:
    scaler = fit(oxygen, {"t": values}, baseline=FITTED, unseen_types="identity")
    with pytest.warns(UserWarning, match=r"'t': no baseline is subtracted for .* types \[9\]"):
        found = scaler.convert(other, zero, "loss", "physical")["t"].block().values.item()
    assert found == pytest.approx(-75.14, rel=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler.convert(other, {"t": structure_target([-174.0])})


def test_the_error_of_several_properties_names_no_fixed_baseline():
    values = [[1.0, 2.0], [2.1, 4.1]]
    scaler = fit([system(8), system(8, 8)], {"t": structure_target(values)}, baseline=FITTED)
    zero = {"t": structure_target([[0.0, 0.0]])}
    message = (
        r"\(types \[8\]\); fit on data that have them \(TargetScaler\(refit='types'\).*, or set"
    )
    with pytest.raises(ValueError, match=message):
        scaler.convert([system(9)], zero, "loss", "physical")


def test_a_saved_accumulator_has_its_baselines(tmp_path):
    values = np.random.default_rng(6).normal(size=7) + 5
    baseline = CompositionBaseline({"e": {8: -75.0}}, excluded=["gap"])
    accumulator = ScaleAccumulator(baseline=baseline, intensive_targets=["gap", "mean"])
    names = ("e", "gap", "mean")
    of_e = values - 75.0 * COUNTS[:, 2]
    numbers = dict(zip(names, (of_e, values, values), strict=True))
    accumulator.update(SYSTEMS, {name: structure_target(numbers[name]) for name in names})
    accumulator.save(tmp_path / "statistics")
    restored = ScaleAccumulator.load(tmp_path / "statistics")
    assert restored.baseline == baseline
    first, second = accumulator.compute().targets, restored.compute().targets
    assert [second[name].composition for name in names] == ["counts", "none", "fractions"]
    for name in ("e", "mean"):
        assert torch.equal(first[name].weights[(0,)], second[name].weights[(0,)])
