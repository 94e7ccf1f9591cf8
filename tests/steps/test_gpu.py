"""Fits and steps on a CUDA device."""

import pytest
import torch
import torch.distributed
from lightning.pytorch.strategies import FSDPStrategy
from small_training import SmallData, SmallNet, collate, quiet_trainer, scaler_callback

from lightning_scaler.data_pass.processes import FitProcesses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Momentum(SmallNet):
    def configure_optimizers(self):
        # Lightning cannot restore an optimizer without state here.
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)


def fitted(folder, **options):
    net = SmallNet()
    callbacks, no_steps = [scaler_callback()], {"max_epochs": 0, "limit_val_batches": 0}
    quiet_trainer(folder, callbacks=callbacks, **no_steps, **options).fit(net, SmallData())
    return net


def largest_difference(first, second):
    """The largest relative difference of any scale."""
    differences = []
    for name, scales in first.scaler.scales.items():
        for ours, theirs in zip(scales.blocks(), second.scaler.scales[name].blocks(), strict=True):
            difference = (ours.values.cpu() - theirs.values.cpu()) / theirs.values.cpu()
            differences.append(float(difference.abs().max()))
    return max(differences)


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_scales_equal_those_of_the_cpu(tmp_path, strategy):
    on_gpu = fitted(tmp_path, accelerator="gpu", strategy=strategy)
    assert largest_difference(on_gpu, fitted(tmp_path)) <= 1e-12


def test_steps_log_the_metrics_that_they_log_on_the_cpu(tmp_path):
    def without_targets(items):
        """The first batch of the validation has no targets."""
        batch = collate(items)
        return {"system": batch["system"]} if len(items[0][0]) == 1 else batch

    logged = []
    for accelerator in ("gpu", "cpu"):
        net, data = SmallNet(lr=0.0), SmallData(shuffle=False)
        options = {"callbacks": [scaler_callback()], "max_epochs": 2, "accelerator": accelerator}
        trainer = quiet_trainer(tmp_path, **options)
        trainer.fit(net, data)
        logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        data.collate_fn = without_targets
        logged[-1] |= trainer.test(net, data, verbose=False)[0]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


@pytest.fixture
def nccl(tmp_path):
    """A process group of one rank, and its store."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    yield store
    torch.distributed.destroy_process_group()


def test_nccl_gathers_the_values_of_an_empty_shard(nccl):
    process = FitProcesses(0, 1, nccl, torch.device("cuda", 0))
    assert process.gather_objects(("structure", 0)) == [("structure", 0)]
    (nothing,) = process.gather_values(torch.zeros(0).double(), [0])
    assert (nothing.shape, nothing.dtype) == ((0,), torch.float64)
    numbers = torch.tensor([0.1, 1e300]).double()
    (same,) = process.gather_values(numbers, [2])
    assert torch.equal(same, numbers)


def test_converting_targets_to_the_loss_does_not_synchronize_with_the_device(tmp_path):
    """Labels of predictions are created on the device, and compared with those of targets there."""
    net, device = fitted(tmp_path), torch.device("cuda", 0)
    net.to(device)
    moved = net.transfer_batch_to_device(collate(SmallData().train.items[:6]), device, 0)
    before = torch.cuda.get_sync_debug_mode()
    for mode in ("default", "error"):  # the first run fills the tables on the device
        torch.cuda.set_sync_debug_mode(mode)
        try:
            systems, targets, masks = net.unpack_batch(moved)
            targets = net.targets_to_loss(systems, targets, masks)
            loss = net.compute_loss(targets, targets)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    assert loss.item() == 0.0


def test_fsdp_restores_after_on_fit_start_without_a_second_data_pass(tmp_path):
    reads = []
    for epochs, path in ((1, None), (2, tmp_path / "net.ckpt")):
        net, data = Momentum(), SmallData()
        options = {"accelerator": "gpu", "strategy": FSDPStrategy(), "max_epochs": epochs}
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], **options)
        trainer.fit(net, data, ckpt_path=path, weights_only=True)
        if path is None:
            trainer.save_checkpoint(tmp_path / "net.ckpt")
        reads.append(len(data.train.reads))
    assert reads == [2 * 22, 22]
    assert largest_difference(net, fitted(tmp_path)) <= 1e-12
