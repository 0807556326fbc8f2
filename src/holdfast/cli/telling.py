"""An overview for people: a table for each kind of thing that stands, and in words what waits for what.

Tables are bounded: of many locks, those that somebody waits for come first, and the rest is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..fleet.overview import Election, Failover, Group, Overview
from ..fleet.portions import Partitions, Place, Portion
from ..fleet.presence import FRESH, Member
from ..model import Snapshot
from .output import printable
from .words import clock, count, exact, short, span

T = TypeVar("T")

ROWS = 20
"""So many rows of a kind, where not all are asked for."""

NARROW = 90
"""Below this the terminal's columns hold who, what and since when only."""

FAILOVERS = 5


class Teller:
    """Makes the tables: ``rows`` of a kind at most (None: all), for a terminal of ``width`` columns."""

    def __init__(self, width: int, rows: int | None = ROWS) -> None:
        self.wide = width >= NARROW
        self.rows = rows

    def tell(self, view: Overview) -> Iterator[RenderableType]:
        """A part for each kind that there is something of."""
        last = view.failovers[:FAILOVERS]
        for title, is_there, part in (
            ("elections", view.elections, self.elections(view.elections)),
            ("groups", view.groups, self.groups(view.groups)),
            ("partitions", view.partitions, self.partitions(view.partitions)),
            ("locks", view.locks, self.locks(view.locks)),
            ("last failovers", last, self.failovers(last)),
        ):
            if is_there:
                yield Lines(Text(title, style="bold"), *(indented(one) for one in part))

    def elections(self, elections: Sequence[Election]) -> Iterator[RenderableType]:
        table = self._table("name", "who", "state", "since", "lease", wide=("token", "payload"))
        shown, rest = self._bounded([(one, member) for one in elections for member in _standing(one)])
        for election, member in shown:
            leads = member is election.leader
            since_s = election.since_s if leads and election.since_s is not None else member.claim.age_s
            state = election.state if leads and election.state else "leads" if leads else "stands by"
            payload = election.payload if leads else b""
            self._row(table, election.name, member, state, span(since_s), lease(member),
                      wide=(str(member.claim.token), short(payload)))  # fmt: skip
        yield table
        yield from _more(rest, "candidate")
        for one in elections:
            if one.leader is None:
                yield Text(f"nobody leads {printable(one.name)}", style="red")

    def groups(self, groups: Sequence[Group]) -> Iterator[RenderableType]:
        table = self._table("name", "who", "health", "since", wide=("payload",))
        shown, rest = self._bounded([(group, member) for group in groups for member in group.members])
        for group, member in shown:
            self._row(table, group.name, member, health(member), span(member.claim.age_s),
                      wide=(short(member.claim.payload),))  # fmt: skip
        yield table
        yield from _more(rest, "member")

    def partitions(self, sets: Sequence[Partitions]) -> Iterator[RenderableType]:
        for one in sets:
            yield Text(printable(one.name) + ": " + state_of(one))
            table = self._table(
                "member", "health", "owns", "should own", wide=("process",), right=("owns", "should own")
            )
            shown, rest = self._bounded(one.portions)
            for portion in shown:
                should = f"{portion.wanted:,}" if one.epoch else ""
                cells = [printable(portion.name), state(portion), f"{portion.owned:,}", should]
                table.add_row(*cells, *((printable(portion.owner),) if self.wide else ()))
            yield indented(table)
            yield from _more(rest, "member")
            if self.rows is None:
                yield indented(_places(one.places))
            else:
                for place in islice(_unsettled(one), 3):
                    yield indented(Text(place))

    def locks(self, locks: Sequence[Snapshot]) -> Iterator[RenderableType]:
        table = self._table("kind", "name", "who", "state", "since", wide=("lease ends in", "token"))
        wanted_first = sorted(locks, key=lambda one: len(one.waiting), reverse=True)
        shown, rest = self._bounded([(one, claim) for one in wanted_first for claim in one.claims])
        for one, claim in shown:
            state = "holds" if claim.admitted else "waits"
            cells = [one.kind, printable(one.name), printable(claim.owner), state, span(claim.age_s)]
            table.add_row(*cells, *((span(claim.remaining_s), str(claim.token)) if self.wide else ()))
        yield table
        yield from _more(rest, "claim")
        waited_for, _ = self._bounded([one for one in wanted_first if one.waiting])
        yield from (Text(waits(one)) for one in waited_for)

    def failovers(self, failovers: Sequence[Failover]) -> Iterator[RenderableType]:
        table = self._table("when", "where", "what", "took", wide=("why", "by"))
        for one in failovers:
            change = one.change
            cells = [
                clock(one.at, date=self.wide),
                printable(one.address),
                printable(change.what),
                exact(change.took_s),
            ]
            table.add_row(*cells, *((printable(change.why), printable(change.by)) if self.wide else ()))
        yield table

    def _table(self, *columns: str, wide: Sequence[str] = (), right: Sequence[str] = ()) -> Table:
        table = Table(box=None, pad_edge=False, header_style="")
        for name in (*columns, *(wide if self.wide else ())):
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        return table

    def _row(self, table: Table, name: str, member: Member, *cells: str, wide: Sequence[str]) -> None:
        style = "" if member.health == FRESH else "yellow"
        row = (printable(name), printable(member.claim.owner), *cells, *(wide if self.wide else ()))
        table.add_row(*row, style=style)

    def _bounded(self, things: Sequence[T]) -> tuple[Sequence[T], int]:
        if self.rows is None or len(things) <= self.rows:
            return things, 0
        return things[: self.rows], len(things) - self.rows


def indented(part: RenderableType) -> RenderableType:
    return Padding(part, (0, 0, 0, 2), expand=False)


def _standing(election: Election) -> list[Member]:
    return [*([election.leader] if election.leader else []), *election.candidates]


def _more(rest: int, what: str) -> Iterator[RenderableType]:
    if rest:
        yield Text(f"\N{HORIZONTAL ELLIPSIS} and {rest:,} more {what if rest == 1 else what + 's'} (--all lists them)")


def lease(member: Member) -> str:
    return f"{span(member.claim.remaining_s)} left{'' if member.health == FRESH else ': ' + member.health}"


def health(member: Member) -> str:
    if member.health == FRESH:
        return FRESH
    return f"{member.health}: {span(member.claim.remaining_s)} of its lease left"


def state(portion: Portion) -> str:
    if portion.member is not None:
        return health(portion.member)
    if portion.leaving:
        return "leaving"
    return "gone: its leases run out" if portion.owned else "away: waited for"


def state_of(one: Partitions) -> str:
    """In a line: how many partitions, and what is not as it should be."""
    owned = sum(1 for place in one.places if place.owner)
    parts = [f"all of {one.count:,} owned" if owned == one.count else f"{owned:,} of {one.count:,} owned"]
    if handed := len(one.handed_over):
        parts.append(f"{handed:,} between two owners")
    if unowned := len(one.unowned):
        parts.append(f"{unowned:,} without an owner")
    return ", ".join(parts)


def _unsettled(one: Partitions) -> Iterator[str]:
    """What is between whom, in words, by pairs of members."""
    moves: dict[tuple[str, str], int] = {}
    for place in one.places:
        if place.handing_over or not place.owner:
            pair = place.owner, place.wanted
            moves[pair] = moves.get(pair, 0) + 1
    for (owner, wanted), number in sorted(moves.items(), key=lambda item: -item[1]):
        to = f" to go to {printable(wanted)}" if wanted and wanted != owner else ""
        yield f"{count(number, 'partition')} {'of ' + printable(owner) if owner else 'without an owner'}{to}"


def _places(places: Sequence[Place]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("partition", "who", "should own", "token"):
        table.add_column(name, overflow="fold")
    for place in places:
        wanted = place.wanted if place.wanted != place.owner else ""
        token = str(place.claim.token) if place.claim else ""
        table.add_row(str(place.partition), printable(place.owner), printable(wanted), token)
    return table


def waits(stand: Snapshot) -> str:
    """``3 wait for lock:invoice, the first for 12 s; it is held by a:12, which came 40 s ago``."""
    waiting, holding = stand.waiting, stand.admitted
    first_s = max(claim.age_s for claim in waiting)
    verb = "waits" if len(waiting) == 1 else "wait"
    longest = f" for {span(first_s)}" if len(waiting) == 1 else f", the first for {span(first_s)}"
    text = f"{len(waiting):,} {verb} for {stand.kind}:{printable(stand.name)}{longest}"
    if not holding:
        return f"{text}; nobody holds it now"
    oldest = max(holding, key=lambda claim: claim.age_s)
    others = f" and {len(holding) - 1:,} more" if len(holding) > 1 else ""
    return f"{text}; held by {printable(oldest.owner)}{others}, which came {span(oldest.age_s)} ago"


def story(failover: Failover) -> Iterator[str]:
    """One failover step by step: what was noticed and done, when, and how long after the step before."""
    change = failover.change
    yield f"{printable(failover.address)}: {printable(change.what)}"
    for label, text in (("why", change.why), ("by", change.by)):
        if text:
            yield f"  {label:4}{printable(text)}"
    before: float | None = None
    for step in change.steps:
        after = "" if before is None else f"+{exact(step.at - before)}"
        yield f"  {clock(step.at, date=True, millis=True)}  {after:>9}  {printable(step.what)}"
        before = step.at
    yield f"  took {exact(change.took_s)}"
