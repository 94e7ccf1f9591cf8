"""Fine-tuning: what a fit keeps of restored scales, and what it adds or fits again."""

import copy

import numpy as np
import pytest
import torch
from builders import labels, structure_target
from fine_tuning import other_level, with_nitrogen
from metatensor.torch import TensorBlock, TensorMap
from small_training import (
    SmallData,
    SmallNet,
    assert_same_numbers,
    baseline_weights,
    collate,
    per_target_scales,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader

from lightning_scaler import TargetScaler

OPTIONS = {"limit_val_batches": 0, "max_epochs": 0}


def fit(folder, net, data, callback=None, trainer_options=None, **settings):
    callbacks = [callback or scaler_callback(**settings)]
    trainer = quiet_trainer(folder, callbacks=callbacks, **{**OPTIONS, **(trainer_options or {})})
    trainer.fit(net, data)
    return net


def predictions(net, data, folder):
    """In physical units, flattened by target."""
    systems = [system for system, _ in data.train.items]
    loader = DataLoader(systems, batch_size=5, collate_fn=lambda batch: {"system": batch})
    batches = quiet_trainer(folder).predict(net, loader)
    return {
        name: torch.cat([part for b in batches for part in flattened(b[name])])
        for name in batches[0]
    }


def flattened(tensor):
    parts = []
    for block in tensor.blocks():
        parts += [block.values.flatten()]
        parts += [block.gradient(name).values.flatten() for name in block.gradients_list()]
    return parts


def counts(data):
    types = [system.types.numpy() for system, _ in data.train.items]
    return np.array([[(t == z).sum() for z in (1, 6, 8)] for t in types], float)


def energies(data):
    return np.array([numbers["energy"].item() for _, numbers in data.train.items])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The state of a network that was trained on H, C and O."""
    folder = tmp_path_factory.mktemp("trained")
    net = fit(folder, SmallNet(), SmallData(), trainer_options={"max_epochs": 1})
    return net.state_dict()


def restored(trained, net_class=SmallNet):
    net = net_class()
    net.load_state_dict(trained)
    return net


@pytest.fixture
def net(trained):
    return restored(trained)


# New elements


@pytest.mark.slow
def test_each_way_out_of_the_errors_about_a_new_element_works(tmp_path, trained):
    def attempt(**settings):
        net = restored(trained)
        return fit(tmp_path, net, with_nitrogen(), trainer_options={"max_epochs": 1}, **settings)

    fixed = {"fixed_baseline": {"energy": {"N": -2000.0}}}
    with pytest.raises(ValueError, match=r"no baseline for .* types \[7\].*refit='types'.*adds"):
        attempt()
    for setting in (fixed, {"unseen_types": "identity"}, {"unseen_types": "pooled"}):
        with pytest.raises(ValueError, match="set refit='types' to use these for new atomic types"):
            attempt(**setting)
        attempt(**setting, refit="types")
    assert baseline_weights(attempt(**fixed, refit="types").scaler, "energy")[0][7] == -2000.0
    attempt(refit="types")


def test_settings_of_known_types_may_not_change_with_new_types(tmp_path, net):
    fixed = {"energy": {"N": -2000.0, "H": -990.0}}
    message = r"fixed_baseline: energy was None and is \{1: -990.0\}; use the same settings, or set"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, net, with_nitrogen(), refit="types", fixed_baseline=fixed)
    with pytest.raises(ValueError, match=r"fixed_scales: charges was None and is 2\.0"):
        fit(tmp_path, net, with_nitrogen(), refit="types", fixed_scales={"charges": 2.0})


def test_new_types_leave_every_number_and_prediction_as_it_was(tmp_path, net, capsys):
    before, old_scaler = predictions(net, SmallData(), tmp_path), copy.deepcopy(net.scaler)
    data = with_nitrogen()
    fit(tmp_path, net, data, refit="types")
    after = predictions(net, SmallData(), tmp_path)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name])
    charges, energy = (net.scaler.targets[name] for name in ("charges", "energy"))
    assert charges.types.tolist() == energy.baseline_types.tolist() == [1, 6, 7, 8]
    for name, scales in old_scaler.targets.items():
        assert net.scaler.targets[name].mean_squares == scales.mean_squares
    assert sorted(set(data.train.reads)) == list(range(22))
    line = (
        "TargetScaler: refit='types' added the atomic types [7] to energy, polarizability, "
        "charges; all numbers that were there are kept"
    )
    assert line in capsys.readouterr().out
    assert predictions(net, with_nitrogen(), tmp_path)["energy"].isfinite().all()


def test_without_new_types_nothing_changes(tmp_path, net, capsys):
    before = net.scaler.get_extra_state()
    fit(tmp_path, net, SmallData(factors={"dipole": 2.0}), refit="types")
    assert torch.equal(net.scaler.get_extra_state(), before)
    assert "refit='types' found no new atomic types; all numbers" in capsys.readouterr().out


def test_weights_of_the_loss_are_kept_with_the_scales(tmp_path):
    net = fit(tmp_path, SmallNet(), SmallData(), loss_weights={"energy": 3.0})
    fit(tmp_path, net, with_nitrogen(), refit="types")
    assert net.scaler.settings.loss_weights == {"energy": 3.0}


@pytest.mark.parametrize("refit", ["types", "baseline"])
def test_a_run_resumes_with_the_same_settings(tmp_path, net, refit):
    options = {"callbacks": [scaler_callback(refit=refit)], "limit_val_batches": 0}
    trainer = quiet_trainer(tmp_path, max_epochs=1, **options)
    trainer.fit(net, with_nitrogen())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again = SmallNet()
    trainer = quiet_trainer(tmp_path, max_epochs=2, **options)
    trainer.fit(again, with_nitrogen(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert torch.equal(again.scaler.get_extra_state(), net.scaler.get_extra_state())
    assert len(again.losses) == 6


def test_targets_without_scales_are_fitted_beside_new_types(tmp_path):
    first = SmallNet()
    fit(tmp_path, first, SmallData(), targets=["energy"], intensive_targets=[])
    settings = {"targets": ["energy", "charges"], "intensive_targets": [], "refit": "types"}
    fit(tmp_path, first, with_nitrogen(), **settings)
    fresh = fit(tmp_path, SmallNet(), with_nitrogen(), targets=["charges"], intensive_targets=[])
    of_both = [each.scaler.state()["targets"]["charges"] for each in (first, fresh)]
    assert_same_numbers(*({"targets": {"charges": state}} for state in of_both))


def test_a_part_needs_scales_to_keep(tmp_path):
    for refit in ("types", "baseline"):
        message = f"refit='{refit}' keeps a part of the scales .* it has none; load them with"
        with pytest.raises(ValueError, match=message):
            fit(tmp_path, SmallNet(), SmallData(), refit=refit)


@pytest.mark.slow
def test_a_dev_run_leaves_the_scales_as_they_were(tmp_path, net):
    before = net.scaler.get_extra_state()
    for refit in ("types", "baseline"):
        options = {"fast_dev_run": 2}
        fit(tmp_path, net, with_nitrogen(), trainer_options=options, refit=refit)
        assert torch.equal(net.scaler.get_extra_state(), before)
    fit(tmp_path, net, with_nitrogen(), refit="types")
    assert 7 in net.scaler.targets["charges"].types.tolist()


# A new baseline


def validation_error(net, data, folder):
    (metrics,) = quiet_trainer(folder).validate(net, data, verbose=False)
    return metrics["val/energy/rmse_per_atom"]


@pytest.mark.parametrize("against", ["targets", "predictions"])
def test_a_new_baseline_keeps_the_scales_and_follows_the_totals(tmp_path, net, against, capsys):
    data = other_level()
    old = copy.deepcopy(net.scaler)
    first = validation_error(net, SmallData(), tmp_path)
    assert validation_error(net, data, tmp_path) > 10.0
    fit(tmp_path, net, data, refit="baseline", against=against)
    assert validation_error(net, data, tmp_path) == pytest.approx(first, rel=0.2)
    for name in old.targets:
        assert per_target_scales(net.scaler, name) == per_target_scales(old, name)
    line = f"refit='baseline' kept the scales and fitted the contributions to the {against}; "
    output = capsys.readouterr().out
    assert line in output
    assert "for energy (type 8)" in output


def test_the_totals_give_the_weights_of_a_least_squares_fit(tmp_path, net):
    data = other_level()
    fit(tmp_path, net, data, refit="baseline")
    expected = np.linalg.lstsq(counts(data), energies(data), rcond=None)[0]
    (weights,) = baseline_weights(net.scaler, "energy")
    np.testing.assert_allclose([weights[z] for z in (1, 6, 8)], expected, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:subtracting the baseline makes these targets larger")
@pytest.mark.parametrize("intensive", [False, True], ids=["extensive", "intensive"])
def test_predictions_give_the_weights_that_fit_what_they_leave(tmp_path, intensive):
    """Weights of an intensive target are multiplied by the fractions of the types."""
    net, data = SmallNet(), other_level()
    settings = {"intensive_targets": ["dipole", "energy"] if intensive else ["dipole"]}
    fit(tmp_path, net, SmallData(), **settings)
    (before,) = baseline_weights(net.scaler, "energy")
    loader = DataLoader(data.train.items, batch_size=4, collate_fn=collate)
    found = quiet_trainer(tmp_path).predict(net, loader)
    predicted = torch.cat([batch["energy"].block().values[:, 0] for batch in found]).numpy()
    left = energies(data) - predicted
    design = counts(data) / counts(data).sum(1, keepdims=True) if intensive else counts(data)
    correction = np.linalg.lstsq(design, left, rcond=None)[0]
    fit(tmp_path, net, data, refit="baseline", against="predictions", **settings)
    (after,) = baseline_weights(net.scaler, "energy")
    changes = [after[z] - before[z] for z in (1, 6, 8)]
    np.testing.assert_allclose(changes, correction, rtol=1e-6)


def test_masks_and_ids_hold_for_the_errors_of_predictions(tmp_path, net):
    """Every other energy is wrong and masked; the rows come in reverse, with ids."""

    def masked(items):
        batch = collate(items)
        values = batch["energy"].block().values.flatten()
        ids = list(range(100, 100 + len(values)))
        wrong = torch.arange(len(values)) % 2 == 1
        energy = structure_target(torch.where(wrong, 1e4, values), ids, "property")
        keep = structure_target((~wrong).double(), ids, "property")
        energy, keep = in_reverse(energy), in_reverse(keep)
        batch = {"system": batch["system"], "sample_id": torch.tensor(ids)}
        return {**batch, "energy": energy, "energy_mask": keep}

    data = other_level(collate_fn=masked, shuffle=False)
    net.scaler.targets = {"energy": net.scaler.targets["energy"]}
    (before,) = baseline_weights(net.scaler, "energy")
    used = [i for i in range(22) if i % 4 % 2 == 0]
    loader = DataLoader(other_level().train.items, batch_size=4, collate_fn=collate)
    found = quiet_trainer(tmp_path).predict(net, loader)
    predicted = torch.cat([batch["energy"].block().values[:, 0] for batch in found]).numpy()
    left = (energies(data) - predicted)[used]
    correction = np.linalg.lstsq(counts(data)[used], left, rcond=None)[0]
    settings = {"refit": "baseline", "against": "predictions", "intensive_targets": []}
    fit(tmp_path, net, data, **settings)
    (after,) = baseline_weights(net.scaler, "energy")
    np.testing.assert_allclose([after[z] - before[z] for z in (1, 6, 8)], correction, rtol=1e-6)


def in_reverse(tensor):
    block = tensor.block()
    order = torch.arange(len(block.values) - 1, -1, -1)
    samples = labels(block.samples.names, block.samples.values[order])
    changed = TensorBlock(block.values[order], samples, [], block.properties)
    return TensorMap(tensor.keys, [changed])


def test_predictions_are_those_of_evaluation_and_training_goes_on_as_it_would(tmp_path, trained):
    class Noisy(SmallNet):
        def __init__(self, lr=0.05):
            super().__init__(lr)
            self.dropout = torch.nn.Dropout(0.5)
            self.frozen = torch.nn.Dropout(0.5).eval()
            self.modes = []

        def forward(self, systems):
            self.modes.append((self.dropout.training, self.frozen.training))
            self.dropout(torch.ones(3))
            return super().forward(systems)

    nets = [restored(trained, Noisy), restored(trained, Noisy)]
    torch.manual_seed(0)
    fit(tmp_path, nets[0], SmallData(), refit="baseline", against="predictions")
    after = torch.rand(1)
    torch.manual_seed(0)
    fit(tmp_path, nets[1], SmallData(), refit="baseline")
    assert torch.equal(after, torch.rand(1))
    assert set(nets[0].modes) == {(False, False)}
    assert nets[1].modes == []
    assert nets[0].dropout.training
    assert not nets[0].frozen.training


def test_types_without_data_keep_their_contributions(tmp_path, net, capsys):
    fit(tmp_path, net, with_nitrogen(), refit="types")
    (before,) = baseline_weights(net.scaler, "energy")
    fit(tmp_path, net, other_level(), refit="baseline")
    (after,) = baseline_weights(net.scaler, "energy")
    assert "those of the types [7] are as before" in capsys.readouterr().out
    assert after[7] == before[7]
    assert after[8] == pytest.approx(before[8] + 40.0, rel=1e-6)


def test_a_new_baseline_where_there_was_none(tmp_path):
    options = {"targets": ["energy"], "intensive_targets": ["energy"]}
    net, data = fit(tmp_path, SmallNet(), SmallData(), baseline="none", **options), SmallData()
    (sigma,) = per_target_scales(net.scaler, "energy")
    fit(tmp_path, net, data, refit="baseline", **options)
    assert per_target_scales(net.scaler, "energy") == [sigma]
    fractions = counts(data) / counts(data).sum(1, keepdims=True)
    expected = np.linalg.lstsq(fractions, energies(data), rcond=None)[0]
    (weights,) = baseline_weights(net.scaler, "energy")
    np.testing.assert_allclose([weights[z] for z in (1, 6, 8)], expected, rtol=1e-10)


def test_a_correction_at_every_restart_is_refused(tmp_path, net):
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **OPTIONS)
    trainer.fit(net, SmallData())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    callback = scaler_callback(refit="baseline", against="predictions")
    trainer = quiet_trainer(tmp_path, callbacks=[callback], **OPTIONS)
    with pytest.raises(ValueError, match="at every restart; to fine-tune, load the module with"):
        trainer.fit(net, SmallData(), ckpt_path=tmp_path / "net.ckpt")


# Everything again


def test_a_fit_of_everything_says_what_changes_and_by_how_much(tmp_path, net, capsys):
    data = with_nitrogen(factors={"dipole": 4.0})
    (before,) = per_target_scales(net.scaler, "dipole")
    fit(tmp_path, net, data, refit=True)
    assert per_target_scales(net.scaler, "dipole") == [4.0 * before]
    output = capsys.readouterr().out
    assert "refit=True replaced the scales, which multiplies what the network has learned" in output
    assert "dipole by 4" in output
    assert "without scales or contributions now: the types [6]" in output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refit": "all"}, r"refit: expected False, True or one of \['types', 'baseline'.*'all'"),
        ({"against": "predictions"}, "against='predictions' belongs to refit='baseline', got"),
        ({"refit": "baseline", "against": "forces"}, "against: expected one of"),
        ({"refit": "baseline", "baseline": "none"}, "refit='baseline' and baseline='none'"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        TargetScaler(**settings)
