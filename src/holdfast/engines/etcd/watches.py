"""Keys that are watched, all over one call that goes on.

Each from the revision that was read, and after a break from the last that was heard of, with a look besides: nothing
falls in between, also where etcd has thrown that history away.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from ...errors import HoldfastError, Unavailable
from .calls import AsyncCalls
from .http2 import Call
from .members import Tries
from .messages import WATCH, Keys, unwatch, watch
from .pipes import Pipe
from .replies import Event, heard

log = logging.getLogger("holdfast.etcd")

Told = Callable[[list[Event] | None], None]
"""Gets the events; None where some may have been missed."""

CONNECT_S = 5.0
PING_S = 10.0
"""How long the connection may be silent before it is asked, and how long the answer may take. More often is refused."""


class Watch:
    """Some keys, from a revision on."""

    __slots__ = ("began", "deletes_only", "id", "keys", "revision", "told")

    def __init__(
        self, id: int, keys: Keys, revision: int, told: Told, deletes_only: bool, began: asyncio.Future[None]
    ) -> None:
        self.id = id
        self.keys = keys
        self.revision = revision  # the first that is not known; 0: from now on
        self.told = told
        self.deletes_only = deletes_only
        self.began = began

    def request(self) -> bytes:
        return watch(self.id, self.keys, self.revision, self.deletes_only)


class Watches:
    """All that is watched on one event loop."""

    def __init__(self, calls: AsyncCalls, loop: asyncio.AbstractEventLoop) -> None:
        self._calls = calls
        self._loop = loop
        self._ids = itertools.count(1)
        self._watches: dict[int, Watch] = {}
        self._pipe: Pipe | None = None
        self._call: Call | None = None
        self._trouble: HoldfastError | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, keys: Keys, revision: int, told: Told, deletes_only: bool = False) -> Watch:
        one = Watch(next(self._ids), keys, revision, told, deletes_only, self._loop.create_future())
        self._watches[one.id] = one
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="holdfast-etcd-signals")
        elif self._pipe is not None and self._call is not None:
            self._pipe.send(self._call, one.request())
        return one

    def remove(self, one: Watch) -> None:
        if self._watches.pop(one.id, None) and self._pipe is not None and self._call is not None:
            self._pipe.send(self._call, unwatch(one.id))

    def follow(self) -> None:
        """Calls may have gone over to another member, since one did not answer: so do we."""
        if self._pipe is not None and self._pipe.member != self._calls.members.at:
            self._pipe.close()

    async def _run(self) -> None:
        members, pause_s = self._calls.members, 0.02
        while True:
            began, member = time.monotonic(), members.at
            try:
                await self._hear_on()
            except HoldfastError as trouble:
                log.info("signals are connected again after: %s", trouble)
            finally:
                self._pipe = self._call = None
            members.failed(member, "signals broke off")
            if time.monotonic() - began > CONNECT_S:
                pause_s = 0.02
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2.0, pause_s * 2)

    async def _hear_on(self) -> None:
        """Until the connection breaks, or says nothing for `PING_S` after it was asked."""
        pipe = await self._calls.connected(Tries(self._calls.members, time.monotonic() + CONNECT_S))
        over: asyncio.Future[Call] = self._loop.create_future()
        ends: set[asyncio.Future[Any]] = {over, pipe.lost}
        self._trouble = None
        call = pipe.open(WATCH, self._message, over.set_result)
        for one in self._watches.values():
            pipe.send(call, one.request())
        self._pipe, self._call = pipe, call
        try:
            while not over.done():
                pongs, asked_at = pipe.pongs, time.monotonic()
                pipe.ping()
                await asyncio.wait(ends, timeout=PING_S)
                if pipe.lost.done():
                    raise Unavailable("the connection broke")
                if not over.done() and pipe.pongs == pongs and pipe.heard_at < asked_at:
                    pipe.fail(TimeoutError())
                    raise Unavailable("the connection was silent")
        finally:
            pipe.cancel(call)
        if "token" in call.text or "permission" in call.text:
            self._calls.members.login = b""
        raise self._trouble or Unavailable(call.text or "etcd ended the watches")

    def _message(self, message: bytes) -> None:
        said = heard(message)
        one = self._watches.get(said.watch)
        if said.created and said.canceled and one is None:  # refused before it got a number
            return self._break(said.reason)
        if one is None:
            return None
        if said.canceled:
            if not said.compacted:
                return self._break(said.reason)
            one.revision = 0
            one.told(None)
            if one.id in self._watches and self._pipe is not None and self._call is not None:
                self._pipe.send(self._call, one.request())
        elif said.created:
            one.revision = one.revision or said.revision + 1
            if one.began.done():  # once more: a compaction may take its own revision, too, unsaid (etcd-io/etcd#18089)
                one.told(None)
            else:
                one.began.set_result(None)
        elif said.events:
            one.revision = said.revision + 1
            one.told(said.events)
        return None

    def _break(self, reason: str) -> None:
        self._trouble = Unavailable(f"etcd refused a watch: {reason or 'it did not say why'}")
        self._calls.members.login = b""  # that it has ended is a reason
        if self._pipe is not None:
            self._pipe.fail(self._trouble)

    async def close(self) -> None:
        self._watches.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
