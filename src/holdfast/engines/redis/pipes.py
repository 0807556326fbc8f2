"""Connections to a Redis server: one that a thread uses alone, and one that all tasks of an event loop share.

The shared one is pipelined: each task sends at once and waits for its own reply. A task that is cancelled in the
middle leaves its reply to be read and forgotten, so the connection and everybody else's calls go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from ...errors import HoldfastError, OutcomeUnknown, Unavailable
from ...model import NEVER_S
from .wire import Replies, Target, not_connected

log = logging.getLogger("holdfast.redis")


class Wire:
    """One connection, used by one thread at a time."""

    def __init__(self, server: Target, timeout_s: float) -> None:
        started = time.monotonic()
        connection: Any = server.connection(timeout_s)
        try:
            connection.connect()
        except Exception as error:
            raise not_connected(error, server.where, time.monotonic() - started) from error
        self.sock: Any = connection._sock
        connection._sock = None  # from here on it is ours alone, and so is its end
        self.where = server.where
        self.limit_s = -1.0
        self.rested_at = 0.0
        self.closed = False
        self._replies = Replies()

    def is_fresh(self) -> bool:
        """Nothing came while it rested: neither the end of the connection nor what does not belong to a call."""
        self.limit_s = -1.0
        try:
            self.sock.settimeout(0)
            self.sock.recv(1)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError as error:  # TLS has a class of its own for 'nothing there yet'
            return type(error).__name__ == "SSLWantReadError"
        return False

    def exchange(self, payload: bytes, count: int, timeout_s: float) -> list[Any]:
        """Send, and read ``count`` replies. Where fewer come before it fails, the rest are `OutcomeUnknown`."""
        if not timeout_s / 2 < self.limit_s <= timeout_s * 1.05:  # a new limit costs a system call
            self.limit_s = timeout_s
            self.sock.settimeout(timeout_s)
        replies: list[Any] = []
        try:
            self.sock.sendall(payload)
            replies += self._replies.feed(self.sock.recv(65536))
            if len(replies) < count:
                self._read_on(replies, count, timeout_s)
        except (OSError, OutcomeUnknown) as error:
            self.close()
            why = f"no reply within {timeout_s:.1f} s" if isinstance(error, TimeoutError) else str(error)
            lost = OutcomeUnknown(f"Redis at {self.where} may or may not have done it: {why}")
            replies += [lost] * (count - len(replies))
        return replies

    def _read_on(self, replies: list[Any], count: int, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        self.limit_s = -1.0
        while len(replies) < count:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.sock.settimeout(left_s)
            data = self.sock.recv(65536)
            if not data:
                raise OutcomeUnknown("the server closed the connection")
            replies += self._replies.feed(data)

    def close(self) -> None:
        self.closed = True
        self.sock.close()


class Pipe(asyncio.Protocol):
    """One connection: hands each reply to ``heard``, or where there is none to the oldest call that waits for one."""

    def __init__(self, connection: Any, where: str, heard: Callable[[Any], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = connection._writer  # kept, because it closes the connection when it is collected
        connection._reader = connection._writer = None  # from here on it is ours alone, and so is its end
        self._replies = Replies()
        self._waiting: deque[tuple[asyncio.Future[Any], float, float]] = deque()  # replies, sent when, awaited until
        self._timer: asyncio.TimerHandle | None = None  # one for all: nearly every reply comes long before its time
        self._timer_at = NEVER_S
        self.heard = heard or self._answer
        self.where = where
        self.heard_at = self._loop.time()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.transport = cast(asyncio.Transport, self._writer.transport)
        self._former = self.transport.get_protocol()
        self.transport.set_protocol(self)
        if self.transport.is_closing():
            self.connection_lost(None)

    @property
    def closed(self) -> bool:
        return self.lost.done() or self.transport.is_closing()

    def rests(self, least_s: float) -> bool:
        """Nobody waits for a reply on it, and nothing came for so long."""
        return not self._waiting and self._loop.time() - self.heard_at > least_s

    # -- what the event loop calls

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            for reply in self._replies.feed(data):
                self.heard(reply)
        except HoldfastError as trouble:
            self.fail(trouble)

    def connection_lost(self, exc: Exception | None) -> None:
        self._former.connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        why = OutcomeUnknown(f"Redis at {self.where} may or may not have done it: {exc or 'it closed the connection'}")
        while self._waiting:
            future = self._waiting.popleft()[0]
            if not future.done():
                future.set_result(why)

    def _answer(self, reply: Any) -> None:
        if self._waiting:
            future = self._waiting.popleft()[0]
            if not future.done():
                future.set_result(reply)

    # -- what links call

    def ask(self, payload: bytes, timeout_s: float = NEVER_S) -> asyncio.Future[Any]:
        """Send one request; what comes of it. Where nothing does in time, that is `OutcomeUnknown`."""
        if self.closed:
            future = self._loop.create_future()
            future.set_result(Unavailable(f"the connection to Redis at {self.where} was lost before this was sent"))
            return future
        future = self._expect(timeout_s)
        self.transport.write(payload)
        return future

    async def exchange(self, payload: bytes, count: int, timeout_s: float) -> list[Any]:
        """The same for ``count`` requests at once."""
        if self.closed:
            return [Unavailable(f"the connection to Redis at {self.where} was lost before this was sent")] * count
        futures = [self._expect(timeout_s) for _ in range(count)]
        self.transport.write(payload)
        return [await future for future in futures]

    def _expect(self, timeout_s: float) -> asyncio.Future[Any]:
        """The reply to one more request."""
        future: asyncio.Future[Any] = self._loop.create_future()
        sent = self._loop.time()
        until = sent + timeout_s
        self._waiting.append((future, sent, until))
        if until < self._timer_at:
            self._set_timer(until)
        return future

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at == NEVER_S else self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        now = self._loop.time()
        silent: OutcomeUnknown | None = None
        for future, sent, until in self._waiting:
            if until <= now and not future.done():
                late = f"no reply within {until - sent:.1f} s"
                why = OutcomeUnknown(f"Redis at {self.where} may or may not have done it: {late}")
                future.set_result(why)
                if self.heard_at <= sent:  # not one byte for anyone: the connection may be half open
                    silent = why
        self._set_timer(min((until for future, _, until in self._waiting if not future.done()), default=NEVER_S))
        if silent is not None:
            self.fail(silent)

    def fail(self, error: Exception) -> None:
        """Give this connection up; every call that waits on it has an unknown outcome."""
        log.info("a connection to Redis at %s is given up: %s", self.where, error)
        self.transport.abort()

    def close(self) -> None:
        self.transport.close()

    def abandon(self) -> None:
        """Let go of the child's copy of the socket, without a word to the loop or to the selector, which are shared."""
        sock = self.transport.get_extra_info("socket")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, sock.fileno(), inheritable=False)
        os.close(null)
        _abandoned.append(self)


_abandoned: list[Pipe] = []
"""Kept, so that no destructor in a forked child reaches for the parent's event loop."""


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
