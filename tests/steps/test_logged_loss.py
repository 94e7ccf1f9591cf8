"""The loss and its terms, as they are logged once per epoch."""

from types import SimpleNamespace

import pytest
import torch
from builders import structure_target, system

from lightning_scaler import ScaleAccumulator
from lightning_scaler.steps.logged_loss import LoggedLoss
from lightning_scaler.steps.loss import LossTerms, loss_terms


class Run:
    """A Trainer's strategy, which says that a run goes on."""


def module_on(device):
    accumulator = ScaleAccumulator(baseline=None)
    accumulator.update([system(8), system(1)], {"energy": structure_target([1.0, 2.0])})
    logged = []
    return SimpleNamespace(
        device=torch.device(device),
        scaler=accumulator.compute(),
        trainer=SimpleNamespace(strategy=Run(), world_size=1),
        _current_fx_name="training_step",
        log=lambda name, metric, **options: logged.append(name),
        logged=logged,
    )


@pytest.mark.parametrize("terms", [loss_terms({}, {}, {}), None])
def test_the_loss_of_a_batch_without_targets_may_be_on_another_device(terms):
    module, logged_loss = module_on("meta"), LoggedLoss("_logged_loss")
    in_batch = LossTerms(["energy"], *torch.ones(2, 1, device="meta"))
    for of_batch, loss in ((in_batch, torch.ones((), device="meta")), (terms, torch.zeros(()))):
        logged_loss.log(module, "train", 0, loss, 2, of_batch, 2)
    assert logged_loss["train_loss_sums/0"].sums.device.type == "meta"
    assert set(module.logged) == {"train/loss", "train/loss/energy"}
