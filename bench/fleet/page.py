"""The page of `make bench-fleet`: what was aimed at and reached on each engine, beside those who do the same work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..placement_timing import table
from .elections import Election
from .peers import TITLES
from .places import PLACES, Place
from .sale import Sale
from .sharing import SETTLES_WITHIN_S, Change, Round
from .storm import Storm

CHANGES = {"start": "all start", "killed": "one is SIGKILLed", "joined": "one joins"}


class Target(NamedTuple):
    engine: str
    what: str
    aim: str
    reached: str
    holds: bool


class Found(NamedTuple):
    """By engine; what was not measured is not there."""

    elections: Mapping[str, Election]
    sharing: Mapping[str, Mapping[str, Sequence[Round]]]
    """By engine and kind of members."""
    sales: Mapping[str, Sale]
    storms: Mapping[str, Storm]


def targets(found: Found, sharing_ttl_s: float) -> str:
    rows = [*_elections(found), *_sharing(found, sharing_ttl_s), *_sales(found), *_storms(found)]
    cells = [[one.engine, one.what, one.aim, one.reached, "holds" if one.holds else "**not reached**"] for one in rows]
    return table(["", "", "aim", "reached", ""], cells, words=5)


def _elections(found: Found) -> Iterator[Target]:
    for name, one in found.elections.items():
        place = PLACES[name]
        if name == "sqlite":
            yield _within(place, "leader SIGKILLed, until the next leads", 0.2, one.killed)
        else:
            yield _within(place, f"the same, TTL {place.ttl_s:g} s", place.ttl_s + 0.3, one.killed)
        yield _within(place, "leader resigns, until the next leads", 0.05, one.resigned)


def _sharing(found: Found, ttl_s: float) -> Iterator[Target]:
    for name, kinds in found.sharing.items():
        rounds, place = kinds["owner"], PLACES[name]
        yield _within(place, "partitions: from start until owned and even", 3, [one.start.settled_s for one in rounds])
        kill = f"partitions, TTL {ttl_s:g} s: one SIGKILLed, until all are owned and even"
        yield _within(place, kill, ttl_s + 1, [one.killed.settled_s for one in rounds])
        yield _within(place, "partitions: one joins, until owned and even", 2, [one.joined.settled_s for one in rounds])
        moves = max(one.joined.moved / one.joined.least for one in rounds)
        yield Target(place.title, "partitions: one joins, moves", "≤ 1.1 × the least", f"{moves:.2f}", moves <= 1.1)


def _sales(found: Found) -> Iterator[Target]:
    for name, sale in found.sales.items():
        what = f"flash sale, {sale.orders:,} orders, {sale.kills} kills: oversold or lost"
        yield Target(PLACES[name].title, what, "0", "; ".join(sale.wrong) or "0", not sale.wrong)


def _storms(found: Found) -> Iterator[Target]:
    for name, storm in found.storms.items():
        what = f"{storm.minutes:.0f} minutes of storm: two owners at once, tokens that fell, stale checkpoints accepted"
        reached = ", ".join(map(str, map(len, (storm.overlaps, storm.fallen_tokens, storm.stale_saves))))
        yield Target(PLACES[name].title, what, "0, 0, 0", reached, not storm.wrong)


def _within(place: Place, what: str, limit_s: float, reached: Sequence[float]) -> Target:
    median = statistics.median(reached)  # NaN, which is never within, where one is
    bad = any(map(math.isnan, reached))
    return Target(place.title, what, f"≤ {_time(limit_s)}", _times(reached), median <= limit_s and not bad)


# -- details


def details(found: Found) -> Iterator[str]:
    if found.elections:
        yield "## Elections\n"
        rows = [
            [PLACES[name].title, f"{PLACES[name].ttl_s:g} s", _time(PLACES[name].stands_s(PLACES[name].ttl_s)),
             _times(one.killed), len(one.killed), _times(one.resigned), len(one.resigned)]
            for name, one in found.elections.items()
        ]  # fmt: skip
        yield table(["", "TTL", "a dead claim stands", "SIGKILLed", "n", "resigned", "n"], rows)
        yield from (f"- {place.title}: {place.note}." for place in PLACES.values() if place.note)
        yield ""
    for name, kinds in found.sharing.items():
        yield f"## Partitions on {PLACES[name].title}\n"
        for field, title in CHANGES.items():
            changes = {kind: [getattr(one, field) for one in rounds] for kind, rounds in kinds.items()}
            yield f"### {title[0].upper()}{title[1:]}\n"
            yield table(
                [
                    "",
                    "settled after",
                    "longest without owner",
                    "claimed twice",
                    "moved",
                    "least possible",
                    "most / mean",
                ],
                [[TITLES[kind], *_cells(some, field)] for kind, some in changes.items()],
            )
    if found.sales:
        yield "## Flash sale\n"
        rows = [
            [PLACES[name].title, f"{one.orders:,}", f"{one.served:,} of {one.stock:,}", one.kills,
             f"{one.orders / one.seconds:,.0f}", "; ".join(one.wrong) or "nothing"]
            for name, one in found.sales.items()
        ]  # fmt: skip
        yield table(["", "orders", "sold", "kills", "orders/s", "wrong"], rows)
    if found.storms:
        yield "## Storm\n"
        yield from (f"{PLACES[name].title}: {one}\n".replace("\n", "\n\n", 1) for name, one in found.storms.items())


def _cells(some: Sequence[Change], field: str) -> list[object]:
    moves = [one.moved for one in some]
    return [
        _times([one.settled_s for one in some]),
        "–" if field == "start" else _times([one.longest_gap_s for one in some]),
        _numbers([one.twice for one in some]),
        "–" if field == "start" else _numbers(moves),
        "–" if field == "start" else _numbers([one.least for one in some]),
        f"{max(one.load for one in some):.2f}",
    ]


def _numbers(values: Sequence[int]) -> str:
    least, most = min(values), max(values)
    return f"{least}" if least == most else f"{least} … {most}"


def _times(values: Sequence[float]) -> str:
    """The median, and the least and the most."""
    if any(map(math.isnan, values)):
        never = sum(map(math.isnan, values))
        return f"not in {SETTLES_WITHIN_S:.0f} s ({never} of {len(values)})"
    least, most = min(values), max(values)
    median = _time(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({_time(least)} … {_time(most)})"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 0.995 else f"{seconds:.2f} s"
