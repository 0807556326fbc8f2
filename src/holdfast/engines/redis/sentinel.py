"""The primary that Sentinel names: found anew for every connection, and left when it is one no more.

Sentinels are asked one after the other, the last that knew first, each with a share of the time; what they name is
believed once it says itself that it is a primary.

A primary that was paused and comes back does not know for some seconds that it was replaced. So a connection that
rested is not used again before a Sentinel was asked; but where none of them answers it is, as their outage is to cost
no lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from ...contract import Request
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Turnstile
from .links import IDLE_S, AsyncRedisLink, RedisLink
from .pipes import Pipe, Wire, dial
from .places import Sentinels
from .wire import Refusal, Target, answered, pack

T = TypeVar("T")

ROLE = pack("ROLE")

Step = tuple[Target, bytes, float]
"""A server to connect to, what to ask it, and the share of the time that is left for both."""


class Search:
    """Where the primary was found last, and how it is found again: no I/O, one connection at a time."""

    def __init__(self, place: Sentinels) -> None:
        self._place = place
        self._sentinels = list(place.sentinels)
        self.heard = False
        """Whether any Sentinel answered when they were asked last."""
        self._found = ""

    def steps(self) -> Generator[Step, Any, None]:
        """Yields steps, is sent replies or why there was none. Ends when the last connection made is the primary's."""
        place = self._place
        ask = pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.service)
        troubles: list[str] = []
        unknown: list[str] = []
        refused: Misuse | None = None
        self.heard = False
        asked = list(self._sentinels)
        for left, sentinel in zip(range(len(asked), 0, -1), asked, strict=True):
            reply = yield from self._ask(sentinel, ask, 1 / (left + 1))
            if type(reply) is Refusal and "unknown command" in reply.text:
                reply = Misuse(
                    f"{sentinel.where} is no Sentinel: a server of its own is named redis://{sentinel.where}"
                )
            reply = answered(reply)
            if isinstance(reply, Exception):
                refused = reply if isinstance(reply, Misuse) else refused
                troubles.append(str(reply))
                continue
            self.heard = True
            if not reply:
                unknown.append(sentinel.where)
                continue
            primary = place.primary.at(reply[0].decode(), int(reply[1]))
            role = answered((yield primary, ROLE, 0.6))
            if isinstance(role, Misuse):
                raise role
            if isinstance(role, Exception):
                troubles.append(f"{sentinel.where} names {primary.where}: {role}")
            elif role[0] != b"master":
                troubles.append(f"{sentinel.where} names {primary.where}, which is a replica")
            else:
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                return
        if refused is not None:
            raise refused
        if unknown and not self._found:
            raise Misuse(f"no service {place.service!r} is known to the Sentinel at {', '.join(unknown)}")
        raise Unavailable(f"no Sentinel leads to a primary of service {place.service!r}: {'; '.join(troubles)}")

    def moved_to(self, where: str) -> bool:
        """Whether the primary was elsewhere before."""
        before, self._found = self._found, where
        return before not in ("", where)

    def _ask(self, sentinel: Target, payload: bytes, share: float) -> Generator[Step, Any, Any]:
        """Sentinels are often without passwords where their primary has one: then without."""
        reply = yield sentinel, payload, share
        if isinstance(reply, Misuse) and "without any password" in str(reply):
            options = {name: value for name, value in sentinel.options.items() if name not in ("username", "password")}
            reply = yield sentinel._replace(options=options), payload, share
        return reply


class SentinelLink(RedisLink):
    """For threads."""

    def __init__(self, place: Sentinels, channel_of: Callable[[Turnstile], bytes]) -> None:
        self._search = Search(place)
        super().__init__(place.primary._replace(where=place.where), channel_of)

    def _take(self, timeout_s: float, *, in_turn: bool = True) -> Wire:
        try:
            rested = self._idle.pop()
        except IndexError:
            return super()._take(timeout_s, in_turn=in_turn)
        if time.monotonic() - rested.rested_at < IDLE_S:
            return rested
        try:
            wire = self._dial(timeout_s / 2)
        except BaseException as error:
            if isinstance(error, Unavailable) and not self._search.heard and rested.is_fresh():
                return rested
            self._drop(rested)
            raise
        self._drop(rested)
        self._wires.add(wire)
        return wire

    def _dial(self, timeout_s: float) -> Wire:
        until = time.monotonic() + timeout_s
        wire: Wire | None = None
        reply: Any = None
        steps = self._search.steps()
        try:
            while True:
                target, payload, share = steps.send(reply)
                if wire is not None:
                    wire.close()
                step_s = max(0.001, (until - time.monotonic()) * share)
                try:
                    wire = Wire(target, step_s)
                    (reply,) = wire.exchange(payload, 1, step_s)
                except HoldfastError as error:
                    wire, reply = None, error
        except StopIteration:
            assert wire is not None
        except BaseException:
            if wire is not None:
                wire.close()
            raise
        if self._search.moved_to(wire.where):
            self._forget_idle()
            if self._ear is not None and self._ear.wire is not None and self._ear.wire.where != wire.where:
                self._ear.reconnect()
        return wire


class AsyncSentinelLink(AsyncRedisLink):
    """For an event loop."""

    def __init__(self, place: Sentinels, channel_of: Callable[[Turnstile], bytes]) -> None:
        self._place = place
        self._search = Search(place)
        super().__init__(place.primary._replace(where=place.where), channel_of)

    def _another(self) -> AsyncSentinelLink:
        return AsyncSentinelLink(self._place, self._channel_of)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        await self._ask_after_rest(timeout_s)
        return await super().call(request, timeout_s)

    async def _exchange(self, bodies: Sequence[Any], timeout_s: float) -> list[Any]:
        try:
            await self._ask_after_rest(timeout_s)
        except HoldfastError as error:
            return [error] * len(bodies)
        return await super()._exchange(bodies, timeout_s)

    async def _ask_after_rest(self, timeout_s: float) -> None:
        rested = self._pipe
        if rested is None or rested.closed or not rested.rests(IDLE_S):
            return
        try:
            await self._new_pipe(timeout_s / 2)
        except Unavailable:
            if not self._search.heard:
                return
            rested.close()
            raise
        if self._pipe is not rested:
            rested.close()

    async def _dial(self, timeout_s: float) -> Pipe:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        pipe: Pipe | None = None
        reply: Any = None
        steps = self._search.steps()
        try:
            while True:
                target, payload, share = steps.send(reply)
                if pipe is not None:
                    pipe.close()
                step_s = max(0.001, (until - loop.time()) * share)
                try:
                    pipe = await dial(target, step_s)
                    (reply,) = await pipe.exchange(payload, 1, step_s)
                except HoldfastError as error:
                    pipe, reply = None, error
        except StopIteration:
            assert pipe is not None
        except BaseException:
            if pipe is not None:
                pipe.close()
            raise
        if self._search.moved_to(pipe.where):
            self._forget()
            if self._ear is not None and self._ear.pipe is not None and self._ear.pipe.where != pipe.where:
                self._ear.reconnect()
        return pipe
