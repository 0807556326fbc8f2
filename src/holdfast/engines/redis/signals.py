"""The connection for signals: subscribed, watched for silence, and connected again whenever it breaks.

In a cluster a turnstile's announcements stay within its shard where the server can (SSUBSCRIBE, Redis 7): then the
connection is ``sharded``, to the node that has the channel's slot, and is made again when the slot has moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ...contract import Deliver
from ...errors import HoldfastError, Unavailable
from ...model import CHANGED, Signal
from .pipes import Pipe, Wire
from .wire import CONNECT_S, Refusal, Replies, answered, pack, signals_of

log = logging.getLogger("holdfast.redis")

REMEMBERED = 1024
"""Signals of which a second copy is known as one."""

PING_S = 5.0
"""How long the signals' connection may be silent before it is asked, and how long the answer may take."""


class Ear:
    """For threads. Once it runs, only its own thread reads and writes (TLS allows no two at once).

    Who wants another channel writes that down and wakes the thread, by a message to its own inbox.
    """

    def __init__(
        self,
        dial: Callable[[float], Wire],
        where: str,
        channels: dict[bytes, str],
        wake: Callable[[float], None],
        deliver: Deliver,
        look_again: Callable[[], None],
        sharded: bool = False,
    ) -> None:
        self.deliver = deliver
        self.look_again = look_again
        self.wire: Wire | None = None
        self._dial = dial
        self._where = where
        self._wake = wake
        self._prefix = b"S" if sharded else b""
        self._replies = Replies()
        self._channels = channels
        self._asked: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._changed = threading.Condition()
        self._closing = threading.Event()

    def connect(self, timeout_s: float = CONNECT_S) -> None:
        """Connect and subscribe to everything. Returns once the server has confirmed it."""
        until = time.monotonic() + timeout_s
        wire = self._dial(timeout_s)
        try:
            if self.wire is None:
                trial = pack(self._prefix + b"PUBLISH", next(iter(self._channels)), "")
                (reply,) = wire.exchange(trial, 1, max(0.001, until - time.monotonic()))
                self._prefix = prefix_after(self._prefix, reply)
            self.wire, self._replies = wire, Replies()
            with self._changed:
                self._asked, self._confirmed = set(), set()
            self._subscribe()
            while not self._confirmed >= self._asked:
                self._read(until - time.monotonic())
        except TimeoutError:
            wire.close()
            raise Unavailable(f"Redis at {wire.where} confirmed no subscription within {timeout_s:.1f} s") from None
        except OSError as error:
            wire.close()
            raise Unavailable(f"the connection for signals broke: {error}") from error
        except BaseException:
            wire.close()
            raise

    def run(self) -> None:
        """The thread: until closed."""
        pause_s = 0.02
        while not self._closing.is_set():
            try:
                if self.wire is not None:
                    self._read_on()
            except Exception as trouble:
                if not self._closing.is_set():
                    log.info("signals are connected again after: %s", trouble)
            if self.wire is not None:
                self.wire.close()
            while not self._closing.is_set():
                try:
                    self.connect()
                    pause_s = 0.02
                    self.look_again()
                    break
                except HoldfastError as trouble:
                    log.debug("signals are not connected yet: %s", trouble)
                    self._closing.wait(pause_s * random.uniform(0.5, 1))
                    pause_s = min(2.0, pause_s * 2)
        if self.wire is not None:
            self.wire.close()

    def _read_on(self) -> None:
        asked = False
        while not self._closing.is_set():
            try:
                self._read(PING_S)
                asked = False
            except TimeoutError:
                if asked:
                    raise
                asked = True
                self._send(pack("PING"))
            self._subscribe()

    def _read(self, timeout_s: float) -> None:
        assert self.wire is not None
        self.wire.sock.settimeout(max(0.001, timeout_s))
        more = self.wire.sock.recv(65536)
        if not more:
            raise Unavailable("the server closed the connection")
        for reply in self._replies.feed(more):
            self._hear(heard_of(reply))

    def _hear(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if reply[0] in (b"message", b"smessage"):
            for signal in signals_of(reply[2], self._channels.get(reply[1])):
                self.deliver(signal)
        elif reply[0] in (b"subscribe", b"ssubscribe"):
            with self._changed:
                self._confirmed.add(reply[1])
                self._changed.notify_all()
        elif reply[0] == b"sunsubscribe":
            raise Unavailable("the slot was moved to another node")

    def _subscribe(self) -> None:
        """Ask for what is wanted and was not asked for, and no more for what is not."""
        if self._asked == self._channels.keys():
            return
        with self._changed:
            new, old = self._channels.keys() - self._asked, self._asked - self._channels.keys()
            self._asked = set(self._channels)
            self._confirmed -= old
        if new:
            self._send(pack(self._prefix + b"SUBSCRIBE", *new))
        if old:
            self._send(pack("UNSUBSCRIBE", *old))

    def _send(self, payload: bytes) -> None:
        assert self.wire is not None
        self.wire.sock.sendall(payload)

    def add(self, channel: bytes, address: str, timeout_s: float) -> None:
        """Subscribe to one more. Returns once the server has confirmed it; raises `Unavailable` if it does not."""
        until = time.monotonic() + timeout_s
        with self._changed:
            self._channels[channel] = address
        self._wake(timeout_s)
        with self._changed:
            if not self._changed.wait_for(lambda: channel in self._confirmed, until - time.monotonic()):
                raise Unavailable(f"Redis at {self._where} did not confirm that it signals {address}")

    def remove(self, channel: bytes) -> None:
        with self._changed:
            self._channels.pop(channel, None)

    def reconnect(self) -> None:
        if self.wire is not None:
            shut(self.wire.sock)

    def close(self) -> None:
        self._closing.set()
        self.reconnect()


class Once:
    """Delivers what is said to a claim once, though it arrives by several ways: each is said but once."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._heard: dict[Signal, None] = {}

    def __call__(self, signal: Signal) -> None:
        if signal.kind != CHANGED:
            with self._lock:
                if signal in self._heard:
                    return
                self._heard[signal] = None
                if len(self._heard) > REMEMBERED:
                    del self._heard[next(iter(self._heard))]
        self._deliver(signal)


def prefix_after(prefix: bytes, reply: Any) -> bytes:
    """How to go on after a trial publication; raises what forbids it.

    A subscribed connection may not publish, and a script's publish fails in silence: hence the trial before.
    """
    if type(reply) is Refusal and prefix and "unknown command" in reply.text:
        return b""  # a server older than Redis 7, whose plain channels reach every node
    outcome = heard_of(reply)
    if isinstance(outcome, Exception):
        raise outcome
    return prefix


def heard_of(reply: Any) -> Any:
    """`answered`, on a connection that follows a slot through its cluster."""
    if type(reply) is Refusal and reply.text.startswith("MOVED"):
        return Unavailable(f"the slot was moved to another node: {reply.text}")
    return answered(reply)


def shut(sock: Any) -> None:
    """End a connection that another thread reads from, which wakes it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which would take the reader's state away


class AsyncEar:
    """For an event loop."""

    def __init__(
        self,
        dial: Callable[[float], Awaitable[Pipe]],
        where: str,
        channels: dict[bytes, str],
        deliver: Deliver,
        look_again: Callable[[], None],
        sharded: bool = False,
    ) -> None:
        self.deliver = deliver
        self.look_again = look_again
        self.pipe: Pipe | None = None
        self.task: asyncio.Task[None] | None = None
        self._dial = dial
        self._where = where
        self._prefix = b"S" if sharded else b""
        self._channels = channels
        self._confirmed: dict[bytes, asyncio.Event] = {}
        self._refusal: Exception | None = None

    async def connect(self, timeout_s: float = CONNECT_S) -> None:
        """Connect and subscribe to everything. Returns once the server has confirmed it."""
        pipe = await self._dial(timeout_s)
        try:
            if self.pipe is None:
                trial = pack(self._prefix + b"PUBLISH", next(iter(self._channels)), "")
                (reply,) = await pipe.exchange(trial, 1, timeout_s)
                self._prefix = prefix_after(self._prefix, reply)
            pipe.heard = self._hear
            self.pipe, self._refusal = pipe, None
            for channel in self._channels:
                self._confirmed.setdefault(channel, asyncio.Event()).clear()
            pipe.transport.write(pack(self._prefix + b"SUBSCRIBE", *self._channels))
            everything: asyncio.Future[Any] = asyncio.gather(*(event.wait() for event in self._confirmed.values()))
            try:
                await asyncio.wait([everything, pipe.lost], timeout=timeout_s, return_when="FIRST_COMPLETED")
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
        pipe, loop = self.pipe, asyncio.get_running_loop()
        if pipe is None:
            return
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
            self._refusal = heard_of(reply)
            raise heard_of(reply)
        if reply[0] in (b"message", b"smessage"):
            for signal in signals_of(reply[2], self._channels.get(reply[1])):
                self.deliver(signal)
        elif reply[0] in (b"subscribe", b"ssubscribe") and reply[1] in self._confirmed:
            self._confirmed[reply[1]].set()
        elif reply[0] == b"sunsubscribe":
            raise Unavailable("the slot was moved to another node")

    async def add(self, channel: bytes, address: str, timeout_s: float) -> None:
        """Subscribe to one more. Returns once the server has confirmed it; raises `Unavailable` if it does not."""
        self._channels[channel] = address
        confirmed = self._confirmed.setdefault(channel, asyncio.Event())
        if self.pipe is not None and not confirmed.is_set():
            self.pipe.transport.write(pack("SUBSCRIBE", channel))
        try:
            async with asyncio.timeout(timeout_s):
                await confirmed.wait()
        except TimeoutError:
            raise Unavailable(f"Redis at {self._where} did not confirm that it signals {address}") from None

    def remove(self, channel: bytes) -> None:
        self._confirmed.pop(channel, None)
        if self._channels.pop(channel, None) is not None and self.pipe is not None:
            self.pipe.transport.write(pack("UNSUBSCRIBE", channel))

    def reconnect(self) -> None:
        if self.pipe is not None:
            self.pipe.close()

    async def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})
        if self.pipe is not None:
            self.pipe.close()
            await self.pipe.lost
