"""Who is measured: for each engine its locks, ours and the peers'. Each is made by the URL of a server.

``make(url)`` is a context manager that gives a lock, which is a context manager to be entered again and again; for
asyncio both are asynchronous ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..common import serving

ENGINES = ("redis", "quorum", "zookeeper", "etcd", "postgres", "postgres_disk", "file")
"""Each is a module here with an `Engine` in ``ENGINE``."""


class Missing(Exception):
    """What a peer needs is not here; says what."""


NOT_HERE = (ImportError, FileNotFoundError, Missing)
"""How a library, a program or a peer's own need says that it is not installed."""


class Peer(NamedTuple):
    name: str
    make: Callable[[str], Any]
    """In Java: gives a worker's command line."""
    face: Literal["threads", "asyncio", "java"] = "threads"
    fair: bool = False
    """Its waiters stand in a queue: nobody overtakes all the time."""
    use: Literal["both", "pair", "contended"] = "both"
    baseline: bool = False
    """No lock to be compared with, but the least that one costs."""
    at: str = ""
    """Its own engine's name, where it is a guest among another's."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("holdfast")

    @property
    def rival(self) -> bool:
        """One to be measured by."""
        return not (self.ours or self.baseline or self.at)

    @contextlib.contextmanager
    def blocking(self, url: str) -> Iterator[AbstractContextManager[Any]]:
        """Its lock for a thread, also if it is one for asyncio: then for a loop that has nothing else to do."""
        if self.face == "threads":
            with self.make(url) as lock:
                yield lock
            return
        with asyncio.Runner() as runner:
            made: AbstractAsyncContextManager[Any] = self.make(url)
            lock = runner.run(made.__aenter__())
            yield OnLoop(lock, runner.get_loop().run_until_complete)
            runner.run(made.__aexit__(None, None, None))


class Engine(NamedTuple):
    name: str
    title: str
    serve: Callable[[], AbstractContextManager[str]]
    """A server of our own, as a URL."""
    peers: tuple[Peer, ...]
    floor: str
    """The peer whose pair is the least that there can be."""
    floor_note: str
    version: Callable[[str], str]
    """Of the server at a URL."""
    counter: Callable[[str], AbstractContextManager[Callable[[], int]]] | None = None
    """``with counter(url) as end:`` and ``end()``: how many commands clients sent meanwhile."""
    disturbs: bool = False
    """Counting slows the server down: it is done in runs of its own."""

    def peer(self, name: str) -> Peer:
        return next(peer for peer in self.peers if peer.name == name)


def engine(name: str) -> Engine:
    found = importlib.import_module(f".{name}", __name__).ENGINE
    assert isinstance(found, Engine)
    return found


@contextlib.contextmanager
def served(kind: Callable[[Path], Any]) -> Iterator[str]:
    """The URL of a server of our own."""
    with serving(kind) as server:
        yield server.url


@contextlib.contextmanager
def difference(read: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """A counter from what the server counts since its start."""
    before = read()
    yield lambda: read() - before


class Turns:
    """A lock of two calls: to take it and to give it back."""

    def __init__(self, take: Callable[[], object], give: Callable[[], object]) -> None:
        self._take, self._give = take, give

    def __enter__(self) -> None:
        self._take()

    def __exit__(self, *exc: object) -> None:
        self._give()


class OnLoop:
    """A lock of asyncio for one thread. Each call is a task of its own, so ours is left through its lease."""

    def __init__(self, lock: Any, run: Callable[[Any], Any]) -> None:
        self._lock, self._run = lock, run

    def __enter__(self) -> None:
        taken = self._run(self._lock.acquire())
        self._release = (taken if hasattr(taken, "release") else self._lock).release

    def __exit__(self, *exc: object) -> None:
        self._run(self._release())


class EachAnew:
    """For locks that are good for one turn only."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __enter__(self) -> None:
        self._lock = self._make()
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


# -- on every engine: ours, and tooz, which has a driver for most


@contextlib.contextmanager
def _threads(url: str, **options: Any) -> Iterator[Any]:
    import holdfast

    with holdfast.connect(url) as client:
        yield client.lock(_own_name("threads", options), **options)


@contextlib.asynccontextmanager
async def _asyncio(url: str, **options: Any) -> AsyncIterator[Any]:
    from holdfast import aio

    async with aio.connect(url) as client:
        yield client.lock(_own_name("asyncio", options), **options)


def _own_name(face: str, options: dict[str, Any]) -> str:
    """Each has a lock of its own: a sticky one is kept from the others."""
    return " ".join((face, *options))


def _sticky(make: Callable[..., Any], **options: Any) -> Callable[[str], Any]:
    return lambda url: make(url, sticky=True, **options)


HOLDFAST = (
    Peer("holdfast", _threads, fair=True),
    Peer("holdfast.aio", _asyncio, "asyncio", fair=True),
    Peer("holdfast, sticky", _sticky(_threads), use="pair"),
    Peer("holdfast.aio, sticky", _sticky(_asyncio), "asyncio", use="pair"),
    Peer("holdfast, sticky, 5 ms", _sticky(_threads, batch_s=0.005), use="contended"),
)


@contextlib.contextmanager
def tooz(url: str) -> Iterator[Any]:
    from tooz import coordination

    coordinator = coordination.get_coordinator(url, f"bench{os.getpid()}".encode())
    coordinator.start(start_heart=True)
    yield coordinator.get_lock(b"tooz")
    coordinator.stop()
