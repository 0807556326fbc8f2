"""Partitions: how long until all are owned when members start, when one is killed, when one joins; and what moved."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from .crew import Crew, crew
from .history import Holding, gaps, holdings, owners_at, settled
from .journal import now
from .places import Place, url_of

QUIET_S = 2.0
"""Nothing has changed for so long: it is settled."""

SETTLES_WITHIN_S = 20.0


class Change(NamedTuple):
    """What one change of the members brought."""

    settled_s: float
    """Until each partition had one owner and, where that is promised, each member its share; NaN: never, in time."""
    longest_gap_s: float
    """That a partition had no owner, once all had one before."""
    twice: int
    """Partitions that two members claimed at once."""
    moved: int
    """Partitions that another owns than before."""
    least: int
    """That had to move, at least."""
    load: float
    """Of the member that owns most, in means."""


class Round(NamedTuple):
    start: Change
    killed: Change
    joined: Change


def measure(place: Place, url: str, kind: str, members: int, count: int, ttl_s: float) -> Round:
    where = url_of(url, ttl_s)
    with crew(kind, where, count=count, ttl_s=ttl_s, stands_s=place.stands_s(ttl_s)) as all_:
        hands = all_.start(members)
        start = _change(all_, count, all_.tell(hands, "join"), {}, kind)
        before = owners_at(all_.holdings(), now())
        killed = _change(all_, count, all_.kill(hands[members // 2]), before, kind)
        before = owners_at(all_.holdings(), now())
        new = all_.start()
        return Round(start, killed, _change(all_, count, all_.tell(new, "join"), before, kind))


def _change(all_: Crew, count: int, since: float, before: dict[int | str, str], kind: str) -> Change:
    """Wait until it has settled, and see what came of it."""
    names = {hand.name for hand in all_.hands}
    keys = range(count)
    even = kind == "owner"
    found, until = all_.holdings(), now() + SETTLES_WITHIN_S
    claims = settled(found, keys, names, since, even=even)
    while now() < until:
        time.sleep(0.3)  # reading is work, too
        if all_.journals.news():
            found = holdings(all_.journals.entries)
            claims = settled(found, keys, names, since, even=even)
        if _knows_all(found, names, since) and now() > claims.settled_at + QUIET_S:
            break
    owners = owners_at(found, now())
    loads = [sum(owner == name for owner in owners.values()) for name in names]
    free = gaps(found, keys, since, now()) if before else []
    return Change(
        claims.settled_at - since,
        max((gap.length_s for gap in free), default=0.0),
        claims.twice,
        sum(owners.get(key) != who for key, who in before.items()),
        _least(before, names, count, even) if before else 0,
        max(loads) * len(names) / count,
    )


def _knows_all(found: list[Holding], names: set[str], since: float) -> bool:
    """Everyone who is there owns something, and of who is not there nobody does."""
    return {one.who for one in found if one.end == math.inf} == names


def _least(before: dict[int | str, str], names: set[str], count: int, even: bool) -> int:
    """Partitions whose owner is gone must move, and what is above an even share once a member came."""
    most = -(-count // len(names))
    orphans = sum(who not in names for who in before.values())
    counts = [sum(owner == name for owner in before.values()) for name in names]
    return max(orphans, sum(max(0, owned - most) for owned in counts), count // len(names) if 0 in counts else 0)
