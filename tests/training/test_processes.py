"""Agreement through a store, in threads that stand for processes; see test_processes.py too."""

import threading
import time

import pytest
import torch
from torch.distributed import HashStore

from lightning_scaler.training import processes as module
from lightning_scaler.training.processes import Ranks, RanksDisagreeError


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(module, "SECONDS_TO_READ_A_FAILURE", 0.5)


def together(work, world_size=3):
    """What work(ranks) gives or raises on every rank."""
    store, answers = HashStore(), [None] * world_size

    def on_rank(rank):
        try:
            answers[rank] = work(Ranks(rank, world_size, store))
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


def test_nobody_goes_on_before_all_are_there():
    arrived = []

    def work(ranks):
        for _ in range(3):
            time.sleep(0.02 * ranks.rank)
            arrived.append(ranks.rank)
            ranks.meet()
            seen = len(arrived)
            ranks.meet()
        return seen

    assert together(work) == [9, 9, 9]


def test_who_waits_hears_of_a_failure(quick):
    def work(ranks):
        try:
            if ranks.rank == 1:
                raise OSError("no such file")
            ranks.meet()
        except Exception as error:
            return ranks.stop_all(error)

    assert together(work) == 3 * ["on rank 1: OSError: no such file"]


def test_who_reads_hears_of_a_failure(quick):
    def work(ranks):
        try:
            if ranks.rank == 2:
                raise OSError("no such file")
            while True:
                ranks.look()
        except Exception as error:
            return ranks.stop_all(error)

    assert together(work) == 3 * ["on rank 2: OSError: no such file"]


class LastOneArrives:
    """A store in which, between two looks, the last rank comes, goes on, and fails later."""

    def __init__(self):
        self.store = HashStore()
        self.add = self.store.add

    def check(self, keys):
        self.store.add("meeting 1", 1)
        self.store.set(module.FAILURE, "on rank 1: ValueError: later")
        return self.store.check(keys)


def test_a_failure_after_a_meeting_does_not_undo_it():
    """The others are in a collective already; who is late to look must come, or they wait."""
    Ranks(0, 2, LastOneArrives()).meet()


def test_the_first_of_several_failures_is_told(quick):
    def work(ranks):
        time.sleep(0.1 * (2 - ranks.rank))
        return ranks.stop_all(ValueError(f"of {ranks.rank}"))

    assert together(work) == 3 * ["on rank 2: ValueError: of 2"]


def test_what_differs_is_told_with_rank_and_values():
    def work(ranks):
        mine = {"limit_batches": 3 + (ranks.rank == 1), "targets": ("energy",)}
        ranks.check_equal(mine, "use the same")

    for error in together(work):
        assert isinstance(error, RanksDisagreeError)
        assert "limit_batches is 3 on rank 0 and 4 on rank 1; use the same" in str(error)
        assert "targets" not in str(error)


def test_equal_values_are_fine_again_and_again():
    def work(ranks):
        for number in range(3):
            ranks.check_equal({"number": number}, "")
        return True

    assert together(work) == [True, True, True]


def test_one_process_needs_no_store():
    alone = Ranks()
    alone.meet()
    alone.look()
    alone.check_equal({"a": 1}, "")
    assert alone.from_first(lambda: [1, 2]) == [1, 2]
    assert alone.gather_objects("a") == ["a"]
    numbers = torch.arange(3).double()
    assert torch.equal(alone.gather_numbers(numbers, [3])[0], numbers)


def test_who_failed_stays_until_the_others_have_read_it(monkeypatch):
    """The store ends with rank 0, and launchers end everything when one process has ended."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.0)
    stopped = []

    def work(ranks):
        try:
            if ranks.rank == 0:
                raise OSError("no such file")
            time.sleep(0.4)
            ranks.look()
        except Exception as error:
            if ranks.rank != 0:
                stopped.append(ranks.rank)
            ranks.stop_all(error)
            if ranks.rank == 0:
                stopped.append(0)

    together(work, 2)
    assert stopped == [1, 0]
