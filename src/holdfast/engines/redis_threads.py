"""A Redis server as the threads of one process use it: a stack of connections, and one more for signals."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..contract import Deliver, Request
from ..errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable
from ..model import Turnstile
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

IDLE_S = 1.0
"""A connection that rested longer is looked at before it is used: the server may have closed it."""

MAX_IDLE = 64
"""Connections kept for later; each thread in the middle of a call has one more."""

PING_S = 5.0
"""How long the signals' connection may be silent before it is asked, and how long the answer may take."""


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
            self._read(replies, count, timeout_s)
        except (OSError, OutcomeUnknown) as error:
            self.close()
            why = f"no reply within {timeout_s:.1f} s" if isinstance(error, TimeoutError) else str(error)
            lost = OutcomeUnknown(f"Redis at {self.where} may or may not have done it: {why}")
            replies += [lost] * (count - len(replies))
        return replies

    def _read(self, replies: list[Any], count: int, timeout_s: float) -> None:
        data = self.sock.recv(65536)
        pieces = [data]
        at, until = 0, 0.0
        while True:
            if not data:
                raise OutcomeUnknown("the server closed the connection")
            if data.endswith(b"\n"):  # as every whole reply does
                data = b"".join(pieces)
                try:
                    while len(replies) < count:
                        reply, at = decode(data, at)
                        replies.append(reply)
                    return
                except Incomplete:
                    pieces = [data[at:]]
                    at = 0
            now = time.monotonic()
            until = until or now + timeout_s
            self.limit_s = -1.0
            self.sock.settimeout(max(0.001, until - now))
            data = self.sock.recv(65536)
            pieces.append(data)

    def close(self) -> None:
        self.closed = True
        self.sock.close()


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
            if is_unknown_script(reply):
                (reply,) = wire.exchange(body.by_text(), 1, timeout_s)
        except BaseException:
            self._drop(wire)
            raise
        self._give(wire)
        return self._outcome(request, reply)

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        if not requests:
            return []
        try:
            wire = self._take(timeout_s)
        except HoldfastError as error:
            return [error] * len(requests)
        try:
            replies = wire.exchange(b"".join(first_try(request.body) for request in requests), len(requests), timeout_s)
            again = [i for i, reply in enumerate(replies) if is_unknown_script(reply)]
            if again and not wire.closed:
                payload = b"".join(with_texts([requests[i].body for i in again]))
                for i, reply in zip(again, wire.exchange(payload, len(again), timeout_s), strict=True):
                    replies[i] = reply
        except BaseException:
            self._drop(wire)
            raise
        self._give(wire)
        return [self._attempt(request, reply) for request, reply in zip(requests, replies, strict=True)]

    def _converse(self, talk: Any, timeout_s: float) -> Any:
        until = time.monotonic() + timeout_s
        try:
            requests = next(talk)
            while True:
                replies = self.call_many(requests, max(0.001, until - time.monotonic()))
                requests = talk.send(all_of(replies))
        except StopIteration as done:
            return done.value

    def _outcome(self, request: Request[T], reply: Any) -> T:
        if type(reply) is Refusal and reply.text.startswith("READONLY"):
            self._forget_idle()  # the primary is elsewhere by now: look it up again
        reply = answered(reply)
        if isinstance(reply, Exception):
            raise reply
        return request.parse(reply)

    def _attempt(self, request: Request[T], reply: Any) -> T | Exception:
        try:
            return self._outcome(request, reply)
        except HoldfastError as error:
            return error

    # -- connections

    def _take(self, timeout_s: float) -> Wire:
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - wire.rested_at < IDLE_S or wire.is_fresh():
                return wire
            self._drop(wire)
        if self._closed:
            raise Misuse("this client is closed")
        wire = Wire(self._server, timeout_s)
        self._wires.add(wire)
        return wire

    def _give(self, wire: Wire) -> None:
        if wire.closed or self._closed or len(self._idle) >= MAX_IDLE:
            self._drop(wire)
        else:
            wire.rested_at = time.monotonic()
            self._idle.append(wire)

    def _drop(self, wire: Wire) -> None:
        self._wires.discard(wire)
        wire.close()

    def _forget_idle(self) -> None:
        while self._idle:
            try:
                self._drop(self._idle.pop())
            except IndexError:
                return

    # -- signals

    def listen(self, deliver: Deliver, look_again: Callable[[], None]) -> bool:
        with self._ear_lock:
            if self._closed:
                raise Misuse("this client is closed")
            if self._ear is not None:
                self._ear.deliver, self._ear.look_again = deliver, look_again
                return False
            ear = Ear(self._server, f"{CHANNELS}{self.inbox}".encode(), self._wake, deliver, look_again)
            ear.connect()
            self._ear = ear
            threading.Thread(target=ear.run, name="holdfast-redis-signals", daemon=True).start()
            return True

    def watch(self, turnstile: Turnstile) -> None:
        if self._ear is None:
            raise Misuse("watch() needs listen() first")
        self._ear.add(self._channel_of(turnstile), turnstile.address)

    def unwatch(self, turnstile: Turnstile) -> None:
        if self._ear is not None:
            self._ear.remove(self._channel_of(turnstile))

    def _wake(self) -> None:
        self.call(Request("wake", pack("PUBLISH", f"{CHANNELS}{self.inbox}", ""), bool), CONNECT_S)

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


class Ear:
    """The connection for signals: subscribed, watched for silence, and connected again whenever it breaks.

    Only its thread reads and writes once it runs (TLS allows no two at once). Who wants another channel writes that
    down and wakes the thread, by a message to its own inbox.
    """

    def __init__(
        self,
        server: Target,
        inbox: bytes,
        wake: Callable[[], None],
        deliver: Deliver,
        look_again: Callable[[], None],
    ) -> None:
        self.deliver = deliver
        self.look_again = look_again
        self.wire: Wire | None = None
        self._server = server
        self._inbox = inbox
        self._wake = wake
        self._data = b""
        self._channels: dict[bytes, str] = {inbox: ""}
        self._asked: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._changed = threading.Condition()
        self._closing = threading.Event()

    def connect(self) -> None:
        """Connect and subscribe to everything. Returns once the server has confirmed it."""
        wire = Wire(self._server, CONNECT_S)
        try:
            # a subscribed connection may not publish, and a script's publish fails in silence: ask before
            all_of(list(map(answered, wire.exchange(pack("PUBLISH", self._inbox, ""), 1, CONNECT_S))))
            self.wire, self._data = wire, b""
            with self._changed:
                self._asked, self._confirmed = set(), set()
            until = time.monotonic() + CONNECT_S
            self._subscribe()
            while not self._confirmed >= self._asked:
                self._read(until - time.monotonic())
        except TimeoutError:
            wire.close()
            raise Unavailable(f"Redis at {wire.where} confirmed no subscription within {CONNECT_S:.0f} s") from None
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
                self._read_on()
            except (OSError, HoldfastError) as trouble:
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
        data, at = self._data + more, 0
        try:
            while at < len(data):
                reply, at = decode(data, at)
                self._hear(answered(reply))
        except Incomplete:
            pass
        self._data = data[at:]

    def _hear(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if reply[0] == b"message":
            if signal := signal_of(reply[2], self._channels.get(reply[1])):
                self.deliver(signal)
        elif reply[0] == b"subscribe":
            with self._changed:
                self._confirmed.add(reply[1])
                self._changed.notify_all()

    def _subscribe(self) -> None:
        """Ask for what is wanted and was not asked for, and no more for what is not."""
        if self._asked == self._channels.keys():
            return
        with self._changed:
            new, old = self._channels.keys() - self._asked, self._asked - self._channels.keys()
            self._asked = set(self._channels)
            self._confirmed -= old
        if new:
            self._send(pack("SUBSCRIBE", *new))
        if old:
            self._send(pack("UNSUBSCRIBE", *old))

    def _send(self, payload: bytes) -> None:
        assert self.wire is not None
        self.wire.sock.sendall(payload)

    def add(self, channel: bytes, address: str) -> None:
        """Subscribe to one more. Returns once the server has confirmed it; raises `Unavailable` if it does not."""
        with self._changed:
            self._channels[channel] = address
        self._wake()
        with self._changed:
            if not self._changed.wait_for(lambda: channel in self._confirmed, CONNECT_S):
                self._channels.pop(channel, None)
                raise Unavailable(f"Redis at {self._server.where} did not confirm that it signals {address}")

    def remove(self, channel: bytes) -> None:
        with self._changed:
            self._channels.pop(channel, None)

    def close(self) -> None:
        self._closing.set()
        if self.wire is not None:
            shut(self.wire.sock)


def shut(sock: Any) -> None:
    """End a connection that another thread reads from, which wakes it."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which would take the reader's state away
