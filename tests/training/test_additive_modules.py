"""Additive modules in runs of a real Trainer: subtracted, added back, restored."""

import pytest
import torch
from builders import Springs
from lightning.pytorch import Callback
from small_training import (
    SmallData,
    SmallNet,
    ZeroNet,
    baseline_weights,
    quiet_trainer,
    scaler_callback,
)

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler


class NetWithSprings(SmallNet):
    """Provides the additive module itself."""

    def __init__(self, lr=0.05):
        super().__init__(lr=lr)
        self.scaler = Scaler(additive=Springs())


@pytest.fixture
def fitted(tmp_path):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=Springs())])
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    return trainer, data, net, tmp_path / "net.ckpt"


def energies(batches):
    return torch.cat([batch["energy"].block().values[:, 0] for batch in batches])


def energy_gradients(batches):
    blocks = [batch["energy"].block() for batch in batches]
    return torch.cat([block.gradient("positions").values[..., 0] for block in blocks])


def test_the_data_pass_fits_what_remains_after_the_module(fitted):
    _, data, net, _ = fitted
    assert data.train.reads[:22] == list(range(22))
    assert len(data.train.reads) == 44
    accumulator = ScaleAccumulator(
        None, ["dipole", "polarizability"], CompositionBaseline(), additive=Springs()
    )
    collate = data.collate_fn
    batch = collate(data.train.items)
    accumulator.update(batch.pop("system"), batch)
    expected = accumulator.compute()
    for name, scales in expected.scales.items():
        for ours, theirs in zip(scales.blocks(), net.scaler.scales[name].blocks(), strict=True):
            torch.testing.assert_close(theirs.values, ours.values, rtol=1e-10, atol=0.0)
    with_module = {name for name, scales in net.scaler.targets.items() if scales.additive}
    assert with_module == {"energy", "charges"}


def test_predictions_of_a_zero_network_are_the_module_plus_the_baseline(tmp_path):
    data, net = SmallData(), ZeroNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=Springs())])
    trainer.fit(net, data)
    predicted = trainer.predict(net, data)
    (weights,) = baseline_weights(net.scaler, "energy")
    for value, (system, _) in zip(energies(predicted), data.held_out.items, strict=True):
        expected = 0.5 * system.positions.square().sum()
        expected = expected + sum(weights[z] for z in system.types.tolist())
        # The systems are float32, as the network is.
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-5)
    expected = torch.cat([system.positions for system, _ in data.held_out.items])
    torch.testing.assert_close(energy_gradients(predicted), expected, rtol=0.0, atol=1e-5)


@pytest.mark.slow
def test_metrics_compare_physical_values_with_the_module_added_back(fitted):
    trainer, data, net, _ = fitted
    logged = trainer.validate(net, data, verbose=False)[0]
    predicted = trainer.predict(net, data)
    truth = torch.cat([n["energy"] for _, n in data.held_out.items])
    counts = torch.tensor([len(system) for system, _ in data.held_out.items])
    rmse = ((energies(predicted) - truth) / counts).square().mean().sqrt()
    assert logged["val/energy/rmse_per_atom"] == pytest.approx(rmse.item(), rel=1e-5)
    truth = torch.cat([n["gradient"] for _, n in data.held_out.items])
    mae = (energy_gradients(predicted) - truth).abs().mean()
    assert logged["val/energy/positions/mae"] == pytest.approx(mae.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["callback", "network", "set_additive"])
def test_a_restored_module_takes_its_code_from_any_source(fitted, tmp_path, source):
    trainer, data, net, checkpoint = fitted
    wanted = energies(trainer.predict(net, data))
    kind = NetWithSprings if source == "network" else SmallNet
    loaded = kind.load_from_checkpoint(checkpoint, weights_only=True)
    callbacks = []
    if source == "callback":
        callbacks = [scaler_callback(baseline=Springs(k=77.0))]
    if source == "set_additive":
        loaded.scaler.set_additive(Springs(k=77.0))
    got = quiet_trainer(tmp_path, callbacks=callbacks).predict(loaded, data)
    assert torch.equal(energies(got), wanted)


@pytest.mark.slow
def test_a_restored_module_without_its_code_is_an_error_that_names_the_class(fitted, tmp_path):
    _, data, _, checkpoint = fitted
    loaded = SmallNet.load_from_checkpoint(checkpoint, weights_only=True)
    with pytest.raises(RuntimeError, match=r"TargetScaler\(baseline=Springs\(\.\.\.\)\)"):
        quiet_trainer(tmp_path).predict(loaded, data)


@pytest.mark.slow
def test_a_resumed_run_with_a_module_has_the_losses_of_an_uninterrupted_one(tmp_path):
    def train(net, epochs, **options):
        trainer = quiet_trainer(
            tmp_path, callbacks=[scaler_callback(baseline=Springs())], max_epochs=epochs
        )
        trainer.fit(net, SmallData(shuffle=False), **options)
        return trainer

    whole, first, second = SmallNet(), SmallNet(), SmallNet()
    train(whole, 2)
    train(first, 1).save_checkpoint(tmp_path / "first.ckpt")
    train(second, 2, ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    assert first.losses + second.losses == whole.losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fitted_with", "requested", "message"),
    [
        (Springs(), "composition", "additive module was 'Springs' and is None"),
        ("composition", Springs(), "additive module was None and is 'Springs'"),
    ],
)
def test_another_module_than_the_restored_one_needs_refit(
    tmp_path, fitted_with, requested, message
):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=fitted_with)])
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    again = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=requested)], max_epochs=2)
    with pytest.raises(ValueError, match=message):
        again.fit(SmallNet(), data, ckpt_path=tmp_path / "net.ckpt", weights_only=True)
    more = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(baseline=requested, refit=True)], max_epochs=2
    )
    other = SmallNet()
    more.fit(other, data, ckpt_path=tmp_path / "net.ckpt", weights_only=True)
    assert other.scaler.targets["energy"].additive == isinstance(requested, Springs)


def test_the_module_has_no_trainable_parameters_and_keeps_its_precision(tmp_path):
    net = SmallNet()
    before = [name for name, _ in net.named_parameters()]

    class Spy(Callback):
        def on_train_start(self, trainer, pl_module):
            assert [name for name, _ in pl_module.named_parameters()] == before
            assert pl_module.scaler.additive.module.k.dtype == torch.float64

    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(baseline=Springs()), Spy()], precision="bf16-true"
    )
    trainer.fit(net, SmallData())
    assert net.scaler.additive.module.k.item() == 0.5


@pytest.mark.slow
def test_refit_uses_the_module_of_the_callback(fitted, tmp_path):
    _, data, net, _ = fitted
    callback = scaler_callback(baseline=Springs(k=0.25), refit=True)
    quiet_trainer(tmp_path, callbacks=[callback]).fit(net, data)
    assert net.scaler.additive.module.k.item() == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("now", ["composition", "none"])
def test_refit_removes_a_module_that_is_no_longer_requested(fitted, tmp_path, now):
    _, data, net, _ = fitted
    with pytest.raises(ValueError, match="additive module was 'Springs' and is None"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=now)]).fit(net, data)
    callback = scaler_callback(baseline=now, refit=True)
    quiet_trainer(tmp_path, callbacks=[callback]).fit(net, data)
    assert net.scaler.additive is None


def test_the_module_of_a_fast_dev_run_is_replaced_by_the_next_fit(tmp_path):
    data, net = SmallData(), SmallNet()
    quick = scaler_callback(baseline=Springs())
    quiet_trainer(tmp_path, callbacks=[quick], fast_dev_run=True).fit(net, data)
    assert net.scaler.additive is not None
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    assert net.scaler.additive is None


@pytest.mark.slow
def test_a_module_that_the_network_provides_is_kept(tmp_path):
    data, net = SmallData(), NetWithSprings()
    for refit in (False, False, True):
        quiet_trainer(tmp_path, callbacks=[scaler_callback(refit=refit)]).fit(net, data)
        assert net.scaler.targets["energy"].additive
