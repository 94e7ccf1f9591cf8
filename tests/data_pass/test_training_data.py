"""The data of training, read by somebody else than this package's callback and modules."""

import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from small_training import SmallData, assert_same_scales, quiet_trainer

from lightning_scaler import ScaleAccumulator
from lightning_scaler.batches import unpack
from lightning_scaler.data_pass import FitProcesses, LoaderRecord, TrainingData


class Network(LightningModule):
    """A module that knows nothing of scales; notes which structures it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append([len(system) for system in batch["system"]])
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Reader(Callback):
    """Reads the data of training when it starts, and what identifies them."""

    def __init__(self, **options):
        self.options = options

    def on_fit_start(self, trainer, pl_module):
        record = LoaderRecord(trainer)
        data = TrainingData(trainer, unpack, FitProcesses(), record, **self.options)
        self.identity = data.identify(ScaleAccumulator(), None)
        one, self.first = data.read_layouts(ScaleAccumulator())
        self.layouts = {*one.compute().layouts}
        self.accumulator, _ = data.read(ScaleAccumulator())
        data.restart()


def train(folder, data, callbacks=(), **options):
    net = Network()
    torch.manual_seed(5)
    quiet_trainer(folder, callbacks=[*callbacks], **options).fit(net, data.train_dataloader())
    return net


def test_all_data_are_read_once_and_training_sees_the_same_as_without(tmp_path):
    data, reader = SmallData(), Reader()
    net = train(tmp_path, data, [reader])
    assert net.seen == train(tmp_path, SmallData()).seen
    # 22 samples: what identifies them (all), one batch, all, and one epoch of training.
    assert len(data.train.reads) == 22 + 4 + 22 + 22
    assert sorted(data.train.reads[26:48]) == [*range(22)]
    expected = ScaleAccumulator()
    for batch in SmallData(shuffle=False).train_dataloader():
        expected.update(*unpack(batch))
    assert_same_scales(reader.accumulator.compute(), expected.compute(), rtol=1e-12)


def test_one_batch_shows_the_layouts_and_a_limit_is_spread_over_the_data(tmp_path):
    data, reader = SmallData(shuffle=False), Reader(limit_batches=2)
    train(tmp_path, data, [reader], max_epochs=0)
    assert len(reader.first.systems) == 4
    assert reader.layouts == {"energy", "dipole", "polarizability", "charges"}
    # The middles of two halves of the six batches; those of three halves for the layouts.
    assert data.train.reads[-8:] == [4, 5, 6, 7, 16, 17, 18, 19]
    assert reader.identity["samples"] == "8"


@pytest.mark.slow
def test_the_room_is_imported_without_the_callback_and_the_mixins():
    code = "import sys, lightning_scaler.data_pass; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "lightning_scaler.data_pass.training_data" in loaded
    assert "lightning_scaler.training" not in loaded
