"""What the tables of a fit show: the RMS before and after the baseline, the share explained."""

import pytest
from builders import (
    Springs,
    atom_samples,
    atom_target,
    cartesian,
    fit,
    forces,
    structure_target,
    system,
)
from tables import text_of

from lightning_scaler import CompositionBaseline, ScaleAccumulator

FITTED = CompositionBaseline()


def cells(table, target):
    """The words of the first line of a target."""
    lines = [line.split() for line in text_of(table).splitlines()]
    (words,) = [line for line in lines if line[:1] == [target]]
    return words


def rms_and_residual(scaler, target):
    words = [word for word in cells(scaler.table(), target) if word not in ("per", "atom")]
    _, _, rms, residual, *_ = words if "structure" in words else [target, "atom", *words[1:]]
    return rms, residual


def explained(scaler, target):
    _, share, percent, *_ = cells(scaler.baselines_table(), target)
    assert percent == "%"
    return share


# O2 twice with 6 and 10: per atom 3 and 5, RMS sqrt(17) = 4.123, about their mean 4 it is 1.
PAIRS = [system(8, 8), system(8, 8)]
TOTALS = {"energy": structure_target([6.0, 10.0])}


@pytest.mark.parametrize(
    ("settings", "rms", "residual"),
    [
        ({"baseline": FITTED}, "4.123", "1"),
        # Not per atom: RMS sqrt(68), about the mean 8 it is 2.
        ({"baseline": FITTED, "intensive_targets": ["energy"]}, "8.246", "2"),
        # 3 and 5 less 2.5 leave 0.5 and 2.5: sqrt(3.25).
        ({"baseline": CompositionBaseline({"energy": {8: 2.5}})}, "4.123", "1.803"),
        ({"baseline": None}, "4.123", "–"),
    ],
    ids=["extensive", "intensive", "fixed", "none"],
)
def test_the_residual_of_structures_is_what_the_baseline_leaves(settings, rms, residual):
    assert rms_and_residual(fit(PAIRS, TOTALS, **settings), "energy") == (rms, residual)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fixed_scales", [{}, {"energy": 7.0}])
def test_the_residual_is_that_of_the_data_whatever_the_scales_are(enabled, fixed_scales):
    accumulator = ScaleAccumulator(baseline=FITTED)
    accumulator.update(PAIRS, TOTALS)
    scaler = accumulator.compute(fixed_scales, enabled=enabled)
    assert rms_and_residual(scaler, "energy") == ("4.123", "1")


def test_the_residual_of_atoms_is_what_the_means_of_their_types_leave():
    # H 1 and 5, O 2 and 8: RMS sqrt(94 / 4) = 4.848; about the means 3 and 5, sqrt(26 / 4) = 2.55.
    charges = atom_target([1.0, 2.0, 5.0, 8.0], atom_samples(2, 2))
    systems = [system(1, 8), system(1, 8)]
    scaler = fit(systems, {"charges": charges}, baseline=FITTED)
    assert rms_and_residual(scaler, "charges") == ("4.848", "2.55")


def test_targets_that_have_no_baseline_have_no_residual():
    vectors = {
        "dipole": structure_target([[[1.0], [2.0], [2.0]]] * 2, components=cartesian()),
        "forces": forces([[1.0, 2.0, 2.0]] * 4, 2, 2),
    }
    scaler = fit(PAIRS, {**TOTALS, **vectors}, baseline=FITTED)
    # Dipoles per atom: 0.5, 1 and 1.
    assert rms_and_residual(scaler, "dipole") == ("0.866", "–")
    assert rms_and_residual(scaler, "forces") == ("1.732", "–")
    assert rms_and_residual(scaler, "energy") == ("4.123", "1")


def test_batches_leave_the_residual_of_the_whole():
    accumulator = ScaleAccumulator(baseline=FITTED)
    for one, total in zip(PAIRS, (6.0, 10.0), strict=True):
        accumulator.update([one], {"energy": structure_target([total])})
    assert rms_and_residual(accumulator.compute(), "energy") == ("4.123", "1")


# Springs of 1/2 Σ r² that hold 10 and 20 per atom; the totals leave 1 and 3 of each atom.
def strung(n_atoms):
    return [
        system(*[8] * n_atoms, positions=[[(2 * energy) ** 0.5, 0.0, 0.0]] * n_atoms)
        for energy in (10.0, 20.0)
    ]


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("n_atoms", [1, 2])
@pytest.mark.parametrize(
    ("settings", "residual", "share"),
    [
        # The data store 11 and 23. Without a baseline, the share is that of the squares
        # about 0: 11² + 23² = 650, of which 1 + 9 are left.
        ({}, 5**0.5, "98.5"),
        # About their mean 17, 72. The composition takes 2 more, which leaves 1 + 1.
        ({"baseline": FITTED}, 1.0, "97.2"),
        # Of the fixed number 1, 0 and 2 per atom are left.
        ({"baseline": CompositionBaseline({"energy": {8: 1.0}})}, 2**0.5, "94.4"),
    ],
    ids=["alone", "composition", "fixed"],
)
@pytest.mark.parametrize("intensive", [False, True])
def test_an_additive_module_explains_a_share_of_what_the_data_store(
    in_batches, n_atoms, settings, residual, share, intensive
):
    settings = {**settings, "intensive_targets": ["energy"] if intensive else []}
    accumulator = ScaleAccumulator(additive=Springs(names=("energy",)), **settings)
    systems, totals = strung(n_atoms), [11.0 * n_atoms, 23.0 * n_atoms]
    batches = [(systems, totals)]
    if in_batches:
        batches = [([one], [total]) for one, total in zip(systems, totals, strict=True)]
    for of_batch, values in batches:
        accumulator.update(of_batch, {"energy": structure_target(values)})
    scaler = accumulator.compute()
    # Totals that are not divided are n_atoms times as large, and so is what is left of them, except
    # that the fixed number is subtracted once: it leaves n - 1 and 3 n - 1.
    if intensive:
        fixed = (
            isinstance(settings.get("baseline"), CompositionBaseline) and settings["baseline"].fixed
        )
        left = [n_atoms - 1.0, 3.0 * n_atoms - 1.0]
        residual = (sum(x * x for x in left) / 2) ** 0.5 if fixed else residual * n_atoms
        if fixed:
            share = f"{100 * (1 - 2 * residual**2 / (72 * n_atoms**2)):.1f}"
    assert rms_and_residual(scaler, "energy")[1] == f"{residual:.4g}"
    assert explained(scaler, "energy") == share


@pytest.mark.parametrize(("baseline", "share"), [(None, "97.4"), (FITTED, "99.63")])
def test_an_additive_module_explains_a_share_of_per_atom_targets(baseline, share):
    # Springs say 0.1 and 0.8 for H and O, and leave 0.1, 0.1, 0.14 and 0.06: squares of 0.0432 of
    # 1.6472. About the means 0.12 and 0.08 those are 0.0016, of 0.4372 about the mean 0.55.
    systems = [system(1, 8), system(1, 8)]
    charges = {"charges": atom_target([0.2, 0.9, 0.24, 0.86], atom_samples(2, 2))}
    scaler = fit(systems, charges, additive=Springs(names=("charges",)), baseline=baseline)
    assert explained(scaler, "charges") == share
