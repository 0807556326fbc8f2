"""Calls to whichever member answers: over connections of a thread each, or over one for all tasks of an event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ...errors import Misuse, Unavailable, Unsupported
from ..room import Busy, Room
from .members import Members, Tries
from .messages import Ask
from .pipes import Pipe, Wire, dial

IDLE_S = 1.0
"""A connection that rested longer is looked at before it is used: the server may have closed it."""

MAX_WIRES = 64
"""Connections for calls of one process: calls are short. More threads take turns, but no renewal does."""

NOT_SERVED = (Unavailable, Unsupported)
"""What one member may say, or what stands in its place, though another serves."""


class Calls:
    """For threads."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.closed = False
        self._idle: deque[Wire] = deque()
        self._wires: set[Wire] = set()
        self._room = Room(MAX_WIRES, self._idle, self._wires, "etcd")

    def exchange(self, requests: Sequence[Ask], until: float, *, in_turn: bool = True) -> list[Any]:
        """The reply to each; raises where nobody could be asked."""
        tries = Tries(self.members, until)
        while True:
            member, wire = self.members.at, None
            try:
                wire = self._take(tries, in_turn)
                while greeting := self.members.greeting(wire.member):
                    self.members.greeted(wire.member, greeting, wire.exchange([greeting], tries.share_s(_now()))[0])
                replies = wire.exchange(requests, max(0.001, until - _now()))
            except Busy:
                raise
            except NOT_SERVED as trouble:  # nobody there, or not greeted: nothing was asked
                if wire is not None:
                    self._drop(wire)
                tries.failed(member, trouble, _now())
                continue
            except BaseException:
                if wire is not None:
                    self._drop(wire)
                raise
            self._give(wire)
            if not tries.again(wire.member, replies, _now()):
                return replies

    def _take(self, tries: Tries, in_turn: bool) -> Wire:
        while self._idle:
            try:
                wire = self._idle.pop()
            except IndexError:
                break
            if wire.member == self.members.at and (_now() - wire.rested_at < IDLE_S or wire.is_fresh()):
                return wire
            self._drop(wire)
        if not in_turn:
            return self._dialled(tries)
        rested = self._room.wait(tries.until - _now())
        if rested is not None:
            return rested
        try:
            return self._dialled(tries)
        finally:
            self._room.dialled()

    def _dialled(self, tries: Tries) -> Wire:
        if self.closed:
            raise Misuse("this client is closed")
        wire = Wire(self.members, tries.share_s(_now()))
        self._wires.add(wire)
        return wire

    def _give(self, wire: Wire) -> None:
        if wire.closed:  # it broke, or said nothing: those that rested meanwhile may be as dead
            self.members.failed(wire.member, "the connection broke")
            self.forget_idle()
        if wire.closed or self.closed or len(self._wires) > MAX_WIRES:
            self._drop(wire)
        else:
            wire.rested_at = _now()
            self._idle.append(wire)
            if self._room.queue:
                self._room.serve()

    def _drop(self, wire: Wire) -> None:
        self._wires.discard(wire)
        wire.close()
        if self._room.queue:
            self._room.serve()

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
    """For the tasks of one event loop."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.closed = False
        self._pipe: Pipe | None = None
        self._dialling: asyncio.Task[Pipe] | None = None

    async def exchange(self, requests: Sequence[Ask], until: float) -> list[Any]:
        """The reply to each; raises where nobody could be asked."""
        tries = Tries(self.members, until)
        while True:
            member = self.members.at
            try:
                pipe = await self.connected(tries)
            except NOT_SERVED as trouble:
                tries.failed(member, trouble, _now())
                continue
            replies = await pipe.exchange(requests, max(0.001, until - _now()))
            if pipe.lost.done() or pipe.transport.is_closing():
                self.members.failed(pipe.member, "the connection broke")
            if not tries.again(pipe.member, replies, _now()):
                return replies

    async def connected(self, tries: Tries) -> Pipe:
        """A connection that is greeted; where it is being made, all wait for the same one."""
        pipe = self._pipe
        if pipe is not None and not pipe.closed and pipe.member == self.members.at:
            if self.members.greeting(pipe.member) is not None:  # the login has ended
                await self._greet(pipe, tries.share_s(_now()))
            return pipe
        if self.closed:
            raise Misuse("this client is closed")
        timeout_s = tries.share_s(_now())
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._dial(timeout_s), name="holdfast-etcd-connect")
            self._dialling.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen by nobody else
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._dialling)
        except TimeoutError:
            raise Unavailable(f"no connection to etcd at {self.members.names[self.members.at]} in time") from None

    async def _dial(self, timeout_s: float) -> Pipe:
        try:
            pipe = await dial(self.members, timeout_s)
            try:
                await self._greet(pipe, timeout_s)
            except BaseException:
                pipe.close()
                raise
            if self._pipe is not None:
                self._pipe.close()
            self._pipe = pipe
            return pipe
        finally:
            self._dialling = None

    async def _greet(self, pipe: Pipe, timeout_s: float) -> None:
        while greeting := self.members.greeting(pipe.member):
            self.members.greeted(pipe.member, greeting, (await pipe.exchange([greeting], timeout_s))[0])

    async def close(self) -> None:
        self.closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._pipe is not None:
            self._pipe.close()
            await self._pipe.lost

    def abandon(self) -> None:
        if self._pipe is not None:
            self._pipe.abandon()


_now = time.monotonic
