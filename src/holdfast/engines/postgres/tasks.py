"""A PostgreSQL as one asyncio event loop uses it."""

from __future__ import annotations

import asyncio
import functools
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Turnstile
from .links import AGAIN, Calls, connected, ready
from .pipe import Pipe
from .schema import NOTIFY
from .signals import Listening
from .target import Postgres
from .wire import Call, abandon

T = TypeVar("T")


class AsyncPostgresLink:
    """Calls from any task of one event loop, pipelined over one connection; signals through one thread."""

    lifeline = None

    def __init__(self, target: Postgres, channel_of: Callable[[Turnstile], str]) -> None:
        self._target = target
        self._channel_of = channel_of
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self._calls = Calls(self._target)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pipe: Pipe | None = None
        self._dialling: asyncio.Task[Pipe] | None = None
        self._listening = Listening(self._target, self.inbox, self._knock)
        self._beginning = asyncio.Lock()  # many who begin at once must not take all threads, of which one connects
        self._closed = False

    # -- calls

    async def call(self, request: Request[T], timeout_s: float) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        if self._target.ends_with_connection and request.op == "enter" and not self._listening.is_up:
            await self._one_by_one(self._listening.tie, timeout_s)
        for number in range(AGAIN):
            pipe = self._pipe
            if pipe is None or pipe.closed:
                pipe = await self._connected(until - loop.time())
            (reply,) = await pipe.exchange([request.body], max(0.001, until - loop.time()), self._calls.wraps)
            if number < AGAIN - 1 and self._calls.is_to_be_resent(reply):
                await asyncio.sleep(random.uniform(0, 0.002))
                continue
            outcome = self._calls.outcome(request, reply, pipe.wire)
            self._listening.note(request, outcome)
            return outcome
        raise AssertionError("unreachable")

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        until = asyncio.get_running_loop().time() + timeout_s
        try:
            pipe = await self._connected(timeout_s)
        except HoldfastError as error:
            return [error] * len(requests)
        calls: list[Call] = [request.body for request in requests]
        replies = await pipe.exchange(calls, timeout_s, self._calls.wraps)
        again = [number for number, reply in enumerate(replies) if self._calls.is_to_be_resent(reply)]
        if again and not pipe.closed:
            left_s = max(0.001, until - asyncio.get_running_loop().time())
            resent = await pipe.exchange([calls[number] for number in again], left_s, self._calls.wraps)
            for number, reply in zip(again, resent, strict=True):
                replies[number] = reply
        return [self._calls.attempt(*pair, pipe.wire) for pair in zip(requests, replies, strict=True)]

    async def _connected(self, timeout_s: float) -> Pipe:
        """The connection; where it is being made, all wait for the same one."""
        if self._pipe is not None and not self._pipe.closed:
            return self._pipe
        if self._closed:
            raise Misuse("this client is closed")
        self._loop = asyncio.get_running_loop()
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._dial(timeout_s), name="holdfast-postgres-connect")
            self._dialling.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen by nobody else
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._dialling)
        except TimeoutError:
            raise Unavailable(f"no connection to PostgreSQL at {self._target.where} in {timeout_s:.1f} s") from None

    async def _dial(self, timeout_s: float) -> Pipe:
        try:
            until = time.monotonic() + timeout_s
            made = None
            if self._target.is_asynchronous:
                assert self._target.make is not None
                made = await self._target.make()
            wire = await self._in_thread(
                lambda: ready(self._target, until, made) if made is not None else connected(self._target, until)
            )
            self._pipe = Pipe(wire)
            return self._pipe
        finally:
            self._dialling = None

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """What takes its time and is rare. A thread that nobody waits for any more ends by its own limit."""
        return await asyncio.to_thread(work, *args)

    # -- signals

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        if self._closed:
            raise Misuse("this client is closed")
        self._loop = asyncio.get_running_loop()
        if self._listening.goes_on(deliver, look_again):
            return False
        return await self._one_by_one(functools.partial(self._listening.begin, deliver, look_again), timeout_s)

    async def _one_by_one(self, begin: Callable[[float], T], timeout_s: float) -> T:
        until = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._beginning.acquire()
        except TimeoutError:
            raise Unavailable(f"no signals from PostgreSQL at {self._target.where} in {timeout_s:.1f} s") from None
        try:
            return await self._in_thread(begin, max(0.001, until - time.monotonic()))
        finally:
            self._beginning.release()

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        channel = self._channel_of(turnstile)
        await self._in_thread(self._listening.watch, channel, turnstile.address, timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        self._listening.unwatch(self._channel_of(turnstile))

    def _knock(self, channel: str | None, timeout_s: float) -> bool:
        """As the blocking link's, from the thread of whoever begins to listen."""

        async def knock() -> bool:
            pipe = await self._connected(timeout_s)
            if channel is not None:
                (reply,) = await pipe.exchange([(NOTIFY, (channel.encode(), b""))], timeout_s, self._calls.wraps)
                if isinstance(reply, Exception):
                    raise reply
            return pipe.wire.pooled

        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(knock(), self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise Unavailable(f"PostgreSQL at {self._target.where} did not answer in time") from None

    # -- ends

    async def close(self) -> None:
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        await self._in_thread(self._listening.close)
        if self._pipe is not None:
            self._pipe.close()

    def abandon(self) -> None:
        """Forget the inherited connections; the parent's go on undisturbed."""
        if self._pipe is not None and not self._pipe.closed:
            abandon(self._pipe.wire)
        self._listening.abandon()
        self._start()
