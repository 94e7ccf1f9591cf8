"""Frozen additive modules in runs of a real Trainer: removed, added back, restored."""

import pytest
import torch
from builders import Springs
from lightning.pytorch import Callback
from metatensor.torch import multiply
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback

from lightning_scaler import CompositionBaseline, ScaleAccumulator, Scaler


class Bringing(SmallNet):
    """Brings the code of its additive module itself."""

    def __init__(self, lr=0.05):
        super().__init__(lr=lr)
        self.scaler = Scaler(additive=Springs())


class Zero(SmallNet):
    def forward(self, systems):
        return {name: multiply(tensor, 0.0) for name, tensor in super().forward(systems).items()}


@pytest.fixture
def fitted(tmp_path):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=Springs())])
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    return trainer, data, net, tmp_path / "net.ckpt"


def energies(batches):
    return torch.cat([batch["energy"].block().values[:, 0] for batch in batches])


def slopes(batches):
    blocks = [batch["energy"].block() for batch in batches]
    return torch.cat([block.gradient("positions").values[..., 0] for block in blocks])


def test_one_pass_fits_what_the_module_leaves(fitted):
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
    assert {name for name, scales in net.scaler.targets.items() if scales.additive} == {
        "energy",
        "charges",
    }


def test_a_network_of_zeros_predicts_the_module_and_the_baseline(tmp_path):
    data, net = SmallData(), Zero()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=Springs())])
    trainer.fit(net, data)
    predicted = trainer.predict(net, data)
    scales = net.scaler.targets["energy"]
    weights = dict(zip(scales.baseline_types.tolist(), scales.weights[(0,)].ravel(), strict=True))
    for value, (system, _) in zip(energies(predicted), data.held_out.items, strict=True):
        expected = 0.5 * system.positions.square().sum()
        expected = expected + sum(weights[z] for z in system.types.tolist())
        # Systems came in the dtype of the network.
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-5)
    expected = torch.cat([system.positions for system, _ in data.held_out.items])
    torch.testing.assert_close(slopes(predicted), expected, rtol=0.0, atol=1e-5)


def test_metrics_are_differences_of_physical_numbers(fitted):
    trainer, data, net, _ = fitted
    logged = trainer.validate(net, data, verbose=False)[0]
    predicted = trainer.predict(net, data)
    truth = torch.cat([n["energy"] for _, n in data.held_out.items])
    counts = torch.tensor([len(system) for system, _ in data.held_out.items])
    rmse = ((energies(predicted) - truth) / counts).square().mean().sqrt()
    assert logged["val/energy/rmse_per_atom"] == pytest.approx(rmse.item(), rel=1e-5)
    truth = torch.cat([n["gradient"] for _, n in data.held_out.items])
    mae = (slopes(predicted) - truth).abs().mean()
    assert logged["val/energy/positions/mae"] == pytest.approx(mae.item(), rel=1e-5)


@pytest.mark.parametrize("way", ["callback", "module", "by hand"])
def test_restored_with_the_code_given_again(fitted, tmp_path, way):
    trainer, data, net, checkpoint = fitted
    wanted = energies(trainer.predict(net, data))
    kind = Bringing if way == "module" else SmallNet
    loaded = kind.load_from_checkpoint(checkpoint, weights_only=True)
    callbacks = []
    if way == "callback":
        callbacks = [scaler_callback(baseline=Springs(k=77.0))]
    if way == "by hand":
        loaded.scaler.set_additive(Springs(k=77.0))
    got = quiet_trainer(tmp_path, callbacks=callbacks).predict(loaded, data)
    assert torch.equal(energies(got), wanted)


def test_without_the_code_the_error_names_the_class(fitted, tmp_path):
    _, data, _, checkpoint = fitted
    loaded = SmallNet.load_from_checkpoint(checkpoint, weights_only=True)
    with pytest.raises(RuntimeError, match=r"TargetScaler\(baseline=Springs\(\.\.\.\)\)"):
        quiet_trainer(tmp_path).predict(loaded, data)


def test_resuming_keeps_the_scales_and_the_curve(tmp_path):
    class Sequential(SmallData):
        def train_dataloader(self):
            return super().val_dataloader()

    def train(net, epochs, **options):
        trainer = quiet_trainer(
            tmp_path, callbacks=[scaler_callback(baseline=Springs())], max_epochs=epochs
        )
        trainer.fit(net, Sequential(), **options)
        return trainer

    whole, first, second = SmallNet(), SmallNet(), SmallNet()
    train(whole, 2)
    train(first, 1).save_checkpoint(tmp_path / "first.ckpt")
    train(second, 2, ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    assert first.losses + second.losses == whole.losses


@pytest.mark.parametrize(
    ("fitted_with", "asked", "message"),
    [
        (Springs(), "composition", "additive module was 'Springs' and is None"),
        ("composition", Springs(), "additive module was None and is 'Springs'"),
    ],
)
def test_another_module_than_restored_is_a_contradiction(tmp_path, fitted_with, asked, message):
    data, net = SmallData(), SmallNet()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=fitted_with)])
    trainer.fit(net, data)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    again = quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=asked)], max_epochs=2)
    with pytest.raises(ValueError, match=message):
        again.fit(SmallNet(), data, ckpt_path=tmp_path / "net.ckpt", weights_only=True)
    more = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(baseline=asked, refit=True)], max_epochs=2
    )
    other = SmallNet()
    more.fit(other, data, ckpt_path=tmp_path / "net.ckpt", weights_only=True)
    assert other.scaler.targets["energy"].additive == isinstance(asked, Springs)


def test_optimizers_and_precision_do_not_see_the_module(tmp_path):
    net = SmallNet()
    before = [name for name, _ in net.named_parameters()]

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            assert [name for name, _ in pl_module.named_parameters()] == before
            assert pl_module.scaler.additive.module.k.dtype == torch.float64

    trainer = quiet_trainer(
        tmp_path, callbacks=[scaler_callback(baseline=Springs()), Look()], precision="bf16-true"
    )
    trainer.fit(net, SmallData())
    assert net.scaler.additive.module.k.item() == 0.5


def test_refit_takes_the_module_given_now(fitted, tmp_path):
    _, data, net, _ = fitted
    callback = scaler_callback(baseline=Springs(k=0.25), refit=True)
    quiet_trainer(tmp_path, callbacks=[callback]).fit(net, data)
    assert net.scaler.additive.module.k.item() == 0.25


@pytest.mark.parametrize("now", ["composition", "none"])
def test_a_module_that_is_no_longer_asked_for_is_gone(fitted, tmp_path, now):
    _, data, net, _ = fitted
    with pytest.raises(ValueError, match="additive module was 'Springs' and is None"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback(baseline=now)]).fit(net, data)
    callback = scaler_callback(baseline=now, refit=True)
    quiet_trainer(tmp_path, callbacks=[callback]).fit(net, data)
    assert net.scaler.additive is None


def test_a_provisional_module_is_replaced(tmp_path):
    data, net = SmallData(), SmallNet()
    quick = scaler_callback(baseline=Springs())
    quiet_trainer(tmp_path, callbacks=[quick], fast_dev_run=True).fit(net, data)
    assert net.scaler.additive is not None
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, data)
    assert net.scaler.additive is None


def test_a_module_that_the_net_brings_stays(tmp_path):
    data, net = SmallData(), Bringing()
    for refit in (False, False, True):
        quiet_trainer(tmp_path, callbacks=[scaler_callback(refit=refit)]).fit(net, data)
        assert net.scaler.targets["energy"].additive
