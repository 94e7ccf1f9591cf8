import math
import re

import pytest
import torch
from builders import (
    atom_samples,
    atom_target,
    block,
    cartesian,
    fit,
    single,
    structure_target,
    system,
)
from tables import text_of

from lightning_scaler import ZBL, CompositionBaseline, ScaleAccumulator
from lightning_scaler.reports import ScalesOfTarget, scales_table


def test_scales_table_lists_types_and_rms_before_and_after_the_baseline():
    # Energies per atom of O and H2O are 3 and 5: RMS sqrt(17) = 4.123. Charges are 3 for both O,
    # and -1 and 2 for H: the RMS is 3 for O and sqrt(5/2) = 1.581 for H.
    accumulator = ScaleAccumulator()
    systems = [system(8), system(1, 1, 8)]
    charges = atom_target([3.0, -1.0, 2.0, 3.0], atom_samples(1, 3))
    accumulator.update(systems, {"energy": structure_target([3.0, 15.0]), "charges": charges})
    lines = [line.split() for line in text_of(accumulator.compute().table()).splitlines()]
    words = [[word for word in line if word != "│"] for line in lines]
    assert ["energy", "structure", "per", "atom", "4.123", "–", "all", "4.123"] in words
    assert ["charges", "atom", "2.398", "–", "H", "(1)", "1.581"] in words
    assert ["O", "(8)", "3"] in words


def test_scales_table_has_units_where_they_are_known():
    accumulator = ScaleAccumulator(units={"energy": "eV"}, intensive_targets=["gap"])
    targets = {"energy": structure_target([3.0]), "gap": structure_target([2.0])}
    accumulator.update([system(8)], targets)
    lines = [line.split() for line in text_of(accumulator.compute().table()).splitlines()]
    assert ["energy", "structure", "eV/atom", "3", "–", "all", "3"] in lines
    assert ["gap", "structure", "2", "–", "all", "2"] in lines
    assert ["Target", "One", "per", "Unit", "RMS", "residual", "Type", "Scale"] in lines


def test_tables_name_elements_and_keep_the_numbers_of_other_types():
    accumulator = ScaleAccumulator(baseline=CompositionBaseline(), units={"q": "e"})
    charges = atom_target([1.0, 2.0, 3.0] * 2, atom_samples(3, 3))
    accumulator.update([system(0, 17, 200)] * 2, {"q": charges})
    with pytest.warns(UserWarning, match="below their rounding noise"):
        scaler = accumulator.compute()
    for table in (scaler.table(), scaler.baselines_table()):
        lines = [line.split() for line in text_of(table).splitlines()]
        assert [line for line in lines if line[:2] == ["Cl", "(17)"]]
        assert [line for line in lines if line[:1] == ["200"]]
        assert [line for line in lines if line[:1] == ["q"] and "e" in line and "0" in line]


def test_scales_of_properties_are_shown_and_explained_where_there_are_several():
    # One atom with the values 3 and 4: RMS sqrt(12.5) = 3.536, properties 0.849 and 1.13 of it.
    two = single(block([[3.0, 4.0]], atom_samples(1)))
    table = fit([system(8)], {"two": two, "q": atom_target([2.0], atom_samples(1))}).table()
    lines = [line.split() for line in text_of(table).splitlines()]
    assert ["two", "atom", "3.536", "–", "O", "(8)", "3.536", "0.849,", "1.13"] in lines
    assert ["q", "atom", "2", "–", "O", "(8)", "2"] in lines
    assert "Of each property: its RMS divided by this scale" in " ".join(text_of(table).split())
    single_only = text_of(fit([system(8)], {"q": atom_target([2.0], atom_samples(1))}).table())
    assert "property" not in single_only


def test_scales_table_has_the_errors_of_scales_from_a_sample():
    """Also beside scales that were fitted to all data."""
    sampled = ScalesOfTarget(
        "charges",
        "atom",
        1.0,
        None,
        [("1", 0.5, [[1.0]]), ("6", 2.0, [[1.0]]), ("8", 1.0, [[1.0]])],
        [0.01234, 0.0, float("nan")],
    )
    whole = ScalesOfTarget("energy", "system", 3.0, 2.0, [("all", 2.0, [[1.0]])])
    printed = text_of(scales_table([sampled, whole]))
    rows = [line.split() for line in printed.splitlines() if re.match(r" .* \d", line)]
    assert rows == [
        ["charges", "atom", "1", "–", "1", "0.5", "1.2", "%"],
        ["6", "2", "0", "%"],
        ["8", "1", "–"],
        ["energy", "system", "3", "2", "all", "2"],
    ]
    assert "Error" not in text_of(scales_table([whole]))


def test_scales_table_hides_types_after_the_twelfth():
    types = list(range(1, 31))
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    values = torch.tensor([float(i) for i in range(60)]).double()
    samples = atom_samples(30, 30)
    accumulator.update([system(*types), system(*types)], {"q": atom_target(values, samples)})
    text = text_of(accumulator.compute().table())
    assert "… 18 more types" in text
    assert len(text.splitlines()) < 25


def test_baselines_table_hides_types_after_the_twelfth():
    # Both atoms of type z have the charge z / 10, the contribution of their type.
    types = list(range(1, 31))
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    values = torch.tensor([0.1 * z for z in types * 2]).double()
    accumulator.update([system(*types)] * 2, {"q": atom_target(values, atom_samples(30, 30))})
    with pytest.warns(UserWarning, match="below their rounding noise"):
        scaler = accumulator.compute()
    text = text_of(scaler.baselines_table())
    assert "… 18 more types" in text
    words = [line.split() for line in text.splitlines()]
    assert ["Mg", "(12)", "1.2"] in words
    assert ["Al", "(13)", "1.3"] not in words


def test_baselines_table_lists_types_and_explained_variance():
    # O and H2O: -2000 for O and -15.25 for H leave no residual. Charges are 0.4 and 0.2 for H, 0.2
    # and -0.6 for O: the squares sum to 0.02 + 0.32 about the means 0.3 and -0.2, and to 0.59 about
    # the common mean 0.05. Explained: 1 - 0.34 / 0.59 = 42.4 %.
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    systems = [system(8), system(1, 1, 8)]
    charges = atom_target([0.2, 0.4, 0.2, -0.6], atom_samples(1, 3))
    energy = structure_target([-2000.0, -2030.5])
    dipoles = structure_target([[[1.0], [2.0], [3.0]]] * 2, components=cartesian())
    accumulator.update(systems, {"energy": energy, "charges": charges, "dipole": dipoles})
    with pytest.warns(UserWarning, match="below their rounding noise"):
        scaler = accumulator.compute()
    text = text_of(scaler.baselines_table())
    words = [line.split() for line in text.splitlines()]
    assert ["energy", "100.0", "%", "H", "(1)", "-15.25"] in words
    assert ["O", "(8)", "-2000"] in words
    assert ["charges", "42.4", "%", "H", "(1)", "0.3"] in words
    assert "dipole" not in text
    accumulator = ScaleAccumulator()
    accumulator.update(systems, {"energy": structure_target([-2000.0, -2030.5])})
    assert accumulator.compute().baselines_table() is None


def test_explained_variance_of_per_atom_targets_does_not_depend_on_batches():
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    # The charges above; the first batch has no H.
    for one, values in ((system(8), [0.2]), (system(1, 1, 8), [0.4, 0.2, -0.6])):
        accumulator.update([one], {"charges": atom_target(values, atom_samples(len(values)))})
    explained = accumulator.compute().targets["charges"].explained_variance
    assert explained == pytest.approx(1 - 0.34 / 0.59)


def test_explained_variance_of_totals_does_not_depend_on_batches():
    # Least squares of the totals: H is (1 + 2 + 6 + 7 + 2 * 9) / (4 + 4). The mean per atom is 4.1.
    numbers, sizes = [1.0, 2.0, 6.0, 7.0, 9.0], [1, 1, 1, 1, 2]
    systems = [system(*[1] * size) for size in sizes]
    whole = ScaleAccumulator(baseline=CompositionBaseline())
    whole.update(systems, {"t": structure_target(numbers)})
    parts = ScaleAccumulator(baseline=CompositionBaseline())
    for one, number in zip(systems * 40, numbers * 40, strict=True):
        parts.update([one], {"t": structure_target([number])})
    weight = (16 + 18) / 8
    per_atom = [1.0, 2.0, 6.0, 7.0, 4.5]
    residual = sum((x - weight) ** 2 for x in per_atom)
    about_mean = sum((x - 4.1) ** 2 for x in per_atom)
    for accumulator in (whole, parts):
        explained = accumulator.compute().targets["t"].explained_variance
        assert explained == pytest.approx(1 - residual / about_mean)


def test_explained_variance_of_large_totals_of_one_composition_is_zero():
    noise = [1e-3 * math.sin(7.0 * i) for i in range(30)]
    accumulator = ScaleAccumulator(baseline=CompositionBaseline())
    energy = structure_target([3 * (x - 1e5) for x in noise])
    accumulator.update([system(1, 1, 8)] * 30, {"energy": energy})
    assert accumulator.compute().targets["energy"].explained_variance == pytest.approx(
        0.0, abs=1e-6
    )


def test_baselines_table_names_the_additive_module():
    accumulator = ScaleAccumulator(additive=ZBL(target="t"))
    near = system(1, 1, positions=[[0, 0, 0], [0, 0, 0.4]])
    accumulator.update([near, system(8)], {"t": structure_target([3.0, 5.0])})
    text = text_of(accumulator.compute().baselines_table())
    assert "ZBL" in text


def test_explained_variance_near_one_is_not_rounded_to_one():
    accumulator = ScaleAccumulator(baseline=CompositionBaseline(fixed={"t": {1: 1000.0, 8: 0.0}}))
    accumulator.update([system(1), system(8)], {"t": structure_target([1000.5, 0.5])})
    # 2 * 0.25 of 2 * 500^2 remain unexplained: 1e-6.
    text = text_of(accumulator.compute().baselines_table())
    assert "99.99990 %" in text
