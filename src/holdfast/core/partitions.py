"""Partitions: each live member owns its share of them, guarded by one turnstile per partition.

The assignment says who should own what; only the partition's turnstile says who does. So two members never own one at
once, whatever each believes of the other; and a partition is without an owner only while it changes hands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from .. import model
from ..contract import Capabilities
from ..errors import HoldfastError, Misuse, Unsupported
from ..model import NEVER_S, Signal, Snapshot, State, Turnstile, check_name
from ..world import Mailbox
from .assigner import Assigner, Seat, members_of, partition_turnstile
from .assignment import Assignment
from .group import join
from .handover import Handover, Held, Users
from .lease import LeaseBase, try_acquire
from .recipe import check_payload, check_ttl
from .session import Session
from .tenure import Tenure

log = logging.getLogger("holdfast.partitions")

L = TypeVar("L", bound=LeaseBase)

MAX_PARTITIONS = 1 << 16
MAX_WEIGHT = 1_000_000

ENTERED_AT_ONCE = 256
"""How many partitions are entered in one go; after them the member looks up whether it is still to own the rest."""

REVOKE_TIMEOUT_S = 30.0
"""After so long a partition is handed over though its user has not let go; what that one still saves is refused."""


class Participant(NamedTuple):
    """A live member: ``id`` is unique to this joining, ``name`` is its own, ``token`` orders by seniority."""

    id: str
    owner: str
    payload: bytes
    token: int
    name: str
    weight: int
    zone: str


def member_turnstile(engine: Capabilities, name: str, count: int, ttl_s: float) -> Turnstile:
    """The group of those who share; its capacity is the count, so that members who disagree are refused."""
    if not (engine.groups and engine.cells):
        raise Unsupported(f"the {engine.engine} engine has no groups with cells, so no partitions")
    if not isinstance(count, int) or not 1 <= count <= MAX_PARTITIONS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse(f"count is a whole number from 1 to {MAX_PARTITIONS}, not {count!r}")
    check_ttl(engine, ttl_s)
    check_name(checkpoint_cell(name, count))  # the longest name of a partition
    return Turnstile("partitions", check_name(name), count, announces=True)


def checkpoint_cell(name: str, partition: int) -> str:
    """Where the owner of a partition keeps how far it has come."""
    return f"partition:{name}/{partition}"


def seat(name: str | None, weight: int, zone: str, grace_s: float, payload: bytes) -> Seat:
    """What a member says of itself, checked."""
    check_payload(payload)
    if name is not None:
        check_name(name, "member's name")
    if not isinstance(weight, int) or not 1 <= weight <= MAX_WEIGHT:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse(f"weight is a whole number from 1 to {MAX_WEIGHT}, not {weight!r}")
    if zone:
        check_name(zone, "zone")
    if not 0 <= grace_s <= 86_400:
        raise Misuse(f"grace_s is 0 seconds or more, and at most a day, not {grace_s!r}")
    if grace_s and name is None:
        raise Misuse("grace_s keeps partitions for a member that comes back: give it the same name=… each time")
    return Seat(name or "", weight, zone, grace_s, payload)


class Share(Generic[L]):
    """One member's part: the protocol that keeps what it owns in step with what it should own.

    ``make_lease`` turns a partition and its admitted claim into the face's lease. ``on_assigned`` is called with each
    partition that we come to own and its lease; ``on_revoked`` with each that we are about to hand over, or have lost:
    a partition is handed over when it returns, and is not ours again before. All is decided in `_run`; callbacks run
    apart and only report that they are through.
    """

    def __init__(
        self,
        session: Session,
        turnstile: Turnstile,
        ttl_s: float,
        seat: Seat,
        make_lease: Callable[[int, Tenure], L],
        on_assigned: Callable[[int, L], Any] | None,
        on_revoked: Callable[[int], Any] | None,
        revoke_timeout_s: float = REVOKE_TIMEOUT_S,
    ) -> None:
        if not 0 < revoke_timeout_s < NEVER_S:
            raise Misuse(f"revoke_timeout_s is above 0 seconds and finite, not {revoke_timeout_s!r}")
        self._session = session
        self._turnstile = turnstile
        self._ttl_s = ttl_s
        self._seat = seat
        self._make_lease = make_lease
        self._revoke_timeout_s = revoke_timeout_s
        self._mailbox = session.world.mailbox()
        self._assigner = Assigner(session, turnstile, ttl_s, self._mailbox)
        self._member: Tenure | None = None
        self._must_look = True
        # What is ours or will be: each partition is in one of these at most.
        self._entering: dict[str, tuple[int, Tenure]] = {}  # by claim id
        self._held: dict[int, Held[L]] = {}
        self._users = Users(session.world, turnstile.name, on_assigned, on_revoked, self._nudge)
        self._announces = False  # a stream began: tell it what is ours already
        self._changes = session.world.mailbox()
        self._changed = False
        self._leavers: list[Mailbox] = []
        self._stopping = False
        self._stopped = False

    @property
    def owned(self) -> Mapping[int, L]:
        """What we own now, by partition, each with its lease."""
        return {held.partition: held.lease for held in list(self._held.values())}

    @property
    def member_id(self) -> str:
        """Who we are among ``members()``; empty while we are none."""
        return self._member.claim.id if self._member is not None and not self._stopping else ""

    async def start(self) -> None:
        """Join, or raise; from then on the share is kept in the background."""
        self._member = await self._join()
        try:
            await self._refuse_namesake(self._member)
            self._session.world.spawn(self._run(), "holdfast-partitions")
        except BaseException:
            self._stopping = True
            await self._session.undo(self._member)
            raise

    async def wait_change(self, until: float) -> bool:
        """Wait until what we own has changed since this was last asked; False at ``until``."""
        signal = await self._session.world.wait_signal(self._changes, until)
        self._changed = False
        return signal is not None

    async def leave(self) -> None:
        """Hand everything over at once, and go. Returns when every ``on_revoked`` has."""
        mailbox = self._session.world.mailbox()
        self._leavers.append(mailbox)
        self._stopping = True
        self._nudge()
        while not self._stopped and not self._session.renewer.closing:
            await self._session.world.wait_signal(mailbox, self._session.world.now() + 1.0)

    def _nudge(self) -> None:
        self._mailbox.post(Signal(model.NUDGE))

    # -- the loop

    async def _run(self) -> None:
        wake_at = self._session.world.now()
        try:
            while not self._stopping and not self._session.renewer.closing:
                try:
                    await self._hear(wake_at)
                    wake_at = await self._settle()
                except HoldfastError as trouble:
                    if not self._session.renewer.closing:
                        log.warning("partitions of %s: %s; going on", self._turnstile.name, trouble)
                    self._must_look = True
                    wake_at = self._session.world.now() + 0.2 + 0.3 * self._session.world.random()
        finally:
            await self._session.world.shield(self._hand_over_all(), self._ttl_s)

    async def _hear(self, until: float) -> None:
        """Take in the signals that came, after waiting for the first until ``until``."""
        world = self._session.world
        signal = await world.wait_signal(self._mailbox, until)
        while signal is not None:
            if signal.key in self._entering:
                await self._advance(signal, *self._entering[signal.key])
            self._must_look |= signal.kind == model.CHANGED
            signal = await world.wait_signal(self._mailbox, world.now())

    async def _settle(self) -> float:
        """Bring what we own and wait for in line with the assignment; when to do so again."""
        world, assigner = self._session.world, self._assigner
        if self._announces:
            self._announces = False
            for held in self._held.values():
                if held.phase == "owned":
                    held.phase = "assigning"
                    self._users.tell(held)
        self._let_go([held.partition for held in self._held.values() if held.tenure.ended])
        await self._conclude()
        if self._member is None or self._member.ended:
            self._member = None
            self._member = await self._join()
            self._must_look = True
        if self._must_look or world.now() >= assigner.look_at:
            self._must_look = False
            await assigner.look()
        if world.now() >= assigner.act_at(self.member_id):
            await assigner.act(self.member_id)
        want = assigner.known.of(self.member_id)
        self._let_go([partition for partition in self._held if partition not in want])
        for claim_id, (partition, tenure) in list(self._entering.items()):
            if partition not in want:
                del self._entering[claim_id]
                self._session.give_up(tenure)
        missing = sorted(want - {partition for partition, _ in self._entering.values()} - self._held.keys())
        await self._enter(missing[:ENTERED_AT_ONCE])
        await self._conclude()
        if len(missing) > ENTERED_AT_ONCE:
            return world.now()
        overdue = min((held.unwanted_until for held in self._held.values()), default=NEVER_S)
        return min(assigner.look_at, assigner.act_at(self.member_id), overdue)

    # -- membership

    async def _join(self) -> Tenure:
        session = self._session
        tenure = session.new_tenure(self._turnstile, 0, self._ttl_s, payload=self._seat.dump(), mailbox=self._mailbox)
        try:
            await join(session, tenure)
        except Misuse as wrong:
            stands = await session.ask(session.engine.look(self._turnstile))
            raise Misuse(_who_disagrees(self._turnstile, stands) or str(wrong)) from None
        return tenure

    async def _refuse_namesake(self, member: Tenure) -> None:
        """No two have one name: wait until one that died is over, and raise `Misuse` for one that lives."""
        if not self._seat.name:
            return
        session = self._session
        patient_until = 0.0
        while True:
            stands = await session.ask(session.engine.look(self._turnstile))
            former = [c for c, s in members_of(stands) if s.name == self._seat.name and c.token < member.token]
            if not former:
                return
            now = session.world.now()
            if not patient_until:
                patient_until = now + min(former[0].remaining_s, 2 * self._ttl_s) + 0.2
            elif now >= patient_until:
                raise Misuse(
                    f"partitions {self._turnstile.name!r} have a live member {self._seat.name!r} already: "
                    f"{former[0].owner}, for {former[0].age_s:.0f} s; give each a name of its own"
                )
            await session.world.sleep(min(0.1, patient_until - now + 0.01))

    async def _retire(self) -> None:
        """Be no member any more, so that others line up for what is ours; but hold them to our count meanwhile.

        By a claim that has a weight, unlike a member's.
        """
        if self._member is None or self._member.ended:
            return
        seat = self._seat._replace(name=self._seat.name or self._member.claim.id, payload=b"")
        retired = self._session.new_tenure(self._turnstile, 1, self._ttl_s, payload=seat.dump())
        try:
            if await try_acquire(self._session, retired):
                member, self._member = self._member, retired
                await self._session.release(member)
        except HoldfastError as trouble:
            log.info("leaving partitions %s: %s", self._turnstile.name, trouble)

    # -- what comes

    async def _enter(self, partitions: list[int]) -> None:
        if not partitions:
            return
        session, name = self._session, self._seat.name or self.member_id
        tenures = [
            session.new_tenure(
                partition_turnstile(self._turnstile.name, partition),
                1,
                self._ttl_s,
                payload=name.encode(),
                mailbox=self._mailbox,
            )
            for partition in partitions
        ]
        try:
            standings = await session.enter_many(tenures)
        except BaseException:
            for tenure in tenures:
                session.give_up(tenure)
            raise
        for partition, tenure, standing in zip(partitions, tenures, standings, strict=True):
            if standing.state is State.ADMITTED:
                self._own(partition, tenure)
            elif standing.state is State.WAITING:
                self._entering[tenure.claim.id] = partition, tenure
            else:
                tenure.tell("gave_up")  # it expired on the way: a claim of its own comes next

    async def _advance(self, signal: Signal, partition: int, tenure: Tenure) -> None:
        """A claim of ours that waited is said to have been admitted, or to be gone."""
        state = State.ADMITTED
        if signal.kind != model.ADMITTED or self._session.world.now() + self._ttl_s / 3 >= tenure.deadline:
            state = (await self._session.renew_one(tenure)).state  # a hint that can't be relied on: ask
        if state is not State.WAITING:
            del self._entering[signal.key]
        if state is State.ADMITTED:
            self._own(partition, tenure)
        elif state is not State.WAITING:
            tenure.tell("gave_up")  # a claim of its own comes next

    def _own(self, partition: int, tenure: Tenure) -> None:
        self._session.hold(tenure)
        if tenure.ended:  # gone as soon as it came
            return
        held = self._held[partition] = Held(partition, tenure, self._make_lease(partition, tenure), "assigning")
        self._users.tell(held)
        self._tell()

    # -- what goes

    def _let_go(self, partitions: Sequence[int]) -> None:
        """These are to go, each once its user has let go of it."""
        for partition in partitions:
            held = self._held[partition]
            if held.unwanted_until == NEVER_S:
                held.unwanted_until = self._session.world.now() + self._revoke_timeout_s
            if held.phase == "owned":
                held.phase = "leaving"
                self._users.tell(held)

    async def _conclude(self) -> None:
        """Hand over those whose user has let go of them, or should have long ago."""
        going: list[Held[L]] = []
        for held in self._users.through():
            if self._held.get(held.partition) is not held:
                continue  # it went on without its user
            if held.phase == "assigning":
                held.phase = "owned"
                if held.unwanted_until < NEVER_S:
                    self._let_go([held.partition])
            elif held.phase == "leaving":
                going.append(held)
        now = self._session.world.now()
        for held in self._held.values():
            if now >= held.unwanted_until and held not in going:
                log.error(
                    "partition %d of %s goes on without its user, who has not let go of it for %g s",
                    held.partition,
                    self._turnstile.name,
                    self._revoke_timeout_s,
                )
                self._users.forget(held)
                going.append(held)
        for held in going:
            del self._held[held.partition]
        if going:
            await self._session.release_many([held.tenure for held in going])
            self._tell()

    async def _hand_over_all(self) -> None:
        closing = self._session.renewer.closing  # then all was given back already
        if not closing:
            for _, tenure in self._entering.values():
                self._session.give_up(tenure)
            await self._retire()
        while self._held:
            self._let_go(list(self._held))
            await self._conclude()
            if self._held:
                if self._session.renewer.closing:
                    break
                await self._session.world.wait_signal(self._mailbox, self._session.world.now() + 1.0)
        try:
            if self._member is not None and not closing:
                await self._session.release(self._member)
                await self._assigner.stop()
        except HoldfastError as trouble:
            log.info("leaving partitions %s: %s", self._turnstile.name, trouble)
        for _, tenure in self._entering.values():
            tenure.tell("gave_up")  # one that was gone when the client was closed
        self._stopped = True
        self._users.close()
        for mailbox in self._leavers:
            mailbox.post(Signal(model.NUDGE))

    def _tell(self) -> None:
        """What we own has changed: once is enough, until that has been seen."""
        if not self._changed:
            self._changed = True
            self._changes.post(Signal(model.NUDGE))

    # -- the stream

    def start_stream(self) -> None:
        """Tell of hand-overs by `read`, beginning with what is ours. Raises `Misuse` where there are callbacks."""
        if self._users.start_stream():
            self._announces = True
            self._nudge()

    async def read(self, until: float) -> Handover[L] | None:
        """The next hand-over; asking for it says that the one before may go on. None at ``until``, or after `leave`."""
        return await self._users.read(until)


def _who_disagrees(turnstile: Turnstile, stands: Snapshot) -> str:
    """Who takes part with another count than ours; empty where nobody does."""
    if stands.capacity in (0, turnstile.capacity):
        return ""
    names = [f"{seat.name} ({claim.owner})" if seat.name else claim.owner for claim, seat in members_of(stands)]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"all members of partitions {turnstile.name!r} give the same count: this one gives {turnstile.capacity}, and "
        f"{', '.join(names[:3]) or 'one that leaves'}{more} {stands.capacity}"
    )


async def members(session: Session, turnstile: Turnstile) -> list[Participant]:
    """Who takes part now, senior first."""
    stands = await session.ask(session.engine.look(turnstile))
    return [
        Participant(claim.id, claim.owner, seat.payload, claim.token, seat.name or claim.id, seat.weight, seat.zone)
        for claim, seat in members_of(stands)
    ]


async def rebalance(session: Session, turnstile: Turnstile, ttl_s: float) -> Assignment:
    """Make the assignment anew for those who are there, and wait no longer for who is away."""
    assigner = Assigner(session, turnstile, ttl_s, session.world.mailbox())
    await assigner.rebalance()
    return assigner.known


async def owners(session: Session, name: str, count: int) -> dict[int, str]:
    """Who owns each partition now, as host:process; those without an owner are left out."""
    looks = [session.engine.look(partition_turnstile(name, partition)) for partition in range(count)]
    found = await session.ask_many(looks)
    return {partition: stands.admitted[0].owner for partition, stands in enumerate(found) if stands.admitted}
