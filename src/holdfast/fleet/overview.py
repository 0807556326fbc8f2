"""What stands on an engine, put together for people: who leads, who is there, who owns what, what waits for what.

A listing, a look at each turnstile that stands and a read of each record, sent in large batches: a picture of about one
moment, to be read and not to decide by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.assignment import Assignment
from ..core.chronicle import Change
from ..core.election import Record
from ..core.session import Session
from ..errors import HoldfastError
from ..model import NEVER_S, Snapshot, Turnstile
from . import portions
from .portions import Partitions
from .presence import Lengths, Member

RECORDED = ("election", "partitions")
"""Kinds whose record stands in a cell of the same address."""


@dataclass(frozen=True, slots=True)
class Election:
    """``candidates`` stand by, in the order of their turn. The last three fields are the leader's, from its record.

    ``since_s``: for how long it leads; None where the record does not say it. ``state``: what `holdfast lead` says of
    its command.
    """

    name: str
    leader: Member | None
    candidates: tuple[Member, ...]
    since_s: float | None = None
    payload: bytes = b""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Its members, senior first."""

    name: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Failover:
    """A change of a leader or of who owns what, as whoever made it wrote it down."""

    kind: str
    name: str
    change: Change

    @property
    def address(self) -> str:
        return f"{self.kind}:{self.name}"

    @property
    def at(self) -> float:
        """When it was over, in seconds since 1970 by its writer's clock."""
        return self.change.steps[-1].at if self.change.steps else 0.0


@dataclass(frozen=True, slots=True)
class Overview:
    """``at``: when, in seconds since 1970. ``locks``: every turnstile that is nothing else here."""

    at: float
    elections: tuple[Election, ...] = ()
    groups: tuple[Group, ...] = ()
    partitions: tuple[Partitions, ...] = ()
    locks: tuple[Snapshot, ...] = ()
    failovers: tuple[Failover, ...] = ()
    """The last one first."""

    announcing: tuple[Turnstile, ...] = ()
    """Those whose changes are signalled."""

    read_at: float = 0.0
    """When, on the world's clock: what time has passed since another look."""

    @property
    def is_empty(self) -> bool:
        return not (self.elections or self.groups or self.partitions or self.locks or self.failovers)


async def gather(
    session: Session, prefix: str = "", lengths: Lengths | None = None, patience_s: float | None = None
) -> Overview:
    """What stands whose address (kind:name) or name starts with ``prefix``; named exactly, also what is left of it.

    ``lengths`` remembers, for whoever looks again and again. Raises `Unavailable` where the engine does not answer for
    ``patience_s``, the client's own by default.
    """
    give_up_at = NEVER_S if patience_s is None else session.world.now() + patience_s
    listed = await session.ask(session.engine.list(""), give_up_at)
    found = chosen(listed, prefix)
    stands = await looks(session, found, give_up_at)
    addresses = {turnstile.address for turnstile in found if turnstile.kind in RECORDED}
    kind, _, name = prefix.partition(":")
    if kind in RECORDED and name:
        addresses.add(prefix)
    cells = await _records(session, sorted(addresses), give_up_at)
    if lengths is None:
        lengths = Lengths(session.engine.capabilities.ttl_s)
    announcing = tuple(turnstile for turnstile in found if turnstile.announces)
    view = put_together(session.world.wall(), stands, cells, lengths)
    return replace(view, announcing=announcing, read_at=session.world.now())


def chosen(turnstiles: Iterable[Turnstile], prefix: str) -> list[Turnstile]:
    """Those whose address or name starts so; with a set of partitions, each partition."""
    turnstiles = list(turnstiles)
    found = {one.address for one in turnstiles if one.address.startswith(prefix) or one.name.startswith(prefix)}
    return [
        one
        for one in turnstiles
        if one.address in found or (one.kind == "partition" and f"partitions:{_set_of(one.name)}" in found)
    ]


def _set_of(partition: str) -> str:
    """``orders`` for the partition ``orders/12``."""
    return partition.rpartition("/")[0]


async def looks(session: Session, turnstiles: Sequence[Turnstile], give_up_at: float = NEVER_S) -> list[Snapshot]:
    """How each stands that anybody holds or waits for."""
    replies = await session.ask_many([session.engine.look(turnstile) for turnstile in turnstiles], give_up_at)
    return [snapshot for snapshot in replies if snapshot.claims]


async def _records(session: Session, addresses: Sequence[str], give_up_at: float) -> dict[str, bytes]:
    if not session.engine.capabilities.cells:
        return {}
    replies = await session.ask_many([session.engine.read(address, []) for address in addresses], give_up_at)
    return {address: cell.value for address, cell in zip(addresses, replies, strict=True) if cell.value is not None}


def put_together(
    at: float,
    stands: Sequence[Snapshot],
    cells: Mapping[str, bytes],
    lengths: Lengths,
) -> Overview:
    """From looks at all that stands, and the values of the cells that keep records, by address."""
    records = {
        address.partition(":")[2]: Record.load(value)
        for address, value in cells.items()
        if address.startswith("election:")
    }
    lengths.keep({claim.id for stand in stands for claim in stand.claims})
    sets = {stand.name for stand in stands if stand.kind == "partitions"}
    sets |= {address.partition(":")[2] for address in cells if address.startswith("partitions:")}
    held: dict[str, dict[int, Snapshot]] = {name: {} for name in sets}
    elections: list[Election] = []
    groups: list[Group] = []
    locks: list[Snapshot] = []
    members: dict[str, tuple[int, tuple[Member, ...]]] = {}
    for stand in stands:
        if stand.kind == "election":
            elections.append(_election(stand, lengths, records.get(stand.name), at))
        elif stand.kind == "group":
            groups.append(Group(stand.name, lengths.judge(stand.claims)))
        elif stand.kind == "partitions":
            members[stand.name] = stand.capacity, lengths.judge(stand.claims)
        elif stand.kind == "partition" and _set_of(stand.name) in sets:
            held[_set_of(stand.name)][int(stand.name.rpartition("/")[2])] = stand
        else:
            locks.append(stand)
    assignments = {name: _assignment(cells.get(f"partitions:{name}")) for name in sorted(sets)}
    shared = [
        portions.put_together(name, members.get(name, (0, ()))[1], members.get(name, (0, ()))[0], held[name], known)
        for name, known in assignments.items()
    ]
    failovers = [
        Failover("partitions", name, change) for name, known in assignments.items() if known for change in known.history
    ] + [Failover("election", name, change) for name, record in records.items() if record for change in record.changes]
    failovers.sort(key=lambda one: one.at, reverse=True)
    return Overview(at, tuple(elections), tuple(groups), tuple(shared), tuple(locks), tuple(failovers))


def _election(stand: Snapshot, lengths: Lengths, record: Record | None, at: float) -> Election:
    everyone = lengths.judge(stand.claims)
    leader = next((one for one in everyone if one.claim.admitted), None)
    candidates = tuple(one for one in everyone if not one.claim.admitted)
    if record is None or leader is None or record.token != leader.claim.token:  # another's, before
        return Election(stand.name, leader, candidates)
    return Election(stand.name, leader, candidates, max(0.0, at - record.since), record.payload, record.state)


def _assignment(value: bytes | None) -> Assignment | None:
    """None where there is none, or another release wrote it, or it is something else altogether."""
    with contextlib.suppress(HoldfastError, ValueError, TypeError, LookupError):
        return None if value is None else Assignment.load(value)
    return None
