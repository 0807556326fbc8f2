"""What a worker takes again and again: any lock that is a context manager; ours also counts its calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

from ..contract import BlockingLink, Engine, Request
from ..core.waiting import Strategy
from ..engines import resolve
from ..sync import Client

T = TypeVar("T")


class Contender(Protocol):
    """A lock as one process has it."""

    @property
    def calls(self) -> int:
        """How many requests it made so far; what cannot say has none."""
        ...

    def __enter__(self) -> object: ...

    def __exit__(self, kind: object, error: object, trace: object, /) -> object: ...

    def close(self) -> None: ...


Make = Callable[[], Contender]
"""Makes a process's own. It is sent to the processes, so it is a function or class of a module, or a `partial`."""


class Counted:
    """An engine whose links count the requests that they are given, the same way whatever the engine is."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def blocking_link(self) -> BlockingLink:
        return cast(BlockingLink, _CountedLink(self.engine.blocking_link(), self))


class _CountedLink:
    def __init__(self, link: BlockingLink, counted: Counted) -> None:
        self._link = link
        self._counted = counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def call(self, request: Request[T], timeout_s: float) -> T:
        self._counted.calls += 1
        return self._link.call(request, timeout_s)

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        self._counted.calls += len(requests)
        return self._link.call_many(requests, timeout_s)


class HoldfastContender:
    """A lock of ours, waited for in one way."""

    def __init__(self, url: str, namespace: str, name: str, strategy: Strategy) -> None:
        self._engine = Counted(resolve(url, namespace, "machine"))
        self._client = Client(cast(Engine, self._engine))
        self._lock = self._client.lock(name, strategy=strategy)

    @property
    def calls(self) -> int:
        return self._engine.calls

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def close(self) -> None:
        self._client.close()
