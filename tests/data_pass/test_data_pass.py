"""The data pass: it runs once, before any training step, and leaves no trace in the training."""

import multiprocessing
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from builders import labels, mask_of
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from metatensor.torch import TensorBlock, TensorMap
from metatomic.torch import System
from small_training import (
    ShuffledBatches,
    SmallData,
    SmallDataset,
    SmallNet,
    assert_same_scales,
    baseline_weights,
    collate,
    per_target_scales,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader, RandomSampler

from lightning_scaler import TargetScaler

# Some callbacks write a checkpoint into a folder that has one, and Lightning warns.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


class Watched(SmallNet):
    """Records the batches of the data pass, and steps without scales."""

    def __init__(self):
        super().__init__()
        self.lr = 0.01
        self.data_pass, self.unfitted_steps = [], 0

    def unpack_batch(self, batch):
        if self.trainer.training and not torch.is_grad_enabled():
            self.data_pass.append(len(batch["system"]))
        elif not self.scaler.fitted:
            self.unfitted_steps += 1
        return super().unpack_batch(batch)


ONE_PASS = [4, 4, 4, 4, 4, 2]


def twice(trainer, net, data):
    trainer.fit(net, data)
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(net, data)


def batch_size(trainer, net, data):
    Tuner(trainer).scale_batch_size(net, datamodule=data, init_val=3, max_trials=2)
    assert data.batch_size == 6
    trainer.fit(net, data)


def fit(trainer, net, data):
    trainer.fit(net, data)


CASES = {
    "fit twice": (twice, []),
    "Tuner.scale_batch_size": (batch_size, []),
    "LearningRateFinder": (
        fit,
        [lambda: LearningRateFinder(num_training_steps=4, attr_name="lr")],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_there_is_one_data_pass_and_no_step_without_scales(tmp_path, case):
    work, others = CASES[case]
    data, net = SmallData(), Watched()
    callbacks = [*(make() for make in others), scaler_callback()]
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    work(trainer, net, data)
    assert net.data_pass == ONE_PASS
    assert net.unfitted_steps == 0
    assert net.losses


@pytest.mark.slow
def test_workers_of_the_data_pass_have_ended_when_training_begins(tmp_path):
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


@pytest.mark.slow
def test_training_starts_with_the_random_states_of_a_run_without_a_data_pass(tmp_path):
    """With a dataset that draws from all global generators, as augmentations do."""

    class Drawing(SmallDataset):
        def __getitem__(self, index):
            random.random(), np.random.rand(), torch.rand(1)
            return super().__getitem__(index)

    class Spy(Callback):
        def on_train_start(self, trainer, pl_module):
            numpy_state = np.random.get_state()[1].tolist()
            self.states = random.getstate(), numpy_state, torch.get_rng_state().tolist()

    net, states = SmallNet(), []
    for reads in (22, 0):
        seed_everything(1)
        data, spy = SmallData(), Spy()
        data.train.__class__ = Drawing
        callbacks = [spy, scaler_callback()]
        trainer = quiet_trainer(tmp_path, callbacks=callbacks, limit_val_batches=0)
        trainer.fit(net, data)
        assert len(data.train.reads) == reads + 22
        states.append(spy.states)
    assert states[0] == states[1]


@pytest.mark.slow
def test_fixed_scales_equal_to_fitted_ones_give_the_same_losses(tmp_path):
    """Unless the loss is balanced, nothing depends on whether there was a data pass."""

    def single_property(items):
        batch = collate(items)
        del batch["polarizability"]
        return batch

    names = ["energy", "dipole", "charges"]
    settings = {"targets": names, "intensive_targets": ["dipole"], "baseline": "none"}
    settings["balance_loss"] = False
    runs, fixed = [], None
    for _ in range(2):
        torch.manual_seed(0)
        data, net = SmallData(collate_fn=single_property), SmallNet()
        callback = scaler_callback(**settings, fixed_scales=fixed)
        torch.manual_seed(1)
        quiet_trainer(tmp_path, callbacks=[callback], max_epochs=2).fit(net, data)
        runs.append((net, data.train.reads))
        fixed = {name: per_target_scales(net.scaler, name)[0] for name in ("energy", "dipole")}
        charges = per_target_scales(net.scaler, "charges")
        fixed["charges"] = dict(zip([1, 6, 8], charges, strict=True))
    (fitted, all_reads), (given, fewer_reads) = runs
    assert len(fitted.losses) == 12
    assert given.losses == fitted.losses
    assert len(all_reads) == 3 * 22
    assert fewer_reads[4:] == all_reads[22:]  # one batch to see the layouts


class Drawn(SmallData):
    """Six draws of 22 samples, some twice, in batches of four."""

    def __init__(self, shuffled_batches):
        super().__init__()
        self.shuffled_batches, self.generator = shuffled_batches, torch.Generator().manual_seed(5)

    def train_dataloader(self):
        options = {"replacement": True, "num_samples": 6, "generator": self.generator}
        sampler = RandomSampler(self.train, **options)
        if self.shuffled_batches:
            batches = ShuffledBatches(sampler, 4, self.generator)
            return DataLoader(self.train, batch_sampler=batches, collate_fn=collate)
        return DataLoader(self.train, 4, sampler=sampler, collate_fn=collate)


@pytest.mark.parametrize("shuffled_batches", [False, True])
def test_the_data_pass_reads_the_draws_of_the_first_epoch(tmp_path, shuffled_batches):
    """The epochs have the order that the loader gives without a pass before them."""
    untouched, data = Drawn(shuffled_batches), Drawn(shuffled_batches)
    loader = untouched.train_dataloader()
    for _ in range(2):
        list(loader)
    callbacks = [scaler_callback(unseen_types="pooled")]
    options = {"limit_val_batches": 0, "max_epochs": 2}
    quiet_trainer(tmp_path, callbacks=callbacks, **options).fit(SmallNet(), data)
    epochs = untouched.train.reads
    assert len(epochs) == 12
    assert data.train.reads == epochs[:6] + epochs


@pytest.mark.parametrize(
    ("overfit_batches", "n_samples"),
    # Six batches, the last of two samples: int(0.4 * 6) = 2 batches.
    [(3, 12), (0.4, 8), (1.0, 22)],
)
def test_overfit_batches_restricts_the_data_pass_to_the_batches_trained_on(
    tmp_path, overfit_batches, n_samples
):
    data = SmallData(shuffle=False)
    quiet_trainer(
        tmp_path,
        callbacks=[scaler_callback(unseen_types="pooled")],
        overfit_batches=overfit_batches,
        limit_val_batches=0,
    ).fit(SmallNet(), data)
    assert data.train.reads == 2 * list(range(n_samples))


HIDDEN = 1e6
TARGETS = ("energy", "dipole", "polarizability", "charges")


def data_with_hidden_values(value, collate_fn=collate):
    """One value in four of every target is replaced; the gradients stay."""
    data = SmallData(collate_fn=collate_fn)
    generator = torch.Generator().manual_seed(4)
    for _, numbers in data.train.items:
        for name in TARGETS:
            hidden = torch.rand(numbers[name].shape, generator=generator) < 0.25
            numbers[name] = numbers[name].masked_fill(hidden, value)
    return data


def with_masks(items):
    batch = collate(items)
    masks = {
        f"{name}_mask": mask_of(batch[name], [b.values != HIDDEN for b in batch[name].blocks()])
        for name in TARGETS
    }
    return {**batch, **masks}


def with_masks_of_other_names(items):
    return {name.replace("_mask", "_is_valid"): part for name, part in with_masks(items).items()}


class OwnNames(SmallNet):
    def unpack_batch(self, batch):
        targets = {name: batch[name] for name in TARGETS}
        return batch["system"], targets, {name: batch[f"{name}_is_valid"] for name in TARGETS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collate_fn", "network"),
    [(with_masks, SmallNet), (with_masks_of_other_names, OwnNames)],
    ids=["default", "own unpack_batch"],
)
def test_masks_are_applied_in_the_data_pass(tmp_path, collate_fn, network):
    """What is under a mask does not matter: the fit is that of missing values."""
    masked, missing = network(), SmallNet()
    data = data_with_hidden_values(HIDDEN, collate_fn), data_with_hidden_values(torch.nan)
    for net, its_data in zip((masked, missing), data, strict=True):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback()], limit_val_batches=0)
        trainer.fit(net, its_data)
    assert_same_scales(masked.scaler, missing.scaler, rtol=1e-12)
    assert masked.losses == pytest.approx(missing.losses, rel=1e-6)


def test_a_mask_of_an_unknown_target_is_an_error(tmp_path):
    def with_a_wrong_name(items):
        batch = with_masks(items)
        return {**batch, "chrges_mask": batch.pop("charges_mask")}

    data = SmallData(collate_fn=with_a_wrong_name)
    with pytest.raises(ValueError, match=r"a mask names the target 'chrges'.*'charges'"):
        quiet_trainer(tmp_path, callbacks=[scaler_callback()]).fit(SmallNet(), data)


FIXED = {1: -1.0, 6: -2.0, 8: -3.0}
FIXED_OF_ALL = {1: 1.0, 6: 2.0, 8: 3.0}

# Fixed scales, fixed baseline, other settings, whether all data are needed.
FIXED_NUMBERS = {
    "total energy with a fitted baseline": ({"energy": 0.5}, {}, {}, True),
    "total energy with a fixed baseline": ({"energy": 0.5}, {"energy": FIXED}, {}, False),
    "charges with a fitted baseline": ({"charges": 0.5}, {}, {}, True),
    "fixed scales of all types": ({"charges": FIXED_OF_ALL}, {}, {"baseline": "none"}, False),
    "fixed scales of some types": ({"charges": {8: 3.0}}, {}, {"baseline": "none"}, True),
    "a vector never has a baseline": (
        {"dipole": 2.0},
        {},
        {"intensive_targets": ["dipole"]},
        False,
    ),
    "one of two baselines is fixed": (
        {"energy": 0.5, "charges": 0.5},
        {"energy": FIXED},
        {},
        True,
    ),
    "per-property scales of several blocks": (
        {"polarizability": 2.0},
        {},
        {"baseline": "none", "intensive_targets": ["polarizability"]},
        True,
    ),
    "one of two scales is fixed": (
        {"energy": 0.5},
        {},
        {"baseline": "none", "targets": ["energy", "charges"]},
        True,
    ),
}


@pytest.mark.parametrize("case", FIXED_NUMBERS)
def test_one_batch_is_read_only_if_every_scale_and_baseline_is_fixed(tmp_path, case):
    fixed_scales, fixed_baseline, settings, all_needed = FIXED_NUMBERS[case]
    settings = {"targets": list(fixed_scales), "intensive_targets": [], **settings}
    data, net = SmallData(), SmallNet()
    callback = scaler_callback(fixed_scales=fixed_scales, fixed_baseline=fixed_baseline, **settings)
    options = {"max_epochs": 0, "limit_val_batches": 0}
    quiet_trainer(tmp_path, callbacks=[callback], **options).fit(net, data)
    assert set(net.scaler.scales) == set(settings["targets"])
    assert len(set(data.train.reads)) == (22 if all_needed else 4)


def test_the_baseline_of_a_target_with_a_fixed_scale_is_fitted_to_all_data(tmp_path):
    data, net = SmallData(), SmallNet()
    callback = TargetScaler(targets=["energy"], fixed_scales={"energy": 0.5})
    options = {"max_epochs": 0, "limit_val_batches": 0}
    quiet_trainer(tmp_path, callbacks=[callback], **options).fit(net, data)
    types = [system.types.numpy() for system, _ in data.train.items]
    counts = np.array([[(t == z).sum() for z in (1, 6, 8)] for t in types], float)
    energies = np.array([numbers["energy"].item() for _, numbers in data.train.items])
    expected = np.linalg.lstsq(counts, energies, rcond=None)[0]
    (weights,) = baseline_weights(net.scaler, "energy")
    np.testing.assert_allclose([weights[z] for z in (1, 6, 8)], expected, rtol=1e-10)
    assert per_target_scales(net.scaler, "energy") == [0.5]


@pytest.mark.parametrize(
    ("options", "n_batches"), [({"overfit_batches": 3}, 3), ({"fast_dev_run": 2}, 2)]
)
def test_limit_batches_does_not_count_under_overfit_batches_and_fast_dev_run(
    tmp_path, options, n_batches
):
    data, net = SmallData(shuffle=False), SmallNet()
    callback = scaler_callback(unseen_types="pooled", limit_batches=1)
    quiet_trainer(tmp_path, callbacks=[callback], limit_val_batches=0, **options).fit(net, data)
    assert len(data.train.reads) == 2 * 4 * n_batches  # the pass, and the steps


def isomers_with_swapped_energies(items):
    """HOH and HHO with energies in the other order, unless the labels are ids."""
    batch = collate(items)
    water = [
        System(
            torch.tensor(types).int(),
            positions,
            torch.zeros(3, 3).double(),
            torch.tensor([False] * 3),
        )
        for types, positions in (
            ([1, 8, 1], torch.rand(3, 3).double()),
            ([1, 1, 8], torch.rand(3, 3).double()),
        )
    ]
    energy = TensorBlock(
        batch["energy"].block().values[:2], labels("system", [1, 0]), [], labels("property", [0])
    )
    return {"system": water, "energy": TensorMap(labels("_", [0]), [energy])}


@pytest.mark.parametrize(("setting", "steps"), [("auto", 0), ("position", 2), ("id", 2)])
def test_the_pass_refuses_labels_that_a_step_would_refuse(tmp_path, setting, steps):
    """The statistics are the same, but the energies would be those of the other isomer."""
    data, net = (
        SmallData(size=4, batch_size=2, collate_fn=isomers_with_swapped_energies),
        SmallNet(),
    )
    callback = TargetScaler(system_labels=setting)
    trainer = quiet_trainer(tmp_path, callbacks=[callback], limit_val_batches=0)
    error = pytest.raises(ValueError, match="set system_labels='position' or 'id'")
    with error if setting == "auto" else nullcontext():
        trainer.fit(net, data)
    assert len(net.losses) == steps
    assert net.scaler.fitted == (steps > 0)
