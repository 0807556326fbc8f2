"""Groups: a turnstile that everyone fits through. Membership is a lease of weight 0; watching is looking again.

`members` may be behind the truth by a lease's length after a crash: it is for routing and sharing work. What must
have one owner is guarded by a turnstile of its own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ..contract import Capabilities
from ..errors import Unsupported
from ..model import NEVER_S, UNBOUNDED, State, Turnstile, check_name
from ..world import Mailbox
from . import watch
from .recipe import check_payload, ttl_of
from .session import Session
from .tenure import Tenure


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
    return found, min([claim.remaining_s for claim in snapshot.claims], default=NEVER_S)


class Watch(watch.Watch[list[Member]]):
    """The members, whenever they changed."""

    def __init__(self, session: Session, turnstile: Turnstile, mailbox: Mailbox | None = None) -> None:
        super().__init__(session, turnstile, functools.partial(_look, session, turnstile), mailbox)
