"""Whether the settings requested now are those of restored scales, or of other processes."""

import copy

import pytest
import torch
from builders import atom_samples, atom_target, structure_target, system
from small_training import SmallData, SmallNet, collate, quiet_trainer, scaler_callback

from lightning_scaler import CompositionBaseline, ScaleAccumulator
from lightning_scaler.settings import Settings
from lightning_scaler.training.fit_settings import FitSettings
from lightning_scaler.training.restored_settings import check_restored


class Silent(torch.nn.Module):
    """An additive module without output."""

    def forward(self, systems, names):
        return {}


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
    "intensive_targets": ["gap"],
    "fixed_scales": {"charges": {1: 0.5, 8: 0.25}},
    "fixed_baseline": {"energy": {1: -13.0, 8: -70.0}},
}


def check(scaler, **changes):
    check_restored(scaler, FitSettings(**{**AS_FITTED, **changes}))


def test_the_settings_of_the_fit_match_restored_scales(scaler):
    check(scaler)


def test_automatic_system_labels_match_any(scaler):
    for fitted_with, now in (("position", "auto"), ("auto", "id"), ("id", "id")):
        scaler.settings = Settings(baseline="composition", system_labels=fitted_with)
        check(scaler, system_labels=now)


def test_other_system_labels_are_reported_with_both_values(scaler):
    scaler.settings = Settings(baseline="composition", system_labels="position")
    with pytest.raises(ValueError, match="system_labels was 'position' and is 'id'"):
        check(scaler, system_labels="id")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"baseline": "none", "fixed_baseline": None},
            "baseline was 'composition' and is 'none'",
        ),
        ({"enabled": False}, "enabled was True and is False"),
        ({"baseline": Silent()}, "additive module was None and is 'Silent'"),
        ({"unseen_types": "pooled"}, "unseen_types was 'error' and is 'pooled'"),
        ({"intensive_targets": []}, "intensive_targets: gap was True and is False"),
        ({"fixed_scales": {}}, r"fixed_scales: charges was \{1: 0.5, 8: 0.25\} and is None"),
        (
            {"fixed_baseline": None},
            "fixed_baseline: energy was .*: -70.0} and is None",
        ),
        ({"fixed_scales": {"charge": 1.0}}, "fixed_scales names the target 'charge'.*'charges'"),
    ],
)
def test_each_setting_that_differs_is_reported_with_both_values(scaler, change, message):
    with pytest.raises(ValueError, match=message):
        check(scaler, **change)


def test_settings_of_targets_without_scales_are_no_contradiction(scaler):
    settings = {**AS_FITTED["fixed_scales"], "spins": 2.0}
    check(scaler, targets=["spins"], fixed_scales=settings)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"unseen_types": "pooled"}, "settings"),
        ({"system_labels": "id"}, "settings"),
        ({"intensive_targets": ["gap"]}, "intensive_targets"),
        ({"fixed_scales": {"charges": {1: 0.5}}}, "fixed_scales"),
        ({"fixed_baseline": {"charges": {1: 0.5}}}, "fixed_baseline"),
        ({"baseline": Silent()}, "additive module"),
        ({"limit_batches": 4}, "limit_batches"),
    ],
)
def test_every_setting_is_compared_with_that_of_other_processes(change, name):
    ours, theirs = FitSettings().by_setting(), FitSettings(**change).by_setting()
    assert [key for key in ours if repr(ours[key]) != repr(theirs[key])] == [name]


def test_what_is_fitted_again_is_compared_with_that_of_other_processes():
    def differences(one, other):
        ours, theirs = FitSettings(**one).by_setting(), FitSettings(**other).by_setting()
        return [key for key in ours if repr(ours[key]) != repr(theirs[key])]

    baseline = {"refit": "baseline"}
    assert differences({}, {"refit": "types"}) == ["refit"]
    assert differences(baseline, {**baseline, "against": "predictions"}) == ["against"]
    layers = [{"refit": "scales", "output_layers": {"energy": name}} for name in ("a", "b")]
    assert differences(*layers) == ["output_layers"]


def fit(folder, net, data, **options):
    callbacks = [scaler_callback(**options)]
    trainer = quiet_trainer(folder, callbacks=callbacks, max_epochs=0, limit_val_batches=0)
    trainer.fit(net, data)
    trainer.save_checkpoint(folder / "net.ckpt")
    return data.train.reads


def restored(folder):
    return SmallNet.load_from_checkpoint(folder / "net.ckpt", weights_only=True)


def test_the_settings_of_a_fit_are_restored_and_refit_replaces_them(tmp_path):
    """Every setting has a value that is not the default."""
    settings = {
        "enabled": False,
        "unseen_types": "pooled",
        "intensive_targets": ["dipole"],
        "fixed_scales": {"charges": 2.0},
        "fixed_baseline": {"energy": {1: -1.0, 6: -2.0, 8: -3.0}},
        "system_labels": "id",
    }
    assert len(fit(tmp_path, SmallNet(), SmallData(), **settings)) == 22
    net = restored(tmp_path)
    assert fit(tmp_path, copy.deepcopy(net), SmallData(), **settings) == []
    message = (
        "enabled was False and is True; unseen_types was 'pooled' and is 'error'; "
        "system_labels was 'id' and is 'position'; fixed_baseline: energy was .* and is None; "
        "intensive_targets: polarizability was False and is True; fixed_scales: charges was 2.0 "
        "and is None; use the same settings, or set refit=True"
    )
    data = SmallData()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, net, data, system_labels="position")
    assert data.train.reads == []
    assert len(fit(tmp_path, net, SmallData(), refit=True, system_labels="position")) == 22
    assert fit(tmp_path, restored(tmp_path), SmallData(), system_labels="position") == []


def test_automatic_system_labels_are_settled_by_the_data_and_restored(tmp_path):
    def with_ids(items):
        batch = collate(items)
        values = batch["energy"].block().values
        ids = range(100, 100 + len(values))
        return {"system": batch["system"], "energy": structure_target(values, ids)}

    data = SmallData(collate_fn=with_ids)
    fit(tmp_path, SmallNet(), data, intensive_targets=[])
    net = restored(tmp_path)
    assert fit(tmp_path, net, SmallData(), intensive_targets=[], system_labels="id") == []
    with pytest.raises(ValueError, match="system_labels was 'id' and is 'position'"):
        fit(tmp_path, net, data, intensive_targets=[], system_labels="position")
