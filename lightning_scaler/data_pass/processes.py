"""The processes of one fit: agreement, gathering, and failures that reach every process."""

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import nullcontext, suppress
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed

from .connections import Connections, ProcessEndedError

# How often a process that reads data asks whether another one has failed.
SECONDS_BETWEEN_CHECKS = 2.0
# How long a process that has failed waits for the others to read why.
SECONDS_TO_READ_A_FAILURE = 5.0
# How long a process that has lost the store waits for the reason.
SECONDS_TO_LEARN_WHY = 1.0
LONGEST_PAUSE = 0.25
# The store drops the connection at messages of 8 MiB.
LONGEST_MESSAGE = 100_000

FAILURE = "failure"

T = TypeVar("T")


class ProcessesDisagreeError(RuntimeError):
    """An error that every process finds and raises by itself, from what all of them reported."""


class OtherProcessFailedError(Exception):
    """Another process has failed; the message is its rank and its error."""


class FitProcesses:
    """The processes of one fit, which communicate through the store of the process group.

    A collective waits forever for a process that has failed; the store does not. The processes
    therefore meet at a barrier in the store before every collective.

    Args:
        rank: index of this process.
        world_size: number of processes.
        store: a ``torch.distributed.Store`` that only this fit uses; ``None`` for one process.
        device: where collectives expect their tensors; default: the CPU.
        broadcast: function that returns the object of rank 0 on every process.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        store: Any = None,
        device: torch.device | None = None,
        broadcast: Callable[[Any], Any] = lambda local: local,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._device = device or torch.device("cpu")
        self._broadcast = broadcast
        self._n_barriers = 0
        self._last_check = time.monotonic()
        self._store_lost = False
        self._connections = None if store is None else Connections(rank, world_size, store)

    def check_for_failure(self) -> None:
        """Raise if another process has failed; most calls return at once, without the store.

        Raises:
            RuntimeError: if another process has failed, with its message, or has ended.
        """
        now = time.monotonic()
        if self._store is not None and now - self._last_check >= SECONDS_BETWEEN_CHECKS:
            self._last_check = now
            failure = self._find_failure()
            if failure is not None:
                raise failure

    def barrier(self) -> None:
        """Wait until all processes have called this.

        Raises:
            RuntimeError: if a process failed before it got here, with its message.
        """
        if self._store is None:
            return
        failure = self._find_failure()
        if failure is not None:
            raise failure
        self._n_barriers += 1
        arrived = f"barrier {self._n_barriers}"
        self._ask(lambda: self._store.add(arrived, 1))
        pause = 0.001
        while True:
            failure = self._find_failure()
            # A process may pass this barrier and fail later, so count after looking for failures.
            count = 0 if self._store_lost else self._ask(lambda: self._store.add(arrived, 0))
            if count >= self.world_size:
                break
            if failure is not None:
                raise failure
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        # Rank 0 is here, so its address is known.
        assert self._connections is not None
        self._connections.connect()

    def check_equal(self, local: Mapping[str, Any], advice: str) -> None:
        """Check that values are the same on all processes, by their ``repr``.

        Args:
            local: values of this process by name, with the same names on every process.
            advice: what the user can do if they differ.

        Raises:
            RuntimeError: on every process, if values differ: each with both values and the rank.
        """
        if self._store is None:
            return
        key = f"compared {self._n_barriers}"
        texts = {name: repr(value) for name, value in local.items()}
        self._store.set(f"{key} {self.rank}", json.dumps(texts))
        self.barrier()
        by_rank = [json.loads(self._store.get(f"{key} {r}")) for r in range(self.world_size)]
        differences = [
            f"{name}: {by_rank[0][name]} on rank 0, {other[name]} on rank {rank}"
            for name in texts
            for rank, other in enumerate(by_rank)
            if other[name] != by_rank[0][name]
        ]
        if differences:
            raise ProcessesDisagreeError(
                "fitting the target scales: expected the same values on all processes, got "
                f"{'; '.join(differences)}; {advice}"
            )

    def broadcast_from_rank_zero(self, make: Callable[[], T]) -> T:
        """Call ``make`` on rank 0 only and return its result on every process."""
        local = make() if self.rank == 0 else None
        self.barrier()
        result: T = self._broadcast(local)
        return result

    def gather_objects(self, local: T) -> list[T]:
        """Return the objects of all processes, in rank order."""
        self.barrier()
        if self._store is None:
            return [local]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, local)
        return gathered

    def gather_values(self, local: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
        """Return the float64 values of all processes, in rank order, with one all-gather.

        Args:
            local: values of this process, ``(lengths[rank],)`` float64.
            lengths: number of values of each process.
        """
        if self._store is None:
            return [local]
        # NCCL refuses tensors without elements.
        padded = torch.zeros(max(1, *lengths), dtype=torch.float64, device=self._device)
        padded[: local.numel()] = local
        gathered = [torch.empty_like(padded) for _ in lengths]
        torch.distributed.all_gather(gathered, padded)
        return [values[:length].cpu() for values, length in zip(gathered, lengths, strict=True)]

    def report_failure(self, error: BaseException) -> str:
        """Publish an error, then wait a few seconds at most until all processes have stopped.

        Returns:
            The error that was reported first by any process, with its rank.
        """
        assert self._store is not None
        if isinstance(error, OtherProcessFailedError):
            own = str(error)
        elif isinstance(error, ProcessEndedError):
            own = f"on rank {error.rank}: {error}"
        else:
            own = f"on rank {self.rank}: {type(error).__name__}: {error}"[:LONGEST_MESSAGE]
        reason, n_stopped = own, 1 + isinstance(error, ProcessEndedError)
        self._find_ended_process()
        try:
            if not self._store_lost:
                reason = self._ask(lambda: self._share_reason(own, n_stopped))
        except OtherProcessFailedError as other:
            reason = str(other)
        except (torch.distributed.DistError, ProcessEndedError):
            pass  # Rank 0 has ended, and the store with it.
        self.close(reason)
        return reason

    def wait_for_reason(self) -> str | None:
        """Why the connection to the store was lost, if that is known within a second."""
        deadline = time.monotonic() + SECONDS_TO_LEARN_WHY
        while self._connections is not None and time.monotonic() < deadline:
            try:
                reason = self._connections.check()
            except ProcessEndedError as error:
                return f"on rank {error.rank}: {error}"
            if reason:
                return reason
            time.sleep(LONGEST_PAUSE / 5)
        return None

    def close(self, reason: str = "") -> None:
        """Tell the other processes that this one leaves the fit.

        Args:
            reason: why, if it does not leave because all is done.
        """
        if self._connections is not None:
            self._connections.close(reason)

    def _share_reason(self, reason: str, n_stopped: int) -> str:
        """Publish why some processes stop; return what was published first by any process."""
        if self._store.add("failures", 1) == 1:
            self._store.set(FAILURE, reason)
        # The store ends with rank 0, and launchers end all processes when one of them does.
        self._store.add("stopped", n_stopped)
        deadline = time.monotonic() + SECONDS_TO_READ_A_FAILURE
        while self._store.add("stopped", 0) < self.world_size and time.monotonic() < deadline:
            time.sleep(LONGEST_PAUSE / 5)
        return str(self._store.get(FAILURE), "utf-8")

    def _find_failure(self) -> Exception | None:
        """The failure of another process, if there is one."""
        reason, ended = self._find_ended_process()
        # A process that reports its failure may end at once.
        with suppress(torch.distributed.DistError) if ended else nullcontext():
            asked = reason is None and not self._store_lost
            if asked and self._ask(lambda: self._store.check([FAILURE])):
                reason = str(self._store.get(FAILURE), "utf-8")
        return ended if reason is None else OtherProcessFailedError(reason)

    def _ask(self, request: Callable[[], T]) -> T:
        """What a request to the store returns, unless rank 0 ends before the answer comes."""
        if self.rank == 0:
            return request()
        answer = _in_thread(request)
        while not wait([answer], LONGEST_PAUSE).done:
            reason, ended = self._find_ended_process()
            if ended is not None:
                raise ended
            if reason is not None:
                raise OtherProcessFailedError(reason)
        return answer.result()

    def _find_ended_process(self) -> tuple[str | None, ProcessEndedError | None]:
        """The reason that another process has given at its end, or that it has ended without."""
        assert self._connections is not None
        try:
            return self._connections.check(), None
        except ProcessEndedError as ended:
            # The store ends with rank 0. Loader workers that outlive it keep the connection open,
            # and a request would wait for an answer until they end.
            self._store_lost = self._store_lost or ended.rank == 0
            return None, ended


def _in_thread(request: Callable[[], T]) -> "Future[T]":
    """The result of a function in a thread that ends with the process, whatever it waits for."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(request())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
