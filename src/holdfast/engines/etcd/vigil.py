"""What comes of itself: a waiter's turn, that a claim is wanted or gone, that a turnstile changed.

All of it runs on one event loop: the user's, or one in a thread of ours. A waiter is told of the deletions of the
claims that keep it out and of no other, so that a release wakes those who can enter and nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from ... import model
from ...contract import Deliver
from ...errors import HoldfastError, Unavailable
from ...model import Signal, Turnstile
from .calls import AsyncCalls
from .desk import Desk, Place, now
from .messages import Keys, under
from .queue import Queue
from .replies import Event, checked
from .turnstile import inherited, listing, queue_of
from .watches import Told, Watch, Watches

log = logging.getLogger("holdfast.etcd")

CALL_S = 5.0


class Vigil:
    """What is watched for one link. ``calls`` are connections for the same event loop."""

    def __init__(
        self,
        desk: Desk,
        calls: AsyncCalls,
        loop: asyncio.AbstractEventLoop,
        deliver: Deliver,
    ) -> None:
        self.deliver = deliver
        self._desk = desk
        self._calls = calls
        self._loop = loop
        self._own_thread = threading.get_ident() if loop.is_running() else 0
        self._watches = Watches(calls, loop)
        self._announced: dict[str, Watch] = {}
        self._looks: dict[Place, asyncio.Task[None]] = {}
        self._look_anew: set[Place] = set()
        desk.let_go = lambda place: self._post(self._let_go, place) if place.watches else None
        desk.is_over = lambda place: self.deliver(Signal(model.GONE, place.id))

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
        node = queue.at(place.key, place.token)
        if node is None or not self._desk.is_kept(place):
            return
        blockers = queue.blockers(node)
        keys = {one.key for one in blockers}
        for key in [key for key in place.watches if key not in keys]:
            self._end(place, key)
        heir = len(blockers) == 1 and queue.inherits(node, blockers[0])
        ahead = queue.bequeather(node)
        for key in keys - place.watches.keys():
            left = ahead.token if ahead is not None and ahead.key == key else 0
            told = self._inherits(place) if heir else self._went(place, key, left)
            place.watches[key] = self._watches.add(Keys(key), queue.revision + 1, told, deletes_only=True)
        self._watches.follow()

    def _went(self, place: Place, key: bytes, left: int) -> Told:
        def told(events: list[Event] | None) -> None:
            place.left = 0 if events is None else left
            self._end(place, key)
            self._look(place)

        return told

    def _inherits(self, place: Place) -> Told:
        """Without the one that is watched there is room for this one: no need to look."""

        def told(events: list[Event] | None) -> None:
            if events is None:
                self._look(place)
            else:
                self._admitted(place)

        return told

    def hold(self, place: Place, queue: Queue) -> None:
        """This one is admitted: tell it when it is wanted, or evicted."""
        if not place.wanted and not place.home.turnstile.announces and place.home.base not in place.watches:
            self._post(self._hold, place, queue)

    def _hold(self, place: Place, queue: Queue) -> None:
        if place.home.base in place.watches or not self._desk.is_kept(place):
            return
        self._let_go(place)  # it was admitted by a reply, before what it watched as a waiter said so

        def told(events: list[Event] | None) -> None:
            # another came, or ours went
            if events is None or any((event.kv.key == place.key) == event.deleted for event in events):
                self._look(place)

        base = place.home.base
        place.watches[base] = self._watches.add(under(base), queue.revision + 1, told)
        self._watches.follow()

    def _admitted(self, place: Place) -> None:
        place.admitted = True
        self._let_go(place)
        if self._desk.is_kept(place):
            self.deliver(Signal(model.ADMITTED, place.id))

    def _let_go(self, place: Place) -> None:
        for key in list(place.watches):
            self._end(place, key)

    def _end(self, place: Place, key: bytes) -> None:
        if watch := place.watches.pop(key, None):
            self._watches.remove(watch)

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

    async def _listed(self, place: Place) -> Queue | None:
        """None where it is admitted: the one just ahead said so when it left, and no listing has to."""
        left, place.left = place.left, 0
        token = 0 if place.home.base in place.watches else place.token
        ask = inherited(place, left) if left else listing(place.home, token)
        (reply,) = await self._calls.exchange([ask], time.monotonic() + CALL_S)
        if checked(reply).succeeded and left:
            return None
        return queue_of(reply.responses, place.home, reply)

    def _see(self, place: Place, queue: Queue | None) -> None:
        if not self._desk.is_kept(place):
            return
        if queue is None:
            self._admitted(place)
            return
        node = queue.at(place.key, place.token)
        if node is None:
            self._desk.drop(place)
            self._desk.is_over(place)
        elif not queue.is_admitted(node):
            self._wait(place, queue)
        else:
            if queue.is_wanted(node) and not place.wanted:
                place.wanted = True
                self.deliver(Signal(model.WANTED, place.id))
            if place.home.base not in place.watches:
                self._admitted(place)
            elif place.wanted:
                self._let_go(place)

    # -- announcing turnstiles

    async def watch(self, turnstile: Turnstile, timeout_s: float) -> None:
        """Tell its changes from now on. Returns once they are told; raises `Unavailable`."""
        address = turnstile.address
        watch = self._announced.get(address)
        if watch is None:
            keys = self._desk.home(turnstile).claims
            watch = self._announced[address] = self._watches.add(keys, 0, self._announces(address))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(watch.began)
        except TimeoutError:
            raise Unavailable(f"etcd did not confirm that it signals {address}") from None

    def _announces(self, address: str) -> Told:
        return lambda events: self.deliver(Signal(model.CHANGED, address))

    def unwatch(self, turnstile: Turnstile) -> None:
        self._post(self._unwatch, turnstile.address)

    def _unwatch(self, address: str) -> None:
        if watch := self._announced.pop(address, None):
            self._watches.remove(watch)

    # -- ends

    async def close(self) -> None:
        looks = list(self._looks.values())
        for task in looks:
            task.cancel()
        if looks:
            await asyncio.wait(looks)
        await self._watches.close()
        await self._calls.close()

    def abandon(self) -> None:
        self._calls.abandon()
        _abandoned.append(self)


_abandoned: list[Vigil] = []
"""Kept, so that no destructor in a forked child reaches for the parent's event loop."""
