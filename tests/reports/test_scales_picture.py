import math
import random
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from pictures import drawn_texts, faults

from lightning_scaler.reports import DrawnScales, draw_scales
from lightning_scaler.settings import CHEMICAL_SYMBOLS

FIVE = ["H", "C", "N", "O", "S"]
MANY = [CHEMICAL_SYMBOLS[z] for z in range(1, 90)]
SIXTY = [f"λ={degree}, n={n}" for degree in range(4) for n in range(15)]
LONG = "mtt::electron_density_in_a_basis_with_a_long_name_of_its_own"

numbers = random.Random(0)


def scales(n_types, n_properties):
    """Scales over three decades, by property and type."""
    return [[10 ** numbers.uniform(-3, 0) for _ in range(n_types)] for _ in range(n_properties)]


ENERGY = DrawnScales("energy", [], [""], [[0.0523]], 3801.0, extensive=True)
GAP = DrawnScales("gap", [], [""], [[1.25]], 8.5)


def test_per_structure_targets_share_axes_with_their_rms_and_scales():
    figure, axes = draw_scales([ENERGY, GAP], {"energy": "eV", "gap": "eV"})
    before, after = axes.lines
    assert before.get_xdata().tolist() == [3801.0, 8.5]
    assert after.get_xdata().tolist() == [0.0523, 1.25]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "energy (eV/atom)",
        "gap (eV)",
    ]
    assert axes.get_xscale() == "log"
    assert {"0.0523", "1.25"} <= {text for text, _ in drawn_texts(figure)}


def test_types_have_a_marker_for_each_property():
    values = scales(5, 3)
    _, axes = draw_scales([DrawnScales("charges", FIVE, ["s", "p", "d"], values, 1.0)])
    assert [line.get_ydata().tolist() for line in axes.lines] == values
    assert [text.get_text() for text in axes.get_xticklabels()] == FIVE
    assert len({line.get_marker() for line in axes.lines}) == 3
    assert axes.get_yscale() == "log"


def test_many_properties_are_a_heat_map_with_empty_cells():
    values = scales(5, 60)
    values[7][2] = math.nan
    _, axes = draw_scales([DrawnScales("density", FIVE, SIXTY, values, 1.0)])
    (image,) = axes.images
    drawn = np.asarray(image.get_array().filled(np.nan))
    np.testing.assert_array_equal(drawn, np.array(values))
    assert [text.get_text() for text in axes.get_yticklabels()] == SIXTY
    # The scale of the colours is logarithmic: the middle is the geometric mean of its ends.
    norm = image.norm
    assert norm(math.sqrt(norm.vmin * norm.vmax)) == pytest.approx(0.5)


def test_the_properties_of_a_per_structure_target_are_rows():
    values = scales(1, 60)
    _, axes = draw_scales([DrawnScales("moments", [], SIXTY, values, 1.0)])
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [value for (value,) in values]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first at the top


@pytest.mark.slow
@pytest.mark.parametrize("types", [FIVE, MANY], ids=["5 types", "89 types"])
@pytest.mark.parametrize("n_properties", [1, 3, pytest.param(60, marks=pytest.mark.slow)])
def test_no_text_of_a_per_atom_target_overlaps_another_or_is_cut_off(types, n_properties):
    properties = SIXTY[:n_properties] if n_properties > 1 else [""]
    target = DrawnScales(LONG, types, properties, scales(len(types), n_properties), 1.0)
    figure, _ = draw_scales([ENERGY, target], {"energy": "kcal/mol", LONG: "bohr^(-3/2)"})
    assert not faults(figure)
    shown = {text for text, _ in drawn_texts(figure)}
    assert set(types) <= shown
    if n_properties > 1:
        assert set(properties) <= shown


@pytest.mark.slow
def test_no_text_of_per_structure_targets_overlaps_another_or_is_cut_off():
    properties = [f"{label}, and a property with a long name" for label in SIXTY]
    moments = DrawnScales(LONG, [], properties, scales(1, 60), 1.0)
    two = DrawnScales("polarizability", [], ["λ=0", "λ=2"], scales(1, 2), 1.0)
    numbers = [DrawnScales(f"{LONG}_{i}", [], [""], [[10.0**i]], 1e3) for i in range(12)]
    figure, axes = draw_scales([ENERGY, *numbers, moments, two], {"energy": "eV"})
    assert len(axes) == 3
    assert not faults(figure)


@pytest.mark.slow
def test_rows_that_are_too_narrow_are_labelled_in_part():
    properties = [f"n={n}" for n in range(400)]
    moments = DrawnScales("moments", [], properties, scales(1, 400), 1.0)
    figure, axes = draw_scales([moments])
    assert not faults(figure)
    assert len(axes.get_yticks()) > 60
    small = Figure((4, 2))
    _, axes = draw_scales([moments], ax=small.subplots())
    assert not [pair for pair in faults(small) if isinstance(pair, tuple)]
    assert 5 < len(axes.get_yticks()) < 20


@pytest.mark.parametrize(("factor", "spread"), [(1e-12, 0.0), (3e4, 0.01), (1.0, 1.0), (0.02, 9.0)])
def test_ticks_of_any_range_do_not_overlap(factor, spread):
    values = [[factor], [factor * 10**spread]]
    figure, axes = draw_scales([DrawnScales("moments", [], ["a", "b"], values, 1.0)])
    assert not faults(figure)
    low, high = axes.get_xlim()
    labelled = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 2 <= len(labelled) <= 14


def test_axes_of_ones_own_are_drawn_into():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    drawn_into, axes = draw_scales([ENERGY, GAP], ax=right)
    assert drawn_into is figure
    assert axes is right
    assert len(right.lines) == 2
    assert not left.lines
    with pytest.raises(
        ValueError, match=r"ax: expected one target, .* got \['energy', 'charges'\]"
    ):
        draw_scales([ENERGY, DrawnScales("charges", FIVE, [""], scales(5, 1), 1.0)], ax=left)


@pytest.mark.slow
def test_pyplot_is_not_imported(tmp_path):
    code = (
        "import sys; from lightning_scaler.reports import DrawnScales, draw_scales;"
        "assert 'matplotlib' not in sys.modules;"
        "figure, _ = draw_scales([DrawnScales('gap', [], [''], [[1.0]], 2.0)]);"
        "figure.savefig('gap.png'); print(sorted({'matplotlib.pyplot', 'torch'} & {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.strip() == "[]"
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
