"""A Redis server as one process's threads use it, and as one asyncio event loop does."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Turnstile
from ..room import Room
from .pipes import Pipe, Wire, dial
from .signals import AsyncEar, Ear
from .wire import (
    CHANNELS,
    Refusal,
    Target,
    Wait,
    first_try,
    is_unknown_script,
    pack,
    refused,
    to_repeat,
    with_texts,
)

T = TypeVar("T")

IDLE_S = 1.0
"""A connection that rested longer is looked at before it is used: the server may have closed it."""

MAX_WIRES = 64
"""Connections for calls of one process to one server: calls are short. More threads take turns, but no renewal does."""


class RedisLink:
    """Calls from any thread; signals through one thread of its own."""

    lifeline = None

    def __init__(self, server: Target, channel_of: Callable[[Turnstile], bytes]) -> None:
        self._server = server
        self._channel_of = channel_of
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self._idle: deque[Wire] = deque()
        self._wires: set[Wire] = set()
        self._room = Room(MAX_WIRES, self._idle, self._wires, f"Redis at {self._server.where}")
        self._ear: Ear | None = None
        self._ear_lock = threading.Lock()
        self._closed = False

    # -- calls

    def call(self, request: Request[T], timeout_s: float) -> T:
        body = request.body
        if callable(body):
            return request.parse(self._converse(body(), timeout_s))
        wire = self._take(timeout_s)
        try:
            (reply,) = wire.exchange(first_try(body), 1, timeout_s)
            if type(reply) is Refusal and is_unknown_script(reply):
                (reply,) = wire.exchange(body.by_text(), 1, timeout_s)
        except BaseException:
            self._drop(wire)
            raise
        self._give(wire)
        return self._outcome(request, reply)

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        replies = self.replies([request.body for request in requests], timeout_s, in_turn=False)
        return [self._attempt(request, reply) for request, reply in zip(requests, replies, strict=True)]

    def replies(self, bodies: Sequence[Any], timeout_s: float, *, in_turn: bool = True) -> list[Any]:
        """The server's own words for each, all over one connection; where there are none, why."""
        try:
            wire = self._take(timeout_s, in_turn=in_turn)
        except HoldfastError as error:
            return [error] * len(bodies)
        try:
            replies = wire.exchange(b"".join(map(first_try, bodies)), len(bodies), timeout_s)
            again = to_repeat(bodies, replies)
            if again and not wire.closed:
                payload = b"".join(with_texts([bodies[i] for i in again]))
                for i, reply in zip(again, wire.exchange(payload, len(again), timeout_s), strict=True):
                    replies[i] = reply
        except BaseException:
            self._drop(wire)
            raise
        self._give(wire)
        return replies

    def _converse(self, talk: Any, timeout_s: float) -> Any:
        until = time.monotonic() + timeout_s
        try:
            requests = next(talk)
            while True:
                left_s = max(0.001, until - time.monotonic())
                replies = self.replies([request.body for request in requests], left_s)
                requests = talk.send([self._attempt(*pair) for pair in zip(requests, replies, strict=True)])
        except StopIteration as done:
            return done.value

    def _outcome(self, request: Request[T], reply: Any) -> T:
        if type(reply) is Refusal:
            if reply.text.startswith("READONLY"):
                self._forget_idle()  # the primary is elsewhere by now: look it up again
            reply = refused(reply.text)
        if isinstance(reply, Exception):
            raise reply
        return request.parse(reply)

    def _attempt(self, request: Request[Any], reply: Any) -> Any:
        try:
            return self._outcome(request, reply)
        except HoldfastError as error:
            return error

    # -- connections

    def _take(self, timeout_s: float, *, in_turn: bool = True) -> Wire:
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - wire.rested_at < IDLE_S or wire.is_fresh():
                return wire
            self._drop(wire)
        if not in_turn:
            return self._dialled(timeout_s)
        until = time.monotonic() + timeout_s
        rested = self._room.wait(timeout_s)
        if rested is not None:
            return rested
        try:
            return self._dialled(max(0.001, until - time.monotonic()))
        finally:
            self._room.dialled()

    def _dialled(self, timeout_s: float) -> Wire:
        if self._closed:
            raise Misuse("this client is closed")
        wire = self._dial(timeout_s)
        self._wires.add(wire)
        return wire

    def _dial(self, timeout_s: float) -> Wire:
        return Wire(self._server, timeout_s)

    def _give(self, wire: Wire) -> None:
        if wire.closed:  # it broke, and those that rested meanwhile may be as dead: a retry takes a new one
            self._forget_idle()
            self._drop(wire)
        elif self._closed or len(self._wires) > MAX_WIRES:
            self._drop(wire)
        else:
            wire.rested_at = time.monotonic()
            self._idle.append(wire)
            if self._room.queue:
                self._room.serve()

    def _drop(self, wire: Wire) -> None:
        self._wires.discard(wire)
        wire.close()
        if self._room.queue:
            self._room.serve()

    def _forget_idle(self) -> None:
        while self._idle:
            try:
                self._drop(self._idle.pop())
            except IndexError:
                return

    # -- signals

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        until = time.monotonic() + timeout_s
        if not self._ear_lock.acquire(timeout=timeout_s):  # another thread is still connecting
            raise Unavailable(f"no signals from Redis at {self._server.where} within {timeout_s:.1f} s")
        try:
            if self._closed:
                raise Misuse("this client is closed")
            if self._ear is not None:
                self._ear.deliver, self._ear.look_again = deliver, look_again
                return False
            channels = {f"{CHANNELS}{self.inbox}".encode(): ""}
            ear = Ear(self._dial, self._server.where, channels, self._wake, deliver, look_again)
            ear.connect(max(0.001, until - time.monotonic()))
            self._ear = ear
            threading.Thread(target=ear.run, name="holdfast-redis-signals", daemon=True).start()
            return True
        finally:
            self._ear_lock.release()

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._ear is None:
            raise Misuse("watch() needs listen() first")
        self._ear.add(self._channel_of(turnstile), turnstile.address, timeout_s)

    def unwatch(self, turnstile: Turnstile) -> None:
        if self._ear is not None:
            self._ear.remove(self._channel_of(turnstile))

    def _wake(self, timeout_s: float) -> None:
        self.call(Request("wake", pack("PUBLISH", f"{CHANNELS}{self.inbox}", ""), bool), timeout_s)

    # -- ends

    def close(self) -> None:
        self._closed = True
        self._forget_idle()
        with self._ear_lock:
            if self._ear is not None:
                self._ear.close()
                self._ear = None

    def abandon(self) -> None:
        """Close the child's copies of the sockets. That says nothing to the server: the parent's stay open."""
        inherited = [*self._wires]
        if self._ear is not None and self._ear.wire is not None:
            inherited.append(self._ear.wire)
        for wire in inherited:
            wire.close()
        self._start()


class AsyncRedisLink:
    """Calls from any task of one event loop; signals through one task."""

    lifeline = None

    def __init__(self, server: Target, channel_of: Callable[[Turnstile], bytes]) -> None:
        self._server = server
        self._channel_of = channel_of
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self._pipe: Pipe | None = None
        self._dialling: asyncio.Task[Pipe] | None = None
        self._aside: AsyncRedisLink | None = None  # where a WAIT holds up nobody else
        self._ear: AsyncEar | None = None
        self._ear_lock = asyncio.Lock()
        self._closed = False

    # -- calls

    async def call(self, request: Request[T], timeout_s: float) -> T:
        body = request.body
        if callable(body):
            return request.parse(await self._converse(body(), timeout_s))
        pipe = self._pipe
        if pipe is None or pipe.closed:
            pipe = await self._connected(timeout_s)
        reply = await pipe.ask(first_try(body), timeout_s)
        if is_unknown_script(reply):
            reply = await pipe.ask(body.by_text(), timeout_s)
        return self._outcome(request, reply)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        replies = await self.replies([request.body for request in requests], timeout_s) if requests else []
        return [self._attempt(request, reply) for request, reply in zip(requests, replies, strict=True)]

    async def replies(self, bodies: Sequence[Any], timeout_s: float) -> list[Any]:
        """The server's own words for each, all over one connection; where there are none, why."""
        if not any(type(body) is Wait for body in bodies):
            return await self._exchange(bodies, timeout_s)
        if self._aside is None:
            self._aside = self._another()
        return await self._aside._exchange(bodies, timeout_s)

    def _another(self) -> AsyncRedisLink:
        return AsyncRedisLink(self._server, self._channel_of)

    async def _exchange(self, bodies: Sequence[Any], timeout_s: float) -> list[Any]:
        try:
            pipe = await self._connected(timeout_s)
        except HoldfastError as error:
            return [error] * len(bodies)
        replies = await pipe.exchange(b"".join(map(first_try, bodies)), len(bodies), timeout_s)
        again = to_repeat(bodies, replies)
        if again:
            payload = b"".join(with_texts([bodies[i] for i in again]))
            for i, reply in zip(again, await pipe.exchange(payload, len(again), timeout_s), strict=True):
                replies[i] = reply
        return replies

    async def _converse(self, talk: Any, timeout_s: float) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        try:
            requests = next(talk)
            while True:
                requests = talk.send(await self.call_many(requests, max(0.001, until - loop.time())))
        except StopIteration as done:
            return done.value

    def _outcome(self, request: Request[T], reply: Any) -> T:
        if type(reply) is Refusal:
            if reply.text.startswith("READONLY"):
                self._forget()  # the primary is elsewhere by now: look it up again
            reply = refused(reply.text)
        if isinstance(reply, Exception):
            raise reply
        return request.parse(reply)

    def _attempt(self, request: Request[Any], reply: Any) -> Any:
        try:
            return self._outcome(request, reply)
        except HoldfastError as error:
            return error

    def _forget(self) -> None:
        for link in (self, self._aside):
            if link is not None and link._pipe is not None:
                link._pipe.close()

    async def _connected(self, timeout_s: float) -> Pipe:
        """The connection; where it is being made, all wait for the same one."""
        if self._pipe is not None and not self._pipe.closed:
            return self._pipe
        return await self._new_pipe(timeout_s)

    async def _new_pipe(self, timeout_s: float) -> Pipe:
        if self._closed:
            raise Misuse("this client is closed")
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._connect(timeout_s), name="holdfast-redis-connect")
            self._dialling.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen by nobody else
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._dialling)
        except TimeoutError:
            raise Unavailable(f"no connection to Redis at {self._server.where} within {timeout_s:.1f} s") from None

    async def _connect(self, timeout_s: float) -> Pipe:
        try:
            self._pipe = await self._dial(timeout_s)
            return self._pipe
        finally:
            self._dialling = None

    async def _dial(self, timeout_s: float) -> Pipe:
        return await dial(self._server, timeout_s)

    # -- signals

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        try:
            async with asyncio.timeout(timeout_s), self._ear_lock:
                if self._closed:
                    raise Misuse("this client is closed")
                if self._ear is not None:
                    self._ear.deliver, self._ear.look_again = deliver, look_again
                    return False
                channels = {f"{CHANNELS}{self.inbox}".encode(): ""}
                ear = AsyncEar(self._dial, self._server.where, channels, deliver, look_again)
                await ear.connect(timeout_s)
                ear.task = asyncio.create_task(ear.run(), name="holdfast-redis-signals")
                self._ear = ear
                return True
        except TimeoutError:
            raise Unavailable(f"no signals from Redis at {self._server.where} within {timeout_s:.1f} s") from None

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._ear is None:
            raise Misuse("watch() needs listen() first")
        await self._ear.add(self._channel_of(turnstile), turnstile.address, timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        if self._ear is not None:
            self._ear.remove(self._channel_of(turnstile))

    # -- ends

    async def close(self) -> None:
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._ear is not None:
            await self._ear.close()
            self._ear = None
        if self._aside is not None:
            await self._aside.close()
        if self._pipe is not None:
            self._pipe.close()
            await self._pipe.lost

    def abandon(self) -> None:
        """Forget the inherited connections; the parent's go on undisturbed."""
        for pipe in (self._pipe, self._ear.pipe if self._ear is not None else None):
            if pipe is not None and not pipe.closed:
                pipe.abandon()
        if self._aside is not None:
            self._aside.abandon()
        self._start()
