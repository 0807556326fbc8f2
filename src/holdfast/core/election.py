"""Elections: a turnstile of one that everyone may watch, and a cell of its address that says who leads, and since when.

The turnstile alone decides who leads. The record in the cell is what the leader lets others know, written under its
token before it leads; it counts as long as its writer's claim is the one that is admitted, so no past leader is ever
shown as the present one.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from ..contract import Capabilities
from ..errors import HoldfastError, LeaseLost, Misuse, StaleToken
from ..model import NEVER_S, Turnstile, check_name
from . import cell as cells
from . import chronicle
from . import lease as leases
from .cell import Opening
from .chronicle import Change, Step
from .lease import LeaseBase
from .recipe import QUEUE, check_payload, ttl_of
from .session import Session, lost_message
from .tenure import Tenure
from .watch import Watch

OnUnsure = Literal["stop", "keep_until_deadline"]

RESIGNED = "resigned"
"""The state of a record whose writer gave its leadership up; another kind of state is for people."""

NOTED_CHARACTERS = 200
"""What is noted is cut to so many: a record is bounded."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What an election is made of, checked when it is made."""

    turnstile: Turnstile
    ttl_s: float
    on_unsure: OnUnsure


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads. ``id`` is of this leadership alone, ``owner`` says who for people, ``token`` orders leaders.

    ``since`` is in seconds since 1970 by the leader's clock, ``age_s`` what has passed since then by ours; None in the
    moment between its admission and its record. ``state`` is what it noted last, for people.
    """

    id: str
    owner: str
    payload: bytes
    token: int
    since: float | None = field(default=None, compare=False)
    age_s: float | None = field(default=None, compare=False)
    state: str = ""


class Predecessor(NamedTuple):
    """Who led before, and whether it resigned; else it went without a word."""

    owner: str
    resigned: bool


class Candidate(NamedTuple):
    """Who would lead and waits for it, as `Leader` says it; for how long it has waited."""

    id: str
    owner: str
    payload: bytes
    waited_s: float


class Record(NamedTuple):
    """What stands in the cell. ``since`` its writer leads, and ``at`` which time it was written: seconds since 1970."""

    leader: str
    token: int
    since: float
    at: float
    payload: bytes = b""
    state: str = ""
    changes: tuple[Change, ...] = ()
    """How the last leaders came to lead, this one last."""

    def dump(self) -> bytes:
        fields = self._asdict() | {
            "since": round(self.since, 3),
            "at": round(self.at, 3),
            "payload": base64.b64encode(self.payload).decode(),
            "changes": chronicle.dump(self.changes),
        }
        return json.dumps(fields).encode()

    @classmethod
    def load(cls, value: bytes | None) -> Record | None:
        """None for what is none that we can read."""
        with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
            fields: dict[str, Any] = json.loads(value or b"")
            return cls(
                str(fields.get("leader", "")),
                int(fields["token"]),
                float(fields["since"]),
                float(fields.get("at", fields["since"])),
                base64.b64decode(fields.get("payload", "")),
                str(fields.get("state", "")),
                tuple(chronicle.load(fields.get("changes", ()))),
            )
        return None

    def with_steps(self, steps: Sequence[Step]) -> Record:
        """The change that made its writer the leader has more steps."""
        *earlier, change = self.changes
        return self._replace(changes=(*earlier, change._replace(steps=(*change.steps, *steps))))

    @property
    def resigned(self) -> bool:
        return self.state == RESIGNED


def succeed(before: Record | None, owner: str, token: int, payload: bytes, admitted_at: float) -> Record:
    """The record of who was admitted as the one who wrote ``before`` led no more."""
    what, why, steps = f"{owner} leads", "nobody led before", [Step("admitted", admitted_at)]
    earlier: tuple[Change, ...] = ()
    if before is not None:
        what, why, earlier = f"{what} after {before.leader}", f"{before.leader} went without a word", before.changes
        if before.resigned:
            why = f"{before.leader} resigned"
            steps.insert(0, Step("resigned", before.at))
    change = Change(what, why, owner, tuple(steps))
    return Record(owner, token, admitted_at, admitted_at, payload, "", (*earlier, change))


def election_turnstile(engine: Capabilities, name: str) -> Turnstile:
    return Turnstile("election", check_name(name), 1, announces=engine.groups)


def rules(engine: Capabilities, name: str, ttl_s: float | None, on_unsure: OnUnsure) -> Rules:
    cells.check_cell(engine.cells, engine.engine, name)
    if on_unsure not in get_args(OnUnsure):
        raise Misuse(f"on_unsure is 'stop' or 'keep_until_deadline', not {on_unsure!r}")
    return Rules(election_turnstile(engine, name), ttl_of(engine, ttl_s), on_unsure)


# -- to lead


class Term:
    """One candidate's time: as a strategy it waits for its turn and then writes who leads, so that both is undone if
    either fails."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.predecessor: Predecessor | None = None
        self._opening: Opening
        self._record: Record  # as we began
        self._state = ""
        self._steps: list[Step] = []  # since then

    async def take(self, session: Session, tenure: Tenure, deadline: float) -> None:
        await QUEUE.take(session, tenure, deadline)
        admitted_at = session.world.wall()
        try:
            self._opening = await cells.open_cell(session, tenure.turnstile.address, tenure)
            before = Record.load(self._opening.value)
            self._record = succeed(before, session.owner, tenure.token, self.payload, admitted_at)
            self.predecessor = before and Predecessor(before.leader, before.resigned)
            leads_at = session.world.wall()
            self.note("leads", "", leads_at)
            await cells.put(session, self._opening, self._as_of(leads_at), ())
        except StaleToken:
            raise LeaseLost(lost_message(tenure, "its time ran out before it led, and another leads")) from None

    def note(self, step: str, state: str, at: float) -> None:
        """From any thread, also while another writes."""
        if step and len(self._steps) < chronicle.KEPT:
            self._steps.append(Step(step[:NOTED_CHARACTERS], at))
        self._state = state[:NOTED_CHARACTERS] or self._state

    def _as_of(self, at: float, **but: Any) -> bytes:
        """The record with what was noted."""
        noted = {"at": at, "payload": self.payload, "state": self._state, **but}
        return self._record.with_steps(self._steps)._replace(**noted).dump()

    async def update(self, session: Session, tenure: Tenure, payload: bytes | None) -> None:
        """Rewrite the record. Not for two at once. Raises `LeaseLost` or `StaleToken` once we lead no more."""
        if payload is None:
            payload = self.payload
        check_payload(payload)
        if tenure.ended:
            raise LeaseLost(lost_message(tenure))
        await cells.put(session, self._opening, self._as_of(session.world.wall(), payload=payload), ())
        self.payload = payload

    async def resign(self, session: Session, tenure: Tenure) -> None:
        """Give it up, and say so, if the engine answers at once. Raises `LeaseLost` if it was lost before."""
        try:
            if not tenure.ended and not tenure.is_over(session.world.now()):
                await self._say_so(session)
        except BaseException:  # it was to be given up
            with contextlib.suppress(LeaseLost):
                await session.release(tenure)
            raise
        await session.release(tenure)

    async def _say_so(self, session: Session) -> None:
        """For the chronicle of whoever is next; what else is under way in the cell goes first."""
        opening = self._opening
        value = self._as_of(session.world.wall(), state=RESIGNED)
        request = session.engine.put(opening.cell, opening.fence, opening.version, session.new_id(), value, ())
        with contextlib.suppress(HoldfastError):
            await session.ask(request, session.world.now())


def candidate(session: Session, rules: Rules, payload: bytes) -> Tenure:
    """A claim to lead, not yet sent."""
    check_payload(payload)
    tenure = session.new_tenure(rules.turnstile, 1, rules.ttl_s, payload=payload)
    tenure.stops_unsure = rules.on_unsure == "stop"
    return tenure


async def campaign(session: Session, tenure: Tenure, term: Term, timeout_s: float | None) -> None:
    """Wait until we lead and the record says so. Whatever it raises, nothing is left behind then."""
    await leases.acquire(session, tenure, term, timeout_s)


class LeadershipBase(LeaseBase):
    """A leadership, as its holder sees it. Both faces add what does I/O."""

    __slots__ = ()

    _term: Term

    @property
    def is_leader(self) -> bool:
        """Whether we still lead. By ``on_unsure="stop"`` no more from the first renewal that failed."""
        return self.is_held

    @property
    def payload(self) -> bytes:
        """What the record says, as last written by us."""
        return self._term.payload

    @property
    def predecessor(self) -> Predecessor | None:
        """Who led before us, and whether it resigned; None where nobody did."""
        return self._term.predecessor

    def note(self, step: str = "", *, state: str = "") -> None:
        """For people, without I/O: what we did as we came to lead, and what we do now. "" leaves it as it is.

        The next `update` writes it, or `resign`. `Election.history` has the steps (the first 20), `Leader` the state.
        Raises `Misuse` for the state that `resign` alone writes.
        """
        if state == RESIGNED:
            raise Misuse(f"the state {RESIGNED!r} is what resign() writes; note another")
        self._term.note(step, state, self._session.world.wall())


# -- to look


async def leader(session: Session, rules: Rules) -> Leader | None:
    """Who leads now; None where nobody does."""
    return (await _look(session, rules.turnstile))[0]


async def candidates(session: Session, rules: Rules) -> list[Candidate]:
    """Who waits to lead, in the order of their turn."""
    snapshot = await session.ask(session.engine.look(rules.turnstile))
    return [Candidate(claim.id, claim.owner, claim.payload, claim.age_s) for claim in snapshot.waiting]


async def history(session: Session, rules: Rules) -> list[Change]:
    """The last changes of leader, the latest last."""
    record = Record.load((await cells.read(session, rules.turnstile.address, ())).value)
    return list(record.changes) if record else []


def watch(session: Session, rules: Rules) -> Watch[Leader | None]:
    return Watch(session, rules.turnstile, functools.partial(_look, session, rules.turnstile))


async def _look(session: Session, turnstile: Turnstile) -> tuple[Leader | None, float]:
    """Who leads, and how soon the first of all who stand there would be gone if it were dead."""
    record = Record.load((await cells.read(session, turnstile.address, ())).value)  # before we see who is admitted
    snapshot = await session.ask(session.engine.look(turnstile))
    end_s = min((claim.remaining_s for claim in snapshot.claims), default=NEVER_S)
    for claim in snapshot.admitted:
        if record is None or record.token != claim.token:  # another's, from before
            return Leader(claim.id, claim.owner, claim.payload, claim.token), end_s
        age_s = max(0.0, session.world.wall() - record.since)
        return Leader(claim.id, claim.owner, record.payload, claim.token, record.since, age_s, record.state), end_s
    return None, end_s
