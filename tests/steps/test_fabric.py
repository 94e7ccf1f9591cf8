"""Steps that no Trainer runs: under Fabric, and in a loop of one's own."""

import pytest
import torch
from lightning.fabric import Fabric
from small_training import SmallData, SmallNet, quiet_trainer, scaler_callback


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A module after one epoch of a Trainer, with the losses of its steps."""
    net = SmallNet()
    callbacks = [scaler_callback()]
    trainer = quiet_trainer(tmp_path_factory.mktemp("trained"), callbacks=callbacks)
    trainer.fit(net, SmallData(shuffle=False))
    return net


def test_steps_under_fabric_give_the_losses_of_a_trainer_and_log_nothing(trained):
    fabric = Fabric(accelerator="cpu", devices=1)
    net = SmallNet()
    net.scaler = trained.scaler
    module, optimizer = fabric.setup(net, net.configure_optimizers())
    module.train()
    for index, batch in enumerate(
        fabric.setup_dataloaders(SmallData(shuffle=False).train_dataloader())
    ):
        batch = net.transfer_batch_to_device(batch, fabric.device, 0)
        loss = module.training_step(batch, index)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
    assert net.losses == trained.losses
    assert torch.equal(net.weights, trained.weights)
    for batch in SmallData().val_dataloader():
        batch = net.transfer_batch_to_device(batch, fabric.device, 0)
        assert module.validation_step(batch, 0) is None
        assert module.test_step(batch, 0) is None
        energy = module.predict_step(batch, 0)["energy"].block()
        assert energy.values.max() < -900  # a total energy, with the baseline


def test_steps_without_trainer_and_fabric_log_nothing(trained):
    net = SmallNet()
    net.scaler = trained.scaler
    batch = next(iter(SmallData(shuffle=False).train_dataloader()))
    batch = net.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert net.training_step(batch, 0).item() == trained.losses[0]
    assert net.validation_step(batch, 0) is None


def test_a_module_logs_again_when_a_trainer_runs_it(trained, tmp_path):
    net = SmallNet()
    net.scaler = trained.scaler
    batch = next(iter(SmallData(shuffle=False).train_dataloader()))
    net.validation_step(net.transfer_batch_to_device(batch, torch.device("cpu"), 0), 0)
    logged = quiet_trainer(tmp_path).validate(net, SmallData(), verbose=False)[0]
    assert logged["val/charges/mae"] > 0
