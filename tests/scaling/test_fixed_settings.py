"""Fitted numbers as settings that fix them."""

import pytest
import torch
from builders import Springs, atom_samples, atom_target, fit, structure_target, system

from lightning_scaler import CompositionBaseline
from lightning_scaler.scaling import find_differences, fixed_settings

SYSTEMS = [system(8), system(1, 8), system(1, 1, 8), system(1, 1)]
TARGETS = {
    "energy": structure_target([-75.0, -76.5, -77.1, -1.2]),
    "gap": structure_target([1.0, 2.0, 4.0, 9.0]),
    "charges": atom_target([0.5, 0.25, -1.0, 0.1, 0.3, -0.4, 0.7, 0.2], atom_samples(1, 2, 3, 2)),
}
INTENSIVE = {"intensive_targets": ["gap"]}


def test_scales_fixed_to_fitted_ones_are_the_same_to_the_bit():
    fitted = fit(SYSTEMS, TARGETS, baseline=CompositionBaseline(), **INTENSIVE)
    found = fixed_settings(fitted)
    assert found.fixed_scales.keys() == found.fixed_baseline.keys() == TARGETS.keys()
    assert found.remarks == ["fitted with intensive_targets: [gap]"]
    again = fit(
        SYSTEMS,
        TARGETS,
        baseline=CompositionBaseline(found.fixed_baseline),
        fixed_scales=found.fixed_scales,
        **INTENSIVE,
    )
    # Mean squares of the values are those of the data under the fixed scales.
    differences = find_differences(fitted, again, tolerance=0.0)
    assert [d for d in differences if not d.what.startswith("mean square")] == []
    for name, weights in found.fixed_baseline.items():
        assert list(weights) == [1, 8], name


def test_several_numbers_per_type_are_left_out_with_a_remark():
    targets = {"orbitals": structure_target(torch.arange(8.0).reshape(4, 2).tolist())}
    found = fixed_settings(fit(SYSTEMS, targets, baseline=CompositionBaseline()))
    assert found.fixed_baseline == {}
    assert found.remarks == [
        "orbitals: its baseline has several numbers per type and is fitted again"
    ]


def test_a_type_without_a_known_weight_is_left_out():
    """Nobody has measured the gap of a structure with hydrogen."""
    targets = {"gap": structure_target([1.0, torch.nan, torch.nan, torch.nan])}
    with pytest.warns(UserWarning, match="type"):
        scaler = fit(SYSTEMS, targets, baseline=CompositionBaseline(), **INTENSIVE)
    assert list(fixed_settings(scaler).fixed_baseline["gap"]) == [8]


@pytest.mark.filterwarnings("ignore:subtracting the baseline makes")
def test_the_baseline_that_the_numbers_are_for_is_a_remark():
    assert fixed_settings(fit(SYSTEMS, TARGETS)).remarks == ["fitted with baseline: none"]
    without = CompositionBaseline(excluded=("gap",))
    found = fixed_settings(fit(SYSTEMS, TARGETS, baseline=without))
    assert found.remarks == ["fitted with baseline: {gap: none}"]
    found = fixed_settings(fit(SYSTEMS, TARGETS, additive=Springs(k=1e-3)))
    assert found.remarks[0] == "fitted after subtracting the module Springs"
