"""Averages and best weights in runs of a real Trainer, and checkpoints without scales."""

import copy

import pytest
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from small_training import (
    SmallData,
    SmallNet,
    assert_same_scales,
    quiet_trainer,
    scaler_callback,
)

from lightning_scaler import InvalidStateError


class HomeMadeEMA(Callback):
    """An average of the state dict, used for validation as many projects do."""

    def __init__(self, start: str = "on_train_start", decay: float = 0.9) -> None:
        self.start, self.decay, self.average, self.kept = start, decay, None, None

    def setup(self, trainer, pl_module, stage):
        if self.start == "setup":
            self.average = copy.deepcopy(pl_module.state_dict())

    def on_train_start(self, trainer, pl_module):
        self.average = self.average or copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            for name, value in pl_module.state_dict().items():
                self.average[name].mul_(self.decay).add_(value, alpha=1.0 - self.decay)

    def on_validation_start(self, trainer, pl_module):
        if self.average is not None and not trainer.sanity_checking:
            self.kept = copy.deepcopy(pl_module.state_dict())
            pl_module.load_state_dict(self.average)

    def on_validation_end(self, trainer, pl_module):
        if self.kept is not None:
            pl_module.load_state_dict(self.kept)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A network trained without averages."""
    torch.manual_seed(0)
    net = SmallNet()
    trainer = quiet_trainer(tmp_path_factory.mktemp("plain"), callbacks=[scaler_callback()])
    trainer.fit(net, SmallData(shuffle=False))
    return net


@pytest.mark.slow
def test_a_home_made_ema_swaps_the_state_dict_and_keeps_the_scales(plain_run, tmp_path):
    torch.manual_seed(0)
    net, ema = SmallNet(), HomeMadeEMA()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(), ema])
    trainer.fit(net, SmallData(shuffle=False))
    assert_same_scales(net.scaler, plain_run.scaler)
    assert net.losses == plain_run.losses
    assert not torch.equal(ema.average["weights"], net.weights)
    averaged = SmallNet()
    averaged.load_state_dict(ema.average)
    assert_same_scales(averaged.scaler, plain_run.scaler)


def test_an_ema_started_before_the_fit_of_the_scales_is_an_error_that_says_so(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[HomeMadeEMA("setup"), scaler_callback()])
    with pytest.raises(InvalidStateError, match=r"mixture of different states.*after the fit"):
        trainer.fit(SmallNet(), SmallData())


@pytest.mark.slow
def test_weight_averaging_of_lightning_saves_and_resumes_with_the_scales(plain_run, tmp_path):
    def trainer(**options):
        callbacks = [EMAWeightAveraging(decay=0.9), scaler_callback()]
        return quiet_trainer(tmp_path, callbacks=callbacks, **options)

    first = trainer()
    first.fit(SmallNet(), SmallData(shuffle=False))
    first.save_checkpoint(tmp_path / "net.ckpt")
    loaded = SmallNet.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert_same_scales(loaded.scaler, plain_run.scaler)
    net, data = SmallNet(), SmallData(shuffle=False, factors={"dipole": 2.0})
    trainer(max_epochs=2).fit(net, data, ckpt_path=tmp_path / "net.ckpt", weights_only=True)
    assert_same_scales(net.scaler, plain_run.scaler)
    assert len(data.train.reads) == 22  # the second epoch alone


def test_weights_filtered_from_a_checkpoint_keep_the_scales_of_a_running_module(
    plain_run, tmp_path
):
    """As adapters and filtered checkpoints do; a later fit reads no data for scales."""
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(plain_run)
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    state = torch.load(tmp_path / "net.ckpt", weights_only=True)["state_dict"]
    net, data = SmallNet(), SmallData(factors={"dipole": 2.0})
    net.load_state_dict(state)
    net.load_state_dict({"weights": torch.zeros_like(net.weights)}, strict=False)
    assert_same_scales(net.scaler, plain_run.scaler)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data)
    assert_same_scales(net.scaler, plain_run.scaler)
    assert len(data.train.reads) == 22


def test_a_module_saved_with_safetensors_predicts_the_same(plain_run, tmp_path):
    safetensors.torch.save_model(plain_run, str(tmp_path / "net.safetensors"))
    net = SmallNet()
    assert safetensors.torch.load_model(net, tmp_path / "net.safetensors") == (set(), [])
    assert_same_scales(net.scaler, plain_run.scaler)
    ours, theirs = (
        quiet_trainer(tmp_path).validate(each, SmallData(), verbose=False)
        for each in (net, plain_run)
    )
    assert ours == theirs


def test_the_scales_of_a_truncated_checkpoint_entry_are_refused(plain_run, tmp_path):
    state = plain_run.state_dict()
    state["scaler._extra_state"] = state["scaler._extra_state"][:500]
    net = SmallNet()
    net.load_state_dict(plain_run.state_dict())
    with pytest.raises(InvalidStateError, match=r"truncated: expected at least \d+ elements"):
        net.load_state_dict(state)
    assert_same_scales(net.scaler, plain_run.scaler)
