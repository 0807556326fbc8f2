"""Partitions: each live member owns its share by consistent hashing, guarded by one turnstile per partition.

The group says who should own what; only the partition's turnstile says who does. So two members never own one
at once, whatever each believes of the group; and a partition is without an owner only while it changes hands.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from .. import model
from ..contract import Capabilities
from ..errors import HoldfastError, Misuse, Unsupported
from ..model import Signal, State, Turnstile, check_name
from ..placement import HashRing
from ..world import Mailbox
from .group import Watch, join, new_member
from .lease import LeaseBase, try_acquire
from .recipe import check_ttl
from .session import Session
from .tenure import Tenure

log = logging.getLogger("holdfast.partitions")

L = TypeVar("L", bound=LeaseBase)

MAX_PARTITIONS = 1 << 16

AT_ONCE = 64
"""How many partitions one member hands over at once, each with its ``on_revoked`` in a thread or task of its own."""


def member_turnstile(engine: Capabilities, name: str, count: int, ttl_s: float) -> Turnstile:
    """The group of those who share; its capacity is the count, so that members who disagree are refused."""
    if not engine.groups:
        raise Unsupported(f"the {engine.engine} engine has no groups, so no partitions")
    if not isinstance(count, int) or not 1 <= count <= MAX_PARTITIONS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse(f"count is a whole number from 1 to {MAX_PARTITIONS}, not {count!r}")
    check_ttl(engine, ttl_s)
    check_name(f"{name}/{count}")  # the longest name of a partition
    return Turnstile("partitions", check_name(name), count, announces=True)


def partition_turnstile(name: str, partition: int) -> Turnstile:
    return Turnstile("partition", f"{name}/{partition}", 1)


def shares(members: Iterable[str], count: int) -> dict[int, str]:
    """Which member should own each partition: when one comes or goes, only its own partitions move."""
    ring = HashRing(list(members))
    return {partition: ring.get_node(f"partition {partition}") for partition in range(count)}


class Share(Generic[L]):
    """One member's part: the protocol that keeps what it owns in step with what it should own.

    ``make_lease`` turns an admitted claim into the face's lease. ``on_assigned`` is called with each partition that we
    come to own and its lease; ``on_revoked`` with each that we are about to hand over, or have lost: a partition is
    handed over when it returns, and is not ours again before.
    """

    def __init__(
        self,
        session: Session,
        turnstile: Turnstile,
        ttl_s: float,
        payload: bytes,
        make_lease: Callable[[Tenure], L],
        on_assigned: Callable[[int, L], Any] | None,
        on_revoked: Callable[[int], Any] | None,
    ) -> None:
        self._session = session
        self._turnstile = turnstile
        self._ttl_s = ttl_s
        self._payload = payload
        self._make_lease = make_lease
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._mailbox = session.world.mailbox()
        self._watch = Watch(session, turnstile, self._mailbox)
        self._member: Tenure | None = None
        # What is ours or will be. Each partition is in one of these at most; `_run` alone puts in.
        self._entering: dict[str, tuple[int, Tenure]] = {}  # by claim id
        self._owned: dict[int, tuple[Tenure, L]] = {}
        self._leaving: dict[int, tuple[Tenure, L]] = {}  # owned still, but on the way to the next owner
        self._changes = session.world.mailbox()
        self._changed = False
        self._leavers: list[Mailbox] = []
        self._stopping = False
        self._stopped = False

    @property
    def owned(self) -> Mapping[int, L]:
        """What we own now, by partition, each with its lease."""
        kept = [*list(self._owned.items()), *list(self._leaving.items())]
        return {partition: lease for partition, (_, lease) in kept}

    @property
    def member_id(self) -> str:
        """Who we are among ``members()``; empty while we are none."""
        return self._member.claim.id if self._member is not None and not self._stopping else ""

    async def start(self) -> None:
        """Join, or raise; from then on the share is kept in the background."""
        self._member = await self._join()
        try:
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
        self._mailbox.post(Signal(model.NUDGE))
        while not self._stopped and not self._session.renewer.closing:
            await self._session.world.wait_signal(mailbox, self._session.world.now() + 1.0)

    async def _run(self) -> None:
        look_at = self._session.world.now()
        try:
            while not self._stopping and not self._session.renewer.closing:
                try:
                    await self._hear(look_at)
                    look_at = await self._settle()
                except HoldfastError as trouble:
                    if not self._session.renewer.closing:
                        log.warning("partitions of %s: %s; going on", self._turnstile.name, trouble)
                    look_at = self._session.world.now() + 0.2 + 0.3 * self._session.world.random()
        finally:
            await self._session.world.shield(self._hand_over_all(), self._ttl_s)

    async def _settle(self) -> float:
        """Bring what we own and wait for in line with who is there; when to do so again."""
        await self._hand_over([partition for partition, (tenure, _) in self._owned.items() if tenure.ended])
        if self._member is None or self._member.ended:
            self._member = None
            self._member = await self._join()
        found = await self._watch.look()
        if self.member_id not in [member.id for member in found]:
            return self._watch.look_at  # the renewer will say so too, or the next look sees us
        owner_of = shares((member.id for member in found), self._turnstile.capacity)
        want = {partition for partition, owner in owner_of.items() if owner == self.member_id}
        await self._hand_over([partition for partition in self._owned if partition not in want])
        for claim_id, (partition, tenure) in list(self._entering.items()):
            if partition not in want:
                del self._entering[claim_id]
                await self._session.undo(tenure)
        entering = {partition for partition, _ in self._entering.values()}
        for partition in sorted(want - entering - self._owned.keys() - self._leaving.keys()):
            await self._enter(partition)
        return self._watch.look_at

    async def _join(self) -> Tenure:
        tenure = new_member(self._session, self._turnstile, self._payload, self._ttl_s, self._mailbox)
        try:
            await join(self._session, tenure)
        except Misuse as wrong:
            raise Misuse(f"all members of partitions {self._turnstile.name!r} give the same count: {wrong}") from None
        return tenure

    async def _enter(self, partition: int) -> None:
        turnstile = partition_turnstile(self._turnstile.name, partition)
        tenure = self._session.new_tenure(turnstile, 1, self._ttl_s, mailbox=self._mailbox)
        try:
            standing = await self._session.enter(tenure, nowait=False)
        except BaseException:
            await self._session.undo(tenure)
            raise
        if standing.state is State.ADMITTED:
            await self._own(partition, tenure)
        else:
            self._entering[tenure.claim.id] = partition, tenure

    async def _hear(self, until: float) -> None:
        """Take in the signals that came, after waiting for the first until ``until``."""
        world = self._session.world
        signal = await world.wait_signal(self._mailbox, until)
        while signal is not None:
            if signal.key in self._entering:
                await self._advance(signal, *self._entering[signal.key])
            signal = await world.wait_signal(self._mailbox, world.now())

    async def _advance(self, signal: Signal, partition: int, tenure: Tenure) -> None:
        """A claim of ours that waited is said to have been admitted, or to be gone."""
        state = State.ADMITTED
        if signal.kind != model.ADMITTED or self._session.world.now() + self._ttl_s / 3 >= tenure.deadline:
            state = (await self._session.renew_one(tenure)).state  # a hint that can't be relied on: ask
        if state is not State.WAITING:
            del self._entering[signal.key]
        if state is State.ADMITTED:
            await self._own(partition, tenure)
        elif state is not State.WAITING:
            tenure.tell("gave_up")  # a claim of its own comes next

    async def _own(self, partition: int, tenure: Tenure) -> None:
        self._session.hold(tenure)
        if tenure.ended:  # gone as soon as it came
            return
        lease = self._make_lease(tenure)
        self._owned[partition] = (tenure, lease)
        await self._call(self._on_assigned, partition, lease)
        self._tell()

    async def _hand_over(self, partitions: Sequence[int]) -> None:
        """Give these back, each once its user has let go: apart, so that one that takes long holds up no other."""
        for partition in partitions[: AT_ONCE - len(self._leaving)]:  # each that is done nudges us to see to the rest
            self._leaving[partition] = self._owned[partition]
            del self._owned[partition]
            if self._on_revoked is None:
                await self._let_go(partition)
            else:
                self._session.world.spawn(self._let_go(partition), "holdfast-hand-over")

    async def _let_go(self, partition: int) -> None:
        tenure, _ = self._leaving[partition]
        try:
            await self._call(self._on_revoked, partition)
        finally:
            try:
                await self._session.release(tenure)
            except HoldfastError as trouble:
                log.info("partition %d of %s: %s", partition, self._turnstile.name, trouble)
            finally:
                del self._leaving[partition]
                self._tell()
                self._mailbox.post(Signal(model.NUDGE))

    async def _hand_over_all(self) -> None:
        closing = self._session.renewer.closing  # then all was given back already
        if not closing:
            for _, tenure in self._entering.values():
                await self._session.undo(tenure)
            await self._retire()
        while self._owned or (self._leaving and not self._session.renewer.closing):
            await self._hand_over(list(self._owned))
            if self._leaving:
                await self._session.world.wait_signal(self._mailbox, self._session.world.now() + 1.0)
        try:
            if self._member is not None and not closing:
                await self._session.release(self._member)
                await self._watch.stop()
        except HoldfastError as trouble:
            log.info("leaving partitions %s: %s", self._turnstile.name, trouble)
        for _, tenure in self._entering.values():
            tenure.tell("gave_up")  # one that was gone when the client was closed
        self._stopped = True
        for mailbox in self._leavers:
            mailbox.post(Signal(model.NUDGE))

    async def _retire(self) -> None:
        """Be no member any more, so that others line up for what is ours; but hold them to our count meanwhile.

        By a claim that has a weight, unlike a member's.
        """
        if self._member is None or self._member.ended or not (self._owned or self._leaving):
            return
        retired = self._session.new_tenure(self._turnstile, 1, self._ttl_s)
        try:
            if await try_acquire(self._session, retired):
                member, self._member = self._member, retired
                await self._session.release(member)
        except HoldfastError as trouble:
            log.info("leaving partitions %s: %s", self._turnstile.name, trouble)

    async def _call(self, callback: Callable[..., Any] | None, *args: Any) -> None:
        if callback is None:
            return
        try:
            result: Awaitable[Any] | None = callback(*args)
            if inspect.isawaitable(result):
                await result
        except Exception:
            log.exception("a callback of partitions %s raised", self._turnstile.name)

    def _tell(self) -> None:
        """What we own has changed: once is enough, until that has been seen."""
        if not self._changed:
            self._changed = True
            self._changes.post(Signal(model.NUDGE))


async def owners(session: Session, name: str, count: int) -> dict[int, str]:
    """Who owns each partition now, as host:process; those without an owner are left out."""
    requests = [session.engine.look(partition_turnstile(name, partition)) for partition in range(count)]
    found: dict[int, str] = {}
    replies = await session.world.call_many(requests, session.patience_s)
    for partition, reply in enumerate(replies):
        if isinstance(reply, Exception):
            raise reply
        if reply.admitted:
            found[partition] = reply.admitted[0].owner
    return found
