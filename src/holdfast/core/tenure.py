"""One claim of this process, from its first request to its end: what is known of it here. No I/O."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ..hooks.event import Life
from ..model import NEVER_S, Claim, Standing, State, Turnstile
from ..world import Mailbox

DRIFT_SHARE = 0.01
DRIFT_FLOOR_S = 0.002
"""What a lease is trusted less than its length, since two clocks differ: 1 % and 2 ms, yet never over a fifth."""


def trusted_s(ttl_s: float) -> float:
    """For how long after sending a request its holder relies on a lease of ``ttl_s``."""
    return ttl_s - min(ttl_s * DRIFT_SHARE + DRIFT_FLOOR_S, ttl_s / 5)


class Keeping(Protocol):
    """Who keeps a lease for others of this process after its release (`sticky`): told from any thread."""

    def wanted(self, tenure: Tenure) -> None:
        """Someone outside waits for it."""

    def let_go(self, tenure: Tenure) -> bool:
        """Whether to give it back now."""
        ...

    def ended(self, tenure: Tenure) -> None:
        """It is over."""


class Tenure:
    """The mutable record behind a lease. Deadlines are on the world's clock.

    It is *kept* while the session's renewer knows it; whoever takes it out of there ends it, so it ends once.
    """

    __slots__ = (
        "__weakref__",
        "admitted",
        "also",
        "claim",
        "deadline",
        "due",
        "ended",
        "ends",
        "first_sent",
        "handle",
        "hold_until",
        "keeping",
        "let_go_at",
        "life",
        "look_at",
        "mailbox",
        "max_hold_s",
        "on_lost",
        "openings",
        "renewing",
        "renews",
        "stops_unsure",
        "token",
        "turnstile",
        "unknown",
        "unsure",
        "wanted",
        "why",
    )

    def __init__(
        self, turnstile: Turnstile, claim: Claim, mailbox: Mailbox, *, renews: bool, max_hold_s: float | None
    ) -> None:
        self.turnstile = turnstile
        self.claim = claim
        self.mailbox = mailbox
        self.renews = renews
        self.max_hold_s = max_hold_s
        self.token = 0
        self.admitted = False  # as its owner has seen it, and nobody else's hint
        self.wanted = False
        self.unknown = False  # some request of this id may or may not have been done
        self.renewing = False  # a renewal may be on its way
        self.unsure = False  # the last renewal failed
        self.stops_unsure = False  # and then it is given up, although it could last to its deadline
        self.ended = ""  # "released", "lost", "given up", "detached"
        self.why = ""
        self.first_sent: float | None = None
        self.deadline = NEVER_S  # nothing acknowledged yet: nothing to expire
        self.also: Callable[[], float] | None = None  # the deadline by what a helper renewed, where there is one
        self.due = NEVER_S  # when to renew
        self.look_at = NEVER_S  # when a waiter should look who is ahead
        self.hold_until = NEVER_S
        self.keeping: Keeping | None = None
        self.let_go_at = NEVER_S  # when to ask ``keeping`` whether to give it back
        self.openings = 0
        self.handle: weakref.ref[Any] | None = None
        self.life: Life | None = None  # who hears of its steps; None where nobody does
        self.on_lost: list[Callable[[], object]] = []
        self.ends: list[Mailbox] = []  # who waits for its end

    def acknowledge(self, sent: float, standing: Standing, renew_share: float = 1 / 3) -> None:
        """The engine confirmed this claim in answer to a request sent at ``sent``."""
        ttl_s = self.claim.ttl_s
        self.token = standing.token
        self.deadline = sent + trusted_s(ttl_s)
        self.unsure = False
        waiting = standing.state is State.WAITING
        self.due = sent + ttl_s * renew_share if self.renews or waiting else NEVER_S
        self.look_at = sent + max(standing.look_in_s, 0.004) + 0.001 if waiting else NEVER_S

    def hold(self, now: float) -> None:
        """Its owner knows it to be admitted from here on."""
        self.admitted = True
        self.look_at = NEVER_S
        if not self.renews:
            self.due = NEVER_S
        if self.max_hold_s is not None:
            self.hold_until = now + self.max_hold_s

    def tell(self, step: str, why: str = "") -> None:
        """Let the hooks hear of a step, if there are any. The hot path looks at ``life`` itself first."""
        if self.life is not None:
            self.life.step(step, self.turnstile, self.claim, self.token, why)

    def is_over(self, now: float) -> bool:
        """Whether its time ran out, with what a helper renewed meanwhile."""
        if now < self.deadline:
            return False
        if self.also is not None:
            self.deadline = max(self.deadline, self.also())
        return now >= self.deadline

    @property
    def buries(self) -> bool:
        """Whether leaving is to leave a tombstone: something of this claim may still be on its way."""
        return self.unknown or self.renewing

    @property
    def wake_at(self) -> float:
        """When the renewer has something to do for it."""
        return min(self.due, self.look_at, self.deadline, self.hold_until, self.let_go_at)

    def is_due(self, now: float) -> bool:
        """Time to renew; a little early is fine, so that many leases share one round."""
        return self.due <= now + self.claim.ttl_s / 12 or self.look_at <= now
