"""The reference engine: the whole contract in one dictionary. Every other engine is tested against it.

Scope: this process. It serves tests, the simulator, and programs of one process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from .. import model
from ..contract import LISTEN_S, TOMBSTONE_S, Capabilities, Deliver, Request
from ..core import turnstile as rule
from ..model import (
    NEVER_S,
    CellReply,
    CellSnapshot,
    Change,
    Claim,
    ClaimView,
    Fence,
    Signal,
    Snapshot,
    Standing,
    State,
    Turnstile,
)

T = TypeVar("T")

CAPABILITIES = Capabilities(
    engine="memory",
    scope="process",
    fair=True,
    weighted=True,
    signals=True,
    cells=True,
    groups=True,
    survives_restart=False,
    token_survives_failover=True,
    token_source="the process's clock in µs, or the last token + 1",
    min_ttl_s=0.01,
    max_value_bytes=1 << 30,
)


@dataclass
class _Place:
    claim: Claim
    token: int
    since: float
    end: float
    admitted: bool = False
    wanted: bool = False


@dataclass
class _Stand:
    turnstile: Turnstile
    places: dict[str, _Place] = field(default_factory=dict[str, _Place])  # by claim id, in token order


@dataclass
class _Cell:
    fence: Fence
    version: int = 1
    value: bytes | None = None
    entries: dict[str, bytes] = field(default_factory=dict[str, bytes])
    last_put: tuple[str, CellReply] = ("", CellReply(False))


class MemoryEngine:
    """All state of one process-wide space of turnstiles and cells. ``clock`` is in seconds, ``tokens_us`` in µs."""

    capabilities = CAPABILITIES

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        tokens_us: Callable[[], float] = lambda: time.time() * 1e6,
    ) -> None:
        self.clock = clock
        self.tokens_us = tokens_us
        self.identity = f"memory:{os.urandom(8).hex()}"
        self.lock = threading.RLock()
        self.stands: dict[str, _Stand] = {}
        self.last_tokens: dict[str, int] = {}
        self.tombstones: dict[tuple[str, str], tuple[float, bool]] = {}
        self.cells: dict[str, _Cell] = {}
        self.inboxes: dict[str, Deliver] = {}
        self.watchers: dict[str, set[str]] = {}

    def blocking_link(self) -> MemoryLink:
        return MemoryLink(self)

    def async_link(self) -> AsyncMemoryLink:
        return AsyncMemoryLink(self)

    # -- requests: each body is the operation itself, done under the lock when the link is asked to

    def ping(self) -> Request[None]:
        return Request("ping", lambda: None, _same)

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Request[Standing]:
        return Request("enter", lambda: self._enter(turnstile, claim, nowait), _same)

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Request[bool]:
        return Request("leave", lambda: self._leave(turnstile, claim_id, bury), _same)

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Request[dict[str, Standing]]]:
        yield Request("renew", lambda: {c.id: self._renew(t, c) for t, c in items}, _same)

    def look(self, turnstile: Turnstile) -> Request[Snapshot]:
        return Request("look", lambda: self._look(turnstile), _same)

    def list(self, prefix: str) -> Request[Sequence[Turnstile]]:
        return Request("list", lambda: self._list(prefix), _same)

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        return Request("open", lambda: self._open(cell, fence), _same)

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        return Request("put", lambda: self._put(cell, fence, version, op_id, value, changes), _same)

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        return Request("read", lambda: self._read(cell, keys), _same)

    def drop(self, cell: str) -> Request[bool]:
        return Request("drop", lambda: self.cells.pop(cell, None) is not None, _same)

    # -- the turnstile

    def _enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Standing:
        stand = self._sweep(turnstile)
        key = (turnstile.address, claim.id)
        if self.tombstones.get(key, (0.0,))[0] > self.clock():
            return Standing(State.BURIED)
        stand = stand or _Stand(turnstile)
        rule.check_capacity(turnstile, stand.turnstile.capacity)
        if place := stand.places.get(claim.id):
            return self._standing(stand, place)
        weights = [place.claim.weight for place in stand.places.values()]
        fits = sum(weights) + claim.weight <= turnstile.capacity
        if nowait and not fits:
            self._want(stand)
            return Standing(State.BUSY)
        token = rule.next_token(self.last_tokens.get(turnstile.address, 0), self.tokens_us())
        self.last_tokens[turnstile.address] = token
        now = self.clock()
        self.stands[turnstile.address] = stand
        place = stand.places[claim.id] = _Place(claim, token, now, now + claim.ttl_s, admitted=fits)
        if not fits:
            self._want(stand)
        self._announce(stand)
        return self._standing(stand, place)

    def _leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> bool:
        stand = self._sweep(turnstile)
        there = stand is not None and claim_id in stand.places
        key = (turnstile.address, claim_id)
        until, outcome = self.tombstones.get(key, (0.0, False))
        if until > self.clock():
            return outcome
        if bury or not there:
            self.tombstones[key] = (self.clock() + TOMBSTONE_S, there)
        if stand is not None and there:
            del stand.places[claim_id]
            self._settle(stand)
        return there

    def _renew(self, turnstile: Turnstile, claim: Claim) -> Standing:
        stand = self._sweep(turnstile)
        if stand is None or claim.id not in stand.places:
            return Standing(State.GONE)
        place = stand.places[claim.id]
        place.end = self.clock() + claim.ttl_s
        place.claim = place.claim._replace(inbox=claim.inbox)
        return self._standing(stand, place)

    def _look(self, turnstile: Turnstile) -> Snapshot:
        stand = self._sweep(turnstile)
        if stand is None:
            return Snapshot(turnstile.kind, turnstile.name, 0)
        now = self.clock()
        views = tuple(
            ClaimView(
                p.claim.id,
                p.token,
                p.claim.weight,
                p.admitted,
                p.claim.owner,
                p.claim.payload,
                now - p.since,
                p.end - now,
            )
            for p in stand.places.values()
        )
        return Snapshot(turnstile.kind, turnstile.name, stand.turnstile.capacity, views)

    def _list(self, prefix: str) -> Sequence[Turnstile]:
        for stand in list(self.stands.values()):
            self._sweep(stand.turnstile)
        return [stand.turnstile for address, stand in sorted(self.stands.items()) if address.startswith(prefix)]

    def _sweep(self, turnstile: Turnstile) -> _Stand | None:
        """Drop what expired, admit and signal whoever fits; None where nobody is left."""
        now = self.clock()
        for key in [key for key, (until, _) in self.tombstones.items() if until <= now]:
            del self.tombstones[key]
        stand = self.stands.get(turnstile.address)
        if stand is None:
            return None
        expired = [id for id, place in stand.places.items() if place.end <= now]
        for id in expired:
            del stand.places[id]
        if expired:
            self._settle(stand)
        return stand if stand.places else None

    def _settle(self, stand: _Stand) -> None:
        """After someone went: admit by the rule and tell those who were admitted."""
        places = list(stand.places.values())
        count = rule.admitted((place.claim.weight for place in places), stand.turnstile.capacity)
        fresh = [place for place in places[:count] if not place.admitted]
        for place in fresh:
            place.admitted = True
        if count < len(places):
            self._want(stand)
        for place in fresh:
            self._signal(place.claim.inbox, Signal(model.ADMITTED, place.claim.id))
        self._announce(stand)
        if not places:
            del self.stands[stand.turnstile.address]

    def _want(self, stand: _Stand) -> None:
        for place in stand.places.values():
            if place.admitted and not place.wanted:
                place.wanted = True
                self._signal(place.claim.inbox, Signal(model.WANTED, place.claim.id))

    def _announce(self, stand: _Stand) -> None:
        if stand.turnstile.announces:
            for inbox in self.watchers.get(stand.turnstile.address, ()):
                self._signal(inbox, Signal(model.CHANGED, stand.turnstile.address))

    def _signal(self, inbox: str, signal: Signal) -> None:
        if deliver := self.inboxes.get(inbox):
            deliver(signal)

    def _standing(self, stand: _Stand, place: _Place) -> Standing:
        if place.admitted:
            waits = place.wanted or not all(other.admitted for other in stand.places.values())
            return Standing(State.ADMITTED, place.token, waits)
        ahead = list(itertools.takewhile(lambda other: other is not place, stand.places.values()))
        ends = [other.end for other in ahead if ahead[-1].admitted or other is ahead[-1]]
        return Standing(State.WAITING, place.token, look_in_s=min(ends, default=NEVER_S) - self.clock())

    # -- the cell

    def _open(self, name: str, fence: Fence) -> CellReply:
        cell = self.cells.get(name)
        if cell is None:
            self.cells[name] = _Cell(fence)
            return CellReply(True, 1, fence.token, turnstile=fence.turnstile)
        stands = cell.fence
        if stands.turnstile != fence.turnstile:
            return CellReply(False, cell.version, stands.token, foreign=True, turnstile=stands.turnstile)
        newer = fence.token > stands.token or (
            fence.token == stands.token and fence.claim == stands.claim and fence.opening > stands.opening
        )
        if newer:
            cell.fence = fence
            cell.version += 1
            cell.last_put = ("", CellReply(False))
        return CellReply(
            newer or fence == stands, cell.version, cell.fence.token, cell.value, (), False, fence.turnstile
        )

    def _put(
        self, name: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> CellReply:
        cell = self.cells.get(name)
        if cell is None:
            return CellReply(False)
        if cell.fence == fence and cell.last_put[0] == op_id:
            return cell.last_put[1]
        if cell.fence != fence or cell.version != version:
            return CellReply(False, cell.version, cell.fence.token, turnstile=cell.fence.turnstile)
        cell.version += 1
        if value is not None:
            cell.value = value
        applied = tuple(self._change(cell.entries, change) for change in changes)
        reply = CellReply(True, cell.version, fence.token, None, applied, False, fence.turnstile)
        cell.last_put = (op_id, reply)
        return reply

    @staticmethod
    def _change(entries: dict[str, bytes], change: Change) -> bool:
        if change.value is None:
            return entries.pop(change.key, None) is not None
        if change.create and change.key in entries:
            return False
        entries[change.key] = change.value
        return True

    def _read(self, name: str, keys: Sequence[str] | None) -> CellSnapshot:
        cell = self.cells.get(name)
        if cell is None:
            return CellSnapshot()
        wanted = cell.entries if keys is None else {key: cell.entries[key] for key in keys if key in cell.entries}
        return CellSnapshot(cell.value, cell.version, cell.fence.token, cell.fence.claim, dict(wanted))


def _same(reply: T) -> T:
    return reply


class MemoryLink:
    """A link that just does it."""

    lifeline = None

    def __init__(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.inbox = os.urandom(6).hex()

    def call(self, request: Request[T], timeout_s: float) -> T:
        with self.engine.lock:
            return request.parse(request.body())

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        replies: list[T | Exception] = []
        for request in requests:
            try:
                replies.append(self.call(request, timeout_s))
            except Exception as error:
                replies.append(error)
        return replies

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        with self.engine.lock:
            new = self.inbox not in self.engine.inboxes
            self.engine.inboxes[self.inbox] = deliver
            return new

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        with self.engine.lock:
            self.engine.watchers.setdefault(turnstile.address, set()).add(self.inbox)

    def unwatch(self, turnstile: Turnstile) -> None:
        with self.engine.lock:
            inboxes = self.engine.watchers.get(turnstile.address, set())
            inboxes.discard(self.inbox)
            if not inboxes:
                self.engine.watchers.pop(turnstile.address, None)

    def close(self) -> None:
        with self.engine.lock:
            self.engine.inboxes.pop(self.inbox, None)
            for inboxes in self.engine.watchers.values():
                inboxes.discard(self.inbox)

    def abandon(self) -> None:
        """A forked child's copy of the memory is its own; it starts from nothing."""
        engine = self.engine
        engine.lock = threading.RLock()
        for space in (engine.stands, engine.tombstones, engine.cells, engine.inboxes, engine.watchers):
            space.clear()


class AsyncMemoryLink:
    """The same, awaitable; each call gives the loop a turn, as a real engine would."""

    lifeline = None

    def __init__(self, engine: MemoryEngine) -> None:
        self._link = MemoryLink(engine)
        self.inbox = self._link.inbox

    async def call(self, request: Request[T], timeout_s: float) -> T:
        await asyncio.sleep(0)
        return self._link.call(request, timeout_s)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        await asyncio.sleep(0)
        return self._link.call_many(requests, timeout_s)

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        return self._link.listen(deliver, look_again)

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        self._link.watch(turnstile)

    async def unwatch(self, turnstile: Turnstile) -> None:
        self._link.unwatch(turnstile)

    async def close(self) -> None:
        self._link.close()

    def abandon(self) -> None:
        self._link.abandon()


_shared: dict[tuple[str, str], MemoryEngine] = {}


def shared(name: str, namespace: str) -> MemoryEngine:
    """The engine of ``memory://name``: one for the whole process; ``memory://`` alone is always a new one."""
    if not name:
        return MemoryEngine()
    return _shared.setdefault((name, namespace), MemoryEngine())
