"""What comes of itself: a waiter's turn, that a claim is wanted or gone, that a turnstile changed.

All of it runs on one event loop: the user's, or one in a thread of ours. A waiter is told of the deletions of the
claims that keep it out and of no other, so that a release wakes those who can enter and nobody else. What is watched is
watched from the revision that was read, and after a break from the last that was heard of: nothing falls in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import model
from ..contract import Deliver
from ..errors import HoldfastError, Unavailable
from ..model import Signal, Turnstile
from .etcd_desk import Desk, Place, now
from .etcd_members import Tries
from .etcd_pipes import AsyncWire
from .etcd_queue import Queue
from .etcd_turnstile import listed, listing
from .etcd_wire import Ask, NoHttp, TokenRefused, bytes_of, checked, span, text

log = logging.getLogger("holdfast.etcd")

MAX_STREAMS = 16
"""Each is a connection. The gateway lets nobody add to what a stream watches, so what is new begins one of its own."""

CONNECT_S = 5.0
CALL_S = 5.0


class Watch:
    """Some keys, from a revision on. ``told`` gets the events; None where some may have been missed."""

    __slots__ = ("began", "deletes_only", "done", "revision", "span", "told")

    def __init__(
        self, span: dict[str, str], revision: int, told: Callable[[list[Any] | None], None], deletes_only: bool = False
    ) -> None:
        self.span = span
        self.revision = revision  # the first that is not known; 0: from now on
        self.told = told
        self.deletes_only = deletes_only
        self.done = False
        self.began: asyncio.Future[None] | None = None

    def request(self, id: int) -> bytes:
        more = {"filters": ["NOPUT"]} if self.deletes_only else {}
        return json.dumps(
            {"create_request": {**self.span, "start_revision": self.revision, "watch_id": id, **more}}
        ).encode()


class Stream:
    """One connection on which some watches go on."""

    def __init__(self, watches: list[Watch]) -> None:
        self.watches = dict(enumerate(watches, 1))
        self.wire: AsyncWire | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def live(self) -> dict[int, Watch]:
        return {id: watch for id, watch in self.watches.items() if not watch.done}


class Vigil:
    """The watches of one link. ``calls`` are connections for the same event loop."""

    def __init__(
        self,
        desk: Desk,
        calls: Any,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
        look_again: Callable[[], None],
    ) -> None:
        self.deliver = deliver
        self.look_again = look_again
        self._desk = desk
        self._calls = calls
        self._loop = loop
        self._own_thread = threading.get_ident() if loop.is_running() else 0
        self._streams: set[Stream] = set()
        self._announced: dict[str, Watch] = {}
        self._looks: dict[Place, asyncio.Task[None]] = {}
        self._look_anew: set[Place] = set()
        desk.let_go = lambda place: self._post(self._let_go, place) if place.watches else None

    def _post(self, step: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._own_thread:
            step(*args)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(step, *args)

    # -- claims of ours

    def wait(self, place: Place, queue: Queue) -> None:
        """This one waits: tell it when it is admitted."""
        self._post(self._wait, place, queue)

    def _wait(self, place: Place, queue: Queue) -> None:
        node = queue.find(place.id)
        if node is None or not self._desk.is_kept(place):
            return
        blockers = queue.blockers(node)
        keys = {one.key for one in blockers}
        for key in [key for key in place.watches if key not in keys]:
            self._end(place, key)
        heir = len(blockers) == 1 and queue.is_admitted(blockers[0]) and node.weight <= blockers[0].weight
        new = [key for key in keys if key not in place.watches]
        for key in new:
            told = self._inherits(place) if heir else self._went(place, key)
            place.watches[key] = Watch({"key": text(key)}, queue.revision + 1, told, deletes_only=True)
        self._open([place.watches[key] for key in new])
        self._follow()

    def _went(self, place: Place, key: bytes) -> Callable[[Any], None]:
        def told(events: Any) -> None:
            self._end(place, key)
            self._look(place)

        return told

    def _inherits(self, place: Place) -> Callable[[Any], None]:
        """What the one just ahead leaves is enough for this one, and it was admitted: no need to look."""

        def told(events: Any) -> None:
            if events is None:
                self._look(place)
            else:
                self._admitted(place)

        return told

    def hold(self, place: Place, queue: Queue) -> None:
        """This one is admitted: tell it when it is wanted, or evicted."""
        home = place.home
        if not place.wanted and not home.turnstile.announces and not place.watches:
            self._post(self._hold, place, queue)

    def _hold(self, place: Place, queue: Queue) -> None:
        base = place.home.base
        if place.watches or not self._desk.is_kept(place):
            return

        def told(events: Any) -> None:
            if events is None or any(self._concerns(place, event) for event in events):
                self._look(place)

        place.watches[base] = Watch(span(base), queue.revision + 1, told)
        self._open([place.watches[base]])
        self._follow()

    @staticmethod
    def _concerns(place: Place, event: Any) -> bool:
        """Another came, or ours went."""
        own = bytes_of(event["kv"]["key"]) == place.key
        return bool(own == (event.get("type") == "DELETE"))

    def _admitted(self, place: Place) -> None:
        self._let_go(place)
        if self._desk.is_kept(place):
            self.deliver(Signal(model.ADMITTED, place.id))

    def _let_go(self, place: Place) -> None:
        for key in list(place.watches):
            self._end(place, key)

    def _end(self, place: Place, key: bytes) -> None:
        if watch := place.watches.pop(key, None):
            self._finish(watch)

    def _finish(self, watch: Watch) -> None:
        watch.done = True
        for stream in [stream for stream in self._streams if not stream.live]:
            self._shut(stream)

    # -- looking where a claim stands

    def _look(self, place: Place) -> None:
        if place in self._looks:
            self._look_anew.add(place)
        elif self._desk.is_kept(place):
            self._looks[place] = self._loop.create_task(self._looking(place))

    async def _looking(self, place: Place) -> None:
        pause_s = 0.02
        try:
            while self._desk.is_kept(place) and now() < place.end:
                self._look_anew.discard(place)
                try:
                    queue = await self._listed(place)
                except HoldfastError as trouble:
                    log.debug("looking again: %s", trouble)
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1))
                    pause_s = min(1.0, pause_s * 2)
                    continue
                self._see(place, queue)
                if place not in self._look_anew:
                    return
        finally:
            self._looks.pop(place, None)
            self._look_anew.discard(place)

    async def _listed(self, place: Place) -> Queue:
        (reply,) = await self._calls.exchange([listing(place.home)], time.monotonic() + CALL_S)
        return listed(checked(reply), place.home)

    def _see(self, place: Place, queue: Queue) -> None:
        if not self._desk.is_kept(place):
            return
        node = queue.find(place.id)
        if node is None or node.token != place.token:
            self._desk.drop(place)
            self.deliver(Signal(model.GONE, place.id))
        elif not queue.is_admitted(node):
            self._wait(place, queue)
        else:
            if place.home.base not in place.watches:
                self._admitted(place)
            if queue.is_wanted(node) and not place.wanted:
                place.wanted = True
                self._let_go(place)
                self.deliver(Signal(model.WANTED, place.id))

    # -- announcing turnstiles

    async def watch(self, turnstile: Turnstile, timeout_s: float) -> None:
        """Tell its changes from now on. Returns once they are told; raises `Unavailable`."""
        address = turnstile.address
        watch = self._announced.get(address)
        if watch is None:
            watch = Watch(span(self._desk.home(turnstile).claims), 0, self._announces(address))
            watch.began = self._loop.create_future()
            self._announced[address] = watch
            self._open([watch])
        assert watch.began is not None
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(watch.began)
        except TimeoutError:
            raise Unavailable(f"etcd at {self._calls.members.name} did not confirm that it signals {address}") from None

    def _announces(self, address: str) -> Callable[[Any], None]:
        return lambda events: self.deliver(Signal(model.CHANGED, address))

    def unwatch(self, turnstile: Turnstile) -> None:
        self._post(self._unwatch, turnstile.address)

    def _unwatch(self, address: str) -> None:
        if watch := self._announced.pop(address, None):
            self._finish(watch)

    # -- streams

    def _open(self, watches: list[Watch]) -> None:
        if not watches:
            return
        if len(self._streams) >= MAX_STREAMS:  # all in one again
            for stream in list(self._streams):
                watches = [*stream.live.values(), *watches]
                self._shut(stream)
        stream = Stream(watches)
        stream.task = self._loop.create_task(self._run(stream), name="holdfast-etcd-signals")
        self._streams.add(stream)

    def _shut(self, stream: Stream) -> None:
        self._streams.discard(stream)
        if stream.wire is not None:
            self._calls.drop(stream.wire)
        if stream.task is not None and stream.task is not asyncio.current_task(self._loop):
            stream.task.cancel()

    def _follow(self) -> None:
        """Calls have gone over to another member, since one did not answer: so do watches."""
        for stream in self._streams:
            if stream.wire is not None and stream.wire.member != self._calls.members.at:
                stream.wire.close()

    async def _run(self, stream: Stream) -> None:
        members, pause_s = self._calls.members, 0.02
        while stream.live:
            began = time.monotonic()
            member = members.at
            try:
                await self._hear_on(stream)
            except (OSError, HoldfastError, NoHttp) as trouble:
                log.info("signals are connected again after: %s", trouble)
                if isinstance(trouble, TokenRefused):
                    members.login = b""
            finally:
                if stream.wire is not None:
                    self._calls.drop(stream.wire)
                    stream.wire = None
            if not stream.live:
                break
            members.failed(member, "signals broke off")
            if time.monotonic() - began > CONNECT_S:
                pause_s = 0.02
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(2.0, pause_s * 2)
        self._streams.discard(stream)

    async def _hear_on(self, stream: Stream) -> None:
        """Until the connection breaks, or nobody wants to hear it any more."""
        tries = Tries(self._calls.members, time.monotonic() + CONNECT_S)
        wire = stream.wire = await self._calls.take(tries, new=True)
        await self._calls.log_in(wire, tries)
        request = Ask(b"/v3/watch", b"".join(watch.request(id) for id, watch in stream.live.items()))
        async for lines in wire.stream(request):
            for said in checked(lines):
                self._hear(stream, said)
            if not stream.live:
                return

    def _hear(self, stream: Stream, said: dict[str, Any]) -> None:
        watch = stream.watches.get(int(said.get("watch_id", 0)))
        if watch is None or watch.done:
            return
        if "canceled" in said:
            if "compact_revision" not in said:
                raise Unavailable(f"etcd ended a watch: {said.get('cancel_reason', 'no reason given')}")
            watch.revision = 0  # what came since was thrown away
            watch.told(None)
            if not watch.done:
                raise Unavailable("history was compacted")
            return
        revision = int(said["header"]["revision"])
        if "created" in said:
            watch.revision = watch.revision or revision + 1
            if watch.began is not None and not watch.began.done():
                watch.began.set_result(None)
        elif events := said.get("events"):
            watch.revision = revision + 1
            watch.told(events)

    # -- ends

    async def close(self) -> None:
        tasks = [*self._looks.values(), *(stream.task for stream in self._streams if stream.task is not None)]
        for stream in list(self._streams):
            self._shut(stream)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._calls.close()

    def abandon(self) -> None:
        self._calls.abandon()
        _abandoned.append(self)


_abandoned: list[Vigil] = []
"""Kept, so that no destructor in a forked child reaches for the parent's event loop."""
