"""An etcd as one process's threads use it, and as one asyncio event loop does."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..contract import LISTEN_S, Deliver, Request
from ..errors import HoldfastError, Misuse, Unavailable
from ..model import Turnstile
from .etcd_cells import Cells
from .etcd_desk import Desk
from .etcd_members import Members, Tries
from .etcd_pipes import AsyncWire, Wire
from .etcd_target import Target
from .etcd_turnstile import Turnstiles
from .etcd_vigil import Vigil
from .etcd_wire import Ask

T = TypeVar("T")

IDLE_S = 1.0
"""A connection that rested longer is looked at before it is used: the server may have closed it."""

MAX_IDLE = 64
"""Connections kept for later; each call that is under way has one more."""


class _Calls:
    """The connections of a thread each, kept for the next call."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.closed = False
        self._idle: deque[Wire] = deque()
        self._wires: set[Wire] = set()

    def exchange(self, requests: Sequence[Ask], until: float) -> list[Any]:
        """The reply to each; raises where nobody could be asked."""
        members, tries = self.members, Tries(self.members, until)
        while True:
            member = members.at
            try:
                wire = self._take(tries)
            except Unavailable as trouble:
                tries.failed(member, trouble, time.monotonic())
                continue
            try:
                if members.needs_login:
                    members.logged_in(wire.exchange([members.login_request()], tries.share_s(time.monotonic()))[0])
                replies = wire.exchange(requests, max(0.001, until - time.monotonic()))
            except Unavailable as trouble:  # the login was not answered
                self._drop(wire)
                tries.failed(wire.member, trouble, time.monotonic())
                continue
            except BaseException:
                self._drop(wire)
                raise
            self._give(wire)
            if not tries.again(wire.member, replies, time.monotonic()):
                return replies

    def _take(self, tries: Tries) -> Wire:
        while self._idle:
            try:
                wire = self._idle.pop()
            except IndexError:
                break
            rested_s = time.monotonic() - wire.rested_at
            if wire.member == self.members.at and (rested_s < IDLE_S or wire.is_fresh()):
                return wire
            self._drop(wire)
        if self.closed:
            raise Misuse("this client is closed")
        wire = Wire(self.members, tries.share_s(time.monotonic()))
        self._wires.add(wire)
        return wire

    def _give(self, wire: Wire) -> None:
        if wire.closed:  # it broke, or said nothing: those that rested meanwhile may be as dead
            self.members.failed(wire.member, "the connection broke")
            self.forget_idle()
        if wire.closed or self.closed or len(self._idle) >= MAX_IDLE:
            self._drop(wire)
        else:
            wire.rested_at = time.monotonic()
            self._idle.append(wire)

    def _drop(self, wire: Wire) -> None:
        self._wires.discard(wire)
        wire.close()

    def forget_idle(self) -> None:
        while self._idle:
            try:
                self._drop(self._idle.pop())
            except IndexError:
                return

    def abandon(self) -> None:
        """Close the child's copies of the sockets. That says nothing to the server: the parent's stay open."""
        for wire in self._wires:
            wire.sock.close()


class AsyncCalls:
    """The same for the tasks of one event loop."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.closed = False
        self._idle: deque[AsyncWire] = deque()
        self.wires: set[AsyncWire] = set()

    async def exchange(self, requests: Sequence[Ask], until: float) -> list[Any]:
        members, tries = self.members, Tries(self.members, until)
        while True:
            member = members.at
            try:
                wire = await self.take(tries)
            except Unavailable as trouble:
                tries.failed(member, trouble, time.monotonic())
                continue
            try:
                await self.log_in(wire, tries)
                replies = await wire.exchange(requests, max(0.001, until - time.monotonic()))
            except Unavailable as trouble:
                self.drop(wire)
                tries.failed(wire.member, trouble, time.monotonic())
                continue
            except BaseException:
                self.drop(wire)
                raise
            self._give(wire)
            if not tries.again(wire.member, replies, time.monotonic()):
                return replies

    async def log_in(self, wire: AsyncWire, tries: Tries) -> None:
        members = self.members
        if members.needs_login:
            reply = await wire.exchange([members.login_request()], tries.share_s(time.monotonic()))
            members.logged_in(reply[0])

    async def take(self, tries: Tries, new: bool = False) -> AsyncWire:
        while self._idle and not new:
            wire = self._idle.pop()
            if wire.member == self.members.at and wire.is_fresh():
                return wire
            self.drop(wire)
        if self.closed:
            raise Misuse("this client is closed")
        wire = AsyncWire(self.members)
        await wire.connect(tries.share_s(time.monotonic()))
        self.wires.add(wire)
        return wire

    def _give(self, wire: AsyncWire) -> None:
        if wire.closed:
            self.members.failed(wire.member, "the connection broke")
        if wire.closed or self.closed or len(self._idle) >= MAX_IDLE:
            self.drop(wire)
        else:
            self._idle.append(wire)

    def drop(self, wire: AsyncWire) -> None:
        self.wires.discard(wire)
        wire.close()

    def close(self) -> None:
        self.closed = True
        for wire in list(self.wires):
            self.drop(wire)

    def abandon(self) -> None:
        for wire in self.wires:
            wire.abandon()


def _outcome(request: Request[T], outcome: Any) -> T:
    return request.parse(outcome)


class _Link:
    """What both kinds of link have."""

    lifeline = None

    def __init__(self, target: Target, space: bytes) -> None:
        self._target, self._space = target, space
        self._start()

    def _start(self) -> None:
        self.inbox = secrets.token_hex(8)
        self.desk = Desk(self._space)
        self.turnstiles = Turnstiles(self.desk)
        self.cells = Cells(self.desk)
        self._members = Members(self._target)
        self._vigil: Vigil | None = None
        self._closed = False


class EtcdLink(_Link):
    """Calls from any thread; signals through one thread with an event loop of its own."""

    def _start(self) -> None:
        super()._start()
        self._calls = _Calls(self._members)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def call(self, request: Request[T], timeout_s: float) -> T:
        until = time.monotonic() + timeout_s
        talk = request.body(self)
        try:
            requests = next(talk)
            while True:
                try:
                    replies = self._calls.exchange(requests, until)
                except HoldfastError as error:
                    replies = [error] * len(requests)
                requests = talk.send(replies)
        except StopIteration as done:
            return _outcome(request, done.value)

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        until = time.monotonic() + timeout_s
        replies: list[T | Exception] = []
        for request in requests:
            try:
                replies.append(self.call(request, max(0.001, until - time.monotonic())))
            except HoldfastError as error:
                replies.append(error)
        return replies

    # -- signals

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        with self._lock:
            if self._closed:
                raise Misuse("this client is closed")
            if self._vigil is not None:
                self._vigil.deliver, self._vigil.look_again = deliver, look_again
                return False
            self._loop = asyncio.new_event_loop()
            self._vigil = Vigil(self.desk, AsyncCalls(self._members), self._loop, deliver, look_again)
            threading.Thread(target=_run, args=(self._loop,), name="holdfast-etcd-signals", daemon=True).start()
            self.turnstiles.vigil = self._vigil
            return True

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._vigil is None or self._loop is None:
            raise Misuse("watch() needs listen() first")
        begun = asyncio.run_coroutine_threadsafe(self._vigil.watch(turnstile, timeout_s), self._loop)
        try:
            begun.result(timeout_s + 1)
        except TimeoutError:
            raise Unavailable(f"etcd at {self._target.where} did not confirm signals of {turnstile.address}") from None

    def unwatch(self, turnstile: Turnstile) -> None:
        if self._vigil is not None:
            self._vigil.unwatch(turnstile)

    # -- ends

    def close(self) -> None:
        self._closed = True
        self._calls.closed = True
        self._calls.forget_idle()
        with self._lock:
            vigil, self._vigil, self.turnstiles.vigil = self._vigil, None, None
            if vigil is not None and self._loop is not None:
                asyncio.run_coroutine_threadsafe(vigil.close(), self._loop).result(5)
                self._loop.call_soon_threadsafe(self._loop.stop)

    def abandon(self) -> None:
        self._calls.abandon()
        if self._vigil is not None:
            self._vigil.abandon()
        self._start()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


class AsyncEtcdLink(_Link):
    """Calls from any task of one event loop; signals through tasks of it."""

    def _start(self) -> None:
        super()._start()
        self._calls = AsyncCalls(self._members)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        until = time.monotonic() + timeout_s
        talk = request.body(self)
        try:
            requests = next(talk)
            while True:
                try:
                    replies = await self._calls.exchange(requests, until)
                except HoldfastError as error:
                    replies = [error] * len(requests)
                requests = talk.send(replies)
        except StopIteration as done:
            return _outcome(request, done.value)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        until = time.monotonic() + timeout_s
        replies: list[T | Exception] = []
        for request in requests:
            try:
                reply = await self.call(request, max(0.001, until - time.monotonic()))
                replies.append(reply)
            except HoldfastError as error:
                replies.append(error)
        return replies

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        if self._closed:
            raise Misuse("this client is closed")
        if self._vigil is not None:
            self._vigil.deliver, self._vigil.look_again = deliver, look_again
            return False
        loop = asyncio.get_running_loop()
        self._vigil = Vigil(self.desk, self._calls, loop, deliver, look_again)
        self.turnstiles.vigil = self._vigil
        return True

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        if self._vigil is None:
            raise Misuse("watch() needs listen() first")
        await self._vigil.watch(turnstile, timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        if self._vigil is not None:
            self._vigil.unwatch(turnstile)

    async def close(self) -> None:
        self._closed = True
        vigil, self._vigil, self.turnstiles.vigil = self._vigil, None, None
        if vigil is not None:
            await vigil.close()
        self._calls.close()

    def abandon(self) -> None:
        self._calls.abandon()
        if self._vigil is not None:
            self._vigil.abandon()
        self._start()
