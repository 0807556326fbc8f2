"""Who has which part of a set of partitions, for people: from looks at its members, at each partition, and its record.

The record says who should own what, the partitions' own turnstiles say who does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.assignment import NOBODY, Assignment
from ..model import ClaimView, Snapshot
from .presence import Member, session_of


@dataclass(frozen=True, slots=True)
class Place:
    """One partition. ``owner`` holds it, if anybody does; ``wanted`` should: names, as `Portion.name`.

    ``wanted`` is empty where nobody should, or nobody knows. ``handing_over``: it is owned, and another is to own it.
    """

    partition: int
    owner: str
    wanted: str
    handing_over: bool
    claim: ClaimView | None


@dataclass(frozen=True, slots=True)
class Portion:
    """What one member owns, and should. ``member`` is None where it is none (any more): it is ``leaving``, or gone."""

    name: str
    owner: str
    member: Member | None
    owned: int
    wanted: int
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Partitions:
    """One set. ``count`` is 0 where neither a member nor a record says it; ``epoch`` counts the assignments."""

    name: str
    count: int
    portions: tuple[Portion, ...]
    places: tuple[Place, ...]
    epoch: int

    @property
    def handed_over(self) -> tuple[Place, ...]:
        """Those between two owners."""
        return tuple(place for place in self.places if place.handing_over)

    @property
    def unowned(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if not place.owner)


def put_together(
    name: str, members: Sequence[Member], count: int, held: Mapping[int, Snapshot], assignment: Assignment | None
) -> Partitions:
    """``held``: the partitions that somebody holds or waits for."""
    if assignment is not None and count not in (0, len(assignment.places)):
        assignment = None  # from before, when it had other members and another count
    count = count or (len(assignment.places) if assignment else 0)
    here = [member for member in members if not member.claim.weight]
    names = _names(here, assignment)
    wanted = _wanted(assignment, names)
    by_session: dict[str, list[str]] = {}
    for member in here:
        by_session.setdefault(member.session, []).append(names[member.claim.id])
    leaving = {member.session: member.claim.owner for member in members if member.claim.weight}
    for worker in assignment.workers if assignment else ():
        if worker.id and worker.id not in names:  # it has gone, and what it held may stand for a while
            by_session.setdefault(session_of(worker.id), []).append(worker.called)
    places = [
        _place(partition, held.get(partition), wanted.get(partition, ""), by_session, leaving)
        for partition in (range(count) if count else sorted(held))
    ]
    owned, should = Counter(place.owner for place in places), Counter(wanted.values())
    portions = [
        Portion(names[one.claim.id], one.claim.owner, one, owned[names[one.claim.id]], should[names[one.claim.id]])
        for one in here
    ]
    for other in sorted((owned.keys() | should.keys()) - set(names.values()) - {""}):
        owner = next((place.claim.owner for place in places if place.claim and place.owner == other), "")
        leaves = other in leaving.values()
        portions.append(Portion(other, owner, None, owned[other], should[other], leaves))
    return Partitions(name, count, tuple(portions), tuple(places), assignment.epoch if assignment else 0)


def _names(members: Iterable[Member], assignment: Assignment | None) -> dict[str, str]:
    """By the id of a membership: the record's names; of members that it does not know who they are, made distinct."""
    recorded = {worker.id: worker.called for worker in assignment.workers if worker.id} if assignment else {}
    names: dict[str, str] = {}
    for member in members:
        name = recorded.get(member.claim.id) or member.claim.owner
        if name in names.values():
            name = f"{name} ({member.claim.token})"
        names[member.claim.id] = name
    return names


def _wanted(assignment: Assignment | None, names: Mapping[str, str]) -> dict[int, str]:
    if assignment is None:
        return {}
    by_index = [names.get(worker.id, worker.called) for worker in assignment.workers]
    return {partition: by_index[place] for partition, place in enumerate(assignment.places) if place != NOBODY}


def _place(
    partition: int,
    snapshot: Snapshot | None,
    wanted: str,
    by_session: Mapping[str, Sequence[str]],
    leaving: Mapping[str, str],
) -> Place:
    claim = snapshot.admitted[0] if snapshot is not None and snapshot.admitted else None
    if claim is None:
        return Place(partition, "", wanted, False, None)
    mates = by_session.get(session_of(claim.id), ())  # members of one client cannot be told apart by what they hold
    owner = wanted if wanted in mates else mates[0] if mates else leaving.get(session_of(claim.id), claim.owner)
    waited_for = snapshot is not None and bool(snapshot.waiting)
    return Place(partition, owner, wanted, waited_for or bool(wanted and wanted != owner), claim)
