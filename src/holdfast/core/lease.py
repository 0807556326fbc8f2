"""Taking and giving back: the acquire protocol, and the part of a lease that needs no I/O."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Literal

from ..errors import HoldfastError, LeaseLost, Misuse, Unsupported
from ..model import NEVER_S, Claim, State, Turnstile
from .recipe import Recipe, check_timeout
from .session import Session, lost_message
from .tenure import Tenure
from .waiting import Strategy

LeaseState = Literal["HELD", "UNSURE", "LOST", "RELEASED"]


def new_tenure(session: Session, recipe: Recipe) -> Tenure:
    """A claim for this recipe, not yet sent. Its handle is made before it is, so that there is no gap between them."""
    return session.new_tenure(
        recipe.turnstile,
        recipe.weight,
        recipe.ttl_s,
        renews=recipe.renew,
        max_hold_s=recipe.max_hold_s,
        payload=recipe.payload,
    )


async def acquire(session: Session, tenure: Tenure, strategy: Strategy, timeout_s: float | None) -> None:
    """Wait until admitted. Raises `AcquireTimeout`, `Unavailable` or `Misuse`; then nothing of ours is left behind."""
    check_timeout(timeout_s)
    deadline = NEVER_S if timeout_s is None else session.world.now() + timeout_s
    try:
        await strategy.take(session, tenure, deadline)
    except HoldfastError:  # the caller's time or patience is spent: try once, the renewer does the rest
        await session.undo(tenure, 0.0)
        raise
    except BaseException:
        await session.undo(tenure)
        raise
    session.hold(tenure)


async def try_acquire(session: Session, tenure: Tenure) -> bool:
    """Take it if it is free now."""
    try:
        standing = await session.enter(tenure, nowait=True)
    except HoldfastError:
        await session.undo(tenure, 0.0)
        raise
    except BaseException:
        await session.undo(tenure)
        raise
    if standing.state is not State.ADMITTED:
        tenure.handle = None
        tenure.tell("refused")
        if tenure.first_sent is not None:  # a copy of an earlier try may still come
            await session.undo(tenure, 0.0)
        return False
    session.hold(tenure)
    return True


def pop_own(session: Session, recipe: Recipe, scoped: bool = False) -> tuple[Any, bool]:
    """Of the running thread's or task's leases the innermost (``scoped``: that a block opened), and whether it is not
    held further out as well."""
    try:
        return session.holdings.pop(recipe.key, scoped)
    except KeyError:
        raise Misuse(
            f"this thread or task holds no {recipe.turnstile.address}; a lease that another took is released "
            "through its own lease.release()"
        ) from None


def refuse_nesting(session: Session, recipe: Recipe) -> None:
    """A ``with`` inside a ``with`` of the same exclusive lock would wait for itself."""
    if recipe.reentrant or not recipe.exclusive:
        return
    held = session.holdings.top(recipe.key)
    if held is not None and held.is_held:
        raise Misuse(
            f"this thread or task already holds {recipe.turnstile.address} and would wait for itself; "
            "reentrant=True allows taking it again"
        )


def own(session: Session, lease: LeaseBase) -> Tenure:
    """The tenure of a lease of this session; another client's is `Misuse`."""
    if not isinstance(lease, LeaseBase):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse(f"a cell is opened under a lease, not under {lease!r}")
    if lease._session is not session:  # pyright: ignore[reportPrivateUsage]
        lease._session.refuse_fork()  # pyright: ignore[reportPrivateUsage]
        raise Misuse("this lease is another client's; a cell is opened through the client that took the lease")
    return lease._own()  # pyright: ignore[reportPrivateUsage]


class LeaseBase:
    """A held claim, as its holder sees it. Both faces add what does I/O: ``release``, ``detach``, ``wait_lost``."""

    __slots__ = ("__weakref__", "_on_unsure", "_session", "_tenure")

    def __init__(self, session: Session, tenure: Tenure, on_unsure: str = "pass") -> None:
        self._session = session
        self._tenure = tenure
        self._on_unsure = on_unsure
        session.watch_handle(tenure, self)

    def _own(self) -> Tenure:
        """The claim under which a cell is opened."""
        return self._tenure

    @property
    def name(self) -> str:
        return self._tenure.turnstile.name

    @property
    def token(self) -> int:
        """The fencing token: strictly above that of every earlier holder. Give it to what you write to."""
        return self._tenure.token

    @property
    def state(self) -> LeaseState:
        """HELD; UNSURE from the first failed renewal; LOST at the deadline or by the engine's word; RELEASED by you."""
        tenure = self._tenure
        if tenure.ended:
            return "LOST" if tenure.ended == "lost" else "RELEASED"
        if tenure.is_over(self._session.world.now()):
            return "LOST"
        return "UNSURE" if tenure.unsure else "HELD"

    @property
    def is_held(self) -> bool:
        """HELD or UNSURE."""
        return not self._tenure.ended and not self._tenure.is_over(self._session.world.now())

    @property
    def remaining_s(self) -> float:
        """Seconds for which this lease is surely ours if no renewal succeeds any more; 0 once it is over."""
        now = self._session.world.now()
        if self._tenure.ended or self._tenure.is_over(now):
            return 0.0
        return self._tenure.deadline - now

    @property
    def wanted(self) -> bool:
        """Someone waits for what we hold (a hint)."""
        return self._tenure.wanted

    def ensure_held(self) -> None:
        """Return if the lease is held, else raise `LeaseLost`. An unsure one passes or raises by ``on_unsure``.

        It protects nothing by itself: the lease can end right after. Only a cell, or a resource that checks the
        token, does.
        """
        state = self.state
        if state == "HELD" or (state == "UNSURE" and self._on_unsure == "pass"):
            return
        if state == "UNSURE":
            raise LeaseLost(f"the lease on {self._tenure.turnstile.address} could not be renewed and may be lost soon")
        if state == "RELEASED":
            raise LeaseLost(f"the lease on {self._tenure.turnstile.address} was {self._tenure.ended} before")
        raise LeaseLost(lost_message(self._tenure, "its time ran out"))

    def on_lost(self, callback: Callable[[], Any]) -> None:
        """Call this once if the lease is lost, apart from the renewer; at once if it already is."""
        self._tenure.on_lost.append(callback)
        if self._tenure.ended == "lost":
            self._session.renewer.tell_lost(self._tenure)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._tenure.turnstile.address} token={self._tenure.token} {self.state}>"


async def wait_lost(session: Session, tenure: Tenure, timeout_s: float | None) -> bool:
    """Wait until the lease is lost (True), released, or ``timeout_s`` is over (False)."""
    check_timeout(timeout_s)
    until = NEVER_S if timeout_s is None else session.world.now() + timeout_s
    mailbox = session.world.mailbox()
    tenure.ends.append(mailbox)
    try:
        while not tenure.ended:
            if await session.world.wait_signal(mailbox, until) is None:
                break
    finally:
        tenure.ends.remove(mailbox)
    return tenure.ended == "lost"


async def detach(session: Session, tenure: Tenure) -> str:
    """Stop keeping the claim and describe it, so that another process can attach it before its time is over."""
    engine = session.engine.capabilities
    if engine.ttl_s is not None or engine.tied:
        raise Unsupported(
            f"on {engine.engine} a lease of this client lives and ends with its session: it cannot change hands"
        )
    if tenure.keeping is not None:
        raise Misuse("a sticky lease stays with its client; take the lock with sticky=False to hand a lease over")
    if tenure.ended or tenure.is_over(session.world.now()):
        raise LeaseLost(lost_message(tenure))
    if session.renewer.helper is not None:
        session.renewer.helper.drop(tenure)
    inbox = tenure.claim.inbox
    tenure.claim = tenure.claim._replace(inbox="")
    try:
        standing = await session.renew_one(tenure)
    except BaseException:
        tenure.claim = tenure.claim._replace(inbox=inbox)  # it stays ours: the next renewal tells the engine
        if session.renewer.helper is not None:
            session.renewer.helper.add(tenure)
        raise
    if standing.state is State.GONE:
        session.renewer.lose(tenure, "the engine no longer knew it")
        raise LeaseLost(lost_message(tenure))
    session.detach(tenure)
    claim, turnstile = tenure.claim, tenure.turnstile
    fields = [session.engine.identity, turnstile.kind, turnstile.name, turnstile.capacity, claim.id, claim.weight,
              claim.ttl_s, tenure.token, tenure.openings, tenure.renews]  # fmt: skip
    return "hf1." + base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


def detached(session: Session, text: str) -> Tenure:
    """The claim that `detach` described, as ours. Raises `Misuse` for what is none or another engine's."""
    try:
        if not text.startswith("hf1."):
            raise ValueError(text)
        identity, kind, name, capacity, claim_id, weight, ttl_s, token, openings, renews = json.loads(
            base64.urlsafe_b64decode(text[4:])
        )
    except (ValueError, TypeError, AttributeError):
        raise Misuse("attach() takes what Lease.detach() gave, unchanged") from None
    if identity != session.engine.identity:
        raise Misuse(f"this lease is of another engine ({identity}), not of {session.engine.identity}")
    claim = Claim(claim_id, weight, ttl_s, session.world.inbox)
    tenure = Tenure(Turnstile(kind, name, capacity), claim, session.world.mailbox(), renews=renews, max_hold_s=None)
    tenure.token, tenure.openings, tenure.life = token, openings, session.new_life()
    return tenure


async def attach(session: Session, tenure: Tenure) -> None:
    """Take over a detached claim. Raises `LeaseLost` if it ended."""
    tenure.first_sent = session.world.now()
    standing = await session.renew_one(tenure)
    if standing.state is not State.ADMITTED:
        tenure.ended, tenure.why = "lost", "it ended before it was attached"
        raise LeaseLost(lost_message(tenure))
    session.hold(tenure)
