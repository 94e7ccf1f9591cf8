"""A module whose evaluation has failed trains on as before it."""

import pytest
import torch
from lightning.pytorch import Callback
from plain_module import DECLARED, OtherModule, batches, loader_of
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback

from lightning_scaler import TargetScaler

pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")


class Frozen(SmallNet):
    """A part of it is in evaluation mode throughout; steps may fail."""

    fails = None

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Dropout().eval()

    def validation_step(self, batch, batch_idx):
        if self.fails is not None:
            raise self.fails
        return super().validation_step(batch, batch_idx)


def modes(net):
    """The mode of each part, without metrics and logged losses, which the first run adds."""
    parts = net.named_modules()
    return {name: part.training for name, part in parts if not name.startswith("_scaling_")}


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_that_is_refused_leaves_the_mode_as_it_was(tmp_path, stage):
    net = Frozen()
    before = modes(net)
    assert (before[""], before["frozen"]) == (True, False)
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()])
    with pytest.raises(RuntimeError, match=f"trainer.{stage}: Frozen has no target scales yet"):
        getattr(trainer, stage)(net, SmallData())
    assert modes(net) == before


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_validation_that_fails_or_is_interrupted_leaves_the_mode_as_it_was(tmp_path, raised):
    net, data = Frozen(), SmallData()
    before = modes(net)
    callback = scaler_callback()
    quiet_trainer(tmp_path, callbacks=[callback], max_epochs=1).fit(net, data)
    net.fails = KeyboardInterrupt() if raised is SystemExit else raised()
    trainer = quiet_trainer(tmp_path, callbacks=[callback], max_epochs=2)
    for run in (trainer.validate, trainer.fit):
        with pytest.raises(raised):
            run(net, data)
        assert modes(net) == before


class Fails(Callback):
    """Fails before Lightning sets the module to evaluation mode."""

    def setup(self, trainer, pl_module, stage):
        raise OSError("no such file")


class Missing(SmallData):
    """Fails before any callback is asked."""

    def prepare_data(self):
        raise OSError("no such file")


@pytest.mark.parametrize("where", ["callback", "data"])
def test_modes_of_an_earlier_evaluation_are_not_those_of_a_later_one(tmp_path, where):
    net, data = Frozen(), SmallData()
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], max_epochs=1)
    trainer.fit(net, data)
    trainer.validate(net, data)
    net.eval()
    if where == "callback":
        trainer.callbacks.append(Fails())
    with pytest.raises(OSError, match="no such file"):
        trainer.validate(net, data if where == "callback" else Missing())
    assert not any(modes(net).values())


@pytest.mark.slow
def test_processes_that_copy_a_module_are_refused_with_one_message(tmp_path):
    callback = TargetScaler(targets=DECLARED)
    trainer = quiet_trainer(tmp_path, strategy="ddp_spawn", callbacks=[callback], max_epochs=1)
    with pytest.raises(TypeError) as raised:
        trainer.fit(OtherModule(), loader_of(batches()))
    assert str(raised.value) == (
        "TargetScaler: the steps of OtherModule cannot be scaled here, because DDPStrategy starts "
        "processes that copy the module; write class ScaledOtherModule(ScaledSteps, OtherModule) "
        "and train that"
    )
    assert raised.value.__suppress_context__
