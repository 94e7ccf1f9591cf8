"""A Trainer of the distribution ``pytorch_lightning``, whose classes are not those of lightning."""

import logging

import pytest
import pytorch_lightning
import torch
from other_lightning import OtherData, OtherNet, other_trainer
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from small_training import (
    SmallData,
    SmallNet,
    assert_same_scales,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader, Subset

from lightning_scaler import TargetScalingMixin

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@pytest.fixture
def reference(tmp_path):
    torch.manual_seed(1)
    net = SmallNet()
    quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, SmallData())
    return net


@pytest.mark.slow
@pytest.mark.parametrize("source", ["loaders", "datamodule"])
def test_scales_and_losses_are_those_under_the_other_trainer(tmp_path, reference, source):
    torch.manual_seed(1)
    net, data = OtherNet(), SmallData()
    loaders = [OtherData(data)]
    if source == "loaders":
        loaders = [data.train_dataloader(), data.val_dataloader()]
    trainer = other_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, *loaders)
    assert_same_scales(net.scaler, reference.scaler)
    assert net.losses == reference.losses
    assert len(data.train.reads) == 2 * 22


def test_each_of_several_loaders_in_its_combined_loader_is_read(tmp_path, reference):
    data, net = SmallData(), OtherNet()
    parts = [Subset(data.train, part) for part in (range(15), range(15, 22))]
    loaders = [DataLoader(part, 4, collate_fn=collate) for part in parts]
    combined = CombinedLoader(dict(zip("ab", loaders, strict=True)), "min_size")
    other_trainer(tmp_path, callbacks=[scaler_callback()]).fit(net, combined)
    assert sorted(data.train.reads[:22]) == list(range(22))
    assert_same_scales(net.scaler, reference.scaler, rtol=1e-11)
    assert len(net.losses) == 2


def test_hooks_of_its_modules_run_in_the_data_pass(tmp_path, reference):
    class Renaming(OtherNet):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {"energy" if name == "E" else name: part for name, part in batch.items()}

    def with_other_name(items):
        return {"E" if name == "energy" else name: part for name, part in collate(items).items()}

    net, data = Renaming(), SmallData(collate_fn=with_other_name)
    trainer = other_trainer(tmp_path, callbacks=[scaler_callback()])
    trainer.fit(net, data.train_dataloader())
    assert_same_scales(net.scaler, reference.scaler)


def test_the_wrong_order_of_bases_is_refused_for_its_modules_too():
    message = r"write class Wrong\(TargetScalingMixin, LightningModule\)"
    with pytest.raises(TypeError, match=message):

        class Wrong(pytorch_lightning.LightningModule, TargetScalingMixin):
            pass
