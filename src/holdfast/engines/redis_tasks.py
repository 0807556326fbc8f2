"""A Redis server as one asyncio event loop uses it: all calls share one connection, signals have another.

Calls of many tasks are pipelined: each sends at once and waits for its own reply. A task that is cancelled in the
middle leaves its reply to be read and forgotten, so the connection and everybody else's calls go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from ..contract import Deliver, Request
from ..errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable
from ..model import Turnstile
from .redis_threads import PING_S
from .redis_wire import (
    CHANNELS,
    CONNECT_S,
    Incomplete,
    Refusal,
    Target,
    all_of,
    answered,
    decode,
    first_try,
    is_unknown_script,
    not_connected,
    pack,
    signal_of,
    with_texts,
)

T = TypeVar("T")

log = logging.getLogger("holdfast.redis")


class Pipe(asyncio.Protocol):
    """One connection: hands each reply to ``heard``, or where there is none to the oldest call that waits for one."""

    def __init__(self, connection: Any, where: str, heard: Callable[[Any], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection  # the library's: it would close the socket if it were collected
        self._former: asyncio.BaseProtocol
        self._data = b""
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self.heard = heard or self._answer
        self.where = where
        self.heard_at = self._loop.time()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.transport = cast(asyncio.Transport, connection._writer.transport)
        self._former = self.transport.get_protocol()
        self.transport.set_protocol(self)
        if self.transport.is_closing():
            self.connection_lost(None)

    @property
    def closed(self) -> bool:
        return self.lost.done() or self.transport.is_closing()

    # -- what the event loop calls

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        if self._data:
            data = self._data + data
        at = 0
        try:
            while at < len(data):
                reply, at = decode(data, at)
                self.heard(reply)
        except Incomplete:
            pass
        except HoldfastError as trouble:
            self.fail(trouble)
        self._data = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._former.connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)
        why = OutcomeUnknown(f"Redis at {self.where} may or may not have done it: {exc or 'it closed the connection'}")
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(why)

    def _answer(self, reply: Any) -> None:
        if self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(reply)

    # -- what links call

    def send(self, payload: bytes, count: int) -> list[asyncio.Future[Any]]:
        futures = [self._loop.create_future() for _ in range(count)]
        self._waiting.extend(futures)
        self.transport.write(payload)
        return futures

    async def exchange(self, payload: bytes, count: int, timeout_s: float) -> list[Any]:
        """Send, and wait for ``count`` replies. Those that do not come are `OutcomeUnknown`."""
        futures = self.send(payload, count)
        timer = self._loop.call_later(timeout_s, self._expire, futures, self._loop.time(), timeout_s)
        try:
            return [await outcome_of(future) for future in futures]
        finally:
            timer.cancel()

    def _expire(self, futures: Sequence[asyncio.Future[Any]], since: float, timeout_s: float) -> None:
        why = OutcomeUnknown(f"Redis at {self.where} may or may not have done it: no reply within {timeout_s:.1f} s")
        for future in futures:
            if not future.done():
                future.set_exception(why)
        if self.heard_at <= since:  # not one byte for anyone: the connection may be half open
            self.fail(why)

    def fail(self, error: Exception) -> None:
        """Give this connection up; every call that waits on it has an unknown outcome."""
        log.info("a connection to Redis at %s is given up: %s", self.where, error)
        self.transport.abort()

    def close(self) -> None:
        self.transport.close()
        self._connection._reader = self._connection._writer = None

    def abandon(self) -> None:
        """Let go of the child's copy of the socket, without a word to the loop or to the selector, which are shared."""
        sock = self.transport.get_extra_info("socket")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, sock.fileno(), inheritable=False)
        os.close(null)
        _abandoned.append(self)


_abandoned: list[Pipe] = []
"""Kept, so that no destructor in a forked child reaches for the parent's event loop."""


async def outcome_of(future: asyncio.Future[Any]) -> Any:
    try:
        return await future
    except OutcomeUnknown as error:
        return error


async def dial(server: Target, timeout_s: float, heard: Callable[[Any], None] | None = None) -> Pipe:
    """A new connection."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    connection = server.connection(timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect()
    except (Exception, asyncio.CancelledError) as error:
        connection._close()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise not_connected(error, server.where, loop.time() - started) from error
    return Pipe(connection, server.where, heard)


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
        (reply,) = await pipe.exchange(first_try(body), 1, timeout_s)
        if is_unknown_script(reply):
            (reply,) = await pipe.exchange(body.by_text(), 1, timeout_s)
        return self._outcome(request, reply)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        try:
            pipe = await self._connected(timeout_s)
        except HoldfastError as error:
            return [error] * len(requests)
        payload = b"".join(first_try(request.body) for request in requests)
        replies = await pipe.exchange(payload, len(requests), timeout_s)
        again = [i for i, reply in enumerate(replies) if is_unknown_script(reply)]
        if again:
            payload = b"".join(with_texts([requests[i].body for i in again]))
            for i, reply in zip(again, await pipe.exchange(payload, len(again), timeout_s), strict=True):
                replies[i] = reply
        return [self._attempt(request, reply) for request, reply in zip(requests, replies, strict=True)]

    async def _converse(self, talk: Any, timeout_s: float) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        try:
            requests = next(talk)
            while True:
                replies = await self.call_many(requests, max(0.001, until - loop.time()))
                requests = talk.send(all_of(replies))
        except StopIteration as done:
            return done.value

    def _outcome(self, request: Request[T], reply: Any) -> T:
        if type(reply) is Refusal and reply.text.startswith("READONLY") and self._pipe is not None:
            self._pipe.close()  # the primary is elsewhere by now: look it up again
        reply = answered(reply)
        if isinstance(reply, Exception):
            raise reply
        return request.parse(reply)

    def _attempt(self, request: Request[T], reply: Any) -> T | Exception:
        try:
            return self._outcome(request, reply)
        except HoldfastError as error:
            return error

    async def _connected(self, timeout_s: float) -> Pipe:
        """The connection; where it is being made, all wait for the same one."""
        if self._pipe is not None and not self._pipe.closed:
            return self._pipe
        if self._closed:
            raise Misuse("this client is closed")
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._dial(timeout_s), name="holdfast-redis-connect")
            self._dialling.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen by nobody else
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._dialling)
        except TimeoutError:
            raise Unavailable(f"no connection to Redis at {self._server.where} within {timeout_s:.1f} s") from None

    async def _dial(self, timeout_s: float) -> Pipe:
        try:
            self._pipe = await dial(self._server, timeout_s)
            return self._pipe
        finally:
            self._dialling = None

    # -- signals

    async def listen(self, deliver: Deliver, look_again: Callable[[], None]) -> bool:
        async with self._ear_lock:
            if self._closed:
                raise Misuse("this client is closed")
            if self._ear is not None:
                self._ear.deliver, self._ear.look_again = deliver, look_again
                return False
            ear = AsyncEar(self._server, f"{CHANNELS}{self.inbox}".encode(), deliver, look_again)
            await ear.connect()
            ear.task = asyncio.create_task(ear.run(), name="holdfast-redis-signals")
            self._ear = ear
            return True

    async def watch(self, turnstile: Turnstile) -> None:
        if self._ear is None:
            raise Misuse("watch() needs listen() first")
        await self._ear.add(self._channel_of(turnstile), turnstile.address)

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
        if self._pipe is not None:
            self._pipe.close()
            await self._pipe.lost

    def abandon(self) -> None:
        """Forget the inherited connections; the parent's go on undisturbed."""
        for pipe in (self._pipe, self._ear and self._ear.pipe):
            if pipe is not None and not pipe.closed:
                pipe.abandon()
        self._start()


class AsyncEar:
    """The connection for signals: subscribed, watched for silence, and connected again whenever it breaks."""

    def __init__(self, server: Target, inbox: bytes, deliver: Deliver, look_again: Callable[[], None]) -> None:
        self.deliver = deliver
        self.look_again = look_again
        self.pipe: Pipe | None = None
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._inbox = inbox
        self._channels: dict[bytes, str] = {inbox: ""}
        self._confirmed: dict[bytes, asyncio.Event] = {}
        self._refusal: Exception | None = None

    async def connect(self) -> None:
        """Connect and subscribe to everything. Returns once the server has confirmed it."""
        pipe = await dial(self._server, CONNECT_S)
        try:
            # a subscribed connection may not publish, and a script's publish fails in silence: ask before
            all_of(list(map(answered, await pipe.exchange(pack("PUBLISH", self._inbox, ""), 1, CONNECT_S))))
            pipe.heard = self._hear
            self.pipe, self._refusal = pipe, None
            for channel in self._channels:
                self._confirmed.setdefault(channel, asyncio.Event()).clear()
            pipe.transport.write(pack("SUBSCRIBE", *self._channels))
            everything = asyncio.gather(*(event.wait() for event in self._confirmed.values()))
            try:
                await asyncio.wait({everything, pipe.lost}, timeout=CONNECT_S, return_when="FIRST_COMPLETED")
                if not everything.done():
                    raise self._refusal or Unavailable(f"Redis at {pipe.where} confirmed no subscription")
            finally:
                everything.cancel()
        except BaseException:
            pipe.close()
            raise

    async def run(self) -> None:
        """The task: until cancelled."""
        pause_s = 0.02
        while True:
            await self._watch_over()
            while True:
                try:
                    await self.connect()
                    pause_s = 0.02
                    self.look_again()
                    break
                except HoldfastError as trouble:
                    log.debug("signals are not connected yet: %s", trouble)
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1))
                    pause_s = min(2.0, pause_s * 2)

    async def _watch_over(self) -> None:
        """Until the connection is lost, or says nothing for `PING_S` after it was asked."""
        assert self.pipe is not None
        pipe, loop = self.pipe, asyncio.get_running_loop()
        asked_at = 0.0
        while not pipe.closed:
            await asyncio.wait({pipe.lost}, timeout=PING_S)
            silent_since = pipe.heard_at
            if asked_at > silent_since:
                pipe.fail(Unavailable("silent"))
                break
            if loop.time() - silent_since >= PING_S and not pipe.closed:
                asked_at = loop.time()
                pipe.transport.write(pack("PING"))
        pipe.close()

    def _hear(self, reply: Any) -> None:
        if type(reply) is Refusal:
            self._refusal = answered(reply)
            raise answered(reply)
        if reply[0] == b"message":
            if signal := signal_of(reply[2], self._channels.get(reply[1])):
                self.deliver(signal)
        elif reply[0] == b"subscribe" and reply[1] in self._confirmed:
            self._confirmed[reply[1]].set()

    async def add(self, channel: bytes, address: str) -> None:
        """Subscribe to one more. Returns once the server has confirmed it; raises `Unavailable` if it does not."""
        self._channels[channel] = address
        confirmed = self._confirmed.setdefault(channel, asyncio.Event())
        if self.pipe is not None and not confirmed.is_set():
            self.pipe.transport.write(pack("SUBSCRIBE", channel))
        try:
            async with asyncio.timeout(CONNECT_S):
                await confirmed.wait()
        except TimeoutError:
            self.remove(channel)
            raise Unavailable(f"Redis at {self._server.where} did not confirm that it signals {address}") from None

    def remove(self, channel: bytes) -> None:
        self._confirmed.pop(channel, None)
        if self._channels.pop(channel, None) is not None and self.pipe is not None:
            self.pipe.transport.write(pack("UNSUBSCRIBE", channel))

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})
        if self.pipe is not None:
            self.pipe.close()
            await self.pipe.lost
