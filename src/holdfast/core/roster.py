"""Who is in a group and how well, look by look, and what happened between two looks. Pure, no clock.

Health is a hint, for who routes requests. Nothing that needs one owner is decided by it: that hangs on leases alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..model import NEVER_S, ClaimView
from .health import MOST_PHI, Pulse

MemberHealth = Literal["ALIVE", "SUSPECT", "GONE"]

LOOKS_PER_BEAT = 2
"""So often the shortest interval between heartbeats is looked at, so that none is missed."""

LOOKS_AT_MOST = 16
"""And so often at most, however many members become suspect one after another."""

OVER_SHARE = 0.1
"""Who goes with less than this of its lease left has let it run out, as far as our clock and its engine's agree."""


class Member(NamedTuple):
    """A live member: ``id`` is unique to this joining, ``owner`` says who for people, ``token`` orders by seniority."""

    id: str
    owner: str
    payload: bytes
    token: int


class MemberEvent(NamedTuple):
    """What happened to a member.

    JOINED: the first that is heard of it. SUSPECT: it has been silent for unlikely long; ALIVE: it is heard of again.
    At last LEFT, where it went before its lease could have ended, or GONE, where that ended.
    """

    kind: Literal["JOINED", "SUSPECT", "ALIVE", "LEFT", "GONE"]
    member: Member


@dataclass(frozen=True, slots=True)
class View:
    """All of a group at one look, never changed. Views are equal where the same members are equally well."""

    alive: tuple[Member, ...] = ()
    suspects: tuple[Member, ...] = ()
    looked_at: float = field(default=0.0, compare=False)
    sights: Mapping[str, tuple[MemberHealth, float]] = field(
        default_factory=dict[str, tuple[MemberHealth, float]], compare=False
    )
    """Of each member, by its id: its health, and phi."""

    def state_of(self, member: Member | str) -> MemberHealth:
        return self._sight(member)[0]

    def phi(self, member: Member | str) -> float:
        return self._sight(member)[1]

    def _sight(self, member: Member | str) -> tuple[MemberHealth, float]:
        return self.sights.get(member if isinstance(member, str) else member.id, ("GONE", MOST_PHI))


@dataclass(slots=True)
class _Known:
    member: Member
    pulse: Pulse | None
    ends_at: float
    suspect: bool = False

    @property
    def phi(self) -> float:
        return 0.0 if self.pulse is None else self.pulse.phi


class Roster:
    """The members of one group, as one watcher sees them."""

    def __init__(self, threshold: float, beats: bool) -> None:
        """``beats``: renewals show in what remains of a lease; else a member is alive until it is gone."""
        self.view = View()
        self.look_in_s = NEVER_S
        """How soon to look again for everything to be noticed in time."""
        self._threshold = threshold
        self._beats = beats
        self._known: dict[str, _Known] = {}

    def see(self, claims: Iterable[ClaimView], now: float) -> list[MemberEvent]:
        """Take in one look, senior first; what happened since the one before, in an order that makes sense."""
        claims = list(claims)
        here = {claim.id for claim in claims}
        events = [self._went(self._known.pop(id), now) for id in [id for id in self._known if id not in here]]
        for claim in claims:
            known = self._known.get(claim.id)
            if known is None:
                known = self._known[claim.id] = self._meet(claim, now)
                events.append(MemberEvent("JOINED", known.member))
            elif known.pulse is not None:
                known.pulse.look(claim.remaining_s, now)
            known.ends_at = now + claim.remaining_s
            suspect = known.pulse is not None and known.pulse.suspect_in_s <= 0
            if suspect is not known.suspect:
                known.suspect = suspect
                events.append(MemberEvent("SUSPECT" if suspect else "ALIVE", known.member))
        seen = [self._known[claim.id] for claim in claims]
        self.view = View(
            tuple(known.member for known in seen if not known.suspect),
            tuple(known.member for known in seen if known.suspect),
            now,
            {known.member.id: ("SUSPECT" if known.suspect else "ALIVE", known.phi) for known in seen},
        )
        self.look_in_s = self._look_in_s(now)
        return events

    def _meet(self, claim: ClaimView, now: float) -> _Known:
        member = Member(claim.id, claim.owner, claim.payload, claim.token)
        return _Known(member, Pulse(claim.remaining_s, now, self._threshold) if self._beats else None, 0.0)

    def _went(self, known: _Known, now: float) -> MemberEvent:
        slack_s = OVER_SHARE * known.pulse.length_s if known.pulse else 0.0
        return MemberEvent("LEFT" if now < known.ends_at - slack_s else "GONE", known.member)

    def _look_in_s(self, now: float) -> float:
        first_end_s = min((known.ends_at - now for known in self._known.values()), default=NEVER_S)
        pulses = [known.pulse for known in self._known.values() if known.pulse is not None]
        if not pulses:
            return first_end_s
        beat_s = min(pulse.detector.mean_s for pulse in pulses)
        suspect_in_s = min((pulse.suspect_in_s for pulse in pulses if pulse.suspect_in_s > 0), default=NEVER_S)
        return min(first_end_s, beat_s / LOOKS_PER_BEAT, max(suspect_in_s, beat_s / LOOKS_AT_MOST))
