"""Faults at drawn moments of a training on two or three real processes, started by hand.

Each draw trains with one fault. All processes must then have ended, with the reason or with the
correct scales, and the checkpoint left behind must load and continue to the same last bit. The long
form, which takes about ten minutes::

    python tests/chaos/chaos.py --draws 60 --seed 0
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
import torch.distributed
from builders import labels
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from metatensor.torch import TensorBlock, TensorMap
from processes import free_ports
from small_training import (
    SmallData,
    SmallDataset,
    SmallNet,
    assert_same_scales,
    collate,
    quiet_trainer,
    scaler_callback,
)
from torch.utils.data import DataLoader, WeightedRandomSampler

from lightning_scaler.data_pass.processes import FitProcesses

WORLD_SIZES = (2, 3)
EPOCHS = 2
SIZE = 24
BATCH_SIZE = 2
SECONDS_UNTIL_ALL_HAVE_ENDED = 40.0
SECONDS_OF_A_LONG_READ = 60.0

MOMENTS = {
    "killed": ("pass", "gather", "first step", "checkpoint"),
    "killed beside its workers": ("pass",),
    "data set fails": ("pass", "first step"),
    "fails after rank 0 has exited": ("pass",),
    "sampler fails": ("pass",),
    "hook fails": ("first step", "checkpoint"),
    "collate function fails": ("pass", "first step"),
    "transfer hook fails": ("pass", "first step"),
    "rank without data": ("pass",),
    "other layout on one rank": ("pass",),
    "disk full": ("checkpoint",),
    "slow rank": ("pass", "gather", "first step", "checkpoint"),
}
FINISHES = {"rank without data", "slow rank"}
KILLED = {"killed", "killed beside its workers"}
IN_HOOKS = {"killed beside its workers", "transfer hook fails"}
WHILE_READING = {*IN_HOOKS, "data set fails", "collate function fails"}


@dataclass(frozen=True)
class Draw:
    """A fault on one of several processes.

    Attributes:
        fault: kind of fault.
        moment: part of the run in which it happens.
        world_size: number of processes.
        rank: index of the process.
        count: how many reads, or epochs, come before it.
    """

    fault: str
    moment: str
    world_size: int
    rank: int
    count: int

    @property
    def reason(self) -> str | None:
        """What every process must say, as a regular expression; ``None`` if it finishes."""
        if self.fault in FINISHES:
            return None
        if self.moment not in ("pass", "gather"):
            return ""  # The data pass is over, and Lightning reports the failure.
        if self.fault in KILLED:
            return rf"on rank {self.rank}: the process has ended without an error message"
        if self.fault == "fails after rank 0 has exited":
            return rf"on rank {self.rank}: OSError: {self.fault}|on rank 0: the process has ended"
        if self.fault == "other layout on one rank":
            return "differ in layout .*target 'charges'"
        rank = 0 if self.fault == "sampler fails" else self.rank
        return f"on rank {rank}: OSError: {self.fault}"


def draws(number: int, seed: int) -> list[Draw]:
    """The first draws contain every fault at every moment; the others are random."""
    chosen = random.Random(seed)
    cases = [(fault, moment) for fault, moments in MOMENTS.items() for moment in moments]
    chosen.shuffle(cases)
    cases += chosen.choices(cases, k=number)
    found = []
    for fault, moment in cases[:number]:
        world_size = chosen.choice(WORLD_SIZES)
        rank = 0 if fault == "disk full" else chosen.randrange("rank 0" in fault, world_size)
        count = chosen.randrange(EPOCHS if moment == "checkpoint" else SIZE // world_size)
        found.append(Draw(fault, moment, world_size, rank, count))
    return found


# The training, with the fault of one draw on one of its ranks.


class Fault(Callback):
    """Commits the fault of a draw when its moment has come."""

    def __init__(self, draw: Draw | None, rank: int) -> None:
        self.rank, self.draw = rank, None
        if draw is not None and (draw.rank == rank or (rank == 0 and "rank 0" in draw.fault)):
            self.draw = draw
        self.moment = "pass"
        self.training = False

    def reached(self, moment: str, count: int | None = None) -> None:
        """The training is at this moment, after that many reads or epochs."""
        if self.draw is None or self.draw.moment != moment or self.moment == "over":
            return
        if self.draw.fault in WHILE_READING:
            return
        if count is not None and count != self.draw.count:
            return
        if self.draw.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.draw.fault == "slow rank":
            time.sleep(3.0)
        elif self.draw.fault == "disk full":
            # Writing more than this number of bytes to a file is an OSError from now on.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
        elif self.draw.fault == "fails after rank 0 has exited":
            if self.rank == 0:
                os._exit(3)
            time.sleep(1.0)
            raise OSError(self.draw.fault)
        elif self.draw.fault == "hook fails":
            self.moment = "over"
            raise OSError(self.draw.fault)
        self.moment = "over"

    def reading(self, fault: str, n_read: int) -> None:
        """The part of the reading that may have this fault has come to that many structures."""
        if self.draw is None or self.draw.fault != fault or self.moment == "over":
            return
        at_first_step = self.draw.moment == "first step"
        if self.training if at_first_step else n_read >= self.draw.count:
            self.moment = "over"
            if self.draw.fault in KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(fault)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.training = True

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0 and trainer.current_epoch == 0:
            self.reached("first step")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.reached("checkpoint", trainer.current_epoch)


class Data(SmallData):
    """The small data, with the faults that come from data."""

    def __init__(self, draw: Draw | None, fault: Fault) -> None:
        few = draw is not None and draw.fault == "rank without data"
        super().__init__(size=1 if few else SIZE, batch_size=BATCH_SIZE, shuffle=False)
        self.fault = fault
        self.kind = "" if fault.draw is None else fault.draw.fault
        self.workers = 2 if draw is not None and "workers" in draw.fault else 0
        # The sampler is drawn on rank 0.
        self.draws_fail = draw is not None and draw.fault == "sampler fails"
        self.train.__class__ = ReadDataset
        self.train.fault = fault  # type: ignore[attr-defined]

    def collate(self, items: Any) -> Any:
        self.fault.reading("collate function fails", len(self.train.reads))
        batch = collate(items)
        if self.kind == "other layout on one rank":
            charges = batch["charges"].block()
            other = TensorBlock(charges.values, charges.samples, [], labels("property", [7]))
            batch["charges"] = TensorMap(batch["charges"].keys, [other])
        return batch

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = FailingSampler([1.0] * SIZE, SIZE) if self.draws_fail else None
        return DataLoader(
            self.train,
            batch_size=BATCH_SIZE,
            shuffle=False,
            sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.workers,
            multiprocessing_context="fork" if self.workers else None,
        )


class ReadDataset(SmallDataset):
    """Tells the fault how many structures have been read in the pass."""

    fault: Fault

    def __getitem__(self, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            # The workers of a killed process, two of them, end long after it.
            draw = self.fault.draw
            if draw is not None and len(self.reads) >= BATCH_SIZE + draw.count // 2:
                time.sleep(SECONDS_OF_A_LONG_READ)
        self.fault.reached("pass", len(self.reads))
        self.fault.reading("data set fails", len(self.reads))
        return super().__getitem__(index)


class NetWithHook(SmallNet):
    """A network with a transfer hook, which runs in the pass as in training."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault, self.n_batches = fault, 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.n_batches += 1
        for fault in IN_HOOKS:
            self.fault.reading(fault, BATCH_SIZE * self.n_batches)
        return batch


class FailingSampler(WeightedRandomSampler):
    def __iter__(self) -> Any:
        raise OSError("sampler fails")


def train(folder: Path, world_size: int, rank: int, draw: Draw | None) -> SmallNet:
    """Train, or continue from the last checkpoint in the folder."""
    fault = Fault(draw, rank)
    gather = FitProcesses.gather_objects

    def gather_at_its_moment(processes: FitProcesses, local: Any) -> Any:
        fault.reached("gather")
        return gather(processes, local)

    FitProcesses.gather_objects = gather_at_its_moment  # type: ignore[method-assign]
    with_hook = draw is not None and draw.fault in IN_HOOKS
    net, data = NetWithHook(fault) if with_hook else SmallNet(), Data(draw, fault)
    trainer = quiet_trainer(
        folder,
        devices=world_size,
        strategy="ddp",
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        callbacks=[fault, scaler_callback(unseen_types="pooled"), checkpoint(folder)],
        limit_val_batches=0,
    )
    trainer.fit(net, data, ckpt_path="last", weights_only=True)
    return net


def checkpoint(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, save_last=True, save_top_k=-1)


# The processes of one training, without anything that looks after them.


def run_on_rank(folder: Path, world_size: int, rank: int, port: int, draw: Draw | None) -> int:
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
    )
    warnings.simplefilter("ignore")
    errors = os.open(folder / f"errors-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    try:
        net = train(folder, world_size, rank, draw)
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        traceback.print_exc()
        (folder / f"message-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        return 1
    torch.save(net.state_dict(), folder / f"state-{rank}.pt")
    return 0


def run_processes(
    folder: Path, world_size: int, draw: Draw | None = None
) -> tuple[list[int], float]:
    """The exit status of every rank, and the seconds between the first end and the last one."""
    children, port = {}, free_ports(1)[0]
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = run_on_rank(folder, world_size, rank, port, draw)
            finally:
                os._exit(status)
        children[child] = rank
    statuses, first_end = [-1] * world_size, None
    started = time.monotonic()
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic()
        if child:
            first_end = first_end or now
            statuses[children.pop(child)] = os.waitstatus_to_exitcode(status)
        elif now - (first_end or started) > SECONDS_UNTIL_ALL_HAVE_ENDED:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise AssertionError(f"ranks {sorted(children.values())} hang")
        else:
            time.sleep(0.02)
    return statuses, time.monotonic() - (first_end or started)


def final_state(folder: Path, rank: int) -> SmallNet:
    net = SmallNet()
    net.load_state_dict(torch.load(folder / f"state-{rank}.pt", weights_only=True))
    return net


def check_equal(net: SmallNet, expected: SmallNet) -> None:
    """The same scales and weights, to the last bit."""
    assert_same_scales(net.scaler, expected.scaler)
    weights = dict(expected.named_parameters())
    for name, values in net.named_parameters():
        assert torch.equal(values, weights[name]), f"{name} differ"


def references(folder: Path, world_sizes: set[int]) -> dict[int, SmallNet]:
    """What trainings without a fault end with, by number of processes."""
    found = {}
    for world_size in world_sizes:
        own = folder / f"reference-{world_size}"
        own.mkdir(parents=True)
        statuses, _ = run_processes(own, world_size)
        assert statuses == [0] * world_size, read_all(own)
        found[world_size] = final_state(own, 0)
    return found


def read_all(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("errors-*.txt")))


def check(draw: Draw, folder: Path, expected: SmallNet) -> float:
    """Run one draw and check all that must hold; return the seconds until all have ended."""
    folder.mkdir()
    statuses, seconds = run_processes(folder, draw.world_size, draw)
    ranks = range(draw.world_size)
    if draw.reason is None:
        assert statuses == [0] * draw.world_size, f"{statuses}\n{read_all(folder)}"
        for rank in ranks:
            net = final_state(folder, rank)
            if draw.fault == "rank without data":
                assert_same_scales(net.scaler, final_state(folder, 0).scaler)
            else:
                check_equal(net, expected)
        if draw.fault == "rank without data":
            return seconds
    else:
        killed = draw.rank if draw.fault in KILLED else None
        for rank in ranks:
            if rank == killed:
                assert statuses[rank] == -signal.SIGKILL
                continue
            if rank == 0 and "rank 0" in draw.fault:
                assert statuses[rank] == 3
                continue
            assert statuses[rank] != 0, f"rank {rank} finished"
            message = (folder / f"message-{rank}.txt").read_text()
            assert re.search(draw.reason, message), f"rank {rank}: {message}"
    for file in folder.glob("*.ckpt"):
        SmallNet.load_from_checkpoint(file, weights_only=True)
    statuses, _ = run_processes(folder, draw.world_size)
    assert statuses == [0] * draw.world_size, f"continued: {statuses}\n{read_all(folder)}"
    check_equal(final_state(folder, draw.world_size - 1), expected)
    return seconds


def run(cases: list[Draw], report: Callable[[str], None] = print) -> list[str]:
    """Run some draws; return a line for each one that failed."""
    torch.set_num_threads(1)
    failures, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as temporary:
        expected = references(Path(temporary), {draw.world_size for draw in cases})
        for index, draw in enumerate(cases):
            folder = Path(temporary) / str(index)
            try:
                seconds = check(draw, folder, expected[draw.world_size])
                slowest = max(slowest, seconds)
                report(f"{index}: {draw}: passed, all ended within {seconds:.1f} s")
            except Exception as error:
                failures.append(f"{index}: {draw}: {type(error).__name__}: {error}")
                report(failures[-1][:3000])
    report(json.dumps(Counter(draw.fault for draw in cases)))
    report(
        f"{len(cases)} draws: {len(failures)} failed; after the first process had ended, the "
        f"others ended within {slowest:.1f} s"
    )
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cases = draws(options.draws, options.seed)
    sys.exit(bool(run(cases, lambda line: print(line, flush=True))))


if __name__ == "__main__":
    main()
