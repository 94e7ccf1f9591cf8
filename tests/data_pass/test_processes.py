"""Agreement and failures of processes, which are threads with a common store here."""

import contextlib
import threading
import time

import pytest
import torch
from torch.distributed import HashStore

# The module itself, to shorten its waiting times.
from lightning_scaler.data_pass import processes
from lightning_scaler.data_pass.connections import ProcessEndedError
from lightning_scaler.data_pass.processes import FitProcesses, ProcessesDisagreeError


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(processes, "SECONDS_BETWEEN_CHECKS", 0.0)
    monkeypatch.setattr(processes, "SECONDS_TO_READ_A_FAILURE", 0.5)


def on_all_ranks(work, world_size=3):
    """What work(process) returns or raises on every rank."""
    store, answers = HashStore(), [None] * world_size

    def on_rank(rank):
        try:
            with contextlib.closing(FitProcesses(rank, world_size, store)) as process:
                answers[rank] = work(process)
        except Exception as error:
            answers[rank] = error

    threads = [
        threading.Thread(target=on_rank, args=(rank,), daemon=True) for rank in range(world_size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    return answers


def test_a_barrier_holds_until_all_processes_have_arrived():
    arrived = []

    def work(process):
        for _ in range(3):
            time.sleep(0.02 * process.rank)
            arrived.append(process.rank)
            process.barrier()
            seen = len(arrived)
            process.barrier()
        return seen

    assert on_all_ranks(work) == [9, 9, 9]


def test_a_failure_reaches_processes_at_a_barrier(short_waits):
    def work(process):
        try:
            if process.rank == 1:
                raise OSError("no such file")
            process.barrier()
        except Exception as error:
            return process.report_failure(error)

    assert on_all_ranks(work) == 3 * ["on rank 1: OSError: no such file"]


def test_a_failure_reaches_processes_that_read_data(short_waits):
    def work(process):
        try:
            if process.rank == 2:
                raise OSError("no such file")
            while True:
                process.check_for_failure()
        except Exception as error:
            return process.report_failure(error)

    assert on_all_ranks(work) == 3 * ["on rank 2: OSError: no such file"]


class StoreWithALateFailure:
    """A store in which rank 1 passes the barrier and then fails, before rank 0 counts again."""

    def __init__(self):
        self.store = HashStore()
        self.add, self.set, self.get = self.store.add, self.store.set, self.store.get
        self.timeout = self.store.timeout

    def check(self, keys):
        arrived = self.store.add("barrier 1", 0) > 0
        if keys == [processes.FAILURE] and arrived:
            self.store.add("barrier 1", 1)
            self.store.set(processes.FAILURE, "on rank 1: ValueError: later")
        return self.store.check(keys)


def test_a_failure_after_a_barrier_does_not_stop_processes_at_it():
    """The others are in the collective behind it already and would wait forever."""
    with contextlib.closing(FitProcesses(0, 2, StoreWithALateFailure())) as process:
        process.barrier()


class StoreThatMayStopAnswering(HashStore):
    """A store whose process was killed, and to which a request would wait without an end."""

    answers = True

    def _check(self):
        assert self.answers, "waits for a store that has ended with rank 0"

    def add(self, key, amount):
        self._check()
        return super().add(key, amount)

    def check(self, keys):
        self._check()
        return super().check(keys)


@pytest.mark.parametrize("where", ["barrier", "data pass", "failure of its own"])
def test_nothing_is_asked_of_the_store_of_a_rank_zero_that_was_killed(short_waits, where):
    """Its loader workers may live on, and keep the connection to the store open."""
    store = StoreThatMayStopAnswering()
    zero = FitProcesses(0, 2, store)
    with contextlib.closing(FitProcesses(1, 2, store)) as one:
        one._connections.connect()
        zero._connections.check()
        zero._connections.drop()
        store.answers = False
        killed = "on rank 0: the process has ended without an error message"
        if where == "failure of its own":
            assert one.report_failure(OSError("no file")) == "on rank 1: OSError: no file"
            return
        with pytest.raises(ProcessEndedError) as error:
            one.barrier() if where == "barrier" else one.check_for_failure()
        assert one.report_failure(error.value).startswith(killed)


class StoreThatAnswersLate(HashStore):
    """A store whose process is killed after a request has been sent."""

    late, asked = False, None

    def check(self, keys):
        if self.late and keys == [processes.FAILURE]:
            self.asked.set()
            time.sleep(8.0)
        return super().check(keys)


@pytest.mark.parametrize("where", ["barrier", "data pass"])
def test_a_request_that_a_killed_rank_zero_leaves_without_an_answer_is_given_up(short_waits, where):
    store = StoreThatAnswersLate()
    store.asked = threading.Event()
    zero = FitProcesses(0, 2, store)
    with contextlib.closing(FitProcesses(1, 2, store)) as one:
        one._connections.connect()
        zero._connections.check()
        store.late = True
        killer = threading.Thread(
            target=lambda: (store.asked.wait(), zero._connections.drop()), daemon=True
        )
        killer.start()
        start = time.monotonic()
        with pytest.raises(ProcessEndedError) as error:
            one.barrier() if where == "barrier" else one.check_for_failure()
        assert error.value.rank == 0
        assert time.monotonic() - start < 4.0


def test_the_first_of_several_failures_is_reported(short_waits):
    def work(process):
        time.sleep(0.1 * (2 - process.rank))
        return process.report_failure(ValueError(f"of {process.rank}"))

    assert on_all_ranks(work) == 3 * ["on rank 2: ValueError: of 2"]


@pytest.mark.parametrize("different", [1, 2])
def test_values_that_differ_are_reported_with_their_rank(different):
    finished = threading.Barrier(3)

    def work(process):
        local = {"limit_batches": 3 + (process.rank == different), "targets": ("energy",)}
        try:
            process.check_equal(local, "use the same")
        finally:
            finished.wait(timeout=10)  # one that closes before the others have its values is lost

    for error in on_all_ranks(work):
        assert isinstance(error, ProcessesDisagreeError)
        assert f"limit_batches: 3 on rank 0, 4 on rank {different}; use the same" in str(error)
        assert "targets" not in str(error)


def test_equal_values_can_be_compared_several_times():
    def work(process):
        for value in range(3):
            process.check_equal({"value": value}, "")
        return True

    assert on_all_ranks(work) == [True, True, True]


def test_a_single_process_needs_no_store():
    alone = FitProcesses()
    alone.barrier()
    alone.check_for_failure()
    alone.check_equal({"a": 1}, "")
    assert alone.broadcast_from_rank_zero(lambda: [1, 2]) == [1, 2]
    assert alone.gather_objects("a") == ["a"]
    values = torch.arange(3).double()
    assert torch.equal(alone.gather_values(values, [3])[0], values)


@pytest.mark.slow
def test_a_failed_process_waits_until_the_others_have_read_why(monkeypatch):
    """The store ends with rank 0, and launchers end all processes when one of them does."""
    monkeypatch.setattr(processes, "SECONDS_BETWEEN_CHECKS", 0.0)
    stopped = []

    def work(process):
        try:
            if process.rank == 0:
                raise OSError("no such file")
            time.sleep(0.4)
            process.check_for_failure()
        except Exception as error:
            if process.rank != 0:
                stopped.append(process.rank)
            process.report_failure(error)
            if process.rank == 0:
                stopped.append(0)

    on_all_ranks(work, 2)
    assert stopped == [1, 0]
