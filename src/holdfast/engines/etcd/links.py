"""An etcd as one process's threads use it, and as one asyncio event loop does."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Turnstile
from ..talks import Talks, in_rounds
from .calls import AsyncCalls, Calls
from .cells import Cells
from .desk import Desk
from .members import Members
from .target import Target
from .turnstile import Turnstiles
from .vigil import Vigil

T = TypeVar("T")


class _Link:
    """What both kinds of link have.

    Their ``listen`` has no use for ``look_again``: what is watched knows from where, and looks of itself after a break.
    """

    lifeline = None

    def __init__(self, target: Target, space: bytes) -> None:
        self._target, self._space = target, space
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self.desk = Desk(self._space)
        self.turnstiles = Turnstiles(self.desk)
        self.cells = Cells(self.desk)
        self._members = Members(self._target)
        self._vigil: Vigil | None = None
        self._closed = False


class EtcdLink(_Link):
    """Calls from any thread; signals through one thread with an event loop of its own."""

    def _start(self) -> None:
        super()._start()
        self._calls = Calls(self._members)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def call(self, request: Request[T], timeout_s: float) -> T:
        until = time.monotonic() + timeout_s
        talk = request.body(self)
        try:
            requests = next(talk)
            while True:
                try:
                    replies = self._calls.exchange(requests, until)
                except HoldfastError as error:
                    replies = [error] * len(requests)
                requests = talk.send(replies)
        except StopIteration as done:
            return request.parse(done.value)

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        until = time.monotonic() + timeout_s
        outcomes: list[T | Exception] = []
        for some in in_rounds(requests):
            talks = Talks(request.body(self) for request in some)
            while asked := talks.asked:
                try:
                    replies = self._calls.exchange(asked, until, in_turn=False)
                except HoldfastError as error:
                    replies = [error] * len(asked)
                talks.hear(replies)
            outcomes += talks.outcomes
        return outcomes

    # -- signals

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        with self._lock:
            if self._closed:
                raise Misuse("this client is closed")
            if self._vigil is not None:
                self._vigil.deliver = deliver
                return False
            self._loop = asyncio.new_event_loop()
            self._vigil = Vigil(self.desk, AsyncCalls(self._members), self._loop, deliver)
            threading.Thread(target=_run, args=(self._loop,), name="holdfast-etcd-signals", daemon=True).start()
            self.turnstiles.vigil = self._vigil
            return True

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._vigil is None or self._loop is None:
            raise Misuse("watch() needs listen() first")
        begun = asyncio.run_coroutine_threadsafe(self._vigil.watch(turnstile, timeout_s), self._loop)
        try:
            begun.result(timeout_s + 1)
        except TimeoutError:
            raise Unavailable(f"etcd at {self._target.where} did not confirm signals of {turnstile.address}") from None

    def unwatch(self, turnstile: Turnstile) -> None:
        if self._vigil is not None:
            self._vigil.unwatch(turnstile)

    # -- ends

    def close(self) -> None:
        self._closed = True
        self._calls.closed = True
        self._calls.forget_idle()
        with self._lock:
            vigil, self._vigil, self.turnstiles.vigil = self._vigil, None, None
            if vigil is not None and self._loop is not None:
                asyncio.run_coroutine_threadsafe(vigil.close(), self._loop).result(5)
                self._loop.call_soon_threadsafe(self._loop.stop)

    def abandon(self) -> None:
        self._calls.abandon()
        if self._vigil is not None:
            self._vigil.abandon()
        self._start()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


class AsyncEtcdLink(_Link):
    """Calls from any task of one event loop; signals through tasks of it."""

    def _start(self) -> None:
        super()._start()
        self._calls = AsyncCalls(self._members)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        until = time.monotonic() + timeout_s
        talk = request.body(self)
        try:
            requests = next(talk)
            while True:
                try:
                    replies = await self._calls.exchange(requests, until)
                except HoldfastError as error:
                    replies = [error] * len(requests)
                requests = talk.send(replies)
        except StopIteration as done:
            return request.parse(done.value)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        until = time.monotonic() + timeout_s
        outcomes: list[T | Exception] = []
        for some in in_rounds(requests):
            talks = Talks(request.body(self) for request in some)
            while asked := talks.asked:
                try:
                    replies = await self._calls.exchange(asked, until)
                except HoldfastError as error:
                    replies = [error] * len(asked)
                talks.hear(replies)
            outcomes += talks.outcomes
        return outcomes

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        if self._closed:
            raise Misuse("this client is closed")
        if self._vigil is not None:
            self._vigil.deliver = deliver
            return False
        loop = asyncio.get_running_loop()
        self._vigil = Vigil(self.desk, self._calls, loop, deliver)
        self.turnstiles.vigil = self._vigil
        return True

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._vigil is None:
            raise Misuse("watch() needs listen() first")
        await self._vigil.watch(turnstile, timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        if self._vigil is not None:
            self._vigil.unwatch(turnstile)

    async def close(self) -> None:
        self._closed = True
        vigil, self._vigil, self.turnstiles.vigil = self._vigil, None, None
        if vigil is not None:
            await vigil.close()
        else:
            await self._calls.close()

    def abandon(self) -> None:
        self._calls.abandon()
        if self._vigil is not None:
            self._vigil.abandon()
        self._start()
