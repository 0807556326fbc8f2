"""One machine: ours on SQLite, the peers by locking a file."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import HOLDFAST, Engine, Peer, Turns, tooz


@contextlib.contextmanager
def _serve() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder) / 'holdfast.db'}"


def _beside(url: str, name: str) -> Path:
    return Path(urlsplit(url).path).parent / name


@contextlib.contextmanager
def _flock(url: str) -> Iterator[Any]:
    import fcntl

    with _beside(url, "flock").open("w") as file:
        yield Turns(lambda: fcntl.flock(file, fcntl.LOCK_EX), lambda: fcntl.flock(file, fcntl.LOCK_UN))


@contextlib.contextmanager
def _filelock(url: str) -> Iterator[Any]:
    import filelock

    yield filelock.FileLock(_beside(url, "filelock"))


@contextlib.contextmanager
def _portalocker(url: str) -> Iterator[Any]:
    import portalocker

    yield portalocker.Lock(_beside(url, "portalocker"), timeout=60)


@contextlib.contextmanager
def _fasteners(url: str) -> Iterator[Any]:
    import fasteners

    yield fasteners.InterProcessLock(_beside(url, "fasteners"))


ENGINE = Engine(
    "file",
    "One machine",
    _serve,
    (
        Peer("flock", _flock, baseline=True),
        *HOLDFAST,
        Peer("filelock", _filelock),
        Peer("portalocker", _portalocker),
        Peer("fasteners", _fasteners),
        Peer("tooz", lambda url: tooz(f"file://{_beside(url, 'tooz')}")),
    ),
    "flock",
    "the system call alone, on a file that is open",
    lambda url: f"SQLite {sqlite3.sqlite_version}, beside locks on files",
)
