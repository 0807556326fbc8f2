"""What comes of itself: a waiter's turn, that a claim is wanted or gone, that a turnstile changed.

Everything here runs on kazoo's connection thread, in answer to events and replies: nobody waits in a thread of his own.
ZooKeeper's watches fire once. Those for deletions are set on the claims that keep a waiter out and on no other, so that
a release wakes those who can enter and nobody else.
"""

from __future__ import annotations

import functools
from typing import Any

from ... import model
from ...errors import HoldfastError
from ...model import Signal, Turnstile
from .desk import Desk, Place
from .queue import Queue
from .wire import CreateContainer, Exists, GetChildren, NodeExistsError, NoNodeError, states


class Vigil:
    """The watches of one desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._watched: dict[str, Turnstile] = {}  # announcing turnstiles, by address
        self._callbacks: dict[str, Any] = {}  # one for each home: kazoo keeps a set of them, so none is there twice
        self.look_again: Any = lambda: None

    # -- a waiter's turn

    def keep_watch(self, place: Place, queue: Queue) -> None:
        """See to it that this waiting claim is told when it is admitted."""
        place.queued = True
        place.heir_of = queue.bequeather(place.name)
        for name in queue.blockers(place.name):
            if name not in place.watched:
                place.watched.add(name)
                path = f"{place.home}/{name}"
                watcher = functools.partial(self._fired, place, name)
                self._desk.exchange([Exists(path, watcher)], functools.partial(self._set, place, name))

    def _set(self, place: Place, name: str, replies: list[Any]) -> None:
        if replies[0] is None:  # it had gone before
            self._went(place, name)

    def _fired(self, place: Place, name: str, event: Any) -> None:
        if event.type == states.EventType.NONE:  # the connection broke: `resume` looks
            return
        if event.type == states.EventType.CHANGED and name == place.heir_of:  # see `Turnstiles.parting`
            if not place.admitted and self._desk.is_kept(place):
                self._admit(place)
        else:
            self._went(place, name)

    def _went(self, place: Place, name: str) -> None:
        place.watched.discard(name)
        self.look(place)

    def look(self, place: Place) -> None:
        """Where does it stand now?"""
        if place.looking or place.admitted or not self._desk.is_kept(place):
            return
        place.looking = True
        self._desk.exchange([GetChildren(place.home, None)], functools.partial(self._looked, place))

    def _looked(self, place: Place, replies: list[Any]) -> None:
        place.looking = False
        queue = self._queue(replies[0])
        if queue is None or place.admitted or not self._desk.is_kept(place):
            return
        if place.name not in queue.names:
            self._gone(place)
        elif queue.is_admitted(place.name):
            if place.wanted or queue.is_wanted(place.name):
                self._want(place)
            self._admit(place)
        else:
            self.keep_watch(place, queue)

    def _admit(self, place: Place) -> None:
        place.admitted = True
        self._desk.tell(Signal(model.ADMITTED, place.claim_id))

    def _want(self, place: Place) -> None:
        place.wanted = True
        self._desk.tell(Signal(model.WANTED, place.claim_id))

    def _gone(self, place: Place) -> None:
        self._desk.drop(place)
        self._desk.tell(Signal(model.GONE, place.claim_id))

    def _queue(self, reply: Any) -> Queue | None:
        """None where nothing can be said: the connection broke, and all is looked at again."""
        try:
            return Queue(()) if isinstance(reply, NoNodeError) else Queue(self._desk.checked(reply))
        except HoldfastError:
            return None

    # -- a home's children

    def watcher(self, turnstile: Turnstile) -> Any:
        """To be set with a listing: called when claims come or go there."""
        address = turnstile.address
        return self._callbacks.setdefault(address, functools.partial(self._children, turnstile))

    def _children(self, turnstile: Turnstile, event: Any) -> None:
        address = turnstile.address
        self._callbacks.pop(address, None)
        if event.type == states.EventType.NONE:
            return
        if address in self._watched:
            self._arm(turnstile)
            self._desk.tell(Signal(model.CHANGED, address))
        held = [place for place in self._of(address) if place.admitted and not place.wanted and not place.is_member]
        if held:
            # whose claim lets nobody in beside it goes on listening; who shares looks again at its next renewal, or all
            # who hold would list all at each change
            alone = any(place.weight >= turnstile.capacity for place in held)
            listing = GetChildren(held[0].home, self.watcher(turnstile) if alone else None)
            self._desk.exchange([listing], functools.partial(self._held, held))

    def _held(self, held: list[Place], replies: list[Any]) -> None:
        queue = self._queue(replies[0])
        if queue is None:
            return
        for place in held:
            if not self._desk.is_kept(place) or place.wanted or place.leaving:
                continue
            if place.name not in queue.names:
                self._gone(place)
            elif queue.is_wanted(place.name):
                self._want(place)

    def _of(self, address: str) -> list[Place]:
        with self._desk.lock:
            return list(self._desk.places.get(address, {}).values())

    # -- announcing turnstiles

    def watch(self, turnstile: Turnstile) -> list[Any]:
        """Requests after which its changes are told; `watching` takes their replies."""
        self._watched[turnstile.address] = turnstile
        home = self._desk.home(turnstile.address)
        return [
            CreateContainer(home, b"", self._desk.target.acl, 4),
            GetChildren(home, self.watcher(turnstile)),
        ]

    def watching(self, replies: list[Any]) -> None:
        if not isinstance(replies[0], NodeExistsError):
            self._desk.checked(replies[0])
        self._desk.checked(replies[1])

    def unwatch(self, turnstile: Turnstile) -> None:
        self._watched.pop(turnstile.address, None)

    def _arm(self, turnstile: Turnstile) -> None:
        def armed(replies: list[Any]) -> None:
            if isinstance(replies[0], NoNodeError):  # the server has removed the empty home
                self._desk.exchange(self.watch(turnstile), lambda replies: None)

        self._desk.exchange([GetChildren(self._desk.home(turnstile.address), self.watcher(turnstile))], armed)

    def resume(self) -> None:
        """There is a connection again: watches are gone, and anything may have happened."""
        self._callbacks.clear()
        for turnstile in list(self._watched.values()):
            self._arm(turnstile)
        for place in self._desk.all_places():
            place.watched.clear()
            place.looking = False
            self.look(place)
        self.look_again()

    def forget(self) -> None:
        self._watched.clear()
        self._callbacks.clear()
