"""What was aimed at, and what was reached: on Redis, and for leases that are kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from .placement_timing import table
from .report import Found, Spread, best, best_fair, best_rival, ratio, spread
from .workloads import Figures

MANY = 32
QUEUES = "python-redis-lock"
ADVISORY = "PostgreSQL advisory lock"
BATCHED = "holdfast, sticky, 5 ms"


class Target(NamedTuple):
    what: str
    aim: str
    reached: Spread
    holds: bool


def _at_most(what: str, limit: float, unit: str, reached: Spread) -> Target:
    return Target(what, f"≤ {limit:g}{unit}", reached, reached.median <= limit)


def _at_least(what: str, limit: float, unit: str, reached: Spread) -> Target:
    return Target(what, f"≥ {limit:g}{unit}", reached, reached.median >= limit)


def targets(found: Found) -> str:
    """A table for the engine, or nothing where there is none."""
    rows = [*_sticky_pairs(found)]
    if found.engine.name == "redis":
        rows = [*_redis_pairs(found), *rows, *_redis_contests(found), *_batched(found)]
    cells = [[one.what, one.aim, one.reached, "holds" if one.holds else "**falls short**"] for one in rows]
    return table(["", "aim", "reached", ""], cells, words=4) if cells else ""


def _redis_pairs(found: Found) -> Iterator[Target]:
    if found.pairs:
        reached = ratio(found.pairs["holdfast"], found.pairs["floor"])
        yield _at_most("a free lock, acquire + release", 1.2, " × floor", reached)


def _sticky_pairs(found: Found) -> Iterator[Target]:
    for name, limit, face in (("holdfast, sticky", 3, "threads"), ("holdfast.aio, sticky", 15, "asyncio")):
        rival = best_rival(found, face)
        if name in found.pairs:
            mine = found.pairs[name]
            yield _at_most(f"taking a kept lease again, {name}", limit, " µs", spread(mine))
            if rival and found.engine.name == "redis":
                yield _at_least(f"the same, beside {rival}", 50, " × faster", ratio(found.pairs[rival], mine))


def _redis_contests(found: Found) -> Iterator[Target]:
    for (processes, inside_s), rows in found.contests.items():
        if processes != MANY:
            continue
        mine = rows["holdfast"]
        where = f"{processes} processes, {inside_s * 1e3:.0f} ms inside"

        def beside(peer: str, figure: str, mine: Figures = mine, rows: dict[str, Figures] = rows) -> Spread:
            return ratio(mine[figure], rows[peer][figure])

        for peer, limit in ((QUEUES, 1.3), (ADVISORY, 1)):
            if peer in rows:
                yield _at_least(f"{where}: hand-overs", limit, f" × {peer}", beside(peer, "hand-overs/s"))
        for figure, limit in (("p99 ms", 0.4), ("CPU µs/hand-over", 0.8)):
            for peer in dict.fromkeys((best_fair(found, rows, figure), QUEUES)):
                if peer in rows:
                    yield _at_most(f"{where}: {figure}", limit, f" × {peer}", beside(peer, figure))
        yield _at_least(f"{where}: Jain", 0.99, "", spread(mine["Jain"]))
        yield _at_most(f"{where}: commands per acquisition", 2.0, "", spread(mine["commands/acquisition"]))


def _batched(found: Found) -> Iterator[Target]:
    rows = found.contests.get((MANY, 0.0), {})
    if BATCHED in rows:
        mine, figure = rows[BATCHED], "acquisitions/s"
        rivals = [peer.name for peer in found.peers if not peer.ours and peer.name in rows]
        rival = best({name: rows[name][figure] for name in rivals}, rivals, more=True)
        where = f"{BATCHED}, {MANY} processes, 0 ms inside"
        yield _at_least(f"{where}: {figure}", 10, f" × {rival}", ratio(mine[figure], rows[rival][figure]))
        most = max(mine["max ms"])
        yield _at_most(
            f"{where}: longest wait", MANY * 5 + 200, " ms", Spread(most, statistics.median(mine["max ms"]), most)
        )
