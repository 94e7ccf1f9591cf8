"""The data pass sees the data that training sees, and leaves training as it would have been."""

import copy
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from metatensor.torch import TensorBlock, TensorMap
from small_training import (
    SmallData,
    SmallNet,
    assert_same_scales,
    collate,
    per_target_scales,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Subset

FACTOR = 32.0
NO_VALIDATION = {"limit_val_batches": 0, "num_sanity_val_steps": 0}

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step` but have no", "ignore:You have overridden"
)


def in_other_units(batch):
    """The dipoles of a batch in a smaller unit; a power of two changes no digit."""
    dipole = batch["dipole"]
    block = dipole.block()
    values = FACTOR * block.values
    changed = TensorBlock(values, block.samples, block.components, block.properties)
    return {**batch, "dipole": TensorMap(dipole.keys, [changed])}


class AfterTransfer(SmallNet):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return in_other_units(batch)


class BeforeTransfer(SmallNet):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return in_other_units(batch)


class InTransfer(SmallNet):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return in_other_units(super().transfer_batch_to_device(batch, device, dataloader_idx))


class DataAfterTransfer(SmallData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return in_other_units(batch)


class DataBeforeTransfer(SmallData):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return in_other_units(batch)


class ConvertingLoader(DataLoader):
    def __init__(self, data, unit, **options):
        super().__init__(data, **options)

    def __iter__(self):
        return map(in_other_units, super().__iter__())


class Converting(SmallData):
    def train_dataloader(self):
        options = {"batch_size": 4, "shuffle": True, "collate_fn": collate}
        return ConvertingLoader(self.train, "other", **options)


CONVERSIONS = {
    "module, after the transfer": (AfterTransfer, SmallData),
    "module, before the transfer": (BeforeTransfer, SmallData),
    "module, in the transfer": (InTransfer, SmallData),
    "datamodule, after the transfer": (SmallNet, DataAfterTransfer),
    "datamodule, before the transfer": (SmallNet, DataBeforeTransfer),
    "iteration of the loader": (SmallNet, Converting),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", CONVERSIONS)
def test_units_converted_in_hooks_and_loaders_are_those_of_the_scales(tmp_path, where):
    """The scale grows by the factor of 32, and the losses are those without a conversion."""
    runs = []
    for net_class, data_class in (CONVERSIONS[where], (SmallNet, SmallData)):
        seed_everything(1)
        net, data = net_class(), data_class()
        quiet_trainer(tmp_path, callbacks=[scaler_callback()], **NO_VALIDATION).fit(net, data)
        assert len(data.train.reads) == 2 * 22
        runs.append((per_target_scales(net.scaler, "dipole")[0], net.losses))
    (converted, losses), (plain, expected) = runs
    assert converted == FACTOR * plain
    assert losses == expected


def test_targets_renamed_in_a_hook_are_fitted_under_the_new_name(tmp_path):
    class Renaming(SmallNet):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {"energy" if name == "E" else name: part for name, part in batch.items()}

    def with_other_name(items):
        return {"E" if name == "energy" else name: part for name, part in collate(items).items()}

    net, reference = Renaming(), SmallNet()
    options = {"callbacks": [scaler_callback(targets=["energy"], intensive_targets=[])]}
    quiet_trainer(tmp_path, **options, **NO_VALIDATION, max_epochs=0).fit(
        net, SmallData(collate_fn=with_other_name)
    )
    quiet_trainer(tmp_path, **options, **NO_VALIDATION, max_epochs=0).fit(reference, SmallData())
    assert_same_scales(net.scaler, reference.scaler)


class UsesScaler(SmallNet):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        targets = {name: batch[name] for name in ("energy", "dipole")}
        return {**batch, **self.targets_to_loss(batch["system"], targets)}


class UsesScalerDirectly(SmallNet):
    def unpack_batch(self, batch):
        systems, targets, masks = super().unpack_batch(batch)
        return systems, self.scaler.convert(systems, targets), masks


@pytest.mark.parametrize("net_class", [UsesScaler, UsesScalerDirectly])
@pytest.mark.parametrize("refit", [False, True])
def test_a_hook_that_uses_the_scaler_during_its_fit_is_an_error(tmp_path, net_class, refit):
    net = net_class()
    if refit:
        fitted = SmallNet()
        options = {"callbacks": [scaler_callback()], "max_epochs": 0, **NO_VALIDATION}
        quiet_trainer(tmp_path, **options).fit(fitted, SmallData())
        net.scaler = fitted.scaler
    trainer = quiet_trainer(tmp_path, callbacks=[scaler_callback(refit=refit)], **NO_VALIDATION)
    scaler = net.scaler
    message = rf"{net_class.__name__} uses its scaler \('\w+'\) while the scales are being fitted"
    with pytest.raises(RuntimeError, match=message):
        trainer.fit(net, SmallData())
    assert net.scaler is scaler


def test_a_hook_may_ask_whether_the_scaler_is_fitted(tmp_path):
    """The way out that the error names."""
    asked = []

    class Asking(SmallNet):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            asked.append(self.scaler.fitted)
            return batch

    quiet_trainer(tmp_path, callbacks=[scaler_callback()], **NO_VALIDATION).fit(
        Asking(), SmallData()
    )
    assert asked == [False] * 6 + [True] * 6


def parts_of(data, sizes=(15, 7)):
    edges = np.cumsum([0, *sizes])
    parts = [Subset(data.train, range(*pair)) for pair in pairwise(edges)]
    return [DataLoader(part, 4, collate_fn=collate) for part in parts]


class Joining(SmallNet):
    """Reads each part by its name, as its training step does."""

    def unpack_batch(self, batch):
        parts = [batch[name] for name in ("a", "b") if name in batch]
        self.forms.append(sorted(batch))
        return super().unpack_batch(parts)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
@pytest.mark.parametrize("form", ["dict", "list", "override"])
def test_several_loaders_are_read_once_in_the_form_of_training(tmp_path, form, mode):
    """15 + 7 structures, whatever the mode; a mode decides about the steps alone."""
    reference, data = SmallNet(), SmallData()
    options = {"callbacks": [scaler_callback()], **NO_VALIDATION}
    quiet_trainer(tmp_path, **options).fit(reference, SmallData())
    net, loaders = SmallNet(), parts_of(data)
    if form != "list":
        loaders = dict(zip("ab", loaders, strict=True))
    if form == "override":
        net = Joining()
        net.forms = []
    quiet_trainer(tmp_path, **options).fit(net, CombinedLoader(loaders, mode))
    assert sorted(data.train.reads[:22]) == list(range(22))
    assert_same_scales(net.scaler, reference.scaler, rtol=1e-11)
    assert len(net.losses) == (2 if mode == "min_size" else 4)
    if form == "override":
        assert net.forms[:4] == [["a", "b"]] * 4


def test_loaders_with_different_targets_are_joined(tmp_path):
    """Energies come from one loader, charges from the other, and both share every step."""

    def only(name):
        return lambda items: {k: v for k, v in collate(items).items() if k in ("system", name)}

    class Fewer(SmallNet):
        def forward(self, systems):
            return {k: v for k, v in super().forward(systems).items() if k in names}

    names = ("energy", "charges")
    data, net, reference = SmallData(), Fewer(), SmallNet()
    loaders = {name: DataLoader(data.train, 4, collate_fn=only(name)) for name in names}
    callback = scaler_callback(intensive_targets=[])
    quiet_trainer(tmp_path, callbacks=[callback], **NO_VALIDATION).fit(net, loaders)
    callback = scaler_callback(targets=names, intensive_targets=[])
    options = {"callbacks": [callback], "max_epochs": 0, **NO_VALIDATION}
    quiet_trainer(tmp_path, **options).fit(reference, SmallData())
    assert set(net.scaler.scales) == {"energy", "charges"}
    assert_same_scales(net.scaler, reference.scaler, rtol=1e-11)
    assert len(net.losses) == 6


class Counting(SmallData):
    """A curriculum: the n-th loader has n structures more; each split is drawn."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = 0

    def train_dataloader(self):
        self.calls += 1
        chosen = torch.randperm(22)[: 15 + self.calls].tolist()
        return DataLoader(Subset(self.train, chosen), 4, shuffle=True, collate_fn=collate)


class EpochSampler(RandomSampler):
    """Counts its epochs, and draws from a numpy generator of its own."""

    def __init__(self, data):
        super().__init__(data)
        self.epoch, self.rng = 0, np.random.default_rng(2)

    def __iter__(self):
        self.epoch += 1
        return iter(np.roll(self.rng.permutation(22), self.epoch).tolist())


class EpochBatches(BatchSampler):
    """Draws all batches as soon as an epoch begins."""

    def __iter__(self):
        return iter(list(super().__iter__()))


class Drawing(SmallData):
    """Every part of the loader draws: from generators of its own and from the global ones."""

    def __init__(self, **options):
        super().__init__(collate_fn=self.noisy, **options)
        self.train.noise, self.jitter = np.random.RandomState(3), np.random.default_rng(4)
        self.python = random.Random(5)
        self.drawn = []

    def noisy(self, items):
        draws = self.train.noise.rand(), self.jitter.random(), self.python.random()
        self.drawn.append([*draws, random.random(), np.random.rand(), float(torch.rand(1))])
        return collate(items)

    def train_dataloader(self):
        sampler = EpochBatches(EpochSampler(self.train), 4, drop_last=False)
        return DataLoader(self.train, batch_sampler=sampler, collate_fn=self.noisy)


class Stream(IterableDataset):
    """Its iterator is itself, started again at every ``iter``, in an order drawn then."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        self.order = torch.randperm(len(self.data)).tolist()
        return self

    def __next__(self):
        if not self.order:
            raise StopIteration
        return self.data[self.order.pop()]


class Streaming(SmallData):
    def train_dataloader(self):
        return DataLoader(Stream(self.train), 4, collate_fn=self.collate_fn)


RUNS = {
    "curriculum": (Counting, {}, []),
    "reloading": (Counting, {"reload_dataloaders_every_n_epochs": 1}, []),
    "overfitting": (Counting, {"overfit_batches": 2}, []),
    "learning rate finder": (Counting, {}, [LearningRateFinder]),
    "generators everywhere": (Drawing, {}, []),
    "stream": (Streaming, {}, []),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:Checkpoint directory")
@pytest.mark.parametrize("case", RUNS)
def test_training_reads_what_it_reads_without_the_callback(tmp_path, case):
    """Two epochs with a data pass, and two with the same scales and without the callback."""
    data_class, options, others = RUNS[case]
    runs, scaler = [], None
    for _ in range(2):
        seed_everything(1)
        net, data = SmallNet(), data_class()
        net.lr = 0.01
        callbacks = [make(num_training_steps=3) for make in others]
        if scaler is None:
            callbacks.append(scaler_callback(unseen_types="pooled"))
        else:
            net.scaler = scaler
        trainer = quiet_trainer(
            tmp_path,
            callbacks=callbacks,
            max_epochs=2,
            enable_checkpointing=bool(others),
            **{**NO_VALIDATION, **options},
        )
        trainer.fit(net, data)
        runs.append((net, data))
        scaler = copy.deepcopy(net.scaler)
    (net, data), (reference, untouched) = runs
    n_steps = len(untouched.train.reads)
    assert net.losses == reference.losses
    assert len(net.losses) > 3
    assert getattr(data, "calls", 0) == getattr(untouched, "calls", 0)
    assert data.train.reads[-n_steps:] == untouched.train.reads
    if case == "generators everywhere":
        assert data.drawn[-12:] == untouched.drawn
