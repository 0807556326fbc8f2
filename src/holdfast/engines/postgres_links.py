"""A PostgreSQL as one process's threads use it, and as one asyncio event loop does."""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..contract import LISTEN_S, Deliver, Request
from ..errors import HoldfastError, Misuse, Unavailable
from ..model import Turnstile
from . import postgres_errors as errors
from .postgres_pipe import Pipe
from .postgres_schema import NOTIFY, rows_of
from .postgres_signals import Listening
from .postgres_target import Postgres
from .postgres_wire import ERROR, SQLSTATE, Call, Wire, abandon

T = TypeVar("T")

IDLE_S = 1.0
"""A connection that rested longer is looked at before it is used: the server may have closed it."""

MAX_WIRES = 8
"""Connections for calls of one process: a server has a hundred, and calls are short. More threads take turns."""

AGAIN = 5
"""How often a call that the server rolled back in favour of another is sent at once; after that, patience counts."""


class Calls:
    """What both kinds of link make of replies."""

    def __init__(self, target: Postgres) -> None:
        self.target = target
        self.wraps = False
        """Each call brings its own BEGIN: a pooler's sessions are not ours, so their default isolation stays."""

    def outcome(self, request: Request[T], reply: Any, wire: Wire | None) -> T:
        if isinstance(reply, Exception):
            raise reply
        if reply.status == ERROR:
            assert wire is not None
            raise wire.refused(reply)
        if request.body[0].rows:
            return request.parse(rows_of(reply))
        return request.parse(reply.get_value(0, 0))

    def attempt(self, request: Request[Any], reply: Any, wire: Wire | None) -> Any:
        try:
            return self.outcome(request, reply, wire)
        except HoldfastError as error:
            return error

    def is_to_be_resent(self, reply: Any) -> bool:
        if isinstance(reply, Exception) or reply.status != ERROR:
            return False
        state = (reply.error_field(SQLSTATE) or b"").decode()
        if state == errors.WRONG_ISOLATION and not self.wraps:
            self.wraps = True
            return True
        return state in errors.RETRIED


class PostgresLink:
    """Calls from any thread; signals through one thread of its own."""

    lifeline = None

    def __init__(self, target: Postgres, channel_of: Callable[[Turnstile], str]) -> None:
        self._target = target
        self._channel_of = channel_of
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self._calls = Calls(self._target)
        self._idle: deque[Wire] = deque()
        self._wires: set[Wire] = set()
        self._room = threading.Semaphore(MAX_WIRES)
        self._listening = Listening(self._target, self.inbox, self._knock)
        self._closed = False

    # -- calls

    def call(self, request: Request[T], timeout_s: float) -> T:
        until = time.monotonic() + timeout_s
        if self._target.ends_with_connection and request.op == "enter":
            self._listening.tie(timeout_s)
        for number in range(AGAIN):
            with _Turn(self, until) as wire:
                (reply,) = wire.exchange([request.body], max(0.001, until - time.monotonic()), self._calls.wraps)
                if number < AGAIN - 1 and self._calls.is_to_be_resent(reply):
                    continue
                outcome = self._calls.outcome(request, reply, wire)
            self._listening.note(request, outcome)
            return outcome
        raise AssertionError("unreachable")

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        until = time.monotonic() + timeout_s
        calls: list[Call] = [request.body for request in requests]
        try:
            with _Turn(self, until) as wire:
                replies = wire.exchange(calls, max(0.001, until - time.monotonic()), self._calls.wraps)
                again = [number for number, reply in enumerate(replies) if self._calls.is_to_be_resent(reply)]
                if again and not wire.closed:
                    left_s = max(0.001, until - time.monotonic())
                    resent = wire.exchange([calls[number] for number in again], left_s, self._calls.wraps)
                    for number, reply in zip(again, resent, strict=True):
                        replies[number] = reply
                return [self._calls.attempt(*pair, wire) for pair in zip(requests, replies, strict=True)]
        except HoldfastError as error:
            return [error] * len(requests)

    # -- connections

    def take(self, until: float) -> Wire:
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - wire.rested_at < IDLE_S or wire.is_fresh():
                return wire
            self.drop(wire)
        if self._closed:
            raise Misuse("this client is closed")
        wire = connected(self._target, until)
        self._wires.add(wire)
        return wire

    def give(self, wire: Wire) -> None:
        if wire.closed:  # it broke, and those that rested meanwhile may be as dead: a retry takes a new one
            self._forget_idle()
        if wire.closed or self._closed:
            self.drop(wire)
        else:
            wire.rested_at = time.monotonic()
            self._idle.append(wire)

    def drop(self, wire: Wire) -> None:
        self._wires.discard(wire)
        wire.close()

    def _forget_idle(self) -> None:
        while self._idle:
            try:
                self.drop(self._idle.pop())
            except IndexError:
                return

    # -- signals

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        if self._closed:
            raise Misuse("this client is closed")
        return self._listening.begin(deliver, look_again, timeout_s)

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        self._listening.watch(self._channel_of(turnstile), turnstile.address, timeout_s)

    def unwatch(self, turnstile: Turnstile) -> None:
        self._listening.unwatch(self._channel_of(turnstile))

    def _knock(self, channel: str | None, timeout_s: float) -> bool:
        """Signal ourselves on a channel, if there is one to be tried; whether calls lead through a pooler."""
        until = time.monotonic() + timeout_s
        with _Turn(self, until) as wire:
            if channel is not None:
                call: Call = (NOTIFY, (channel.encode(), b""))
                (reply,) = wire.exchange([call], max(0.001, until - time.monotonic()), self._calls.wraps)
                if isinstance(reply, Exception):
                    raise reply
            return wire.pooled

    # -- ends

    def close(self) -> None:
        self._closed = True
        self._forget_idle()
        self._listening.close()

    def abandon(self) -> None:
        """Let go of the child's copies of the sockets. That says nothing to the server: the parent's stay open."""
        for wire in [*self._wires]:
            if not wire.closed:
                abandon(wire)
        self._listening.abandon()
        self._start()

    @property
    def room(self) -> threading.Semaphore:
        return self._room


class _Turn:
    """A connection for one thread; whatever leaves by an exception that is not an engine's answer breaks it."""

    __slots__ = ("link", "room", "until", "wire")

    def __init__(self, link: PostgresLink, until: float) -> None:
        self.link, self.until = link, until
        self.room = link.room
        self.wire: Wire | None = None

    def __enter__(self) -> Wire:
        if not self.room.acquire(timeout=max(0.0, self.until - time.monotonic())):
            raise Unavailable(f"all {MAX_WIRES} connections of this process to PostgreSQL are busy")
        try:
            self.wire = self.link.take(self.until)
        except BaseException:
            self.room.release()
            raise
        return self.wire

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if self.wire is not None:
                if kind is not None and not issubclass(kind, HoldfastError):
                    self.link.drop(self.wire)
                else:
                    self.link.give(self.wire)
        finally:
            self.room.release()


def connected(target: Postgres, until: float) -> Wire:
    """A new connection for calls, from any thread."""
    if target.is_asynchronous:
        raise Misuse("this function makes connections for asyncio: give it to holdfast.aio.connect()")
    made = target.make() if target.make is not None else None
    return ready(target, until, made)


def ready(target: Postgres, until: float, made: Any = None) -> Wire:
    wire = Wire(target, max(0.05, until - time.monotonic()), made)
    try:
        wire.prepare(until)
    except BaseException:
        wire.close()
        raise
    if wire.pooled and not target.listens_elsewhere:
        target.polls = True
    return wire


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
        self._closed = False

    # -- calls

    async def call(self, request: Request[T], timeout_s: float) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        if self._target.ends_with_connection and request.op == "enter":
            await self._in_thread(self._listening.tie, timeout_s)
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
        return await self._in_thread(self._listening.begin, deliver, look_again, timeout_s)

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
