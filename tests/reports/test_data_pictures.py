import random

import numpy as np
import pytest
from pictures import drawn_texts, faults

from lightning_scaler.reports import DrawnTerm, MissingValues, draw_distributions, draw_terms

LONG = "mtt::electron_density_in_a_basis_with_a_long_name_of_its_own"
TYPES = ["H", "C", "N", "O", "F", "S"]

numbers = random.Random(0)


def normal(n, spread=1.0, mean=0.0):
    return [numbers.gauss(mean, spread) for _ in range(n)]


def stairs(axes):
    """The heights of every histogram of some axes by label, and its edges."""
    return {patch.get_label(): patch.get_data() for patch in axes.patches}


def test_the_shares_of_a_histogram_are_those_of_the_values():
    before = [1.0] * 30 + [2.0] * 70
    term = DrawnTerm("gap", {"": before}, {"": [-0.5] * 40 + [0.5] * 60})
    left, right = draw_distributions([term], {"gap": "eV"}).axes
    values, edges, _ = stairs(left)["all types"]
    assert values[values > 0].tolist() == pytest.approx([30.0, 70.0])
    assert edges[0] < 1.0
    assert edges[-1] > 2.0
    assert left.get_xlabel() == "as in the data (eV)"
    # sqrt((30 + 4 * 70) / 100) = 1.761, and 0.5 throughout.
    assert left.get_title("right") == "RMS 1.761"
    assert right.get_title("right") == "RMS 0.5"


def test_the_most_frequent_types_have_a_line_each():
    by_type = {z: normal(100 * (i + 1), mean=i) for i, z in enumerate(TYPES)}
    left, _ = draw_distributions([DrawnTerm("charges", by_type, by_type)]).axes
    assert [*stairs(left)] == ["all types", "S", "F", "O", "N"]
    values, edges, _ = stairs(left)["F"]
    expected = np.histogram(by_type["F"], edges)[0] / 5.0  # in percent of 500
    np.testing.assert_allclose(values, expected)


def test_single_values_far_away_do_not_hide_the_others():
    left, _ = draw_distributions([DrawnTerm("gap", {"": [*normal(5000), 1e6]}, {"": []})]).axes
    assert left.get_xlim()[1] < 10.0


@pytest.mark.slow
def test_distributions_have_no_text_that_overlaps_or_is_cut_off():
    by_type = {z: normal(50, 0.1 * (i + 1)) for i, z in enumerate(TYPES)}
    terms = [
        DrawnTerm("energy", {"": normal(100, 30.0, -103_456.0)}, {"": normal(100)}),
        DrawnTerm("energy/positions", {"": normal(100, 2e-7)}, {"": normal(100, 5.0)}),
        DrawnTerm("charges", by_type, by_type),
        DrawnTerm(LONG, {"": []}, {"": []}),
        DrawnTerm("constant", {"": [3.0] * 10}, {"": [0.0] * 10}),
    ]
    figure = draw_distributions(terms, {"energy": "kcal/mol", "energy/positions": "eV/Å"})
    assert not faults(figure)
    assert [text for text, _ in drawn_texts(figure)].count("no values") == 2


@pytest.mark.slow
def test_of_many_terms_the_first_are_drawn_and_the_others_counted():
    terms = [DrawnTerm(f"target {i}", {"": [1.0]}, {"": [1.0]}) for i in range(30)]
    figure = draw_distributions(terms)
    assert len(figure.axes) == 32
    assert "… and 14 more" in [text for text, _ in drawn_texts(figure)]
    assert not faults(figure)


def test_mean_squares_and_missing_values_are_rows_with_their_numbers():
    missing = {"energy": MissingValues(0.0, [0.0]), LONG: MissingValues(0.4, [0.1, 0.7])}
    figure = draw_terms({"energy": 1.0, "energy/positions": 30.2, LONG: 0.0}, missing)
    left, right = figure.axes
    line, values = left.lines
    assert line.get_xdata() == [1.0, 1.0]
    assert values.get_xdata().tolist() == [1.0, 30.2, 0.0]
    assert [bar.get_width() for bar in right.patches] == [0.0, 40.0]
    (of_properties,) = right.lines
    assert of_properties.get_xdata().tolist() == [10.0, 70.0]
    assert {"30.2", "40 %", "energy/positions"} <= {text for text, _ in drawn_texts(figure)}
    assert not faults(figure)


@pytest.mark.slow
@pytest.mark.parametrize("n_terms", [1, 60])
def test_terms_have_no_text_that_overlaps_or_is_cut_off(n_terms):
    names = [f"{LONG}_{i}" for i in range(n_terms)]
    missing = {name: MissingValues(0.5, [0.5]) for name in names}
    figure = draw_terms({name: 3.0 for name in names}, missing)
    assert not faults(figure)
    assert not faults(draw_terms({name: 1.0 for name in names}))
