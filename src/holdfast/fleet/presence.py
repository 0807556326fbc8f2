"""Who is there, and how well, as far as one look tells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..model import ClaimView

FRESH, LATE = "fresh", "late"

LATE_SHARE = 0.5
"""Who has less than this of its lease left is late: leases are renewed at a third, one tenth more or less."""


@dataclass(frozen=True, slots=True)
class Member:
    """A claim and its owner's health: `FRESH`, or `LATE` where a renewal is overdue."""

    claim: ClaimView
    health: str = FRESH

    @property
    def session(self) -> str:
        return session_of(self.claim.id)


def session_of(claim_id: str) -> str:
    """The client that a claim is of: a claim's id begins with its client's inbox."""
    return claim_id.rpartition(".")[0]


class Lengths:
    """How long each claim's lease is: no look says it, so it is what was seen of it at most.

    Whoever looks once takes it that those beside each other have leases of one length, as they mostly do.
    """

    def __init__(self, ttl_s: float | None = None) -> None:
        self._ttl_s = ttl_s  # where the engine gives all leases one length
        self._seen: dict[str, tuple[float, float]] = {}  # claim -> longest, last remaining
        self._renewed: set[str] = set()

    def judge(self, claims: Iterable[ClaimView]) -> tuple[Member, ...]:
        """The members of one turnstile, with their health."""
        claims = list(claims)
        for claim in claims:
            longest, last = self._seen.get(claim.id, (0.0, claim.remaining_s))
            if claim.remaining_s > last:
                self._renewed.add(claim.id)  # so what is seen now is nearly all of it
            self._seen[claim.id] = max(longest, claim.remaining_s), claim.remaining_s
        beside_s = max((claim.remaining_s for claim in claims), default=0.0)
        return tuple(
            Member(claim, LATE if claim.remaining_s < LATE_SHARE * self._length_s(claim, beside_s) else FRESH)
            for claim in claims
        )

    def _length_s(self, claim: ClaimView, beside_s: float) -> float:
        longest, _ = self._seen[claim.id]
        if self._ttl_s is not None:
            return self._ttl_s
        return longest if claim.id in self._renewed else max(longest, beside_s)

    def keep(self, ids: set[str]) -> None:
        """Forget those that are gone."""
        self._seen = {id: seen for id, seen in self._seen.items() if id in ids}
        self._renewed &= ids
