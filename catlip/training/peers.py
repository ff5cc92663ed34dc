"""What the processes of a run know of each other: that all are alive, and if not, why.

A rank that fails cannot say so by a collective: the others may be waiting for it inside another one, and the user
waits half an hour for a time-out instead of reading the reason. So every rank keeps a connection to rank 0 beside
torch's, and a thread listens there. A rank that fails says why, and rank 0 passes it on; one that is killed says
nothing, but the system closes its connection. The others print the reason and exit with code 2, wherever they are.

No heartbeats: a thread cannot send them while Python's lock is held (a large JSON file takes minutes), and the kernel
keeps an eye on the connection anyway.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from catlip.errors import UsageError
from catlip.notices import warn

FIND = timedelta(minutes=10)  # that processes wait for each other at the start
EXIT_CODE = 2
GRACE = 0.6  # seconds
# A machine that is down closes nothing. After this many silent seconds the kernel asks, so often, so many times.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

_open: list[socket.socket] = []  # of this process


def _forget() -> None:
    """A forked loader worker must not hold its parent's connections open when the parent is killed."""
    while _open:
        os.close(_open.pop().fileno())  # `close` would wait for the thread that reads, which a fork does not have


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Peers:
    """This process' connections: rank 0's to all others, another rank's to rank 0."""

    def __init__(self, rank: int, size: int) -> None:
        """Every process must call it, after torch's process group is there. Raises UsageError if one does not come."""
        self.rank, self.size = rank, size
        self.name = f"rank {rank} ({socket.gethostname()})"
        self._lock, self._all_done, self._done, self._ending = threading.Lock(), threading.Event(), 0, False
        try:
            self._connections = self._listen() if rank == 0 else self._connect()
        except OSError as error:
            raise UsageError(
                f"rank {rank} could not reach the others beside torch's own connections: {error}"
            ) from None
        _open.extend(self._connections.values())
        for other, connection in self._connections.items():
            threading.Thread(target=self._hear, args=(other, connection), daemon=True).start()

    def fail(self, reason: str) -> None:
        """Tell the others why this process ends, and return; or never return, if another one failed before."""
        with self._lock:
            late, self._ending = self._ending, True
        if late:
            threading.Event().wait()  # the listening thread ends the process, with the other's reason
        self._tell("failed", f"{self.name} failed: {reason}")
        time.sleep(GRACE)  # a launcher that sees this process end may end the others before they have read it

    def lost(self) -> None:
        """A connection of torch's broke: another process has ended. Wait for the listening thread to learn why."""
        time.sleep(60)

    def leave(self) -> None:
        """Return when all processes are here: none ends well while another one fails."""
        self._count() if self.rank == 0 else self._tell("done", "")
        self._all_done.wait()
        while _open:
            _open.pop().close()

    def _listen(self) -> dict[int, socket.socket]:
        token = secrets.token_hex(8)  # the port is open to all: who does not know this is no rank of ours
        found: dict[int, socket.socket] = {}
        with _server() as server:
            dist.broadcast_object_list([server.getsockname()[1], token])
            server.settimeout(FIND.total_seconds())
            while len(found) < self.size - 1:
                connection, _ = server.accept()
                connection.settimeout(10)
                with contextlib.suppress(OSError, ValueError):
                    # Unbuffered: what follows is the listening thread's.
                    hello = connection.makefile("rb", buffering=0).readline(100).decode().split()
                    if hello[:1] == [token]:
                        found[int(hello[1])] = _lasting(connection)
        return found

    def _connect(self) -> dict[int, socket.socket]:
        where: list[Any] = [None, None]
        dist.broadcast_object_list(where)
        connection = socket.create_connection((os.environ["MASTER_ADDR"], where[0]), FIND.total_seconds())
        connection.sendall(f"{where[1]} {self.rank}\n".encode())
        return {0: _lasting(connection)}

    def _hear(self, other: int, connection: socket.socket) -> None:
        """What another process has to say: [word, text], a line each."""
        with contextlib.suppress(OSError, ValueError):  # the connection broke, or a line did
            for line in connection.makefile(encoding="utf-8"):
                word, text = json.loads(line)
                if word == "done":
                    return self._count() if self.rank == 0 else self._all_done.set()
                return self._end(text)
        return self._end(
            f"rank {other} is gone without a word: killed (mostly for want of memory), or its machine is down"
        )

    def _count(self) -> None:
        """One more process is done; when all are, they are told so."""
        with self._lock:
            self._done += 1
        if self._done == self.size:
            self._tell("done", "")
            self._all_done.set()

    def _tell(self, word: str, text: str) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):  # it is gone; its own thread finds out
                connection.sendall((json.dumps([word, text]) + "\n").encode())

    def _end(self, reason: str) -> None:
        """End this process, which may be waiting inside a collective: no exception would reach it there."""
        if self.rank == 0:
            self._tell("failed", reason)
        time.sleep(GRACE / 2)  # what all have agreed on is about to be raised here too
        with self._lock:
            if self._ending:
                return
            self._ending = True
        warn(f"catlip: {reason}; so {self.name} ends too")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(EXIT_CODE)


def _server() -> socket.socket:
    """A port of the system's choice, by IPv4 and IPv6 where it has both."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _lasting(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection
