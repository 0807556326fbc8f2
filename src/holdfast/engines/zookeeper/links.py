"""A ZooKeeper session as one process's threads use it, and as one asyncio event loop does.

Both drive the same talks: what all of them ask at a time goes out in one flush, and one wake-up brings all replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable
from ...model import Signal, Turnstile
from .. import talks
from .cells import Cells
from .desk import Desk, Talk
from .target import Target
from .turnstile import Turnstiles
from .vigil import Vigil
from .wire import READS

T = TypeVar("T")


def writes(asked: Sequence[Any]) -> bool:
    return any(type(one) not in READS for one in asked)


class Talks(talks.Talks):
    """As it is, and what may have been written by those that end without a reply."""

    def __init__(self, link: Link, requests: Sequence[Request[Any]]) -> None:
        self._wrote = [False] * len(requests)
        super().__init__(request.body(link) for request in requests)

    def fail(self, error: Callable[[bool], HoldfastError]) -> None:
        """No replies came; ``error`` takes whether something may have been written."""
        for i, _ in self._shares:
            self.outcomes[i] = error(self._wrote[i])
            self._talks[i].close()
        self.asked = []

    def _take(self, i: int, asked: Sequence[Any]) -> None:
        super()._take(i, asked)
        self._wrote[i] = self._wrote[i] or writes(asked)


class Link:
    """What both kinds share: the desk, its operations and its vigil."""

    lifeline = None

    def __init__(self, target: Target, namespace: str) -> None:
        self.desk = Desk(target, namespace)
        self.vigil = Vigil(self.desk)
        self.turnstiles = Turnstiles(self.desk, self.vigil)
        self.cells = Cells(self.desk)
        self.desk.events = self.vigil.resume

    @property
    def inbox(self) -> str:
        return self.desk.inbox

    def _listen(self, deliver: Deliver, look_again: Callable[[], None]) -> bool:
        """From now on signals flow: nothing has to be connected for that."""
        if self.desk.closed:
            raise Misuse("this client is closed")
        with self.desk.lock:
            new = self.desk.deliver is None
            self.desk.deliver, self.vigil.look_again = deliver, look_again
        if new and self.desk.ready.is_set():
            for place in self.desk.all_places():
                self.vigil.look(place)
        return new

    def _watching(self, turnstile: Turnstile) -> Request[None]:
        if self.desk.deliver is None:
            raise Misuse("watch() needs listen() first")

        def talk(link: Link) -> Talk[None]:
            self.vigil.watching((yield self.vigil.watch(turnstile)))

        return Request("watch", talk, _same)

    def abandon(self) -> None:
        self.vigil.forget()
        self.desk.abandon()
        self.desk.events = self.vigil.resume

    def _late(self, timeout_s: float, wrote: bool) -> HoldfastError:
        text = f"no answer from ZooKeeper at {self.desk.target.where} within {timeout_s:.1f} s"
        return OutcomeUnknown(text) if wrote else Unavailable(text)


class BlockingZooKeeperLink(Link):
    """Calls from any thread, all over one connection."""

    def call(self, request: Request[T], timeout_s: float) -> T:
        until = time.monotonic() + timeout_s
        if not self.desk.ready.is_set() and (trouble := self._wait_ready(timeout_s)):
            raise trouble
        talk = request.body(self)
        wrote = False
        try:
            asked = next(talk)
            while True:
                wrote = wrote or writes(asked)
                replies = self._exchange(asked, until)
                if replies is None:
                    talk.close()
                    raise self._late(timeout_s, wrote)
                asked = talk.send(replies)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        until = time.monotonic() + timeout_s
        if not self.desk.ready.is_set() and (trouble := self._wait_ready(timeout_s)):
            return [trouble] * len(requests)
        side = Talks(self, requests)
        while asked := side.asked:
            replies = self._exchange(asked, until)
            if replies is None:
                side.fail(functools.partial(self._late, timeout_s))
            else:
                side.hear(replies)
        return side.outcomes

    def _exchange(self, asked: Sequence[Any], until: float) -> list[Any] | None:
        """None where the replies do not come in time."""
        arrived = threading.Lock()
        arrived.acquire()
        heard: list[list[Any]] = []

        def done(replies: list[Any]) -> None:
            heard.append(replies)
            arrived.release()

        self.desk.exchange(asked, done)
        if arrived.acquire(timeout=max(0.001, until - time.monotonic())):
            return heard[0]
        self.desk.late()
        return None

    def _wait_ready(self, timeout_s: float) -> HoldfastError | None:
        known = threading.Event()
        try:
            self.desk.connect(known.set)
        except Misuse as error:
            return error
        try:
            known.wait(timeout_s)
        finally:
            self.desk.forget_waiter(known.set)
        if self.desk.ready.is_set():
            return None
        self.desk.late()
        return self.desk.not_ready(timeout_s)

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        return self._listen(deliver, look_again)

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        self.call(self._watching(turnstile), timeout_s)

    def unwatch(self, turnstile: Turnstile) -> None:
        self.vigil.unwatch(turnstile)

    def close(self) -> None:
        self.desk.close()


class AsyncZooKeeperLink(Link):
    """Calls from any task of one event loop. kazoo's thread hands the replies over."""

    def __init__(self, target: Target, namespace: str) -> None:
        super().__init__(target, namespace)
        self._loop = asyncio.get_running_loop()

    def _on_loop(self, callback: Callable[..., Any], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        until = self._loop.time() + timeout_s
        if not self.desk.ready.is_set() and (trouble := await self._wait_ready(timeout_s)):
            raise trouble
        talk = request.body(self)
        wrote = False
        try:
            asked = next(talk)
            while True:
                wrote = wrote or writes(asked)
                replies = await self._exchange(asked, until)
                if replies is None:
                    talk.close()
                    raise self._late(timeout_s, wrote)
                asked = talk.send(replies)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        until = self._loop.time() + timeout_s
        if not self.desk.ready.is_set() and (trouble := await self._wait_ready(timeout_s)):
            return [trouble] * len(requests)
        side = Talks(self, requests)
        while asked := side.asked:
            replies = await self._exchange(asked, until)
            if replies is None:
                side.fail(functools.partial(self._late, timeout_s))
            else:
                side.hear(replies)
        return side.outcomes

    async def _exchange(self, asked: Sequence[Any], until: float) -> list[Any] | None:
        """None where the replies do not come in time."""
        heard: asyncio.Future[list[Any] | None] = self._loop.create_future()
        self.desk.exchange(asked, functools.partial(self._on_loop, _fulfil, heard))
        timer = self._loop.call_at(until, _fulfil, heard, None)
        try:
            replies = await heard
        finally:
            timer.cancel()
        if replies is None:
            self.desk.late()
        return replies

    async def _wait_ready(self, timeout_s: float) -> HoldfastError | None:
        known = asyncio.Event()

        def answered() -> None:
            self._on_loop(known.set)

        try:
            self.desk.connect(answered)
        except Misuse as error:
            return error
        try:
            async with asyncio.timeout(timeout_s):
                await known.wait()
        except TimeoutError:
            pass
        finally:
            self.desk.forget_waiter(answered)
        if self.desk.ready.is_set():
            return None
        self.desk.late()
        return self.desk.not_ready(timeout_s)

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        def on_loop(signal: Signal) -> None:
            self._on_loop(deliver, signal)

        return self._listen(on_loop, lambda: self._on_loop(look_again))

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        await self.call(self._watching(turnstile), timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        self.vigil.unwatch(turnstile)

    async def close(self) -> None:
        await asyncio.to_thread(self.desk.close)


def _fulfil(future: asyncio.Future[list[Any] | None], replies: list[Any] | None) -> None:
    if not future.done():
        future.set_result(replies)


def _same(reply: T) -> T:
    return reply
