"""What one link remembers: its leases with etcd, and the claims that hang on each.

One lease for each length of claims, not one for each claim: so a claim comes and goes by a single request, and one
request extends all. What that would cost is seen to here:

* A claim that comes must have all of its time before it. The lease is longer than its claims by a quarter, and is
  extended before the claim enters if it has not enough left; in a busy process that is once in many times.
* A claim that its holder stopped renewing ends, though its lease goes on for the others: whoever extends a lease first
  deletes what is overdue on it. If nobody extends it, all go with it.
* A claim that changes hands goes over to the lease of who takes it; between hands it has one of its own.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from ...contract import TOMBSTONE_S
from ...errors import HoldfastError, Unavailable
from ...model import Turnstile
from .messages import Ask, Keys, delete, grant, keepalive, made_at, on_lease, txn
from .queue import Home, Node
from .replies import checked
from .wire import LeaseGone

T = TypeVar("T")
Talk = Generator[Sequence[Ask], list[Any], T]
"""An operation in steps: it yields requests that may be sent together, and is sent their replies."""

TRIES = 8
"""How often an operation starts again because others changed what it had seen."""

MANY_HOMES = 4096
DROPPED_AT_ONCE = 60

if sys.platform == "linux":

    def now() -> float:
        """Seconds that go on in suspend, as the server's do."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    now = time.monotonic


class Lease:
    """One with etcd."""

    __slots__ = ("end", "id", "length_s", "places", "term")

    def __init__(self, id: int, length_s: int, sent: float, term: int) -> None:
        self.id = id
        self.length_s = length_s
        self.end = sent + length_s  # surely not before this
        self.term = term  # of the leader that promised it
        self.places: dict[tuple[str, str], Place] = {}


class Place:
    """One claim of ours."""

    __slots__ = (
        "admitted", "end", "home", "id", "key", "lease", "leaving", "left", "queued", "slot", "token", "wanted",
        "watches",
    )  # fmt: skip

    def __init__(self, home: Home, id: str, node: Node, lease: Lease) -> None:
        self.home = home
        self.id = id
        self.key = node.key
        self.slot = node.slot
        self.token = node.token
        self.lease = lease
        self.end = 0.0
        self.leaving = False  # a request to delete it was sent
        self.queued = False  # it had to wait, so others may be behind it
        self.admitted = False
        self.wanted = False
        self.left = 0  # the token of the one just ahead, which has gone, if its room is enough for this one
        self.watches: dict[bytes, Any] = {}  # what is watched for it, by key

    def renewed(self, at: float) -> None:
        """Its holder wants it, so it stands for as long as the lease would have stood for it alone."""
        self.end = at + self.lease.length_s


def length_for(ttl_s: float) -> int:
    """Whole seconds of a lease that backs claims of ``ttl_s``."""
    return max(1, math.ceil(1.25 * ttl_s))


class Desk:
    """The memory of one link. Used from several threads: each change is one step of CPython's."""

    def __init__(self, space: bytes) -> None:
        self.space = space
        self.places: dict[tuple[str, str], Place] = {}  # by address and claim id
        self.sent: dict[tuple[str, str], int] = {}  # the slots of enters of which nothing was heard yet
        self.leases: dict[int, Lease] = {}  # by id
        self._current: dict[float, Lease] = {}  # for new claims, by their ttl_s
        self._homes: dict[Turnstile, Home] = {}
        self.let_go: Callable[[Place], None] = lambda place: None  # of what is watched for it
        self.is_over: Callable[[Place], None] = lambda place: None  # it went without having been given back

    def home(self, turnstile: Turnstile) -> Home:
        home = self._homes.get(turnstile)
        if home is None:
            if len(self._homes) >= MANY_HOMES:
                self._homes.clear()
            home = self._homes[turnstile] = Home(self.space, turnstile)
        return home

    # -- places

    def place(self, turnstile: Turnstile, claim_id: str) -> Place | None:
        return self.places.get((turnstile.address, claim_id))

    def keep(self, home: Home, id: str, node: Node, lease: Lease, sent: float) -> Place:
        """``sent``: when it was asked for."""
        place = Place(home, id, node, lease)
        place.renewed(sent)
        name = home.turnstile.address, id
        lease.places[name] = self.places[name] = place
        self.sent.pop(name, None)
        return place

    def drop(self, place: Place) -> None:
        name = place.home.turnstile.address, place.id
        place.lease.places.pop(name, None)
        if self.places.get(name) is place:
            del self.places[name]
            place.home.give_back(place.slot)
        self.let_go(place)

    def is_kept(self, place: Place) -> bool:
        return self.places.get((place.home.turnstile.address, place.id)) is place

    # -- leases

    def lease(self, ttl_s: float) -> Talk[Lease]:
        """The lease for claims of this length, with all of their time before it."""
        lease = self._current.get(ttl_s)
        if lease is not None and lease.end - now() >= ttl_s:
            return lease
        if lease is not None and lease.end > now():
            yield from self.extend([lease])
            if lease.id in self.leases:
                return lease
        granted = yield from self.grant(length_for(ttl_s))
        lease = self._current.get(ttl_s)
        if lease is None or lease.end - now() < ttl_s:  # else one who asked at the same time was quicker
            lease = self._current[ttl_s] = granted
            self.leases[lease.id] = lease
        return lease

    def tomb_lease(self) -> Talk[Lease]:
        """For tombstones. Nobody extends it: there is a new one for those who come later."""
        lease = self._current.get(-1.0)
        if lease is None or lease.end - now() < TOMBSTONE_S:
            lease = self._current[-1.0] = yield from self.grant(int(1.5 * TOMBSTONE_S))
        return lease

    def grant(self, length_s: int) -> Talk[Lease]:
        """A new one. What the server gives may be longer: it grants none that a change of its leader could outlast."""
        sent = now()
        (reply,) = yield [grant(length_s)]
        granted = checked(reply)
        return Lease(granted.id, granted.ttl_s, sent, granted.header.term)

    def extend(self, leases: Sequence[Lease]) -> Talk[None]:
        """Keep them alive. One that was over is forgotten, with all that hung on it."""
        yield from self._drop_overdue(leases)
        sent = now()
        (reply,) = yield [keepalive([lease.id for lease in leases])]
        heard = {granted.id: granted for granted in checked(reply)}
        for lease in leases:
            granted = heard.get(lease.id)
            if granted is None:
                raise Unavailable("etcd did not say of every lease whether it was extended")
            if granted.ttl_s > 0:
                lease.end, lease.term = sent + granted.ttl_s, granted.header.term
            else:
                self.forget(lease)

    def _drop_overdue(self, leases: Sequence[Lease]) -> Talk[None]:
        at = now()
        over = [place for lease in leases for place in list(lease.places.values()) if place.end < at]
        for start in range(0, len(over), DROPPED_AT_ONCE):
            batch = over[start : start + DROPPED_AT_ONCE]
            replies = yield [_end(place) for place in batch]
            for place, reply in zip(batch, replies, strict=True):
                if not isinstance(reply, HoldfastError):
                    self.drop(place)

    def forget(self, lease: Lease) -> None:
        """It is over."""
        self.leases.pop(lease.id, None)
        for ttl_s in [ttl_s for ttl_s, current in list(self._current.items()) if current is lease]:
            self._current.pop(ttl_s, None)
        for place in list(lease.places.values()):
            self.drop(place)
            self.is_over(place)

    def refused(self, reply: Any, lease: Lease) -> bool:
        """Whether a request was refused since that lease is over; then it is forgotten."""
        if isinstance(reply, LeaseGone):
            self.forget(lease)
            return True
        checked(reply)
        return False


def _end(place: Place) -> Ask:
    """Delete it, unless it went over to another lease."""
    key = Keys(place.key)
    return txn([on_lease(key, place.lease.id), made_at(key, place.token)], [delete(key)])
