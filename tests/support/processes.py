"""What several real processes do together, for test_several_processes.py.

A program of its own: it imports everything once, forks for every rank of every group, and nothing
that a test has started gets into the forks.
"""

import contextlib
import copy
import os
import shutil
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed
import torch.distributed.checkpoint
from builders import labels
from fine_tuning import LayeredNet, other_level, with_nitrogen
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from metatensor.torch import TensorBlock, TensorMap
from other_lightning import OtherNet, other_trainer
from plain_module import DECLARED, OtherModule, collate_structures, structures
from small_training import (
    SmallData,
    SmallDataset,
    SmallNet,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.distributed.fsdp import fully_shard
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torchmetrics import MeanAbsoluteError, MeanAbsolutePercentageError
from torchmetrics.wrappers import MinMaxMetric

from lightning_scaler import PerStructure, ScaleAccumulator, TargetScaler
from lightning_scaler.training import target_scaler

WORLD_SIZES = (2, 3)
BATCH_SIZES = (1, 4, 30)


def rank_of_this_process():
    return int(os.environ.get("RANK", "0"))


def trainer_of(folder, world_size, **options):
    if world_size > 1:
        options = {"devices": world_size, "strategy": "ddp", **options}
    return quiet_trainer(folder, **options)


# The scales of every kind of loader.


class Stream(IterableDataset):
    """A different part of the data in every process."""

    def __init__(self, items, world_size):
        self.items, self.world_size = items, world_size

    def __iter__(self):
        return iter(self.items[rank_of_this_process() :: self.world_size])


class Reversed(BatchSampler):
    """A batch sampler of the user's, whose batches come in another order."""

    def __iter__(self):
        batches = list(BatchSampler(self.sampler, self.batch_size, drop_last=False))
        return iter(batches[::-1])


class Sampled(SmallData):
    """The training data through a loader with some kind of sampler."""

    def __init__(self, kind, batch_size, world_size, size=22):
        super().__init__(size, batch_size)
        self.kind, self.world_size = kind, world_size

    def train_dataloader(self):
        data, size = self.train, self.batch_size
        if self.kind == "stream":
            return DataLoader(Stream(data.items, self.world_size), size, collate_fn=collate)
        if self.kind == "batches":
            batches = Reversed(SequentialSampler(data), size, drop_last=True)
            return DataLoader(data, batch_sampler=batches, collate_fn=collate)
        if self.kind == "subset of batches":
            batches = BatchSampler(SubsetRandomSampler(range(10)), size, drop_last=False)
            return DataLoader(data, batch_sampler=batches, collate_fn=collate)
        if self.kind == "split":
            own = Subset(data, range(rank_of_this_process(), 22, self.world_size))
            return DataLoader(own, size, shuffle=True, collate_fn=collate)
        options = {
            "subset": {"sampler": SubsetRandomSampler([0, 2, 3, 5, 8, 9, 13, 20, 21])},
            "distributed over a range": {
                "sampler": DistributedSampler(
                    range(8), self.world_size, rank_of_this_process(), shuffle=True
                )
            },
            "sequential": {"drop_last": True},
            "random": {"shuffle": True},
            "distributed": {
                "sampler": DistributedSampler(
                    data, self.world_size, rank_of_this_process(), shuffle=True, seed=3
                )
            },
            "weighted": {
                "sampler": WeightedRandomSampler(
                    [1.0 + i % 3 for i in range(22)],
                    30,
                    generator=torch.Generator().manual_seed(size),
                )
            },
        }
        return DataLoader(data, size, collate_fn=collate, **options[self.kind])


KINDS = (
    "sequential",
    "random",
    "distributed",
    "distributed over a range",
    "subset",
    "weighted",
    "batches",
    "split",
    "stream",
)


def fitted(folder, world_size, data, trainer_options=None, **options):
    """A network after the data pass, without training."""
    net = SmallNet()
    fit_without_training(folder, world_size, net, data, trainer_options, **options)
    return net


def fit_without_training(folder, world_size, net, data, trainer_options=None, **options):
    trainer = trainer_of(
        folder,
        world_size,
        callbacks=[scaler_callback(**options)],
        max_epochs=0,
        limit_val_batches=0,
        **(trainer_options or {}),
    )
    trainer.fit(net, data)


def scales_of_loaders(folder, world_size):
    answers = {}
    for kind in KINDS:
        for batch_size in BATCH_SIZES:
            data = Sampled(kind, batch_size, world_size)
            # Each process has a dataset of its own.
            options = {"use_distributed_sampler": kind != "split"}
            net = fitted(folder, world_size, data, options)
            answers[kind, batch_size] = (net.scaler.state(), data.train.reads)
    for size in (1, 2):  # fewer samples than processes
        data = SmallData(size, 1)
        net = fitted(folder, world_size, data, unseen_types="pooled")
        answers["few", size] = (net.scaler.state(), data.train.reads)
    return answers


def lost_subset(folder, world_size):
    """What the data pass and the training read where a batch sampler has a subset inside."""
    data, reads = Sampled("subset of batches", 4, world_size), ReadsOfThePass()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callbacks = [scaler_callback(unseen_types="pooled"), reads]
        trainer_of(folder, world_size, callbacks=callbacks, limit_val_batches=0).fit(
            SmallNet(), data
        )
    found = [str(w.message) for w in caught if "replaces the sampler inside" in str(w.message)]
    return (reads.of_pass, list(data.train.reads), found)


# Batches on each process, or a fraction of all twelve.
OVERFITTED = (1, 0.5)


class ReadsOfThePass(Callback):
    def on_train_start(self, trainer, pl_module):
        reads = trainer.datamodule.train.reads
        self.of_pass = list(reads)
        reads.clear()


def reads_of_overfitting(folder, world_size):
    """The structures that the data pass and the training read, with ``overfit_batches``."""
    answers = {}
    for batches in OVERFITTED:
        data, reads = SmallData(48), ReadsOfThePass()
        trainer = trainer_of(
            folder,
            world_size,
            callbacks=[scaler_callback(unseen_types="pooled"), reads],
            overfit_batches=batches,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=2,
        )
        trainer.fit(SmallNet(), data)
        answers[batches] = (reads.of_pass, list(data.train.reads))
    return answers


# Collectives, counted by the profiler in the backend.


def collectives(folder, world_size):
    answers = {}
    counted = {
        "random": {},
        "weighted": {},
        "all numbers fixed": {
            "targets": ["dipole", "charges"],
            "intensive_targets": ["dipole"],
            "fixed_scales": {"dipole": 2.0, "charges": 3.0},
            "baseline": "none",
        },
    }
    for name, options in counted.items():
        kind = name if name in KINDS else "random"
        data, net = Sampled(kind, 4, world_size), SmallNet()
        callback = scaler_callback(**options)
        answers[name] = counts_of_fit_start(folder, world_size, callback, net, data)
        if name == "random":
            # The network already has scales.
            again = Sampled(kind, 4, world_size)
            answers["second fit"] = counts_of_fit_start(
                folder, world_size, scaler_callback(), net, again
            )
    return answers


def counts_of_fit_start(folder, world_size, callback, net, data):
    counts = {}
    start = callback.on_fit_start

    def profiled(trainer, module):
        with torch.profiler.profile() as profile:
            start(trainer, module)
        for event in profile.key_averages():
            if event.key.startswith("gloo:"):
                counts[event.key] = event.count

    callback.on_fit_start = profiled
    options = {"max_epochs": 0, "limit_val_batches": 0}
    trainer_of(folder, world_size, callbacks=[callback], **options).fit(net, data)
    return {"collectives": counts, "reads": len(data.train.reads)}


# Faults.


class FaultyDataset(SmallDataset):
    """Calls ``fault`` with the number of earlier reads before it reads a structure."""

    fault = staticmethod(lambda n_reads: None)

    def __getitem__(self, index):
        self.fault(len(self.reads))
        return super().__getitem__(index)


class Raised(list):
    """Times at which a fault was raised in this process."""

    def __call__(self, error):
        self.append(time.time())
        raise error


class FaultySampler(WeightedRandomSampler):
    """Fails on the rank that draws the indices."""

    raised = None

    def __iter__(self):
        self.raised(ValueError("weights file not found"))


def collate_with_another_property(items):
    """Charges whose property has another label."""
    batch = collate(items)
    charges = batch["charges"].block()
    other = TensorBlock(
        charges.values, charges.samples, charges.components, labels("property", [7])
    )
    return {**batch, "charges": TensorMap(batch["charges"].keys, [other])}


class FaultyData(SmallData):
    def __init__(self, fault, world_size, raised):
        super().__init__(size=1 if fault == "empty shard" else 22, batch_size=1)
        self.train.__class__ = FaultyDataset
        self.fault, self.raised, self.rank = fault, raised, rank_of_this_process()
        self.last = self.rank == world_size - 1
        if fault == "infinite target":
            self.train.items[7][1]["dipole"][0, 1] = torch.inf
        if fault == "other layout" and self.last:
            self.collate_fn = collate_with_another_property
        faults_of_reads = {
            "corrupt file": (self.rank == 1, 3, "structure 7 is truncated"),
            "empty shard": (self.rank == 0, 0, "structure 0 is truncated"),
            "at the very end": (self.last, 6, "structure 20 is truncated"),
            "at once, the others busy": (self.rank == 0, 0, "structure 0 is truncated"),
        }

        def read(n_reads):
            here, when, message = faults_of_reads[fault]
            if here and n_reads == when:
                if fault == "at the very end":
                    time.sleep(2.5)
                raised(OSError(message))
            if fault == "at once, the others busy":
                time.sleep(0.5)

        if fault in faults_of_reads:
            self.train.fault = read

    def train_dataloader(self):
        if self.fault == "before the sampler":
            if self.rank == 1:
                self.raised(FileNotFoundError("train.db"))
            sampler = WeightedRandomSampler([1.0] * 22, 22)
            return DataLoader(self.train, 1, sampler=sampler, collate_fn=collate)
        if self.fault == "custom sampler":
            sampler = FaultySampler([1.0] * 22, 22)
            sampler.raised = self.raised
            return DataLoader(self.train, 1, sampler=sampler, collate_fn=collate)
        return DataLoader(self.train, 1, collate_fn=self.collate_fn)


# The message of every rank, as a regular expression.
FAULTS = {
    "corrupt file": "failed on rank 1: OSError: structure 7 is truncated",
    "infinite target": r"failed on rank 1: ValueError: target 'dipole', block \(_=0\).*1 infinite",
    "other layout": r"rank {last} differ in layout .*: target 'charges', block \(_=0\).*expected",
    "custom sampler": "failed on rank 0: ValueError: weights file not found",
    "before the sampler": "failed on rank 1: FileNotFoundError: train.db",
    "at the very end": "failed on rank {last}: OSError: structure 20 is truncated",
    "at once, the others busy": "failed on rank 0: OSError: structure 0 is truncated",
    "empty shard": "failed on rank 0: OSError: structure 0 is truncated",
    "other settings": (
        r"fixed_scales: \{{\}} on rank 0, \{{'charges': 2.0\}} on rank {last}; "
        "limit_batches: None on rank 0, 4 on rank {last}; give all processes"
    ),
    "scales on one rank": "targets to fit: 'nothing' on rank 0, 'all targets' on rank 1",
    "another last bit": r"hash of the scales: '\w+' on rank 0, '\w+' on rank {last}; give",
}


def faults(folder, world_size):
    answers = {}
    fitted_before = fitted(folder, world_size, SmallData())
    for fault in FAULTS:
        raised = Raised()
        data, net = FaultyData(fault, world_size, raised), SmallNet()
        rank, options = rank_of_this_process(), {}
        if fault == "other settings" and data.last:
            options = {"limit_batches": 4, "fixed_scales": {"charges": 2.0}}
        if fault == "another last bit" or (fault == "scales on one rank" and rank == 0):
            state = copy.deepcopy(fitted_before.scaler.state())
            if data.last:
                state["targets"]["dipole"]["per_target"] *= 1 + 2.0**-52
            net.scaler.set_extra_state(state)
        torch.distributed.barrier()
        start = time.time()
        try:
            trainer = trainer_of(folder, world_size, callbacks=[scaler_callback(**options)])
            trainer.fit(net, data)
            message = "none"
        except RuntimeError as error:
            message = str(error)
        answers[fault] = {
            "message": message,
            "start": start,
            "raised": list(raised),
            "stopped": time.time(),
            "reads": len(data.train.reads),
        }
    # Failures leave no trace in the process group.
    answers["afterwards"] = fitted(folder, world_size, SmallData()).scaler.state()
    return answers


# The cache.


def cached(folder, world_size):
    """Fits that write the file, that use it, and that find it damaged; only rank 0 has it."""
    answers, data_of_file = [], None
    path = Path(folder) / ("cache.st" if rank_of_this_process() == 0 else "of another machine")
    for run in ("writes", "uses", "damaged"):
        if run == "damaged" and path.exists():
            data_of_file = ScaleAccumulator.load(path).parts[0].data
            path.write_bytes(path.read_bytes()[:-9])
        torch.distributed.barrier()
        data = Sampled("random", 4, world_size, size=50)
        try:
            net = fitted(folder, world_size, data, cache=path)
            answers.append({"state": net.scaler.state(), "reads": len(data.train.reads)})
        except RuntimeError as error:
            answers.append({"message": str(error)})
    return {"fits": answers, "exists": path.exists(), "data": data_of_file}


# A sample of the data.


class LargeData(SmallData):
    """More than 100 batches; the last process may fail, or all have a part of their own."""

    def __init__(self, kind, world_size):
        super().__init__(SAMPLED_SIZE)
        self.kind, self.world_size = kind, world_size
        if kind == "fails" and rank_of_this_process() == world_size - 1:
            self.train.__class__ = FaultyDataset
            self.train.fault = self.fail

    def fail(self, n_reads):
        if n_reads == 30:
            raise OSError("structure 30 is truncated")

    def train_dataloader(self):
        if self.kind != "split":
            return super().train_dataloader()
        # Unequal parts: with two processes of 200 and 800 structures.
        edges = [0, *(SAMPLED_SIZE * (i + 1) ** 2 // (self.world_size + 3) for i in range(9))]
        edges = [*edges[: self.world_size], SAMPLED_SIZE]
        rank = rank_of_this_process()
        return DataLoader(
            Subset(self.train, range(edges[rank], edges[rank + 1])), 4, collate_fn=collate
        )


SAMPLED_SIZE = 1000


def sampled(folder, world_size):
    """The scales of samples, and what was read for them."""
    answers = {}
    for kind in ("shared", "split", "all", "fails"):
        data = LargeData(kind, world_size)
        settings = {
            "targets": ["charges", "dipole"],
            "intensive_targets": ["dipole"],
            "relative_error": 1e-4 if kind == "all" else 0.015,
        }
        options = {"use_distributed_sampler": kind != "split"}
        try:
            net = fitted(folder, world_size, data, options, **settings)
            answers[kind] = (net.scaler.state(), list(data.train.reads))
        except (OSError, RuntimeError) as error:
            answers[kind] = str(error)
    return answers


# Evaluation.


class HeldOut(SmallData):
    def __init__(self, length, batch_size):
        super().__init__(size=8, batch_size=batch_size)
        self.held_out = SmallDataset(length, 1)


def without_charges_in_large_systems(items):
    """Collate one system; large ones have no charges, small ones another order of targets."""
    batch = collate(items)
    charges = batch.pop("charges")
    return batch if len(items[0][0]) > 2 else {"charges": charges, **batch}


class MultiTask(SmallData):
    """Processes find targets in different orders, and some do not find all of them."""

    def __init__(self):
        super().__init__(batch_size=1, collate_fn=without_charges_in_large_systems)
        # With two ranks, rank 0 has all systems with one or two atoms.
        sizes = sorted(self.held_out.items, key=lambda item: len(item[0]) > 2)
        half = sum(len(item[0]) <= 2 for item in sizes)
        small, large = sizes[:half], sizes[half : 2 * half]
        self.held_out.items = [item for pair in zip(small, large, strict=True) for item in pair]


LENGTHS = (1, 7, 10)


class WithDictMetrics(SmallNet):
    """Metrics that see the baseline, and metrics that return a dict, besides the default ones."""

    def configure_metrics(self):
        metrics = super().configure_metrics()
        metrics.add_metrics({"mape": MeanAbsolutePercentageError()})
        metrics.add_metrics({"so_far": MinMaxMetric(MeanAbsoluteError())})
        return metrics


class WithOwnLoss(WithDictMetrics):
    def compute_loss(self, predictions, targets):
        return 2.0 * super().compute_loss(predictions, targets)


def evaluation(folder, world_size):
    net = WithDictMetrics.load_from_checkpoint(f"{folder}/net.ckpt", weights_only=True).double()
    trainer = trainer_of(folder, world_size, precision="64-true")
    answers = {}
    for length in LENGTHS:
        for batch_size in (1, 4):
            data = HeldOut(length, batch_size)
            answers["val", length, batch_size] = trainer.validate(net, data, verbose=False)[0]
    answers["multi-task", 0, 1] = trainer.validate(net, MultiTask(), verbose=False)[0]
    # A loss of the user's own that begins with the default one.
    net.__class__ = WithOwnLoss
    answers["own loss", 1, 1] = trainer.validate(net, HeldOut(1, 1), verbose=False)[0]
    net.__class__ = WithDictMetrics
    answers["test", 7, 4] = trainer.test(net, HeldOut(7, 4), verbose=False)[0]
    still = SmallNet(lr=0.0)
    still.load_state_dict(net.state_dict())
    trainer = trainer_of(folder, world_size, precision="64-true")
    trainer.fit(still, HeldOut(7, 4))
    errors = trainer.callback_metrics.items()
    answers["fit", 7, 4] = {k: float(v) for k, v in errors if k.startswith("val")}
    # Samplers and loaders of the other distribution have classes of their own.
    other = OtherNet().double()
    other.load_state_dict(net.state_dict())
    options = {"devices": world_size, "strategy": "ddp"} if world_size > 1 else {}
    trainer = other_trainer(folder, precision="64-true", **options)
    answers["pytorch_lightning", 7, 2] = trainer.validate(
        other, HeldOut(7, 2).val_dataloader(), verbose=False
    )[0]
    return answers


# Starting.


class LateData(SmallData):
    """Data that every process creates, since systems cannot be sent to spawned processes.

    metatomic returns short-lived tensors, and torch would send the files behind them.
    """

    def __init__(self):
        super().__init__(size=0)
        self.held_out = SmallDataset(0)

    def setup(self, stage):
        self.train, self.held_out = SmallDataset(22), SmallDataset(9, 1)


# Resuming.


class Parallel(SmallNet):
    """A network with sharded weights."""

    def configure_model(self):
        fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        # Lightning cannot restore an optimizer without state here.
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)


def resumed(folder, world_size, kind="ddp"):
    """Losses of two epochs, of the first one alone, and of the second after a restart."""
    answers = {}
    runs = {"whole": (2, None), "first": (1, None), "second": (2, f"{folder}/{kind}.ckpt")}
    for name, (epochs, path) in runs.items():
        net = (SmallNet if kind == "ddp" else Parallel)()
        data = Sampled("sequential", 4, world_size)
        strategy = "ddp"
        if kind != "ddp":
            strategy = ModelParallelStrategy(
                data_parallel_size=world_size,
                tensor_parallel_size=1,
                save_distributed_checkpoint=kind == "distributed-checkpoint",
            )
        options = {"strategy": strategy, "max_epochs": epochs}
        trainer = trainer_of(folder, world_size, callbacks=[scaler_callback()], **options)
        trainer.fit(net, data, ckpt_path=path, weights_only=True)
        if name == "first":
            trainer.save_checkpoint(f"{folder}/{kind}.ckpt")
        answers[name] = {
            "losses": net.losses,
            "reads": len(data.train.reads),
            "state": net.scaler.state(),
        }
    return answers


# Fine-tuning.


def refits(folder, world_size):
    """Scales and weights of the baseline after each partial fit."""
    answers, settings = {}, {"types": {}, "baseline": {}, "predictions": {}}
    settings["predictions"]["against"] = "predictions"
    for name, options in settings.items():
        net = SmallNet.load_from_checkpoint(f"{folder}/net.ckpt", weights_only=True)
        data = with_nitrogen() if name == "types" else other_level()
        part = "types" if name == "types" else "baseline"
        fit_without_training(folder, world_size, net, data, refit=part, **options)
        answers[name] = net.scaler.state()
    net, options = LayeredNet().double(), {"targets": ["energy", "charges"]}
    options["intensive_targets"] = []
    fit_without_training(folder, world_size, net, SmallData(), **options)
    options |= {"refit": "scales", "output_layers": {"energy": "readouts.energy"}}
    data = SmallData(factors={"energy": 2.0})
    fit_without_training(folder, world_size, net, data, **options)
    answers["scales"] = net.scaler.state()
    answers["parameters"] = {n: p.detach().clone() for n, p in net.named_parameters()}
    return answers


def distributed_checkpoint(folder, world_size):
    """The states of a fitted network and of a fresh one that loaded it from shards."""
    net, fresh = fitted(folder, world_size, SmallData()), SmallNet()
    torch.distributed.checkpoint.save(net.state_dict(), checkpoint_id=f"{folder}/shards")
    loaded = fresh.state_dict()
    torch.distributed.checkpoint.load(loaded, checkpoint_id=f"{folder}/shards")
    fresh.load_state_dict(loaded)
    return [net.scaler.state(), fresh.scaler.state()]


# Plain tensors.


def other_module(folder, world_size):
    """A module that knows nothing of scaling: its scales and its weights after an epoch."""
    net = OtherModule().double()
    # In equal parts, so that the mean of their losses is the loss of all.
    data = DataLoader(structures(12), batch_size=12 // world_size, collate_fn=collate_structures)
    callback = TargetScaler(targets=DECLARED)
    options = {"callbacks": [callback], "max_epochs": 1, "num_sanity_val_steps": 0}
    trainer = trainer_of(folder, world_size, **options)
    trainer.fit(net, data, data)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        ScaleAccumulator({"mass": PerStructure()}).update(
            {
                "z": torch.tensor([0, 1]),
                "n_atoms": torch.tensor([1, 1]),
                "mass": torch.ones(2),
            }
        )
    return {
        "class": type(net).__name__,
        "state": net.target_scaler.state(),
        "weights": net.weights.weight.detach(),
        "warnings": [str(one.message) for one in given],
    }


def pictures(folder, world_size):
    """The pictures and missing values that a process reports, and the RMS of validation targets."""
    reported, write = {}, target_scaler.write_report

    def record(trainer, scaler, sample):
        missing = sample.missing_values(scaler)
        reported.update({name: found.share for name, found in missing.items()})
        write(trainer, scaler, sample)

    data = SmallData(22, 4)
    for _, numbers in data.train.items[::3]:
        numbers["charges"][0] = torch.nan
    target_scaler.write_report = record
    try:
        callback = scaler_callback(report=True)
        trainer = trainer_of(folder / "report", world_size, callbacks=[callback])
        trainer.fit(SmallNet(), data)
    finally:
        target_scaler.write_report = write
    logged = {k: float(v) for k, v in trainer.callback_metrics.items() if "/rms/" in k}
    files = sorted(path.name for path in (folder / "report").glob("*.png"))
    return {"missing": reported, "rms": logged, "files": files}


def run(folder, world_size):
    """All cases."""
    answers = {
        "scales": scales_of_loaders(folder, world_size),
        "evaluation": evaluation(folder, world_size),
        "refits": refits(folder, world_size),
        "other module": other_module(folder, world_size),
        "pictures": pictures(folder, world_size),
        "sampled": sampled(folder, world_size),
    }
    if world_size > 1:
        answers["lost subset"] = lost_subset(folder, world_size)
        answers["overfit"] = reads_of_overfitting(folder, world_size)
        answers["cache"] = cached(folder, world_size)
        answers["collectives"] = collectives(folder, world_size)
        answers["faults"] = faults(folder, world_size)
        answers["ddp"] = resumed(folder, world_size)
        for kind in ("model-parallel", "distributed-checkpoint"):
            answers[kind] = resumed(folder, world_size, kind)
        answers["shards"] = distributed_checkpoint(folder, world_size)
    return answers


def run_on_rank(rank, world_size, port, folder):
    """All cases on one rank; answers are written to a file."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
    )
    torch.save(run(folder, world_size), f"{folder}/{rank}.pt")
    # The store ends with rank 0.
    torch.distributed.barrier()


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def main(folder):
    """Run groups of all sizes at the same time."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    children = []
    for world_size, port in zip(WORLD_SIZES, free_ports(len(WORLD_SIZES)), strict=True):
        own = Path(folder) / str(world_size)
        own.mkdir()
        shutil.copy(Path(folder) / "net.ckpt", own)
        for rank in range(world_size):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    run_on_rank(rank, world_size, port, own)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))


if __name__ == "__main__":
    main(sys.argv[1])
