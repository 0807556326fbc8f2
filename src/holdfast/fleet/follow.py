"""Following what stands on an engine: looks again whenever it may have changed, and says what is different.

Goes on through an outage of the engine, and says so. What came and went between two looks is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from .. import model
from ..core.session import Session
from ..errors import HoldfastError, Misuse, Unsupported
from ..model import Turnstile
from .overview import Election, Failover, Overview, gather
from .portions import Partitions
from .presence import FRESH, Lengths, Member

T = TypeVar("T", Election, Partitions)

PATIENCE_S = 1.0
"""How long the engine may leave one look unanswered before that is said."""

LEAST_S = 0.1
"""Looks are so far apart at least, however many signals come."""

BUSY_SHARE = 0.2
"""Of the time, at most, is spent on looking: so that following a very large fleet is no burden to its engine."""


class Event(NamedTuple):
    """What is different: ``kind`` is joined, left, late, fresh, leader, moved, failover, out or back.

    ``address`` is that of the turnstile, empty where it is about the engine.
    """

    at: float
    address: str
    kind: str
    text: str


class Follower:
    """Looks at an engine again and again. `look` gives what is different since the last; `view` is what was seen."""

    def __init__(self, session: Session, prefix: str = "", every_s: float = 1.0) -> None:
        self.mailbox = session.world.mailbox()
        self.view: Overview | None = None
        self.trouble = ""
        self.out_since: float | None = None  # by the wall clock
        self._session = session
        self._prefix = prefix
        self._every_s = every_s
        self._lengths = Lengths(session.engine.capabilities.ttl_s)
        self._watched: dict[str, Turnstile] = {}
        self._looked_at = 0.0
        self._took_s = 0.0

    async def look(self) -> list[Event]:
        """Raises where going on is of no use: what was asked for is wrong."""
        world = self._session.world
        self._looked_at = world.now()
        try:
            view = await gather(self._session, self._prefix, self._lengths, PATIENCE_S)
            await self._watch(view)
        except (Misuse, Unsupported):
            raise
        except HoldfastError as trouble:
            self._took_s = 0.0
            return self._out(str(trouble))
        self._took_s = world.now() - self._looked_at
        before, self.view = self.view, view
        return [*self._back(), *changes(before, view)]

    async def wait(self) -> None:
        """Until it is time to look again: something has changed, or the interval is over. Also ends by a nudge."""
        world = self._session.world
        rest_s = max(LEAST_S, self._took_s / BUSY_SHARE)
        signal = await world.wait_signal(self.mailbox, self._looked_at + max(self._every_s, rest_s))
        if signal is not None and signal.kind == model.CHANGED:
            pause_s = self._looked_at + rest_s - world.now()
            if pause_s > 0:
                await world.sleep(pause_s)
        while signal is not None:  # one look is enough for all that came
            signal = await world.wait_signal(self.mailbox, world.now())

    def now(self) -> float:
        """By the wall clock, as `out_since` is."""
        return self._session.world.wall()

    async def _watch(self, view: Overview) -> None:
        """Hear of changes of everything that announces them; what could not be watched is looked at anyway."""
        if not self._session.engine.capabilities.signals:
            return
        there = {turnstile.address: turnstile for turnstile in view.announcing}
        for address in self._watched.keys() - there.keys():
            await self._session.unwatch(self._watched.pop(address), self.mailbox)
        for address in there.keys() - self._watched.keys():
            await self._session.watch(there[address], self.mailbox)
            self._watched[address] = there[address]

    def _out(self, trouble: str) -> list[Event]:
        now = self._session.world.wall()
        self.trouble = trouble
        if self.out_since is not None:
            return []
        self.out_since = now
        return [Event(now, "", "out", f"the engine cannot be reached, trying on: {trouble}")]

    def _back(self) -> list[Event]:
        if self.out_since is None:
            return []
        now = self._session.world.wall()
        lasted_s, self.out_since, self.trouble = now - self.out_since, None, ""
        return [Event(now, "", "back", f"the engine answers again, after {lasted_s:.1f} s")]


def changes(before: Overview | None, now: Overview) -> list[Event]:
    """What is different; at first, what is there."""
    was = before or Overview(now.at)
    found = [*_leaders(was, now), *_memberships(was, now), *_moves(was, now), *_failovers(before, now)]
    return [Event(now.at, *one) for one in found]


def _leaders(was: Overview, now: Overview) -> Iterator[tuple[str, str, str]]:
    for name, (old, new) in _beside(was.elections, now.elections).items():
        former, leader = old and old.leader, new and new.leader
        if (former and former.claim.id) == (leader and leader.claim.id):
            continue
        text = f"{leader.claim.owner} leads (token {leader.claim.token})" if leader else "nobody leads"
        yield f"election:{name}", "leader", text + (f", after {former.claim.owner}" if former else "")


def _memberships(was: Overview, now: Overview) -> Iterator[tuple[str, str, str]]:
    old, new = dict(_members(was)), dict(_members(now))
    for address in sorted(old.keys() | new.keys()):
        there, here = old.get(address, {}), new.get(address, {})
        for id, member in here.items():
            who = member.claim.owner
            if id not in there:
                yield address, "joined", f"{who} joined"
            elif member.health != there[id].health:
                left_s = member.claim.remaining_s
                text = f"{who} is {member.health}" + (
                    "" if member.health == FRESH else f": {left_s:.1f} s of its lease left"
                )
                yield address, member.health, text
        for id in there.keys() - here.keys():
            member = there[id]
            ran_out = member.claim.remaining_s <= now.read_at - was.read_at
            who = member.claim.owner
            yield address, "left", f"{who} is gone: its lease ran out" if ran_out else f"{who} left"


def _members(view: Overview) -> Iterator[tuple[str, dict[str, Member]]]:
    for election in view.elections:
        leader = (election.leader,) if election.leader else ()
        yield f"election:{election.name}", {member.claim.id: member for member in (*leader, *election.candidates)}
    for group in view.groups:
        yield f"group:{group.name}", {member.claim.id: member for member in group.members}
    for one in view.partitions:
        yield (
            f"partitions:{one.name}",
            {portion.member.claim.id: portion.member for portion in one.portions if portion.member},
        )


def _moves(was: Overview, now: Overview) -> Iterator[tuple[str, str, str]]:
    """By pairs of owners: of thousands that move, a line or a few."""
    for name, (old, new) in _beside(was.partitions, now.partitions).items():
        former = {place.partition: place.owner for place in old.places} if old else {}
        present = {place.partition: place.owner for place in new.places} if new else {}
        pairs = Counter((former.get(partition, ""), owner) for partition, owner in present.items())
        for (source, target), number in pairs.most_common():
            if source != target:
                what = f"{number:,} partition{'' if number == 1 else 's'}"
                origin = f" from {source}" if source else ""
                yield (
                    f"partitions:{name}",
                    "moved",
                    f"{what}{origin} to {target}" if target else f"{what}{origin} without an owner",
                )


def _failovers(was: Overview | None, now: Overview) -> Iterator[tuple[str, str, str]]:
    if was is not None:  # those from before are no news
        known: set[Failover] = set(was.failovers)
        for one in reversed(now.failovers):
            if one not in known:
                yield one.address, "failover", f"{one.change.what} ({one.change.why}), took {one.change.took_s:.3f} s"


def _beside(old: Iterable[T], new: Iterable[T]) -> Mapping[str, tuple[T | None, T | None]]:
    """Both of each name."""
    was, now = {one.name: one for one in old}, {one.name: one for one in new}
    return {name: (was.get(name), now.get(name)) for name in sorted(was.keys() | now.keys())}
