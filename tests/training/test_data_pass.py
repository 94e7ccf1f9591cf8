"""Exactly one data pass, and no step without scales, whatever trains before the training."""

import multiprocessing
import random

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from small_training import (
    SmallData,
    SmallDataset,
    SmallNet,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader

from lightning_scaler import TargetScaler

# Some of them write a checkpoint, restored later, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class Watched(SmallNet):
    """Counts the batches that were read for the pass, and for steps."""

    def __init__(self):
        super().__init__()
        self.lr = 0.01
        self.of_pass, self.unfitted_steps = [], 0

    def unpack_batch(self, batch):
        if self.trainer.training and not torch.is_grad_enabled():
            self.of_pass.append(len(batch["system"]))
        elif not self.scaler.fitted:
            self.unfitted_steps += 1
        return super().unpack_batch(batch)


ONE_PASS = [4, 4, 4, 4, 4, 2]


def twice(trainer, net, data):
    trainer.fit(net, data)
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(net, data)


def learning_rate(trainer, net, data):
    Tuner(trainer).lr_find(net, data, num_training=4)
    trainer.fit(net, data)


def batch_size(trainer, net, data):
    Tuner(trainer).scale_batch_size(net, datamodule=data, init_val=3, max_trials=2)
    assert data.batch_size == 6
    trainer.fit(net, data)


def fit(trainer, net, data):
    trainer.fit(net, data)


CASES = {
    "fit": (fit, []),
    "fit twice": (twice, []),
    "callback twice": (fit, [scaler_callback]),
    "Tuner.lr_find": (learning_rate, []),
    "Tuner.scale_batch_size": (batch_size, []),
    "LearningRateFinder": (
        fit,
        [lambda: LearningRateFinder(num_training_steps=4, attr_name="lr")],
    ),
    "BatchSizeFinder": (fit, [lambda: BatchSizeFinder(init_val=3, max_trials=2)]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_pass_and_no_step_without_scales(tmp_path, case):
    work, others = CASES[case]
    data, net = SmallData(), Watched()
    callbacks = [*(make() for make in others), scaler_callback()]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    work(trainer, net, data)
    assert net.of_pass == ONE_PASS
    assert net.unfitted_steps == 0
    assert net.losses


def test_workers_of_the_pass_have_ended_before_the_training(tmp_path):
    alive = []

    class Spy(Callback):
        def on_sanity_check_start(self, trainer, pl_module):
            alive.append(len(multiprocessing.active_children()))

    data, net = SmallData(), SmallNet()
    loader = DataLoader(data.train, 4, collate_fn=collate, num_workers=2, persistent_workers=True)
    before = len(multiprocessing.active_children())
    callbacks = [Spy(), scaler_callback()]
    options = {"limit_train_batches": 0, "num_sanity_val_steps": 1}
    quiet_trainer(tmp_path, callbacks=callbacks, **options).fit(net, loader, data.val_dataloader())
    assert net.scaler.fitted
    assert alive == [before]


def test_random_states_are_the_same_before_and_after(tmp_path):
    """Of a data set that draws from all global generators, as augmentations do."""

    class Drawing(SmallDataset):
        def __getitem__(self, index):
            random.random(), np.random.rand(), torch.rand(1)
            return super().__getitem__(index)

    def states():
        numpy_state = np.random.get_state()[1].tolist()
        return random.getstate(), numpy_state, torch.get_rng_state().tolist()

    seen = []

    class Spy(TargetScaler):
        def on_fit_start(self, trainer, pl_module):
            seen.append(states())
            super().on_fit_start(trainer, pl_module)
            seen.append(states())

    data, net = SmallData(), SmallNet()
    data.train.__class__ = Drawing
    callbacks = [Spy(intensive_targets=["dipole", "polarizability"])]
    quiet_trainer(tmp_path, callbacks=callbacks, max_epochs=0, limit_val_batches=0).fit(net, data)
    assert len(data.train.reads) == 22
    assert seen[0] == seen[1]


def test_the_same_numbers_given_give_the_same_losses(tmp_path):
    """The pass replaced by fixed_scales: nothing in training remembers the pass."""

    def single_property(items):
        batch = collate(items)
        del batch["polarizability"]
        return batch

    names = ["energy", "dipole", "charges"]
    settings = {"targets": names, "intensive_targets": ["dipole"], "baseline": "none"}
    runs, fixed = [], None
    for _ in range(2):
        torch.manual_seed(0)
        data, net = SmallData(collate_fn=single_property), SmallNet()
        callback = scaler_callback(**settings, fixed_scales=fixed)
        torch.manual_seed(1)
        quiet_trainer(tmp_path, callbacks=[callback], max_epochs=2).fit(net, data)
        runs.append((net, data.train.reads))
        targets = net.scaler.targets
        fixed = {name: targets[name].per_target[0].item() for name in ("energy", "dipole")}
        charges = targets["charges"]
        numbers = charges.per_target[: len(charges.types)].tolist()
        fixed["charges"] = dict(zip(charges.types.tolist(), numbers, strict=True))
    (fitted, all_reads), (given, fewer_reads) = runs
    assert len(fitted.losses) == 12
    assert given.losses == fitted.losses
    assert len(all_reads) == 3 * 22
    assert fewer_reads[4:] == all_reads[22:]  # one batch to see the layouts
