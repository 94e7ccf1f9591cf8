"""Settings from Python and YAML."""

import re

import numpy as np
import pytest
from ase.data import chemical_symbols

from lightning_scaler.settings import (
    UnseenTypes,
    check_choice,
    check_installed,
    check_names,
    did_you_mean,
    list_of_names,
    parse_fixed_baseline,
    parse_fixed_scales,
)


def test_type_keys_from_yaml_and_python_become_integers():
    given = {"energy": 1, "forces": {"1": 2, 8: 1.1, " 6 ": 0.5}}
    plain = parse_fixed_scales(given)
    assert plain == {"energy": 1.0, "forces": {1: 2.0, 8: 1.1, 6: 0.5}}
    assert isinstance(plain["energy"], float)
    assert all(type(key) is int for key in plain["forces"])
    assert given == {"energy": 1, "forces": {"1": 2, 8: 1.1, " 6 ": 0.5}}


def test_type_keys_may_be_chemical_symbols():
    assert parse_fixed_scales({"forces": {"H": 0.2, " O ": 1.1, 6: 2}}) == {
        "forces": {1: 0.2, 8: 1.1, 6: 2.0}
    }
    assert parse_fixed_baseline({"energy": {"H": -13.6, "Og": 0}}) == {
        "energy": {1: -13.6, 118: 0.0}
    }


def test_every_element_has_its_atomic_number():
    by_symbol = dict.fromkeys(chemical_symbols[1:], 1.0)
    assert list(parse_fixed_baseline({"energy": by_symbol})["energy"]) == list(range(1, 119))


def test_numbers_of_numpy_are_numbers():
    scales = {"energy": np.float32(0.5), "forces": {np.int64(1): np.int32(2), "O": np.float64(3)}}
    plain = parse_fixed_scales(scales)
    assert plain == {"energy": 0.5, "forces": {1: 2.0, 8: 3.0}}
    assert all(type(value) is float for value in [plain["energy"], *plain["forces"].values()])


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_fixed_scales_and_no_fixed_baseline(nothing):
    assert parse_fixed_scales(nothing) == {}
    assert parse_fixed_baseline(nothing) == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "fixed_scales of target 'energy': expected a positive number, got 0"),
        (-0.5, "expected a positive number, got -0.5"),
        (float("nan"), "expected a finite number, got nan"),
        (float("inf"), "expected a finite number, got inf"),
        (True, "expected a number, got True"),
        ("0.5", "expected a number, got '0.5'"),
        (None, "expected a number, got None"),
        ([0.5], "expected a number"),
        ({1: 0.2, "1": 0.3}, "type 1 is given twice"),
        ({1: 0.2, "01": 0.3}, "type 1 is given twice"),
        ({"H": 0.2, 1: 0.3}, "type 1 is given twice, as 'H' and 1; keep one of them"),
        ({"1": 0.2, "H": 0.3}, "type 1 is given twice, as '1' and 'H'"),
        ({"Hx": 0.2}, "(an integer or a chemical symbol), got 'Hx'; did you mean 'H'?"),
        ({"cl": 0.2}, "got 'cl'; did you mean 'Cl'?"),
        ({"CL": 0.2}, "got 'CL'; did you mean 'Cl'?"),
        ({1.5: 0.2}, "expected an atomic type (an integer or a chemical symbol), got 1.5"),
        ({-1: 0.2}, "expected an atomic type (an integer or a chemical symbol), got -1"),
        ({True: 0.2}, "expected an atomic type (an integer or a chemical symbol), got True"),
        ({np.bool_(True): 0.2}, "expected an atomic type"),
        ({"O": "0.5"}, "fixed_scales of target 'energy', type O: expected a number, got '0.5'"),
        (np.bool_(True), "expected a number, got"),
        (np.float32("nan"), "expected a finite number, got nan"),
        (1 + 0j, "expected a number, got (1+0j)"),
        ({8: -1.0}, "expected a positive number, got -1.0"),
        ({8: float("inf")}, "type 8: expected a finite number, got inf"),
    ],
)
def test_invalid_fixed_scales_are_refused(value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_fixed_scales({"energy": value})


def test_fixed_baseline_may_be_negative_or_zero():
    assert parse_fixed_baseline({"energy": {"1": -13, 8: 0}}) == {"energy": {1: -13.0, 8: 0.0}}


def test_fixed_baseline_is_per_type():
    with pytest.raises(ValueError, match=r"expected a number per atomic type, .* got -13.6"):
        parse_fixed_baseline({"energy": -13.6})


@pytest.mark.parametrize("value", [0.5, ["energy"], "energy"])
def test_fixed_numbers_are_given_by_target_name(value):
    for setting, parse in (
        ("fixed_scales", parse_fixed_scales),
        ("fixed_baseline", parse_fixed_baseline),
    ):
        message = f"{setting}: expected a mapping by target name, .* got {re.escape(repr(value))}"
        with pytest.raises(ValueError, match=message):
            parse(value)


def test_fixed_baseline_must_be_finite():
    with pytest.raises(ValueError, match=r"fixed_baseline of target 'energy', type 1: .*finite"):
        parse_fixed_baseline({"energy": {1: float("nan")}})


def test_a_string_is_not_a_list_of_names():
    assert list_of_names("targets", ["energy"]) == ("energy",)
    with pytest.raises(TypeError, match="targets: expected a list of names, got the string 'ene"):
        list_of_names("targets", "energy")
    with pytest.raises(TypeError, match="targets: expected a list of names, got 5"):
        list_of_names("targets", 5)


def test_unknown_choices_list_the_known_ones():
    check_choice("unseen_types", "pooled", UnseenTypes)
    with pytest.raises(ValueError, match=r"unseen_types: expected one of .*'pooled'.* got 'pool'"):
        check_choice("unseen_types", "pool", UnseenTypes)


def test_unknown_target_names_suggest_the_nearest():
    check_names("fixed_scales", ["energy"], ["energy", "forces"])
    with pytest.raises(ValueError, match=r"fixed_scales names the target 'enrgy'.*mean 'energy'"):
        check_names("fixed_scales", ["enrgy"], iter(["energy", "forces"]))
    with pytest.raises(ValueError, match=r"known: \['dipole'\]"):
        check_names("fixed_scales", ["xyz"], ["dipole"])


def test_did_you_mean_suggests_the_closest_name_or_lists_all():
    assert did_you_mean("engery", ["forces", "energy"]).startswith("did you mean 'energy'?")
    assert did_you_mean("x", ["forces", "energy"]) == "known: ['energy', 'forces']"


def test_a_missing_package_is_named_with_its_extra():
    check_installed("tests", "test", ["pytest", "numpy"])
    message = (
        "No module named 'no_such_package'; plots need the extra 'plots': "
        "pip install 'lightning-scaler[plots]'"
    )
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(message)}$") as error:
        check_installed("plots", "plots", ["numpy", "no_such_package"])
    assert error.value.name == "no_such_package"
