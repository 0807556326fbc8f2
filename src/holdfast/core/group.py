"""Groups: a turnstile that everyone fits through. Membership is a lease of weight 0; watching is looking again.

`members` may be behind the truth by a lease's length after a crash: it is for routing and sharing work. What must
have one owner is guarded by a turnstile of its own.
"""

from __future__ import annotations

import functools
import logging
from collections import deque

from ..contract import Capabilities
from ..errors import HoldfastError, Misuse, Unsupported
from ..model import NEVER_S, UNBOUNDED, ClaimView, State, Turnstile, check_name
from ..world import Mailbox
from .health import check_threshold
from .recipe import check_payload, ttl_of
from .roster import Member, MemberEvent, MemberHealth, Roster, View
from .session import Session
from .tenure import Tenure
from .watch import Watch

log = logging.getLogger("holdfast.group")


def group_turnstile(engine: Capabilities, name: str) -> Turnstile:
    if not engine.groups:
        raise Unsupported(f"the {engine.engine} engine has no groups")
    return Turnstile("group", check_name(name), UNBOUNDED, announces=True)


def new_member(
    session: Session, turnstile: Turnstile, payload: bytes, ttl_s: float | None, mailbox: Mailbox | None = None
) -> Tenure:
    """A claim to membership, not yet sent."""
    check_payload(payload)
    ttl_s = ttl_of(session.engine.capabilities, ttl_s)
    return session.new_tenure(turnstile, 0, ttl_s, payload=payload, mailbox=mailbox)


async def join(session: Session, tenure: Tenure) -> None:
    """Become a member until released, lost, or dead for ``ttl_s``."""
    try:
        while (await session.enter(tenure, nowait=False)).state is not State.ADMITTED:
            pass  # it expired on the way (a long pause): enter afresh
        session.hold(tenure)
    except BaseException:
        await session.undo(tenure)
        raise


async def members(session: Session, turnstile: Turnstile) -> list[Member]:
    """Who is in now, senior first."""
    return (await _look(session, turnstile))[0]


def watch(session: Session, turnstile: Turnstile) -> Watch[list[Member]]:
    """The members, whenever they changed."""
    return Watch(session, turnstile, functools.partial(_look, session, turnstile))


async def _look(session: Session, turnstile: Turnstile) -> tuple[list[Member], float]:
    """The members, and how soon the first of them would be gone if it were dead."""
    claims = await _claims(session, turnstile)
    found = [Member(claim.id, claim.owner, claim.payload, claim.token) for claim in claims]
    return found, min((claim.remaining_s for claim in claims), default=NEVER_S)


async def _claims(session: Session, turnstile: Turnstile) -> list[ClaimView]:
    return [claim for claim in (await session.ask(session.engine.look(turnstile))).admitted if not claim.weight]


class Checkup:
    """Looking at a group often enough to feel each member's renewals."""

    def __init__(self, session: Session, turnstile: Turnstile, threshold: float) -> None:
        self._session = session
        self._turnstile = turnstile
        on_sessions = session.engine.capabilities.ttl_s is not None  # there renewals show nowhere
        self._roster = Roster(check_threshold(threshold), beats=not on_sessions)
        self._watch = Watch(session, turnstile, self._see)

    async def _see(self) -> tuple[View, float]:
        claims = await _claims(self._session, self._turnstile)
        self._heard(self._roster.see(claims, self._session.world.now()))
        return self._roster.view, self._roster.look_in_s

    def _heard(self, events: list[MemberEvent]) -> None:
        pass


class Events(Checkup):
    """What happens to members, one by one, beginning with those who are there. Taken together it is what stands now."""

    def __init__(self, session: Session, turnstile: Turnstile, threshold: float) -> None:
        super().__init__(session, turnstile, threshold)
        self._told: deque[MemberEvent] = deque()

    def _heard(self, events: list[MemberEvent]) -> None:
        self._told.extend(events)

    async def changed(self, until: float) -> tuple[MemberEvent] | None:
        while not self._told:
            if await self._watch.changed(until) is None:
                return None
        return (self._told.popleft(),)

    async def stop(self) -> None:
        await self._watch.stop()


class HealthBase(Checkup):
    """Who is well, kept up to date in the background until it is closed. Asking costs nothing and waits for nothing:
    it reads one look, which never changes, and may be done from any thread."""

    def __init__(self, session: Session, turnstile: Turnstile, threshold: float) -> None:
        super().__init__(session, turnstile, threshold)
        self._closed = False

    async def _open(self) -> None:
        try:
            await self._watch.changed(self._session.world.now())
            self._session.world.spawn(self._keep(), "holdfast-health")
        except BaseException:
            await self._watch.stop()
            raise

    async def _keep(self) -> None:
        world = self._session.world
        try:
            while not self._closed and not self._session.renewer.closing:
                try:
                    await self._watch.changed()
                except HoldfastError as trouble:
                    if not self._session.renewer.closing:
                        log.warning("the health of %s: %s; going on", self._turnstile.address, trouble)
                        await world.sleep(1.0)
        finally:
            await self._watch.stop()

    def alive(self) -> tuple[Member, ...]:
        """The members that are heard of as ever, senior first."""
        return self._view.alive

    def suspects(self) -> tuple[Member, ...]:
        """Those that have been silent for unlikely long, and whose leases are not over, senior first."""
        return self._view.suspects

    def state_of(self, member: Member | str) -> MemberHealth:
        """Of a member or its id: ALIVE, SUSPECT, or GONE, which is said of whoever is no member."""
        return self._view.state_of(member)

    def phi(self, member: Member | str) -> float:
        """How unlikely its silence was at the last look: one healthy member in 10 ** phi is silent for as long."""
        return self._view.phi(member)

    @property
    def age_s(self) -> float:
        """How old what is told here is: of a second's order mostly, and more where the engine does not answer."""
        return self._session.world.now() - self._view.looked_at

    @property
    def _view(self) -> View:
        if self._session.forgotten:
            raise Misuse(f"{self._session.forgotten}: nothing keeps this view here; open one in this process")
        return self._roster.view

    def close(self) -> None:
        """Look no more; what was seen last stays."""
        self._closed = True
        self._watch.end()

    def __repr__(self) -> str:
        view = self._roster.view
        return f"<Health {self._turnstile.address}: {len(view.alive)} alive, {len(view.suspects)} suspect>"
