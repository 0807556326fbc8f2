"""A PostgreSQL as one process's threads use it."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ...contract import LISTEN_S, Deliver, Request
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Turnstile
from . import errors
from .schema import NOTIFY, rows_of
from .signals import Listening
from .target import Postgres
from .wire import ERROR, SQLSTATE, Call, Wire, abandon

T = TypeVar("T")

IDLE_S = 1.0
"""A connection that rested longer is looked at before it is used: the server may have closed it."""

MAX_WIRES = 8
"""Connections for calls of one process: a server has a hundred, and calls are short. More threads take turns, but
no renewal does."""

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
        if self._target.ends_with_connection and request.op == "enter" and not self._listening.is_up:
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
            with _Turn(self, until, in_turn=False) as wire:
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

    def __init__(self, link: PostgresLink, until: float, *, in_turn: bool = True) -> None:
        self.link, self.until = link, until
        self.room = link.room if in_turn else None
        self.wire: Wire | None = None

    def __enter__(self) -> Wire:
        if self.room is not None and not self.room.acquire(timeout=max(0.0, self.until - time.monotonic())):
            raise Unavailable(f"all {MAX_WIRES} connections of this process to PostgreSQL are busy")
        try:
            self.wire = self.link.take(self.until)
        except BaseException:
            self._leave()
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
            self._leave()

    def _leave(self) -> None:
        if self.room is not None:
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
