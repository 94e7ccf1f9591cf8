"""Whether restored scales are what the settings of now ask for."""

import pytest
from builders import atom_samples, atom_target, structure_target, system

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.settings import Settings
from lightning_scaler.training.fit_decision import check_restored


@pytest.fixture
def scaler():
    accumulator = ScaleAccumulator(
        intensive_targets=["gap"],
        baseline=CompositionBaseline(fixed={"energy": {1: -13.0, 8: -70}}),
    )
    accumulator.update(
        [system(8), system(1, 8), system(1, 1, 8)],
        {
            "energy": structure_target([-71.0, -82.0, -96.0]),
            "gap": structure_target([1.0, 2.0, 4.0]),
            "charges": atom_target([0.5, 0.2, -0.3, 0.1, 0.2, -0.4], atom_samples(1, 2, 3)),
        },
    )
    return accumulator.compute({"charges": {1: 0.5, 8: 0.25}})


AS_FITTED = {
    "asked": Settings(baseline="composition"),
    "targets": (),
    "intensive_targets": ["gap"],
    "fixed_scales": {"charges": {1: 0.5, 8: 0.25}},
    "fixed_baseline": {"energy": {1: -13.0, 8: -70.0}},
}


def test_the_same_settings_are_fine(scaler):
    check_restored(scaler, **AS_FITTED)


def test_auto_goes_with_any_reading_of_labels(scaler):
    asked = Settings(baseline="composition", system_labels="id")
    check_restored(scaler, **{**AS_FITTED, "asked": asked})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"asked": Settings()}, "baseline was 'composition' and is 'none'"),
        (
            {"asked": Settings(baseline="composition", unseen_types="pooled")},
            "unseen_types was 'error' and is 'pooled'",
        ),
        ({"intensive_targets": []}, "intensive_targets: gap was True and is False"),
        ({"fixed_scales": {}}, r"fixed_scales: charges was \{1: 0.5, 8: 0.25\} and is None"),
        ({"fixed_baseline": {}}, r"fixed_baseline: energy was \{1: -13.0, 8: -70.0\} and is None"),
        ({"fixed_scales": {"charge": 1.0}}, "fixed_scales names the target 'charge'.*'charges'"),
    ],
)
def test_each_contradiction_is_told_with_both_values(scaler, change, message):
    with pytest.raises(ValueError, match=message):
        check_restored(scaler, **{**AS_FITTED, **change})


def test_settings_of_targets_yet_to_be_fitted_are_no_contradiction(scaler):
    settings = {**AS_FITTED["fixed_scales"], "spins": 2.0}
    check_restored(scaler, **{**AS_FITTED, "targets": ["spins"], "fixed_scales": settings})
