"""The program's end of a second renewer: it starts that process, and writes down for it what is held."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import weakref
from collections import deque

from ..core.tenure import Tenure
from ..worlds import clock
from .table import LINES, TABLE_FD, Head, Kept, Table

log = logging.getLogger("holdfast.renewer")

LOOKS = 6
"""How often the helper looks at the table in the shortest lease: a new one is seen well before half of it is over."""

STARTS, IN_S = 5, 60.0
"""So often it is started, and not again before that time is over."""

_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0) | getattr(socket, "MSG_DONTWAIT", 0)


class Process:
    """One session's helper. It is started for the first lease; see `core.helping.Helper`."""

    def __init__(self, url: str, namespace: str, identity: str, hang_s: float) -> None:
        self._settings = {"url": url, "namespace": namespace, "identity": identity, "hang_s": hang_s}
        self._lock = threading.RLock()  # of one thread, whatever a signal's handler does in the middle
        self._table: Table | None = None
        self._child: _Child | None = None
        self._starts: deque[float] = deque(maxlen=STARTS)
        self._dismissed = False
        self._numbers = itertools.count(1)
        self._lines: dict[str, tuple[int, int]] = {}  # by claim: its line, and its number
        self._free: list[int] = []
        self._used = 0
        self._look_s = float("inf")

    # -- what is held

    def add(self, tenure: Tenure) -> None:
        with self._lock:
            if tenure.ended or self._dismissed or not self._is_up():
                return
            self.drop(tenure)  # where it is held anew
            table, line = self._table, self._free.pop() if self._free else self._used
            assert table is not None
            if line >= LINES:
                log.warning("more than %d leases: %s is kept by this process alone", LINES, tenure.turnstile.address)
                return
            self._used, number = max(self._used, line + 1), next(self._numbers)
            table.write(line, _kept(number, tenure))
            self._lines[tenure.claim.id] = line, number
            tenure.also = functools.partial(table.answer, line, number)
            look_s = tenure.claim.ttl_s / LOOKS
            self._look_s, sooner = min(look_s, self._look_s), look_s < self._look_s
            self._write_head(table)
            if sooner and self._child is not None:
                self._child.ring()

    def update(self, tenure: Tenure) -> None:
        with self._lock:
            if self._table is not None and (known := self._lines.get(tenure.claim.id)):
                line, number = known
                self._table.write(line, _kept(number, tenure))

    def drop(self, tenure: Tenure) -> None:
        with self._lock:
            if self._table is not None and (known := self._lines.pop(tenure.claim.id, None)):
                self._table.erase(known[0])
                self._free.append(known[0])

    # -- the process

    def beat(self) -> None:
        with self._lock:
            if self._table is not None and not self._dismissed:
                self._write_head(self._table)
                if self._lines:
                    self._is_up()

    def _write_head(self, table: Table) -> None:
        table.write_head(Head(clock.now(), self._used, self._look_s))

    def _is_up(self) -> bool:
        """Whether there is a table to write to; its reader is started, or started again, if it is not there."""
        try:
            if self._table is None:
                self._table = Table.make()
            if self._child is not None and self._child.code is not None:
                log.warning("the renewer process ended (%s) %s", self._child.code, self._table.last_words())
                self._child = None
            if self._child is None:
                self._start(self._table)
        except OSError as error:
            log.warning("the renewer process could not be started: %s", error)
        return self._table is not None

    def _start(self, table: Table) -> None:
        now = clock.now()
        if len(self._starts) == STARTS and now - self._starts[0] < IN_S:
            return
        self._starts.append(now)
        self._write_head(table)
        self._child = _Child(table, {**self._settings, "program": os.getpid()})

    # -- ends

    def dismiss(self) -> None:
        with self._lock:
            self._dismissed = True
            if self._child is not None:
                self._child.hang_up()

    def has_ended(self, *, kill: bool) -> bool:
        with self._lock:
            if self._child is not None:
                if self._child.code is None:
                    if kill:
                        self._child.kill()
                    return False
                self._child = None
            if self._table is not None:
                self._table.close()
                self._table = None
            self._lines.clear()
            return True

    def abandon(self) -> None:
        child, table, self._child, self._table = self._child, self._table, None, None
        self._dismissed = True
        if child is not None:
            child.abandon()
        if table is not None:
            table.close()


class _Child:
    """The process itself. Spawned, since what runs after a fork would let go of what it is given."""

    def __init__(self, table: Table, settings: dict[str, object]) -> None:
        self._code: int | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            self._socket = ours
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-P", "-m", "holdfast.renewing"],
                    {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                        (os.POSIX_SPAWN_DUP2, table.fd, TABLE_FD),
                    ],
                    setpgroup=0,  # what a terminal sends is for the program
                )
                ours.sendall(json.dumps(settings).encode() + b"\n")
            except BaseException:
                ours.close()
                raise
        self._finalizer = weakref.finalize(self, _end, self._pid, ours)
        self._finalizer.atexit = False  # then the socket ends, and that is enough

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        if self._code is None:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # whoever waits for all children was told
                pid, status = self._pid, 0
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                self._finalizer.detach()
                self._socket.close()
        return self._code

    def ring(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(b"\n", _NO_SIGNAL)

    def hang_up(self) -> None:
        self._socket.close()

    def kill(self) -> None:
        if self.code is None:
            os.kill(self._pid, signal.SIGKILL)

    def abandon(self) -> None:
        """In a forked child, whose process it is not."""
        self._finalizer.detach()
        self._socket.close()


def _end(pid: int, ours: socket.socket) -> None:
    """Of a client that was thrown away."""
    ours.close()
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _kept(number: int, tenure: Tenure) -> Kept:
    return Kept(number, tenure.deadline, tenure.hold_until, tenure.turnstile, tenure.claim)
