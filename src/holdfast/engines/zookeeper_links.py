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

from ..contract import LISTEN_S, Deliver, Request
from ..errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable
from ..model import Signal, Turnstile
from .zookeeper_cells import Cells
from .zookeeper_desk import Desk, Talk
from .zookeeper_target import Target
from .zookeeper_turnstile import Turnstiles
from .zookeeper_vigil import Vigil
from .zookeeper_wire import READS

T = TypeVar("T")


class Talks:
    """Several talks side by side, in rounds."""

    def __init__(self, link: Link, requests: Sequence[Request[Any]]) -> None:
        self.outcomes: list[Any] = [None] * len(requests)
        self._wrote = [False] * len(requests)
        self._talks = {i: request.body(link) for i, request in enumerate(requests)}
        self._asked: dict[int, Sequence[Any]] = {}
        self._advance(dict.fromkeys(self._talks))

    @property
    def questions(self) -> list[Any]:
        """What is asked next; nothing once all have ended."""
        return [question for asked in self._asked.values() for question in asked]

    def hear(self, replies: list[Any]) -> None:
        answers: dict[int, list[Any] | None] = {}
        at = 0
        for i, asked in self._asked.items():
            answers[i] = replies[at : at + len(asked)]
            at += len(asked)
        self._advance(answers)

    def fail(self, text: str) -> None:
        """No replies came."""
        for i in self._asked:
            self.outcomes[i] = OutcomeUnknown(text) if self._wrote[i] else Unavailable(text)
            self._talks[i].close()
        self._asked = {}

    def _advance(self, answers: dict[int, list[Any] | None]) -> None:
        self._asked = {}
        for i, answer in answers.items():
            try:
                asked = self._talks[i].send(answer)
            except StopIteration as end:
                self.outcomes[i] = end.value
            except HoldfastError as error:
                self.outcomes[i] = error
            else:
                self._asked[i] = asked
                self._wrote[i] = self._wrote[i] or any(not isinstance(one, READS) for one in asked)


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

    def _late(self, timeout_s: float) -> str:
        return f"no answer from ZooKeeper at {self.desk.target.where} within {timeout_s:.1f} s"


class BlockingZooKeeperLink(Link):
    """Calls from any thread, all over one connection."""

    def call(self, request: Request[T], timeout_s: float) -> T:
        (outcome,) = self.call_many([request], timeout_s)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        until = time.monotonic() + timeout_s
        if not self.desk.ready.is_set() and (trouble := self._wait_ready(timeout_s)):
            return [trouble] * len(requests)
        talks = Talks(self, requests)
        while questions := talks.questions:
            arrived = threading.Lock()
            arrived.acquire()
            replies: list[Any] = []

            def heard(all_of_them: list[Any], replies: list[Any] = replies, arrived: Any = arrived) -> None:
                replies.extend(all_of_them)
                arrived.release()

            sent_at = time.monotonic()
            self.desk.exchange(questions, heard)
            if arrived.acquire(timeout=max(0.001, until - sent_at)):
                talks.hear(replies)
            else:
                self.desk.silent_since(sent_at)
                talks.fail(self._late(timeout_s))
        return talks.outcomes

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
        return None if self.desk.ready.is_set() else self.desk.not_ready(timeout_s)

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
        (outcome,) = await self.call_many([request], timeout_s)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        until = self._loop.time() + timeout_s
        if not self.desk.ready.is_set() and (trouble := await self._wait_ready(timeout_s)):
            return [trouble] * len(requests)
        talks = Talks(self, requests)
        while questions := talks.questions:
            replies: asyncio.Future[list[Any]] = self._loop.create_future()
            sent_at = time.monotonic()
            self.desk.exchange(questions, functools.partial(self._on_loop, _fulfil, replies))
            try:
                async with asyncio.timeout_at(until):
                    talks.hear(await replies)
            except TimeoutError:
                self.desk.silent_since(sent_at)
                talks.fail(self._late(timeout_s))
        return talks.outcomes

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
        return None if self.desk.ready.is_set() else self.desk.not_ready(timeout_s)

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


def _fulfil(future: asyncio.Future[list[Any]], replies: list[Any]) -> None:
    if not future.done():
        future.set_result(replies)


def _same(reply: T) -> T:
    return reply
