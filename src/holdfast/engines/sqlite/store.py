"""One connection to the file, shared by the threads of a link: transactions, busy files, errors and forks.

One connection and a lock, since threads that have one each meet in SQLite's busy handler, which sleeps.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable
from .file import open_file

T = TypeVar("T")

FIRST_PAUSE_S = 0.00003
MOST_PAUSE_S = 0.002
MOVED_EVERY_S = 1.0

CHECKPOINT_EVERY = 200
"""Transactions, of about five pages each; SQLite's own threshold stays as a net for processes that make fewer."""


NOWHERE = (0, 0)
"""No file: its device and inode."""


class Busy(Unavailable):
    """Another process or thread is in a transaction; nothing was done."""


class Store:
    """The file, opened at the first transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self.file = NOWHERE
        self._look_at = 0.0
        self._closed = False
        # Its ownership is asked, not remembered: an interrupt can come between taking it and noting that.
        self._lock = threading.RLock()
        self._commits = 0
        self._checkpointing = threading.Lock()
        _stores[id(self)] = self

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def run(self, work: Callable[[sqlite3.Connection], T], timeout_s: float, *, wait: bool = True) -> T:
        """Do ``work`` in one transaction, once.

        Raises `Busy` (nothing was done) where another process's transaction does not end in time, or at once where
        ``wait`` is false; `OutcomeUnknown` where the commit itself failed.
        """
        until = time.monotonic() + timeout_s
        pause_s = FIRST_PAUSE_S
        left_s = timeout_s if wait else 0.0
        while True:
            try:
                result = self._hold(work, left_s)
                break
            except Busy:
                left_s = until - time.monotonic()
                if not wait or left_s <= 0:
                    raise
            time.sleep(min(left_s, pause_s * (0.5 + random.random())))
            pause_s = min(MOST_PAUSE_S, pause_s * 1.5)
        if self._commits >= CHECKPOINT_EVERY:
            self._commits = 0
            with contextlib.suppress(RuntimeError):  # no thread to be had, as at the interpreter's end
                threading.Thread(target=self._checkpoint, name="holdfast-checkpoint", daemon=True).start()
        return result

    def _hold(self, work: Callable[[sqlite3.Connection], T], wait_s: float) -> T:
        lock = self._lock
        if lock._is_owned():  # type: ignore[attr-defined]
            raise Unavailable("called from inside a call of the same thread (a signal handler or a finalizer)")
        try:
            try:
                if not lock.acquire(timeout=max(0.0, wait_s)):
                    raise Busy(f"other threads kept {self.path} busy")
                return self._transact(work)
            finally:
                self._let_go()
        finally:  # an interrupt may have hit the line above
            self._let_go()

    def _let_go(self) -> None:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            if self._connection is not None and self._connection.in_transaction:
                self._roll_back(self._connection)
            self._lock.release()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        committing = False
        try:
            connection = self._connection
            if connection is None or time.monotonic() >= self._look_at:
                connection = self._current()
            execute = connection.execute
            execute("BEGIN IMMEDIATE")
            result = work(connection)
            committing = True
            execute("COMMIT")
            self._commits += 1
            return result
        except sqlite3.Error as error:
            raise self._translate(error, committing) from error

    def _checkpoint(self) -> None:
        """Bring the log home, which waits for the disk, so not in anybody's call. On a connection of its own."""
        if self._checkpointing.acquire(blocking=False):
            try:
                existing = self.path.as_uri() + "?mode=rw"
                with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(existing, uri=True)) as own:
                    own.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                self._checkpointing.release()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._drop()

    def _current(self) -> sqlite3.Connection:
        """The connection, to the file that stands at our path now: it may have been removed under us."""
        if self._closed:
            raise Unavailable("this link is closed")
        former = None
        if self._connection is not None and self._file_at_path() != self.file:
            former, self._connection = self._connection, None
        try:
            return self._connection or self._opened()
        finally:
            self._look_at = time.monotonic() + MOVED_EVERY_S
            if former is not None:  # not before: a new file could be given the old one's number
                former.close()

    def _opened(self) -> sqlite3.Connection:
        if _spoilt and os.path.realpath(self.path) in _spoilt:
            raise Misuse(
                f"this process was forked in the middle of a transaction on {self.path} and cannot use it: "
                "start a new one (the start method spawn), or fork from outside of calls"
            )
        connection = open_file(self.path)
        self.file = self._file_at_path()
        self._connection = connection
        return connection

    def _file_at_path(self) -> tuple[int, int]:
        try:
            found = os.stat(self.path)
        except OSError:
            return NOWHERE
        return found.st_dev, found.st_ino

    def _translate(self, error: sqlite3.Error, committing: bool) -> HoldfastError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Busy(f"another process keeps {self.path} busy")
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return Misuse(f"{self.path} is damaged or of another program ({error}): name another file")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return Misuse(f"{self.path} cannot be written by this user ({error}): name another file")
        if code == sqlite3.SQLITE_TOOBIG:
            return Misuse(f"too big for {self.path}: {error}")
        if code == sqlite3.SQLITE_ERROR:
            return Misuse(f"{self.path} has tables that this release of holdfast does not know: {error}")
        if committing:
            return OutcomeUnknown(f"writing to {self.path} failed at the end: {error}")
        return Unavailable(f"{self.path} cannot be used: {error}")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self, timeout_s: float) -> None:
        """Close the connection once no thread uses it; one that is stuck in a call keeps it."""
        self._closed = True
        self._look_at = 0.0
        if self._lock.acquire(timeout=timeout_s):
            try:
                self._drop()
            finally:
                self._lock.release()

    # -- forks. SQLite keeps books per process about who has locked what; a child that inherits an open file inherits
    # -- wrong ones, also for connections of its own. So every connection is closed before a fork, between transactions.

    def close_for_fork(self) -> bool:
        if self._lock._is_owned() or not self._lock.acquire(timeout=FORK_S):  # type: ignore[attr-defined]
            return False
        if not self._checkpointing.acquire(timeout=FORK_S):
            self._lock.release()
            return False
        self._drop()
        return True

    def after_fork(self) -> None:
        self._checkpointing.release()
        self._lock.release()

    def abandon(self, was_closed: bool) -> None:
        """In the child. A connection that could not be closed in time is neither used nor closed, nor is its file."""
        self._lock = threading.RLock()
        self._checkpointing = threading.Lock()
        self._closed = True
        self._look_at = 0.0
        if not was_closed:
            _spoilt.add(os.path.realpath(self.path))
            _inherited.append(self._connection)
            self._connection = None


class _Forking(threading.local):
    """What this thread's fork has closed."""

    def __init__(self) -> None:
        self.closed: list[Store] = []


FORK_S = 1.0
"""How long a fork waits for another thread's transaction."""

_stores: weakref.WeakValueDictionary[int, Store] = weakref.WeakValueDictionary()
_forking = _Forking()
_inherited: list[sqlite3.Connection | None] = []
_spoilt: set[str] = set()
"""Files that this process inherited open, in the middle of a transaction."""


def _before_fork() -> None:
    _forking.closed = []
    for reference in _stores.valuerefs():  # in one order for all threads, and whole though others add to it
        store = reference()
        if store is not None and store.close_for_fork():
            _forking.closed.append(store)


def _after_in_parent() -> None:
    while _forking.closed:
        _forking.closed.pop().after_fork()


def _after_in_child() -> None:
    closed = set(_forking.closed)
    _forking.closed = []
    for store in list(_stores.values()):
        store.abandon(store in closed)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
