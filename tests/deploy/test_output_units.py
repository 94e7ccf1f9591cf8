"""Names and units of outputs, as a user writes them in Python or YAML."""

import pytest
from builders import fit, labels, spherical, structure_target, system

from lightning_scaler.deploy.output_units import parse_length_unit, parse_outputs

ENERGY = structure_target([-76.0])
ALPHA = spherical({0: [[[1.0]]], 2: [[[2.0]] * 5]}, labels("system", [0]))
NAMES = ("energy", "charges", "dipole", "mtt::charges", "energy/pbe", "gaps")
SCALES = fit([system(8)], {**dict.fromkeys(NAMES, ENERGY), "alpha": ALPHA}).targets


def names(outputs, units=()):
    return [(of.name, of.unit) for of in parse_outputs(outputs, SCALES, dict(units)).values()]


@pytest.mark.parametrize(
    ("target", "unit", "name"),
    [
        ("energy", "kcal/mol", "energy"),
        ("energy/pbe", "Hartree", "energy/pbe"),
        ("charges", "e", "charge"),  # metatomic's names are singular
        ("mtt::charges", "e", "mtt::charges"),
        ("dipole", "e*A", "lightning_scaler::dipole"),
        ("gaps", "eV", "lightning_scaler::gaps"),
        ("alpha", "1", "lightning_scaler::alpha"),
    ],
)
def test_names_that_follow_from_the_target(target, unit, name):
    assert names({target: unit}) == [(name, unit)]
    assert names({target: {"unit": unit}}) == [(name, unit)]


def test_names_that_the_user_gives():
    outputs = {"dipole": {"name": "energy", "unit": "meV"}, "alpha": {"name": "a::b", "unit": "D"}}
    assert names(outputs) == [("energy", "meV"), ("a::b", "D")]


REFUSED = {
    "unknown target": (
        {"enrgy": "eV"},
        "the target 'enrgy', which has no scales; did you mean 'energy'",
    ),
    "no unit": ({"energy": None}, "'energy': expected a unit, such as 'eV'.*got None"),
    "empty unit": ({"alpha": {"name": "a::b"}}, r"'alpha': expected a unit.*'1' if it has no"),
    "blank unit": ({"charges": " "}, "expected a unit, such as 'e'"),
    "unknown unit": ({"dipole": "e*furlong"}, "'dipole': expected a unit .*unknown unit 'furlong'"),
    "wrong dimension": (
        {"energy": "e*A"},
        "expected a unit of energy for the output 'energy', such as 'eV', got 'e.A': dimension mis",
    ),
    "wrong dimension by name": (
        {"dipole": {"name": "non_conservative_force", "unit": "eV"}},
        "expected a unit of force .*such as 'eV/A', got 'eV'",
    ),
    "name": ({"dipole": {"name": "dipole", "unit": "D"}}, "metatomic refuses the name 'dipole'"),
    "same name": (
        {"energy": "eV", "dipole": {"name": "energy", "unit": "eV"}},
        "'energy' and 'dipole' have the same name 'energy'; give one of them another, .*'energy/2'",
    ),
    "other settings": ({"energy": {"unit": "eV", "units": "eV"}}, r"'name' and 'unit', got \['un"),
    "several blocks": (
        {"alpha": {"name": "energy", "unit": "eV"}},
        r"one block, .*got keys \['o3_lambda', 'o3_sigma'\] and 2 properties; name it 'lightning_",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    outputs, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        parse_outputs(outputs, SCALES, {})


@pytest.mark.parametrize("outputs", [{}, None, "energy", []])
def test_anything_but_a_mapping_or_names_is_refused(outputs):
    with pytest.raises(TypeError, match=r"such as \{'energy': 'eV'\}.*targets of the scaler"):
        parse_outputs(outputs, SCALES, {})


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("eV", "eV"),
        ("kcal / mol", "kcal/mol"),
        ("e Å", "e*A"),
        ("e·Å", "e*A"),
        ("kJ mol⁻¹", "kJ*mol^-1"),
        ("eV Å⁻³", "eV*A^-3"),
        ("Ha/a0", "Hartree/bohr"),
        ("a0³", "bohr^3"),
        ("eV/Å^3", "eV/A^3"),
    ],
)
def test_units_of_the_scaler_need_not_be_given_again(unit, written):
    for outputs in (["gaps"], ("gaps",), {"gaps": None}, {"gaps": {"name": "a::gap"}}):
        assert [unit for _, unit in names(outputs, {"gaps": unit})] == [written]


def test_a_unit_other_than_that_of_the_data_is_refused():
    words = "target 'energy': expected the unit in which the data were, 'eV' .*, got 'Hartree'"
    with pytest.raises(ValueError, match=words):
        names({"energy": "Hartree"}, {"energy": "eV"})
    # Other spellings of the same unit, and units that metatomic does not know, are left alone.
    assert names({"dipole": "A*e"}, {"dipole": "e Å"}) == [("lightning_scaler::dipole", "A*e")]
    assert names({"gaps": "eV"}, {"gaps": "of my own"}) == [("lightning_scaler::gaps", "eV")]


def test_names_alone_need_units_of_the_scaler():
    with pytest.raises(ValueError, match=r"got None, and the scaler has none.*Scaler\(units="):
        names(["energy"])


@pytest.mark.parametrize(
    ("forces", "length", "other"),
    [
        ("eV/Å", "angstrom", "bohr"),
        ("meV/Å", None, "angstrom"),
        ("eV a0⁻¹", "bohr", "nm"),
    ],
)
def test_the_unit_of_lengths_is_that_of_the_forces(forces, length, other):
    units = {"energy": "eV", "energy/positions": forces}
    outputs = parse_outputs(["energy"], SCALES, units).values()
    if length is not None:
        parse_length_unit(length, outputs, units)
    words = f"'energy/positions' is in '{forces}' and 'energy' in 'eV', got '{other}'; give that"
    with pytest.raises(ValueError, match=words):
        parse_length_unit(other, outputs, units)


@pytest.mark.parametrize("forces", ["eV", "of my own"])
def test_units_of_forces_that_say_nothing_of_lengths_are_left_alone(forces):
    units = {"energy": "eV", "energy/positions": forces}
    parse_length_unit("bohr", parse_outputs(["energy"], SCALES, units).values(), units)
    parse_length_unit("bohr", parse_outputs({"dipole": "D"}, SCALES, units).values(), units)
