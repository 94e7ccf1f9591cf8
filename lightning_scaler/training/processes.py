"""The processes that fit together: a failure of one stops all, and all agree before they reduce."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed
from lightning.pytorch import Trainer

# How often a process that reads data looks whether another one has failed.
SECONDS_BETWEEN_LOOKS = 2.0
# Processes wait at most so long for each other to have read a failure, before they stop.
SECONDS_TO_READ_A_FAILURE = 5.0
LONGEST_PAUSE = 0.25
# The store drops the connection at messages of 8 MiB.
LONGEST_MESSAGE = 100_000

FAILURE = "failure"

T = TypeVar("T")


class RanksDisagreeError(RuntimeError):
    """What processes found out about each other; each of them raises it by itself."""


class Ranks:
    """The processes of one fit, which talk through the store of the process group.

    A collective waits for ever for a process that has failed, the store does not. So the processes
    meet in the store before every collective.

    Args:
        rank: of this process.
        world_size: number of processes.
        store: a ``torch.distributed.Store`` for this fit only; ``None`` for a single process.
        device: where collectives take their tensors.
        broadcast: gives an object of rank 0 to all.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        store: Any = None,
        device: torch.device | None = None,
        broadcast: Callable[[Any], Any] = lambda mine: mine,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._device = device or torch.device("cpu")
        self._broadcast = broadcast
        self._meetings = 0
        self._looked = time.monotonic()

    def look(self) -> None:
        """Stop if another process has failed; asks the store every few seconds only.

        Raises:
            RuntimeError: with the message of the process that failed.
        """
        now = time.monotonic()
        if self._store is not None and now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            if self._store.check([FAILURE]):
                raise _OtherRankFailedError

    def meet(self) -> None:
        """Wait until all processes are here.

        Raises:
            RuntimeError: with the message of a process that failed before it came here.
        """
        if self._store is None:
            return
        self._meetings += 1
        here = f"meeting {self._meetings}"
        self._store.add(here, 1)
        pause = 0.001
        while self._store.add(here, 0) < self.world_size:
            # One that failed after this meeting was here, so count again.
            failed = self._store.check([FAILURE])
            if failed and self._store.add(here, 0) < self.world_size:
                raise _OtherRankFailedError
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def check_equal(self, mine: Mapping[str, Any], advice: str) -> None:
        """Compare what all processes have, by its ``repr``.

        Args:
            mine: by name, the same names on all processes.
            advice: what to do where they differ.

        Raises:
            RuntimeError: on every process, listing what differs, with the rank and both values.
        """
        if self._store is None:
            return
        name = f"compared {self._meetings}"
        texts = {key: repr(value) for key, value in mine.items()}
        self._store.set(f"{name} {self.rank}", json.dumps(texts))
        self.meet()
        of_ranks = [json.loads(self._store.get(f"{name} {r}")) for r in range(self.world_size)]
        differences = [
            f"{key} is {of_ranks[0][key]} on rank 0 and {theirs[key]} on rank {rank}"
            for key in texts
            for rank, theirs in enumerate(of_ranks)
            if theirs[key] != of_ranks[0][key]
        ]
        if differences:
            raise RanksDisagreeError(
                "fitting the target scales: expected the same on all processes, but "
                f"{'; '.join(differences)}; {advice}"
            )

    def from_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on all processes; the others do not make it."""
        mine = make() if self.rank == 0 else None
        self.meet()
        made: T = self._broadcast(mine)
        return made

    def gather_objects(self, mine: T) -> list[T]:
        """What every process has, in rank order."""
        self.meet()
        if self._store is None:
            return [mine]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def gather_numbers(self, mine: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
        """The float64 numbers of every process, in rank order, by one all-gather.

        Args:
            mine: ``(lengths[rank],)``.
            lengths: of all processes; shorter ones are padded.
        """
        if self._store is None:
            return [mine]
        # NCCL refuses tensors without elements.
        padded = torch.zeros(max(1, *lengths), dtype=torch.float64, device=self._device)
        padded[: mine.numel()] = mine
        gathered = [torch.empty_like(padded) for _ in lengths]
        torch.distributed.all_gather(gathered, padded)
        return [numbers[:length].cpu() for numbers, length in zip(gathered, lengths, strict=True)]

    def stop_all(self, error: BaseException) -> str:
        """Tell the other processes of an error, and wait a little until they know.

        Returns:
            The first error of all, in words.
        """
        assert self._store is not None
        if not isinstance(error, _OtherRankFailedError) and self._store.add("failures", 1) == 1:
            words = f"on rank {self.rank}: {type(error).__name__}: {error}"
            self._store.set(FAILURE, words[:LONGEST_MESSAGE])
        # The store goes with rank 0, and launchers end all processes when one does.
        self._store.add("stopped", 1)
        deadline = time.monotonic() + SECONDS_TO_READ_A_FAILURE
        while self._store.add("stopped", 0) < self.world_size and time.monotonic() < deadline:
            time.sleep(LONGEST_PAUSE / 5)
        return str(self._store.get(FAILURE), "utf-8")


@contextmanager
def ranks_of(trainer: Trainer) -> Iterator[Ranks]:
    """The processes of a fit; an error of one of them, while they are used, stops all.

    Args:
        trainer: in a fit, its process group being there.

    Raises:
        RuntimeError: on every process, with the message and the rank of the one that failed
            first; and for several processes without a process group of torch.
    """
    if trainer.world_size == 1:
        yield Ranks()
        return
    ranks = _joined(trainer)
    try:
        yield ranks
    except RanksDisagreeError:
        raise
    except torch.distributed.DistError as error:
        raise RuntimeError(
            "fitting the target scales: the other processes cannot be reached any more; one of "
            "them has ended, see what it printed"
        ) from error
    except Exception as error:
        message = f"fitting the target scales failed {ranks.stop_all(error)}"
        cause = None if isinstance(error, _OtherRankFailedError) else error
        raise RuntimeError(message) from cause
    except BaseException as error:
        ranks.stop_all(error)
        raise


class _OtherRankFailedError(Exception):
    pass


def _joined(trainer: Trainer) -> Ranks:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise RuntimeError(
            "TargetScaler: expected a process group of torch.distributed for "
            f"{trainer.world_size} processes, and {type(trainer.strategy).__name__} has none; fit "
            "in one process, and train from its checkpoint"
        )
    # There is no public way to the store that every process group has.
    store = torch.distributed.distributed_c10d._get_default_store()
    rank = trainer.global_rank
    number = store.add(f"lightning_scaler/fits of rank {rank}", 1)
    on_cpu = "gloo" in torch.distributed.get_backend() or trainer.strategy.root_device is None
    return Ranks(
        rank,
        trainer.world_size,
        torch.distributed.distributed_c10d.PrefixStore(f"lightning_scaler/fit {number}", store),
        torch.device("cpu") if on_cpu else trainer.strategy.root_device,
        trainer.strategy.broadcast,
    )
