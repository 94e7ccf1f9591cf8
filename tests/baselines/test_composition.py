"""The composition baseline."""

import math

import mpmath
import numpy as np
import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    cartesian,
    fit,
    forces,
    labels,
    rank_two,
    scale,
    spherical,
    structure_target,
    system,
    water_family,
)

from lightning_scaler import CompositionBaseline, ScaleAccumulator

NAN = float("nan")
FITTED = CompositionBaseline()
SYSTEMS = [system(8), system(1, 8, 1), system(6, 8), system(6, 1, 1, 1, 1), system(1, 1)]
COUNTS = np.array([[0, 0, 1], [2, 0, 1], [0, 1, 1], [4, 1, 0], [2, 0, 0]])  # H, C, O
FRACTIONS = COUNTS / COUNTS.sum(1, keepdims=True)
ENERGIES = np.array([-75.1, -76.9, -113.2, -40.6, -1.05])


def residuals_of(scaler, systems, tensor, name="t"):
    """The target in loss space, multiplied by its scale."""
    values = scaler.convert(systems, {name: tensor})[name].block().values
    return (values * scaler.per_target_scales[name].block().values[0]).numpy()


def weights_of(scaler, name="t", key=(0,)):
    return scaler.targets[name].weights[key].numpy()


@pytest.mark.parametrize("extensive", [True, False])
def test_weights_are_the_least_squares_fit_to_the_totals_or_to_intensive_values(extensive):
    intensive = () if extensive else ("t",)
    target = structure_target(ENERGIES)
    scaler = fit(SYSTEMS, {"t": target}, baseline=FITTED, intensive_targets=intensive)
    matrix = COUNTS if extensive else FRACTIONS
    weights = np.linalg.lstsq(matrix, ENERGIES, rcond=None)[0]
    np.testing.assert_allclose(weights_of(scaler).ravel(), weights, rtol=1e-12)
    left = ENERGIES - matrix @ weights
    np.testing.assert_allclose(
        residuals_of(scaler, SYSTEMS, target).ravel(), left, rtol=1e-9, atol=1e-12
    )
    divisor = COUNTS.sum(1) if extensive else 1
    expected = math.sqrt(math.fsum((left / divisor) ** 2) / 5)
    assert scale(scaler, "t")[0] == pytest.approx([expected], rel=1e-11)


def test_equal_compositions_have_weights_of_smallest_norm():
    water = [system(8, 1, 1), system(1, 8, 1), system(1, 1, 8)]
    target = structure_target([-5.0, -5.5, -5.1])
    scaler = fit(water, {"t": target}, baseline=FITTED)
    # Parallel to (2, 1), mean -5.2; residuals 0.2, -0.3, 0.1, per atom a third.
    np.testing.assert_allclose(weights_of(scaler).ravel(), [-2.08, -1.04], rtol=1e-12)
    assert scale(scaler, "t")[0] == pytest.approx([math.sqrt(0.14 / 3) / 3], rel=1e-12)


def test_per_atom_weights_are_the_means_by_type():
    systems = [system(8), system(1, 8, 1)]
    target = atom_target([1.0, 2.0, 6.0, NAN], atom_samples(1, 3))
    with pytest.warns(UserWarning, match=r"type H \(1\)"):
        scaler = fit(systems, {"t": target}, baseline=FITTED)
    # O: 1 and 6, mean 3.5, residuals 2.5. H: 2 alone, with residual 0; its scale is the RMS over
    # all three values, sqrt(12.5 / 3).
    np.testing.assert_allclose(weights_of(scaler).ravel(), [2, 3.5], rtol=1e-15)
    assert scale(scaler, "t") == [pytest.approx([math.sqrt(12.5 / 3)]), pytest.approx([2.5])]


def test_per_atom_scale_is_the_standard_deviation_by_type():
    systems = [system(8), system(1, 8, 1)]
    target = atom_target([1.0, 2.0, 6.0, 7.0], atom_samples(1, 3))
    scaler = fit(systems, {"t": target}, baseline=FITTED)
    # H: 2 and 7, mean 4.5, deviation 2.5. O: 1 and 6, mean 3.5, deviation 2.5.
    assert scale(scaler, "t") == [pytest.approx([2.5]), pytest.approx([2.5])]
    values = scaler.convert(systems, {"t": target})["t"].block().values
    np.testing.assert_allclose(values.ravel().numpy(), [-1, -1, 1, 1], rtol=1e-14)


def test_missing_values_do_not_affect_the_fit_of_other_properties():
    values = np.stack([ENERGIES, ENERGIES**2, -ENERGIES], axis=1)
    values[1, 1] = NAN
    values[4, 2] = NAN
    scaler = fit(SYSTEMS, {"t": structure_target(values)}, baseline=FITTED)
    for column in range(3):
        keep = ~np.isnan(values[:, column])
        expected = np.linalg.lstsq(COUNTS[keep], values[keep, column], rcond=None)[0]
        np.testing.assert_allclose(weights_of(scaler)[:, column], expected, rtol=1e-10)
        left = (values[keep, column] - COUNTS[keep] @ expected) / COUNTS[keep].sum(1)
        assert scale(scaler, "t")[0][column] == pytest.approx(
            math.sqrt(math.fsum(left**2) / keep.sum()), rel=1e-9
        )


@pytest.mark.parametrize("axes", [1, 2])
def test_cartesian_blocks_have_no_baseline(axes):
    values = np.random.default_rng(0).normal(size=(5, *[3] * axes)) + 7
    target = structure_target(values, components=cartesian(axes))
    scaler = fit(SYSTEMS, {"t": target}, baseline=FITTED, intensive_targets=["t"])
    assert scaler.targets["t"].weights == {}
    expected = math.sqrt(math.fsum(values.ravel() ** 2) / values.size)
    assert scale(scaler, "t")[0] == pytest.approx([expected], rel=1e-13)


def test_only_the_invariant_block_of_a_spherical_target_has_a_baseline():
    rng = np.random.default_rng(1)
    values = {0: rng.normal(size=(5, 1, 1)) + 3, 2: rng.normal(size=(5, 5, 1)) + 3}
    target = spherical(values, labels("system", range(5)))
    scaler = fit(SYSTEMS, {"t": target}, baseline=FITTED)
    assert list(scaler.targets["t"].weights) == [(0, 1)]
    expected = np.linalg.lstsq(COUNTS, values[0].reshape(5), rcond=None)[0]
    np.testing.assert_allclose(weights_of(scaler, key=(0, 1)).ravel(), expected, rtol=1e-11)


def test_pseudoscalars_have_no_baseline():
    target = spherical({(0, -1): np.full((5, 1, 1), 2.0)}, labels("system", range(5)))
    scaler = fit(SYSTEMS, {"t": target}, baseline=FITTED, intensive_targets=["t"])
    assert scaler.targets["t"].weights == {}
    assert scale(scaler, "t") == [[2.0]]


def test_trace_of_a_rank_two_block_per_atom():
    values = np.random.default_rng(2).normal(size=(4, 3, 3, 2)) + 5
    systems, target = (
        [system(8), system(1, 8, 1)],
        rank_two({(1, 1, 1, 1): values}, atom_samples(1, 3)),
    )
    scaler = fit(systems, {"t": target}, baseline=FITTED)
    left = values.copy()
    for rows in ([1, 3], [0, 2]):  # H, O
        for p in range(2):
            mean = math.fsum(values[i, m, m, p] for i in rows for m in range(3)) / 6
            left[rows, :, :, p] -= mean * np.eye(3)
    converted = scaler.convert(systems, {"t": target})["t"].block().values.numpy()
    sigma = [math.sqrt(math.fsum((left[rows] ** 2).ravel()) / 36) for rows in ([1, 3], [0, 2])]
    per_row = np.array([sigma[1], sigma[0], sigma[1], sigma[0]]).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(converted, left / per_row, rtol=1e-12, atol=1e-14)


def test_trace_of_a_rank_two_block_per_structure():
    values = np.random.default_rng(3).normal(size=(5, 3, 3, 1)) + 5
    target = rank_two({(1, 1, 1, 1): values}, labels("system", range(5)))
    scaler = fit(SYSTEMS, {"t": target}, baseline=FITTED, intensive_targets=["t"])
    diagonal = values[:, range(3), range(3), 0]
    expected = np.linalg.lstsq(np.repeat(FRACTIONS, 3, axis=0), diagonal.ravel(), rcond=None)[0]
    np.testing.assert_allclose(weights_of(scaler, key=(1, 1, 1, 1)).ravel(), expected, rtol=1e-11)
    left = values - (FRACTIONS @ expected).reshape(5, 1, 1, 1) * np.eye(3).reshape(1, 3, 3, 1)
    sigma = math.sqrt(math.fsum((left**2).ravel()) / left.size)
    assert scale(scaler, "t")[0] == pytest.approx([sigma], rel=1e-12)


def test_trace_baseline_is_equivariant():
    # Rotating the data rotates the residuals: the baseline is a multiple of the identity.
    rng = np.random.default_rng(4)
    values, rotation = rng.normal(size=(4, 3, 3)) + 5, np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = rotation @ values @ rotation.T
    systems, left = [system(8), system(1, 8, 1)], []
    for numbers in (values, turned):
        target = rank_two({(1, 1, 1, 1): numbers[..., None]}, atom_samples(1, 3))
        scaler = fit(systems, {"t": target}, baseline=FITTED)
        left.append(scaler.convert(systems, {"t": target})["t"].block().values[..., 0].numpy())
    np.testing.assert_allclose(left[1], rotation @ left[0] @ rotation.T, rtol=1e-11, atol=1e-12)


def test_fixed_weights_are_subtracted_from_totals():
    fixed = CompositionBaseline(fixed={"t": {"1": -13, 8: -2041.8}})
    target = structure_target([-2042.0, -2070.0, -4140.0])
    scaler = fit(water_family(), {"t": target}, baseline=fixed)
    # Residuals: -2042 + 2041.8 = -0.2; -2070 + 26 + 2041.8 = -2.2; -4140 + 52 + 4083.6 = -4.4.
    left = [-0.2, -2.2 / 3, -4.4 / 6]
    expected = math.sqrt(math.fsum(x * x for x in left) / 3)
    assert scale(scaler, "t")[0] == pytest.approx([expected], rel=1e-10)


def test_fixed_weights_are_subtracted_from_per_atom_values():
    fixed = CompositionBaseline(fixed={"q": {1: 0.5, 8: -1}})
    target = atom_target([-1.5, 0.75, -3.0, 1.5], atom_samples(1, 3), "q")
    scaler = fit(water_family()[:2], {"q": target}, baseline=fixed)
    # H: 0.25 and 1.0; O: -0.5 and -2.0.
    assert scale(scaler, "q") == [
        pytest.approx([math.sqrt((0.0625 + 1) / 2)]),
        pytest.approx([math.sqrt((0.25 + 4) / 2)]),
    ]


def test_targets_without_fixed_weights_are_fitted():
    fixed = CompositionBaseline(fixed={"energy": {1: -13, 8: -2041.8}})
    targets = {
        "energy": structure_target([-2042.0, -2070.0, -4140.0]),
        "gap": structure_target([1.0, 5.0, 2.0]),
    }
    scaler = fit(water_family(), targets, baseline=fixed)
    expected = np.linalg.lstsq(
        np.array([[0, 1], [2, 1], [4, 2]]), np.array([1.0, 5, 2]), rcond=None
    )[0]
    np.testing.assert_allclose(weights_of(scaler, "gap").ravel(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("target", "fixed", "message"),
    [
        (structure_target([[1.0, 2.0]] * 3), {1: 1.0, 8: 1.0}, "expected a single property, got 2"),
        (
            structure_target(np.ones((3, 3)), components=cartesian()),
            {1: 1.0, 8: 1.0},
            "expected a target with an invariant part",
        ),
    ],
)
def test_fixed_weights_that_do_not_suit_the_target_are_an_error(target, fixed, message):
    with pytest.raises(ValueError, match=f"fixed_baseline of target 't'.*{message}"):
        fit(water_family(), {"t": target}, baseline=CompositionBaseline(fixed={"t": fixed}))


def test_fixed_weights_of_an_unknown_target_are_an_error():
    with pytest.raises(
        ValueError, match=r"fixed_baseline names the target 'energi'.*mean 'energy'"
    ):
        fit(
            [system(8)],
            {"energy": structure_target([1.0])},
            baseline=CompositionBaseline(fixed={"energi": {8: 1.0}}),
        )


def test_no_baseline_is_subtracted_by_default():
    target = structure_target([-2042.0, -2070.0, -4140.0])
    scaler = fit(water_family(), {"t": target, "f": forces(np.ones((10, 3)), 1, 3, 6)})
    assert scaler.targets["t"].weights == {}
    per_atom = [2042, 690, 690]
    assert scale(scaler, "t")[0] == pytest.approx(
        [math.sqrt(math.fsum(x * x for x in per_atom) / 3)], rel=1e-14
    )


def test_scale_of_large_totals_equals_that_of_two_passes():
    rng = np.random.default_rng(7)
    systems = [
        system(*[1] * int(h), *[6] * int(c), *[8] * int(o))
        for h, c, o in rng.integers(1, 9, (60, 3))
    ]
    types = (1, 6, 8)
    counts = np.array([[list(s.types.tolist()).count(z) for z in types] for s in systems], float)
    totals = counts @ [-16.5, -1036.2, -2043.7] * 5 + 1e-3 * counts.sum(1) * rng.normal(size=60)
    scaler = fit(systems, {"t": structure_target(totals)}, baseline=FITTED)
    # The first pass subtracts a fit, so that the second one works on small numbers.
    weights = np.linalg.lstsq(counts, totals, rcond=None)[0]
    correction = np.linalg.lstsq(counts, totals - counts @ weights, rcond=None)[0]
    left = (totals - counts @ (weights + correction)) / counts.sum(1)
    expected = math.sqrt(math.fsum(left**2) / 60)
    assert abs(totals).max() > 1e5
    assert expected == pytest.approx(1e-3, rel=0.3)
    assert scale(scaler, "t")[0] == pytest.approx([expected], rel=1e-8)


def large_totals(n_systems, seed):
    """Counts of H, C and O, and three totals of 1e5 eV with residuals of 1e-3 eV per atom."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, (n_systems, 3)).astype(float)
    of_types = np.array([[-16.5, -1036.2, -2043.7], [-1.25, 3e4, 17.0], [5e3, 5e3, -9e3]]).T * 5
    noise = 1e-3 * counts.sum(1)[:, None] * rng.normal(size=(n_systems, 3)) * [1.0, 0.3, 4.0]
    return counts, counts @ of_types + noise


def molecules(counts):
    return [
        system(*[z for z, n in zip((1, 6, 8), c, strict=True) for _ in range(int(n))])
        for c in counts
    ]


@pytest.mark.parametrize("fixed", [False, True])
def test_scales_of_large_totals_equal_those_in_60_digits(fixed):
    counts, totals = large_totals(25, 11)
    if fixed:
        totals = totals[:, :1]
        per_type = {1: -82.5, 6: -5181.0, 8: -10218.5}
    baseline = CompositionBaseline(fixed={"t": per_type} if fixed else {})
    scaler = fit(molecules(counts), {"t": structure_target(totals)}, baseline=baseline)
    with mpmath.workdps(60):
        matrix = mpmath.matrix(counts.tolist())
        means, squares = [], []
        for column in totals.T:
            right = mpmath.matrix([[x] for x in column.tolist()])
            if fixed:
                weights = mpmath.matrix([[per_type[z]] for z in (1, 6, 8)])
            else:
                weights = mpmath.lu_solve(matrix.T * matrix, matrix.T * right)
            left = right - matrix * weights
            n_atoms = [int(n) for n in counts.sum(1)]
            squares.append(sum((x / n) ** 2 for x, n in zip(left, n_atoms, strict=True)))
            means.append(weights)
        rms = [mpmath.sqrt(total / len(counts)) for total in squares]
        whole = mpmath.sqrt(sum(squares) / (len(counts) * len(squares)))
        full = [float(x) for x in rms]
        relative = [1.0] if fixed else [float(x / whole) for x in rms]
    assert abs(totals).max() > 1e5
    assert scale(scaler, "t")[0] == pytest.approx(full, rel=1e-8)
    assert scale(scaler, "t", "per_target_scales")[0][0] == pytest.approx(float(whole), rel=1e-8)
    assert scale(scaler, "t", "per_property_scales")[0] == pytest.approx(relative, rel=1e-8)
    np.testing.assert_allclose(
        weights_of(scaler), np.array([[float(w) for w in m] for m in means]).T, rtol=1e-10
    )


def test_means_of_large_atomic_energies_equal_those_in_60_digits():
    rng = np.random.default_rng(5)
    types = rng.choice([1, 6, 8], 60)
    values = np.array([{1: -1.5e4, 6: -1e5, 8: -2e5}[z] for z in types.tolist()])
    values = values + 1e-3 * rng.normal(size=60)
    systems = [system(*types[start : start + 6].tolist()) for start in range(0, 60, 6)]
    accumulator = ScaleAccumulator(baseline=FITTED)
    for i, start in enumerate(range(0, 60, 6)):
        target = atom_target(values[start : start + 6], atom_samples(6))
        accumulator.update(systems[i : i + 1], {"t": target})
    scaler = accumulator.compute()
    with mpmath.workdps(60):
        for row, z in enumerate((1, 6, 8)):
            of_type = [mpmath.mpf(x) for x in values[types == z].tolist()]
            mean = sum(of_type) / len(of_type)
            rms = mpmath.sqrt(sum((x - mean) ** 2 for x in of_type) / len(of_type))
            assert weights_of(scaler)[row, 0] == pytest.approx(float(mean), rel=1e-14)
            assert scale(scaler, "t")[row] == [pytest.approx(float(rms), rel=1e-8)]


@pytest.mark.parametrize(
    "counts",
    [
        [[2, 0, 1]] * 5,  # water throughout
        [[1, 1, 1], [2, 2, 2], [3, 3, 3], [1, 1, 1]],  # one composition in several sizes
        [[1, 1, 0], [1, 2, 0], [1, 5, 0], [1, 3, 0]],  # one H in every structure
        [[1, 1, 1], [1, 2, 2], [1, 5, 5], [1, 3, 3], [1, 4, 4]],  # C and O always together
        [[4, 3, 7]],
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e5])
def test_weights_that_the_compositions_do_not_determine(counts, size):
    counts = np.array(counts, float)
    n_atoms = counts.sum(1)
    values = size * counts @ [-1.0, -38.0, -75.0] + np.random.default_rng(2).normal(
        size=len(counts)
    )
    accumulator = ScaleAccumulator(baseline=FITTED)
    for systems, value in zip(molecules(counts), values, strict=True):
        accumulator.update([systems], {"t": structure_target([value])})
    weights, _, _, _ = np.linalg.lstsq(counts, values, rcond=None)
    left = values - counts @ weights
    if np.sqrt((left**2).mean()) < 1e-9 * size:
        with pytest.warns(UserWarning, match="below their rounding noise"):
            scaler = accumulator.compute()
    else:
        scaler = accumulator.compute()
        expected = math.sqrt(math.fsum((left / n_atoms) ** 2) / len(left))
        assert scale(scaler, "t")[0] == pytest.approx([expected], rel=1e-8)
    np.testing.assert_allclose(
        weights_of(scaler).ravel(), weights[counts.any(0)], rtol=1e-9, atol=1e-9 * size
    )


@pytest.mark.parametrize("chunk", [1, 3, 7, 40, 90])
def test_merged_chunks_of_large_totals_agree(chunk):
    counts, totals = large_totals(90, 3)
    whole = fit(molecules(counts), {"t": structure_target(totals)}, baseline=FITTED)
    before = np.sqrt(((totals / counts.sum(1)[:, None]) ** 2).mean(0))
    bound = np.maximum(1e-12, 2.0**-52 * before / scale(whole, "t")[0])
    parts = []
    for start in range(0, 90, chunk):
        parts.append(ScaleAccumulator(baseline=FITTED))
        rows = slice(start, start + chunk)
        parts[-1].update(molecules(counts[rows]), {"t": structure_target(totals[rows])})
    parts = parts[::-1]
    while len(parts) > 1:
        parts[-2].merge(parts[-1])
        parts.insert(0, parts[-2])
        parts = parts[:-2]
    merged = parts[0].compute()
    difference = np.abs(np.divide(scale(merged, "t"), scale(whole, "t")) - 1)
    assert (difference <= bound).all(), (difference, bound)


@pytest.mark.filterwarnings("ignore:the targets .* have no value at all")
def test_data_without_atoms_give_no_weight_for_any_type():
    scaler = fit([system(), system()], {"t": structure_target([1.0, 2.0])}, baseline=FITTED)
    with pytest.raises(ValueError, match=r"no baseline for the atomic types \[1\]"):
        scaler.convert([system(1)], {"t": structure_target([1.0])})
    target = atom_target(np.zeros((0, 1)), atom_samples(0))
    scaler = fit([system()], {"t": target}, baseline=FITTED, unseen_types="pooled")
    with pytest.raises(ValueError, match=r"no baseline for the atomic types \[1\]"):
        scaler.convert([system(1)], {"t": atom_target([1.0], atom_samples(1))})


def test_block_without_properties_has_no_baseline():
    samples = labels("system", [0, 1])
    blocks = {0: torch.ones(2, 1, 0), 1: torch.full((2, 3, 2), 2.0)}
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    accumulator.update([system(8), system(1)], {"t": spherical(blocks, samples)})
    scales = accumulator.compute().scales["t"]
    assert scales.block({"o3_lambda": 0}).values.shape == (1, 0)
    assert scales.block({"o3_lambda": 1}).values.tolist() == [[2.0, 2.0]]


def test_a_type_without_a_weight_is_refused_where_any_property_has_a_label():
    scaler = fit(
        [system(8), system(8, 8)],
        {"t": structure_target([[1.0, 2.0], [3.0, 7.0]])},
        baseline=CompositionBaseline(),
    )
    systems = [system(8), system(1, 8)]
    unlabelled = {"t": structure_target([[1.0, 2.0], [NAN, NAN]])}
    converted = scaler.convert(systems, unlabelled)["t"].block().values
    assert converted.isnan().tolist() == [[False, False], [True, True]]
    with pytest.raises(ValueError, match=r"no baseline for the atomic types \[1\]"):
        scaler.convert(systems, {"t": structure_target([[1.0, 2.0], [NAN, 5.0]])})
