"""Groups: a turnstile that everyone fits through. Membership is a lease of weight 0; watching is looking again.

`members` may be behind the truth by a lease's length after a crash: it is for routing and sharing work. What must
have one owner is guarded by a turnstile of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from ..contract import Capabilities
from ..errors import Unsupported
from ..model import UNBOUNDED, State, Turnstile, check_name
from ..world import Mailbox
from .recipe import check_payload, ttl_of
from .session import Session
from .tenure import Tenure

LOOK_S = 5.0
"""At least this often a watcher looks, whatever signals it gets."""


class Member(NamedTuple):
    """A live member: ``id`` is unique to this joining, ``owner`` says who for people, ``token`` orders by seniority."""

    id: str
    owner: str
    payload: bytes
    token: int


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


async def _look(session: Session, turnstile: Turnstile) -> tuple[list[Member], float]:
    """The members, and how soon the first of them would be gone if it were dead."""
    snapshot = await session.ask(session.engine.look(turnstile))
    found = [
        Member(claim.id, claim.owner, claim.payload, claim.token) for claim in snapshot.admitted if not claim.weight
    ]
    return found, min([claim.remaining_s for claim in snapshot.claims], default=LOOK_S)


class Watch:
    """Looks at a group whenever it may have changed. Never misses the last state; may skip ones in between."""

    def __init__(self, session: Session, turnstile: Turnstile, mailbox: Mailbox | None = None) -> None:
        self._session = session
        self._turnstile = turnstile
        self.mailbox = mailbox or session.world.mailbox()
        self.look_at = 0.0
        self._watching = False
        self._last: list[Member] | None = None

    async def look(self) -> list[Member]:
        """The members now; `look_at` is when to look again if no signal comes first."""
        if not self._watching:
            await self._session.watch(self._turnstile, self.mailbox)
            self._watching = True
        found, end_s = await _look(self._session, self._turnstile)
        world = self._session.world
        self.look_at = world.now() + max(0.02, min(LOOK_S, end_s + 0.005)) + world.random() * 0.02
        return found

    async def changed(self, until: float) -> list[Member] | None:
        """The members once they differ from what was given last (at once the first time); None at ``until``."""
        while True:
            found = await self.look()
            if found != self._last:
                self._last = found
                return found
            signal = await self._session.world.wait_signal(self.mailbox, min(until, self.look_at))
            if signal is None and self._session.world.now() >= until:
                return None

    async def stop(self) -> None:
        if self._watching:
            self._watching = False
            await self._session.unwatch(self._turnstile, self.mailbox)
