"""The shares of the terms in the default loss: settings, mean squares, and what is logged."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from builders import labels
from metatensor.torch import TensorBlock, TensorMap
from small_training import (
    SmallData,
    SmallNet,
    collate,
    per_target_scales,
    quiet_trainer,
    scaler_callback,
)

from lightning_scaler import PerStructure, Scaler, TargetScaler

TERMS = ["charges", "dipole", "energy", "energy/positions", "polarizability"]


def fit(folder, net=None, data=None, callback=None, **options):
    """A fitted net and its trainer."""
    net = SmallNet() if net is None else net
    callbacks = [scaler_callback() if callback is None else callback]
    trainer = quiet_trainer(folder, callbacks=callbacks, **{"num_sanity_val_steps": 0, **options})
    trainer.fit(net, SmallData() if data is None else data)
    return net, trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, trainer = fit(folder)
    trainer.save_checkpoint(folder / "net.ckpt")
    return net, folder / "net.ckpt"


def loss_of(net, **settings):
    """The loss of three structures under these settings."""
    settings = {"loss_weights": {}, "balance_loss": True, **settings}
    net.scaler.settings = replace(net.scaler.settings, **settings)
    items = SmallData().held_out.items[:3]
    batch = net.transfer_batch_to_device(collate(items), torch.device("cpu"), 0)
    systems, targets, _ = net.unpack_batch(batch)
    targets = net.targets_to_loss(systems, targets)
    predictions = net.predictions_to_loss(systems, net(systems), targets)
    return net.compute_loss(predictions, targets).item()


def test_the_loss_is_the_weighted_mean_of_errors_over_mean_squares(trained):
    net, _ = trained
    none = dict.fromkeys(TERMS, 0.0)
    errors = {
        term: loss_of(net, balance_loss=False, loss_weights={**none, term: 1.0}) for term in TERMS
    }
    assert loss_of(net, balance_loss=False) == pytest.approx(sum(errors.values()) / 5, rel=1e-6)
    # The mean square of forces in units of the scale of the energy, from the training data.
    gradients = [numbers["gradient"].flatten() for _, numbers in SmallData().train.items]
    (sigma,) = per_target_scales(net.scaler, "energy")
    forces = [x / sigma for gradient in gradients for x in gradient.tolist()]
    m = math.fsum(x * x for x in forces) / len(forces)
    assert abs(m - 1) > 0.1
    balanced = {**errors, "energy/positions": errors["energy/positions"] / m}
    assert loss_of(net) == pytest.approx(math.fsum(balanced.values()) / 5, rel=1e-6)
    weights = {"energy/positions": 4.0, "dipole": 0.5}
    expected = math.fsum(weights.get(term, 1.0) * e for term, e in balanced.items()) / 7.5
    assert loss_of(net, loss_weights=weights) == pytest.approx(expected, rel=1e-6)


def test_settings_of_the_loss_are_stored_with_the_scales(tmp_path):
    callback = scaler_callback(loss_weights={"energy/positions": 4}, balance_loss=False)
    net, trainer = fit(tmp_path, callback=callback)
    assert net.scaler.settings.loss_weights == {"energy/positions": 4.0}
    assert net.scaler.settings.balance_loss is False
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    restored = SmallNet.load_from_checkpoint(tmp_path / "net.ckpt")
    assert restored.scaler.settings == net.scaler.settings
    assert restored.scaler.mean_squares == net.scaler.mean_squares


@pytest.mark.slow
def test_settings_given_on_a_resume_are_used_and_all_others_are_kept(tmp_path):
    callback = scaler_callback(loss_weights={"energy/positions": 4}, balance_loss=False)
    net, trainer = fit(tmp_path, callback=callback)
    trainer.save_checkpoint(tmp_path / "net.ckpt")

    def resumed(**settings):
        again = SmallNet()
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(**settings)], max_epochs=2)
        trainer.fit(again, SmallData(), ckpt_path=tmp_path / "net.ckpt")
        assert again.scaler.mean_squares == net.scaler.mean_squares
        return again.scaler.settings.loss_weights, again.scaler.settings.balance_loss

    assert resumed() == ({"energy/positions": 4.0}, False)
    assert resumed(balance_loss=True) == ({"energy/positions": 4.0}, True)
    assert resumed(loss_weights={"energy": 2}) == ({"energy": 2.0}, False)
    assert resumed(loss_weights={}) == ({}, False)
    assert resumed(refit=True) == ({}, True)


def test_without_scales_the_loss_is_balanced_by_the_data_alone(tmp_path):
    """Weights of 1 / RMS²."""
    net, _ = fit(tmp_path, callback=scaler_callback(enabled=False))
    dipoles = torch.cat([numbers["dipole"] for _, numbers in SmallData().train.items]).flatten()
    found = net.scaler.mean_squares
    expected = math.fsum(x * x for x in dipoles.tolist()) / len(dipoles)
    assert found["dipole"] == pytest.approx(expected, rel=1e-12)
    assert sorted(found) == TERMS


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"energy": -1}, ValueError, "of the term 'energy': expected a number of at least 0"),
        ({"energy": math.nan}, ValueError, "of the term 'energy': expected a finite number"),
        ({"energy": math.inf}, ValueError, "of the term 'energy': expected a finite number"),
        ({"energy": "4"}, ValueError, "of the term 'energy': expected a number, got '4'"),
        ({"energy": True}, ValueError, "of the term 'energy': expected a number, got True"),
        ([4], ValueError, "expected a mapping by term"),
    ],
)
def test_weights_that_are_not_weights_are_refused_at_once(weights, error, message):
    with pytest.raises(error, match=f"loss_weights.*{message}"):
        TargetScaler(loss_weights=weights)


def test_a_weight_of_a_target_that_is_not_fitted_is_refused_at_once():
    message = (
        r"loss_weights names 'enrgy/positions', whose target is not in targets=\[…\]; did you mean "
        "'energy'"
    )
    with pytest.raises(ValueError, match=message):
        TargetScaler(targets=["energy"], loss_weights={"enrgy/positions": 4})
    TargetScaler(targets=["energy"], loss_weights={"energy/positions": 4, "energy": 2})


def test_a_weight_of_forces_is_told_their_term():
    energy = PerStructure(gradients={"positions": "-forces"})
    with pytest.raises(ValueError, match="as a gradient, 'forces' is the term 'energy/positions'"):
        TargetScaler(targets={"energy": energy}, loss_weights={"forces": 4})
    TargetScaler(targets={"energy": energy}, loss_weights={"energy/positions": 4})


@pytest.mark.parametrize("value", ["false", 0, 1.0])
def test_balance_loss_is_a_bool(value):
    with pytest.raises(TypeError, match=r"balance_loss: expected True, False or None, got"):
        TargetScaler(balance_loss=value)


def test_a_weight_that_is_not_of_a_term_is_an_error_that_lists_the_terms(tmp_path):
    message = (
        r"loss_weights names 'energy/position', which is not a term of the loss; did you mean "
        r"'energy/positions'\? known: \['charges', 'dipole', 'energy', 'energy/positions'"
    )
    callback = scaler_callback(loss_weights={"energy/position": 4})
    net = SmallNet()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, net, callback=callback)
    assert net.losses == []


def test_a_loss_that_is_always_zero_is_refused(tmp_path):
    callback = scaler_callback(loss_weights=dict.fromkeys(TERMS, 0))
    with pytest.raises(ValueError, match=r"expected a positive weight .* the loss is always 0"):
        fit(tmp_path, callback=callback)


@pytest.mark.slow
def test_every_term_is_logged_in_training_validation_and_test(tmp_path):
    """Without its weight: 1 means as wrong as a prediction of zero."""

    class Recording(SmallNet):
        def __init__(self):
            super().__init__()
            self.found = {"train": [], "val": [], "test": []}

        def compute_loss(self, predictions, targets):
            loss = super().compute_loss(predictions, targets)
            stage = {"train": "train", "validate": "val", "test": "test"}[self.trainer.state.stage]
            difference = (
                predictions["energy"].block().gradient("positions").values
                - targets["energy"].block().gradient("positions").values
            )
            error = difference.detach().square().mean().item()
            n_systems = len(targets["energy"].block().samples)
            self.found[stage].append((n_systems, error / self.scaler.mean_squares[TERMS[3]]))
            return loss

    callback = scaler_callback(loss_weights={"energy/positions": 3})
    net, trainer = fit(tmp_path, Recording(), callback=callback)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    logged |= trainer.test(net, SmallData(), verbose=False)[0]
    for stage, found in net.found.items():
        assert {f"{stage}/loss/{term}" for term in TERMS} <= logged.keys()
        expected = math.fsum(n * error for n, error in found) / sum(n for n, _ in found)
        assert logged[f"{stage}/loss/energy/positions"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_terms_are_averaged_over_the_batches_that_have_them(tmp_path):
    def collate_fn(items):
        batch = collate(items)
        if len(items) < 4:
            del batch["dipole"]
            energy = batch["energy"].block().copy()
            batch["energy"] = TensorMap(
                batch["energy"].keys,
                [TensorBlock(energy.values, energy.samples, [], energy.properties)],
            )
        return batch

    data = SmallData(collate_fn=collate_fn)  # nine structures in batches of 4, 4 and 1
    net, _ = fit(tmp_path, data=data)
    trainer = quiet_trainer(tmp_path)
    whole = trainer.test(net, data, verbose=False)[0]
    data.held_out.items = data.held_out.items[:8]
    without_last = trainer.test(net, data, verbose=False)[0]
    for term in ("dipole", "energy/positions"):
        assert whole[f"test/loss/{term}"] == without_last[f"test/loss/{term}"]
    assert whole["test/loss/energy"] != without_last["test/loss/energy"]


def test_a_loss_of_the_users_own_replaces_the_terms(tmp_path):
    found = []

    class Own(SmallNet):
        def on_after_backward(self):
            found.append(self.matrix.grad.abs().max().item())

        def compute_loss(self, predictions, targets):
            return torch.nn.functional.l1_loss(
                predictions["dipole"].block().values, targets["dipole"].block().values
            )

    _, trainer = fit(tmp_path, Own())
    assert "train/loss" in trainer.callback_metrics
    assert not any(name.startswith("train/loss/") for name in trainer.callback_metrics)
    # Weights that have no effect on the dipole have a gradient of zero, not none.
    assert found == [0.0] * 6


def test_weights_without_an_effect_are_named_once(tmp_path):
    class Own(SmallNet):
        def compute_loss(self, predictions, targets):
            return predictions["dipole"].block().values.square().mean()

    callback = scaler_callback(loss_weights={"energy": 2})
    message = r"loss_weights={'energy': 2.0} has no effect, because Own.compute_loss replaces"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(tmp_path, Own(), callback=callback)
    assert len([w for w in caught if "no effect" in str(w.message)]) == 1


class Heads(SmallNet):
    """Each block and the forces have weights of their own."""

    def __init__(self):
        super().__init__()
        self.of_forces = torch.nn.Parameter(torch.ones(()))
        self.of_block = torch.nn.Parameter(torch.ones(()))

    def forward(self, systems):
        predictions = super().forward(systems)
        block = predictions["energy"].block()
        energy = TensorBlock(block.values, block.samples, [], block.properties)
        forces = block.gradient("positions")
        values = self.of_forces * forces.values.detach()
        energy.add_gradient(
            "positions", TensorBlock(values, forces.samples, forces.components, forces.properties)
        )
        predictions["energy"] = TensorMap(predictions["energy"].keys, [energy])
        blocks = [block.copy() for block in predictions["polarizability"].blocks()]
        blocks[1] = TensorBlock(
            self.of_block * blocks[1].values.detach(),
            blocks[1].samples,
            blocks[1].components,
            blocks[1].properties,
        )
        predictions["polarizability"] = TensorMap(predictions["polarizability"].keys, blocks)
        return predictions


def test_weights_of_a_missing_gradient_or_block_have_a_gradient_of_zero(tmp_path):
    """With none, DDP would wait for it."""
    found = []

    class Watching(Heads):
        def on_after_backward(self):
            for parameter in (self.of_forces, self.of_block):
                found.append(None if parameter.grad is None else parameter.grad.item())

    def collate_fn(items):
        batch = collate(items)
        if len(items) == 2:  # the last batch of 22 in fours
            energy = batch["energy"].block()
            bare = TensorBlock(energy.values, energy.samples, [], energy.properties)
            batch["energy"] = TensorMap(labels("_", [0]), [bare])
            polarizability = batch["polarizability"]
            batch["polarizability"] = TensorMap(
                labels(["o3_lambda", "o3_sigma"], [[0, 1]]), [polarizability.block(0).copy()]
            )
        return batch

    data = SmallData(collate_fn=collate_fn, shuffle=False)
    fit(tmp_path, Watching(), data, limit_val_batches=0)
    assert len(found) == 12
    assert all(found[:10])
    assert found[10:] == [0.0, 0.0]


def without_mean_squares(checkpoint):
    """A net from a checkpoint as it was before mean squares were stored."""
    net = SmallNet.load_from_checkpoint(checkpoint)
    targets = {name: replace(s, mean_squares={}) for name, s in net.scaler.targets.items()}
    net.scaler = Scaler(targets, net.scaler.settings)
    return net


@pytest.mark.slow
def test_unknown_mean_squares_count_as_one_and_are_named_once(trained, tmp_path):
    net = without_mean_squares(trained[1])
    with pytest.warns(UserWarning, match="the mean squares of the loss terms") as caught:
        fit(tmp_path, net, max_epochs=2)
    messages = [
        str(warning.message) for warning in caught if "mean squares" in str(warning.message)
    ]
    assert len(messages) == 1
    # Those of values are 1 by the definition of the scales.
    assert "['energy/positions'] are unknown" in messages[0]
    assert "TargetScaler(refit=True)" in messages[0]
    other = without_mean_squares(trained[1])
    with pytest.warns(UserWarning, match="mean squares"):
        balanced = loss_of(other)
    assert balanced == loss_of(other, balance_loss=False)


def test_refit_gives_unknown_mean_squares(trained, tmp_path):
    """The way out that the warning names."""
    net = without_mean_squares(trained[1])
    fit(tmp_path, net, callback=scaler_callback(refit=True))
    assert sorted(net.scaler.mean_squares) == TERMS


def test_unknown_mean_squares_do_not_matter_without_balance(trained, tmp_path):
    net = without_mean_squares(trained[1])
    fit(tmp_path, net, callback=scaler_callback(balance_loss=False))
    assert net.losses


def test_terms_that_are_zero_in_the_data_are_named_once(tmp_path):
    data = SmallData(factors={"dipole": 0.0})
    with pytest.warns(UserWarning, match="zero") as caught:
        fit(tmp_path, data=data, max_epochs=2)
    messages = [str(w.message) for w in caught if "loss terms" in str(w.message)]
    assert len(messages) == 1
    assert messages[0].startswith("the loss terms ['dipole'] are zero throughout")


def test_fixed_scales_without_a_data_pass_have_unknown_mean_squares(tmp_path):
    def collate_fn(items):
        batch = collate(items)
        return {"system": batch["system"], "energy": batch["energy"]}

    options = {"targets": ["energy"], "fixed_scales": {"energy": 2.0}, "baseline": "none"}
    data = SmallData(collate_fn=collate_fn)
    with pytest.warns(UserWarning, match=r"\['energy', 'energy/positions'\] are unknown"):
        net, _ = fit(tmp_path, data=data, callback=TargetScaler(**options))
    assert net.scaler.mean_squares == {}
    # The way out that the warning names.
    weights = {"energy": 1, "energy/positions": 0.1}
    fit(tmp_path, data=data, callback=TargetScaler(**options, loss_weights=weights))


def test_the_mean_square_of_a_single_term_needs_no_warning(tmp_path):
    """Its share is 1 whatever it is."""

    def collate_fn(items):
        batch = collate(items)
        return {"system": batch["system"], "dipole": batch["dipole"]}

    options = {"targets": ["dipole"], "fixed_scales": {"dipole": 2.0}, "baseline": "none"}
    data = SmallData(collate_fn=collate_fn)
    callback = TargetScaler(**options, intensive_targets=["dipole"])
    net, _ = fit(tmp_path, data=data, callback=callback)
    assert net.losses
