"""Sockets that show when another process has ended."""

import contextlib
import json
import os
import socket
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

# The module itself, because no public function opens a connection without a process group.
from lightning_scaler.data_pass.connections import ADDRESS, Connections, ProcessEndedError


@contextlib.contextmanager
def connected(n_processes):
    """The connections of several processes, all in this one."""
    store = HashStore()
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(contextlib.closing(Connections(r, n_processes, store)))
            for r in range(n_processes)
        ]
        for connections in ranks:
            connections.connect()
        assert ranks[0].check() is None
        yield ranks


@pytest.fixture
def three():
    """The connections of three processes."""
    with connected(3) as ranks:
        yield ranks


def eventually(check):
    """What the check returns or raises within two seconds."""
    for _ in range(200):
        result = check()
        if result is not None:
            return result
        time.sleep(0.01)
    return None


def test_nothing_is_reported_while_all_processes_run(three):
    for _ in range(3):
        assert [connections.check() for connections in three] == [None, None, None]


@pytest.mark.parametrize("rank", [1, 2])
def test_rank_zero_sees_that_another_process_has_ended(three, rank):
    three[rank].drop()
    with pytest.raises(ProcessEndedError, match="ended without an error message") as error:
        eventually(three[0].check)
    assert error.value.rank == rank
    assert three[0].check() is None


def test_the_others_see_that_rank_zero_has_ended(three):
    three[0].drop()
    for rank in (1, 2):
        with pytest.raises(ProcessEndedError) as error:
            eventually(three[rank].check)
        assert error.value.rank == 0


def test_a_process_that_says_goodbye_is_not_reported(three):
    three[1].close()
    time.sleep(0.05)
    assert three[0].check() is None
    three[0].close()
    time.sleep(0.05)
    assert three[2].check() is None


@pytest.mark.parametrize("length", [20, 300_000])
def test_the_reason_of_rank_zero_arrives_after_it_has_left(three, length):
    three[0].close(length * "x")
    assert [eventually(three[rank].check) for rank in (1, 2)] == 2 * [length * "x"]


def test_a_process_that_never_connects_is_named_after_the_timeout():
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    with (
        contextlib.closing(Connections(0, 3, store)) as zero,
        contextlib.closing(Connections(1, 3, store)) as one,
    ):
        one.connect()
        assert zero.check() is None
        with pytest.raises(
            ProcessEndedError, match=r"not reached the fit within the 0\.2 s"
        ) as error:
            eventually(zero.check)
        assert error.value.rank == 2


def test_a_connection_from_elsewhere_is_closed_and_changes_nothing():
    store = HashStore()
    with (
        contextlib.closing(Connections(0, 2, store)) as zero,
        contextlib.closing(Connections(1, 2, store)) as one,
    ):
        _, port, _ = json.loads(store.get(ADDRESS))
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(64 * b"?")
            zero.check()
            stranger.settimeout(2.0)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
        one.connect()
        assert zero.check() is None
        one.drop()
        with pytest.raises(ProcessEndedError):
            eventually(zero.check)


def test_strangers_that_send_nothing_hold_nobody_up():
    """A port scanner, for example."""
    store = HashStore()
    with (
        contextlib.closing(Connections(0, 2, store)) as zero,
        contextlib.closing(Connections(1, 2, store)) as one,
        contextlib.ExitStack() as stack,
    ):
        _, port, _ = json.loads(store.get(ADDRESS))
        strangers = [
            stack.enter_context(socket.create_connection(("localhost", port))) for _ in range(2)
        ]
        start = time.monotonic()
        assert zero.check() is None
        one.connect()
        assert zero.check() is None
        assert time.monotonic() - start < 2.0
        for stranger in strangers:  # closed, as all processes are there
            assert stranger.recv(1) == b""
        one.drop()
        with pytest.raises(ProcessEndedError):
            eventually(zero.check)


def test_a_greeting_may_arrive_in_parts():
    store = HashStore()
    with contextlib.closing(Connections(0, 2, store)) as zero:
        _, port, token = json.loads(store.get(ADDRESS))
        with socket.create_connection(("localhost", port)) as one:
            for part in (token[:5], token[5:], f" {1:8d}"):
                one.sendall(part.encode())
                time.sleep(0.02)
                assert zero.check() is None
        with pytest.raises(ProcessEndedError) as error:
            eventually(zero.check)
        assert error.value.rank == 1


def test_rank_zero_listens_until_all_processes_have_connected(three):
    _, port, _ = json.loads(three[0]._store.get(ADDRESS))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port))


def test_two_hundred_processes_connect_while_rank_zero_is_busy():
    with connected(200) as ranks:
        ranks[199].drop()
        with pytest.raises(ProcessEndedError) as error:
            eventually(ranks[0].check)
        assert error.value.rank == 199


def test_forked_workers_do_not_keep_the_connections_of_their_process_open(three):
    child = os.fork()
    if child == 0:
        time.sleep(30.0)
        os._exit(0)
    try:
        three[1].drop()
        with pytest.raises(ProcessEndedError):
            eventually(three[0].check)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_process_that_cannot_connect_says_so_and_is_not_waited_for(monkeypatch):
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.05))

    def refuse(*args, **kwargs):
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    with (
        contextlib.closing(Connections(0, 2, store)) as zero,
        contextlib.closing(Connections(1, 2, store)) as one,
    ):
        with pytest.warns(UserWarning, match="rank 1 cannot connect to rank 0"):
            one.connect()
        time.sleep(0.1)
        assert zero.check() is None


def test_nobody_waits_for_a_rank_zero_that_has_left_already():
    store = HashStore()
    with (
        contextlib.closing(Connections(0, 2, store)) as zero,
        contextlib.closing(Connections(1, 2, store)) as one,
    ):
        zero.close()
        one.connect()
        assert one.check() is None
