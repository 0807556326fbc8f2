"""Whether a process lives: it holds an flock on a file of its own, which the kernel lets go when it dies.

Never a pid: those are reused, and differ between containers. The lock belongs to the open file, so a child that was
handed the descriptor keeps it; one that was merely forked closes it at once.
"""

from __future__ import annotations

import os
import random
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int, shared: bool) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(fd: int, shared: bool) -> bool:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


SUFFIX = ".alive"
SWEEP = 64
"""How many files one look for stale ones tries, of those that are there."""
OPEN = 64
"""How many files of others stay open."""


class Lifeline:
    """This process's own file in ``folder``, locked while it lives."""

    def __init__(self, folder: Path, inbox: str, mode: int) -> None:
        self._path = folder / (inbox + SUFFIX)
        self.fd = -1
        self.fd = self._hold(mode)
        _lifelines.add(self)

    def __del__(self) -> None:
        self.close(remove=False)  # of an event loop that ended without a word: no lease of it is left in anybody's hand

    def _hold(self, mode: int) -> int:
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, mode)
            # A sweeper may have found the file before it was locked, and removed it: then it is not ours.
            if _try_lock(fd, shared=False) and self._is_at(fd):
                if sys.platform != "win32":
                    os.fchmod(fd, mode)  # whatever the umask says: who may use the store may look at it
                return fd
            os.close(fd)
            time.sleep(0.001)

    def _is_at(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    @property
    def stands(self) -> bool:
        """Whether others find it."""
        return self._is_at(self.fd)

    def close(self, *, remove: bool) -> None:
        """Let go. The file stays where claims may still name it, for a later process to sweep."""
        if self.fd >= 0:
            if remove:
                self._path.unlink(missing_ok=True)
            fd, self.fd = self.fd, -1
            os.close(fd)


class _Opened:
    """Another's file, open for as long as anybody looks at it."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Pulses:
    """Whether others of ``folder`` live: one system call each, since the files of the last ones looked at stay open."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._opened: dict[str, _Opened] = {}

    def is_alive(self, inbox: str) -> bool:
        """False only where that process surely ended: its file is there and nobody holds it."""
        opened = self._opened.get(inbox)
        if opened is not None and not _try_lock(opened.fd, shared=True):
            return True
        self._opened.pop(inbox, None)  # surely ended, unless its file was made anew
        try:
            opened = _Opened(f"{self._folder}/{inbox}{SUFFIX}")
        except OSError:  # removed by hand, or not ours to read: then leases alone decide
            return True
        if _try_lock(opened.fd, shared=True):
            return False
        if sys.platform != "win32":  # where an open file cannot be removed
            if len(self._opened) >= OPEN:
                self._opened.clear()
            self._opened[inbox] = opened
        return True


def stale(folder: Path) -> Iterator[str]:
    """Inboxes of processes that ended without removing their file; some of them, in no order.

    Each is held while the caller works on it; what is still there then is removed.
    """
    names = [name for name in os.listdir(folder) if name.endswith(SUFFIX)]
    for name in random.sample(names, min(SWEEP, len(names))):
        path = folder / name
        try:
            fd = os.open(path, os.O_RDWR)
        except OSError:
            continue
        try:
            if _try_lock(fd, shared=False):
                yield name.removesuffix(SUFFIX)
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)


_lifelines: weakref.WeakSet[Lifeline] = weakref.WeakSet()


def _after_fork() -> None:
    for lifeline in list(_lifelines):
        lifeline.close(remove=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
