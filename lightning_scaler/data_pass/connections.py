"""Connections between rank 0 and the other processes, which show that a process has ended."""

import json
import os
import secrets
import socket
import time
import warnings
import weakref
from contextlib import suppress
from typing import Any

import torch
import torch.distributed

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_SEND = 2.0
ADDRESS = "address of rank 0"
HAS_LEFT = "rank 0 has left"
GOODBYE = b"\x01"


class ProcessEndedError(Exception):
    """Another process has ended without a word.

    Attributes:
        rank: index of that process.
    """

    def __init__(self, rank: int, what_happened: str) -> None:
        super().__init__(what_happened)
        self.rank = rank


class Connections:
    """A socket between rank 0 and each other process, looked at between batches.

    The kernel closes the sockets of a process that is killed; a process that ends in any other way
    says goodbye first. Nothing here waits for another process, and there is no thread: one that
    sends signs of life raises false alarms while a long call holds the interpreter.

    Args:
        rank: index of this process.
        world_size: number of processes.
        store: a ``torch.distributed.Store`` that only this fit uses, for the address of rank 0.
    """

    def __init__(self, rank: int, world_size: int, store: Any) -> None:
        self._rank = rank
        self._store = store
        self._missing = set(range(1, world_size)) if rank == 0 else {0}
        self._sockets: dict[int, socket.socket] = {}
        self._greetings: dict[socket.socket, bytes] = {}
        self._server: socket.socket | None = None
        self._timeout = store.timeout.total_seconds()
        self._deadline = time.monotonic() + self._timeout
        self._token = ""
        if rank == 0:
            self._listen(world_size)
        _open_connections.add(self)

    def connect(self) -> None:
        """Connect to rank 0 if its address is known and this has not been done yet."""
        if self._rank != 0 and self._missing and self._store.check([ADDRESS]):
            self._missing.clear()
            self._connect()

    def check(self) -> str | None:
        """Look at all connections, without waiting for any process.

        Returns:
            The reason why another process has stopped, if one has given it.

        Raises:
            ProcessEndedError: if a process has ended without saying goodbye, or has not connected
                within the timeout of the process group.
        """
        if self._rank == 0:
            self._accept()
        self.connect()
        for rank, connection in list(self._sockets.items()):
            received = _receive(connection)
            if received is None:
                continue
            connection.close()
            del self._sockets[rank]
            if not received.startswith(GOODBYE):
                raise ProcessEndedError(
                    rank,
                    "the process has ended without an error message; it was probably killed, for "
                    "example because memory ran out",
                )
            reason = received[len(GOODBYE) :].decode("utf-8", "replace")
            if reason:
                return reason
        return None

    def close(self, reason: str = "") -> None:
        """Say goodbye and close all connections.

        Args:
            reason: why this process stops, if it does not stop because all is done.
        """
        if self._server is not None:
            self._accept()
            with suppress(torch.distributed.DistError):
                self._store.set(HAS_LEFT, "")
        for connection in self._sockets.values():
            try:
                connection.settimeout(SECONDS_TO_SEND)
                connection.sendall(GOODBYE + reason.encode())
            except OSError:
                pass  # The other process has ended, too.
        self.drop()

    def drop(self) -> None:
        """Close all sockets of this process without saying goodbye."""
        for connection in self._sockets.values():
            connection.close()
        self._sockets = {}
        self._stop_listening()

    def _listen(self, world_size: int) -> None:
        ipv6 = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        self._server = socket.create_server(
            ("", 0), family=family, backlog=world_size, dualstack_ipv6=ipv6
        )
        self._server.setblocking(False)
        self._token = secrets.token_hex(16)
        # Rank 0 runs where the process group was started; its own name is a second way to it.
        hosts = [os.environ.get("MASTER_ADDR", "localhost"), socket.gethostname()]
        port = self._server.getsockname()[1]
        self._store.set(ADDRESS, json.dumps([hosts, port, self._token]))

    def _accept(self) -> None:
        """Accept the connections of the other processes, on rank 0."""
        while self._server is not None:
            try:
                connection, _ = self._server.accept()
            except OSError:
                break
            connection.setblocking(False)
            self._greetings[connection] = b""
        for connection in list(self._greetings):
            self._read_greeting(connection)
        if not self._missing:
            self._stop_listening()
        if self._missing and time.monotonic() > self._deadline:
            late = [r for r in self._missing if not self._store.check([f"not connected {r}"])]
            self._missing.clear()
            if not late:
                return
            raise ProcessEndedError(
                min(late),
                f"the process has not reached the fit within the {self._timeout:g} s of the "
                "process group's timeout",
            )

    def _read_greeting(self, connection: socket.socket) -> None:
        """Read what a new connection has sent; close it if it does not come from this fit."""
        greetings = {_greeting(self._token, rank): rank for rank in self._missing}
        received = self._greetings.pop(connection)
        try:
            more = connection.recv(len(_greeting(self._token, 0)) - len(received))
        except BlockingIOError:
            self._greetings[connection] = received
            return
        except OSError:
            more = b""
        received += more
        if received in greetings:
            rank = greetings[received]
            self._sockets[rank] = connection
            self._missing.discard(rank)
        elif more and any(greeting.startswith(received) for greeting in greetings):
            self._greetings[connection] = received
        else:
            connection.close()

    def _stop_listening(self) -> None:
        for connection in self._greetings:
            connection.close()
        self._greetings = {}
        if self._server is not None:
            self._server.close()
            self._server = None

    def _connect(self) -> None:
        hosts, port, token = json.loads(self._store.get(ADDRESS))
        for host in hosts:
            try:
                connection = socket.create_connection((host, port), SECONDS_TO_CONNECT)
                connection.sendall(_greeting(token, self._rank))
            except OSError:
                continue
            connection.setblocking(False)
            self._sockets[0] = connection
            return
        if self._store.check([HAS_LEFT]):
            return
        self._store.set(f"not connected {self._rank}", "")
        warnings.warn(
            f"rank {self._rank} cannot connect to rank 0 at {' or '.join(hosts)}, port {port}; if "
            "a process is killed while the target scales are fitted, the others may wait for it",
            stacklevel=2,
        )


def _greeting(token: str, rank: int) -> bytes:
    return f"{token} {rank:8d}".encode()


def _receive(connection: socket.socket) -> bytes | None:
    """What another process has said at its end; ``None`` while it runs."""
    try:
        received = connection.recv(1)
        if not received:
            return b""
        connection.settimeout(SECONDS_TO_SEND)
        while more := connection.recv(1 << 16):
            received += more
    except BlockingIOError:
        return None
    except TimeoutError:
        pass
    except OSError:
        return b""
    return received


def _drop_all() -> None:
    for connections in list(_open_connections):
        connections.drop()


# Workers of a DataLoader that are forked would keep the sockets of a killed process open.
_open_connections: "weakref.WeakSet[Connections]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_drop_all)
