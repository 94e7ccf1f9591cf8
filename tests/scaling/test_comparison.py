"""What differs between two scalers."""

from dataclasses import replace

import pytest
import torch
from builders import atom_samples, atom_target, fit, structure_target, system

from lightning_scaler import CompositionBaseline, Scaler
from lightning_scaler.scaling import find_differences

SYSTEMS = [system(8), system(1, 8), system(8, 8)]


def fitted(**options):
    targets = {
        "energy": structure_target([-75.0, -76.5, -150.7]),
        "charges": atom_target([0.5, 0.25, -1.0, 0.1, 0.3], atom_samples(1, 2, 2)),
    }
    return fit(SYSTEMS, targets, **options)


def changed(scaler, name, **fields):
    targets = {**scaler.targets, name: replace(scaler.targets[name], **fields)}
    return Scaler(targets, scaler.settings)


def test_equal_scalers_have_no_difference():
    assert find_differences(fitted(), fitted(), tolerance=0.0) == []


def test_scales_differ_beyond_the_tolerance():
    one = fitted()
    factors = torch.ones_like(one.targets["charges"].per_target)
    factors[0] += 1e-6  # that of type 1
    two = changed(one, "charges", per_target=one.targets["charges"].per_target * factors)
    (difference,) = find_differences(one, two, tolerance=1e-7)
    assert difference[:3] == ("charges", "scale, type H (1)", ("0.25", "0.25000025"))
    assert difference.relative == pytest.approx(1e-6, rel=1e-5)
    assert find_differences(one, two, tolerance=1e-5) == []


def test_a_target_and_a_type_of_one_alone_are_listed():
    one, two = fitted(), fitted()
    del two.targets["energy"]
    found = find_differences(one, two)
    assert {d.target for d in found} == {"energy"}
    scale = f"{one.targets['energy'].per_target[0]:.10g}"
    assert ("energy", "scale", (scale, "–"), None, "") in found
    other = fit([system(8)], {"charges": atom_target([0.5], atom_samples(1))})
    whats = [d.what for d in find_differences(fitted(), other) if d.target == "charges"]
    assert "scale, type H (1)" in whats


def test_scales_of_types_that_are_not_in_the_data_differ():
    one, two = (
        fitted(fixed_scales={"charges": {"H": 0.5, "C": carbon, "O": 0.5}}) for carbon in (1.0, 4.0)
    )
    assert find_differences(one, two) == [("charges", "scale, type C (6)", ("1", "4"), 0.75, "")]


@pytest.mark.filterwarnings("ignore:these data are zero")  # one charge of hydrogen is its mean
def test_settings_differ():
    found = find_differences(fitted(), fitted(baseline=CompositionBaseline()))
    assert ("", "baseline", ("none", "composition"), None, "") in found
    assert any(d.what == "baseline, type O (8)" and d.values[0] == "–" for d in found)


@pytest.mark.filterwarnings("ignore:these data are zero")
def test_rounding_of_a_weight_that_is_zero_is_compared_with_the_scale():
    """Of a minimum-norm solution, weights that should be 0 are about 1e-17."""
    one = fitted(baseline=CompositionBaseline())
    (key,) = one.targets["charges"].weights
    weights = one.targets["charges"].weights[key]
    zero, tiny = weights.clone(), weights.clone()
    zero[0], tiny[0] = 0.0, 1e-17
    first = changed(one, "charges", weights={key: zero})
    assert find_differences(first, changed(one, "charges", weights={key: tiny})) == []
    tiny[0] = 1e-3
    assert find_differences(first, changed(one, "charges", weights={key: tiny})) != []


def test_a_weight_is_compared_with_a_scale_that_is_much_smaller_than_1():
    """Weights of 0 and 1e-14, and a scale of 1e-8: the relative difference is 1e-6."""
    one, two = (
        fitted(
            baseline=CompositionBaseline(fixed={"charges": {"H": weight, "O": 0.0}}),
            fixed_scales={"charges": 1e-8},
        )
        for weight in (0.0, 1e-14)
    )
    found = find_differences(one, two, tolerance=1e-7)
    (difference,) = (d for d in found if d.what.startswith("baseline"))
    assert difference[1:3] == ("baseline, type H (1)", ("0", "1e-14"))
    assert difference.relative == pytest.approx(1e-6, rel=1e-12)


def test_scales_and_weights_have_the_units_of_their_target():
    """A scale of totals is per atom, a weight is that of one atom."""
    options = {"baseline": CompositionBaseline(fixed={"charges": {1: 0.0, 8: 0.0}})}
    one, two = (fitted(units={"energy": "eV", "charges": "e"}, **options) for _ in range(2))
    double = one.targets["energy"].per_target * 2
    (key,) = one.targets["energy"].weights
    weights = {key: one.targets["energy"].weights[key] + 1.0}
    two = changed(two, "energy", per_target=double, weights=weights)
    units = {d.what: d.unit for d in find_differences(one, two)}
    assert units == {"scale": "eV/atom", "baseline, type H (1)": "eV", "baseline, type O (8)": "eV"}


def test_units_that_are_known_differ():
    one = fitted(units={"energy": "eV", "charges": "e"})
    two = fitted(units={"energy": "meV"})
    assert find_differences(one, two) == [("energy", "unit", ("eV", "meV"), None, "")]


def test_units_that_are_written_otherwise_do_not_differ():
    one, two = fitted(units={"energy": "kJ mol⁻¹"}), fitted(units={"energy": "kJ*mol^-1"})
    assert find_differences(one, two) == []
