"""The links of the embedded engine: one for threads, one for an event loop, over the same core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError
from ...model import Turnstile
from .core import Core
from .store import Busy
from .turnstile import Desk

T = TypeVar("T")

THREADS = 4


class Large(Generic[T]):
    """A body that may take long: not for an event loop's own thread."""

    __slots__ = ("_body",)

    def __init__(self, body: Callable[[Desk], T]) -> None:
        self._body = body

    def __call__(self, desk: Desk) -> T:
        return self._body(desk)


class SqliteLink:
    """The file as the threads of one process use it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.inbox = core.inbox
        self.reading = core.listener
        self.call = core.call
        self.call_many = core.call_many

    @property
    def lifeline(self) -> int | None:
        return self._core.lifeline

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        listener = self._core.listener
        receiver = listener.bind(self._core.opened(timeout_s), deliver, look_again)
        if receiver is not None:
            listener.run_in_thread(receiver)
        return receiver is not None

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        self.call(self._core.watch(turnstile), timeout_s)

    def unwatch(self, turnstile: Turnstile) -> None:
        self.call(self._core.unwatch(turnstile), LISTEN_S)

    def close(self) -> None:
        self._core.close()

    def abandon(self) -> None:
        """Nothing is left to forget: the store, the life line and the sockets let go at the fork itself."""


class AsyncSqliteLink:
    """The file as one event loop uses it: on the loop where that takes microseconds, else in a thread."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.inbox = core.inbox
        self._threads = ThreadPoolExecutor(THREADS, "holdfast-sqlite")

    @property
    def lifeline(self) -> int | None:
        return self._core.lifeline

    async def call(self, request: Request[T], timeout_s: float) -> T:
        if self._core.is_open and not isinstance(request.body, Large):
            try:
                return self._core.call(request, 0.0, wait=False)
            except Busy:
                pass
        return await self._in_thread(self._core.call, request, timeout_s)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if len(requests) > 1:
            return await self._in_thread(self._core.call_many, requests, timeout_s)
        replies: list[T | Exception] = []
        for request in requests:
            try:
                reply: T = await self.call(request, timeout_s)
                replies.append(reply)
            except HoldfastError as error:
                replies.append(error)
        return replies

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        listener = self._core.listener
        post = await self._in_thread(self._core.opened, timeout_s)
        receiver = listener.bind(post, deliver, look_again)
        if receiver is None:
            return False
        if not listener.run_on(asyncio.get_running_loop(), receiver):
            listener.run_in_thread(receiver)
        return True

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        await self.call(self._core.watch(turnstile), timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        await self.call(self._core.unwatch(turnstile), LISTEN_S)

    async def close(self) -> None:
        self._core.listener.leave(asyncio.get_running_loop())
        await self._in_thread(self._core.close)
        self._threads.shutdown(wait=False)

    def abandon(self) -> None:
        """As for threads; the loop itself was inherited, and stays untouched."""

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
