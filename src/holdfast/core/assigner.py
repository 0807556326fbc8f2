"""Keeping an assignment in step with who is there: any member may do it, under a lock, and one does.

There is no coordinator to fail over. Every member watches the group; the senior one acts at once when it changed, the
next a little later if the assignment still does not fit, and so on. The assignment is a cell under the lock's token, so
one that was paused in the middle of it is refused; the lock announces, so that its release tells all members to read.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import HoldfastError, LeaseLost
from ..model import NEVER_S, ClaimView, Snapshot, Turnstile
from ..world import Mailbox
from . import cell as cells
from . import lease as leases
from .assignment import Assignment, Worker
from .chronicle import Change, Step
from .session import Session
from .tenure import Tenure
from .waiting import Queue

LOOK_S = 5.0
"""At least this often a member looks, whatever signals it gets."""

QUIET_S, QUIET_MOST_S = 0.1, 0.5
"""After a member came others may follow: so long the assignment waits for the next, and so long in all."""

RANK_S, RANKS = 0.3, 5
"""How much longer than the one before it the next in rank waits before it acts, and how many ranks there are."""

LOCK_TTL_S = 3.0
"""An assignment takes milliseconds; for so long it may be held up by who died over it."""

FOLLOWED_S = 60.0
"""How long it is followed until all has arrived, for the record."""


class Seat(NamedTuple):
    """What a member says of itself, in the payload of its claim."""

    name: str
    weight: int
    zone: str
    grace_s: float
    payload: bytes

    def dump(self) -> bytes:
        return json.dumps([*self[:-1], base64.b64encode(self.payload).decode()]).encode()

    @staticmethod
    def load(data: bytes) -> Seat:
        try:
            name, weight, zone, grace_s, payload = json.loads(data)
            return Seat(name, weight, zone, grace_s, base64.b64decode(payload))
        except (ValueError, TypeError):
            raise HoldfastError("a member of another release shares these partitions; stop one of them") from None


def members_of(snapshot: Snapshot) -> list[tuple[ClaimView, Seat]]:
    """Who is in, senior first. One that leaves has a claim of weight 1 instead, and is none any more."""
    return [(claim, Seat.load(claim.payload)) for claim in snapshot.admitted if not claim.weight]


def workers_of(snapshot: Snapshot) -> list[Worker]:
    """Those who can own, senior first: of several with one name the senior."""
    found: dict[str, Worker] = {}
    for claim, seat in members_of(snapshot):
        worker = Worker(seat.name or claim.id, claim.id, claim.owner, seat.weight, seat.zone, seat.grace_s)
        found.setdefault(worker.name, worker)
    return list(found.values())


def partition_turnstile(name: str, partition: int) -> Turnstile:
    """Who passes it owns the partition; the claim's payload is the worker's name."""
    return Turnstile("partition", f"{name}/{partition}", 1)


def cell_name(name: str) -> str:
    """Where the assignment stands."""
    return f"partitions:{name}"


async def read(session: Session, name: str, count: int) -> Assignment:
    """The assignment as it stands now."""
    value = (await session.ask(session.engine.read(cell_name(name), []))).value
    return _loaded(value, count)


def _loaded(value: bytes | None, count: int) -> Assignment:
    if value is not None:
        found = Assignment.load(value)
        if len(found.places) == count:
            return found
    return Assignment.new(count)  # the first; or it is from before, when the count was another


class Assigner:
    """One member's view of the assignment, and its part in keeping it."""

    def __init__(self, session: Session, group: Turnstile, ttl_s: float, mailbox: Mailbox) -> None:
        self.known = Assignment.new(group.capacity)
        self.look_at = 0.0  # when to look again if no signal comes first
        self._session = session
        self._group = group
        self._lock = Turnstile("assign", group.name, 1, announces=True)
        engine = session.engine.capabilities
        self._ttl_s = ttl_s if engine.ttl_s is not None else max(engine.min_ttl_s, min(ttl_s, LOCK_TTL_S))
        self._mailbox = mailbox
        self._watching = False
        self._present: list[Worker] = []
        self._quiet_at = 0.0  # when it will have been quiet for long enough since a member came
        self._not_before = 0.0  # another was at it just now
        self._wrong_since = NEVER_S  # since when the assignment does not fit those who are there
        self._noticed = 0.0  # the same, by the wall clock
        self._away_since: dict[str, float] = {}
        self._ends: dict[str, float] = {}  # when each membership that was seen would be over
        self._retired: set[str] = set()  # those that said that they leave
        self._moving: set[int] = set()  # what we assigned anew, and has not been seen to have arrived
        self._follow_at, self._follow_until = NEVER_S, NEVER_S

    # -- looking

    async def look(self) -> None:
        """See who is there and what the assignment is."""
        session = self._session
        if not self._watching:
            await session.watch(self._group, self._mailbox)
            await session.watch(self._lock, self._mailbox)
            self._watching = True
        requests: list[Any] = [session.engine.look(self._group), session.engine.read(cell_name(self._group.name), [])]
        snapshot, stands = await session.ask_many(requests)
        self._see(snapshot)
        self._take(_loaded(stands.value, self._group.capacity))

    async def stop(self) -> None:
        if self._watching:
            self._watching = False
            await self._session.unwatch(self._group, self._mailbox)
            await self._session.unwatch(self._lock, self._mailbox)

    def _see(self, snapshot: Snapshot) -> None:
        world = self._session.world
        now = world.now()
        present = workers_of(snapshot)
        if {worker.id for worker in present} - {worker.id for worker in self._present}:
            self._quiet_at = now + QUIET_S
        self._present = present
        self._ends = {claim.id: now + claim.remaining_s for claim in snapshot.admitted} | {
            id: end for id, end in self._ends.items() if end > now - FOLLOWED_S
        }
        self._retired |= {Seat.load(claim.payload).name for claim in snapshot.admitted if claim.weight}
        first_end_s = min((claim.remaining_s for claim in snapshot.claims), default=LOOK_S)
        self.look_at = now + max(0.02, min(LOOK_S, first_end_s + 0.005)) + world.random() * 0.02

    def _take(self, assignment: Assignment) -> None:
        world = self._session.world
        now = world.now()
        if assignment.epoch != self.known.epoch:
            self._not_before = 0.0
        self.known = assignment
        self._away_since = {worker.name: self._away_since.get(worker.name, now) for worker in assignment.away()}
        if assignment.fits(self._present):
            self._wrong_since = NEVER_S
        elif self._wrong_since == NEVER_S:
            self._wrong_since, self._noticed = now, world.wall()

    # -- acting

    def act_at(self, member_id: str) -> float:
        """When this member is to do something about it, if no other did before."""
        return min(self._make_at(member_id), self._follow_at if self._wrong_since == NEVER_S else NEVER_S)

    def _make_at(self, member_id: str) -> float:
        ids = [worker.id for worker in self._present]
        rank = min(ids.index(member_id), RANKS) if member_id in ids else RANKS
        return max(self._wrong_at() + RANK_S * rank, self._not_before)

    def _wrong_at(self) -> float:
        """From when on another assignment is due."""
        if self._wrong_since < NEVER_S:
            here = {worker.id for worker in self._present}
            if not any(worker.id in here for worker in self.known.workers):
                return self._wrong_since  # nobody owns anything: waiting for others to come would help nobody
            return max(self._wrong_since, min(self._quiet_at, self._wrong_since + QUIET_MOST_S))
        return min((self._away_since[worker.name] + worker.grace_s for worker in self.known.away()), default=NEVER_S)

    async def act(self, member_id: str) -> None:
        """Do it: make the next assignment, unless another is at it, or see whether the last has been carried out."""
        now = self._session.world.now()
        if self._make_at(member_id) <= now:
            self._not_before = now + 2 * RANK_S
            await self._try()
        else:
            await self._follow(now)

    async def rebalance(self) -> None:
        """Make it anew for those who are there; who is away is waited for no longer."""
        tenure = self._session.new_tenure(self._lock, 1, self._ttl_s)
        await leases.acquire(self._session, tenure, Queue(), None)
        await self._assign(tenure, forced=True)

    async def _try(self) -> None:
        tenure = self._session.new_tenure(self._lock, 1, self._ttl_s)
        if await leases.try_acquire(self._session, tenure):
            await self._assign(tenure)

    async def _assign(self, tenure: Tenure, forced: bool = False) -> None:
        """Under the lock: look again, since others may have been quicker, and put what is right now."""
        session = self._session
        try:
            opening = await cells.open_cell(session, cell_name(self._group.name), tenure)
            self._see(await session.ask(session.engine.look(self._group)))
            self._take(_loaded(opening.value, self._group.capacity))
            assignment = self._next(forced)
            if assignment is not self.known:
                await cells.put(session, opening, assignment.dump(), [])
                self._take(assignment)
        finally:
            with contextlib.suppress(LeaseLost):
                await session.release(tenure)

    def _next(self, forced: bool) -> Assignment:
        world, known = self._session.world, self.known
        now, wall = world.now(), world.wall()
        if (not forced and self._wrong_at() == NEVER_S) or not self._present:
            return self._settled(Step("every partition is with its owner", wall))
        here = {worker.name for worker in self._present}
        waits = [
            worker.name
            for worker in known.workers
            if not forced and now < self._away_since.get(worker.name, now) + worker.grace_s
        ]
        after = known.renewed(self._present, waits)
        moved = after.moved(known)
        gone = [worker for worker in known.workers if worker.name not in here and worker.name not in waits]
        away = [worker for worker in known.workers if worker.id and worker.name in set(waits) - here]
        why = [f"{_label(worker)} {self._how(worker, now)}" for worker in gone]
        why += [f"{_label(worker)} {self._how(worker, now)} and may be back" for worker in away]
        before = {worker.id: worker for worker in known.workers}
        came = [worker for worker in self._present if worker.id not in before]
        back = {worker.name for worker in known.workers}
        why += [f"{_label(worker)} {'is back' if worker.name in back else 'came'}" for worker in came]
        steps = (Step("noticed", self._noticed if self._wrong_since < NEVER_S else wall), Step("assigned", wall))
        what = f"assignment {after.epoch}: {len(moved)} of {len(after.places)} partitions move"
        change = Change(what, _listed(why) or "rebalance was asked for", self._session.owner, steps)
        self._moving, self._follow_at, self._follow_until = set(moved), now + 0.05, now + FOLLOWED_S
        return after.with_history([*known.history, change])

    def _how(self, worker: Worker, now: float) -> str:
        if not worker.id:
            return "stayed away"
        if worker.name in self._retired:
            self._retired.discard(worker.name)
            return "left"
        return "was lost: its lease ended" if now >= self._ends.get(worker.id, now) else "went before its lease ended"

    # -- following, for the record

    async def _follow(self, now: float) -> None:
        """Look which of those that we assigned anew have arrived."""
        self._follow_at = now + max(0.05, (now - self._follow_until + FOLLOWED_S) / 2)
        moving = sorted(self._moving)
        engine, names = self._session.engine, [worker.name.encode() for worker in self.known.workers]
        looks = [engine.look(partition_turnstile(self._group.name, partition)) for partition in moving]
        for partition, snapshot in zip(moving, await self._session.ask_many(looks), strict=True):
            if snapshot.admitted and snapshot.admitted[0].payload == names[self.known.places[partition]]:
                self._moving.discard(partition)
        if not self._moving:
            await self._try()
        if now > self._follow_until:
            self._follow_at = NEVER_S

    def _settled(self, step: Step) -> Assignment:
        """With the last step of the last change, if we followed it to its end."""
        known = self.known
        if self._follow_at == NEVER_S or self._moving or not known.history:
            return known
        self._follow_at = NEVER_S
        *rest, last = known.history
        return known.with_history([*rest, last._replace(steps=(*last.steps, step))])


def _label(worker: Worker) -> str:
    return worker.called if worker.called == worker.owner else f"{worker.called} ({worker.owner})"


def _listed(reasons: Sequence[str]) -> str:
    more = f", and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return ", ".join(reasons[:5]) + more
