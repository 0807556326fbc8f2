"""Where a job stands: its cells, read and written here only.

A job has one cell of its own, and per generation and partition an input cell and a done cell:

    each:job:JOB          what the job is: `JobState`, written under the lock of the same name
    each:in:G:P:JOB       the items published so far: id -> item; its value counts and fingerprints them
    each:done:G:P:JOB     what became of them: id -> record of the completion, "!"+id -> record of a failure; its value
                          is `Counters`; written by the partition's owner only, under the partition's lease

The job's name stands last, so that no two jobs share a cell.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

from ..contract import Request
from ..core.recipe import ttl_of
from ..errors import LeaseLost, Misuse, StaleToken
from ..model import CellSnapshot, Change, check_name
from ..sync import Cell, Client, Group, Lease, OpenCell, Partitions, Share
from ..worlds.threads import drive
from .each_items import Item, chunks, digest, pack, unpack

T = TypeVar("T")

PARTITIONS = 64
PUT_ITEMS = 500
PUT_BYTES = 1 << 18
READS_AT_ONCE = 512
TRIES = 5


@dataclass(frozen=True)
class JobState:
    """What all members agree on. ``session`` rises when a member joins and finds no other, or finds ``stop``, which
    says why the session was given up; failures count within one session. ``old`` is a generation (its number and
    partitions) whose cells are to be dropped."""

    partitions: int
    generation: int = 1
    session: int = 0
    stop: str = ""
    old: tuple[int, int] | None = None

    @staticmethod
    def load(data: bytes) -> JobState:
        fields = json.loads(data)
        old = fields.pop("old")
        return JobState(**fields, old=None if old is None else (old[0], old[1]))

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Counters(NamedTuple):
    """A done cell's value. ``owner`` is empty where nothing was left to run: another name there means that it died."""

    done: int = 0
    failed: int = 0
    session: int = 0
    owner: str = ""

    @staticmethod
    def load(data: bytes | None) -> Counters:
        return Counters(*json.loads(data)) if data else Counters()

    def dump(self) -> bytes:
        return json.dumps(self).encode()


class Published(NamedTuple):
    """An input cell's value: how many items, and the fingerprint of their ids."""

    items: int = 0
    digest: int = 0

    @staticmethod
    def load(data: bytes | None) -> Published:
        return Published(*json.loads(data)) if data else Published()

    def dump(self) -> bytes:
        return json.dumps(self).encode()


@dataclass(frozen=True)
class Tally:
    """All partitions' counters at one moment, the done ones read before the published ones.

    Both only rise, so a tally that says `finished` was right when its second half was read.
    """

    published: tuple[Published, ...]
    counters: tuple[Counters, ...]

    @property
    def items(self) -> int:
        return sum(one.items for one in self.published)

    @property
    def done(self) -> int:
        return sum(one.done for one in self.counters)

    def failed(self, session: int) -> int:
        return sum(one.failed for one in self.counters if one.session == session)

    def finished(self, session: int) -> bool:
        """Every published item is done, or failed in this session (none did in session 0)."""
        return all(
            there.items <= one.done + (one.failed if one.session == session else 0)
            for there, one in zip(self.published, self.counters, strict=True)
        )


class Store:
    """One job on one engine."""

    def __init__(self, client: Client, job: str, ttl_s: float | None = None) -> None:
        check_name(job, "job")
        check_name(f"each:done:{1 << 40}:{1 << 16}:{job}", "job's name with what we put before it")
        self.client = client
        self.job = job
        self.ttl_s = ttl_of(client.capabilities, ttl_s)

    # -- the job

    def state(self) -> JobState | None:
        """What the job is now, unfenced; None where there is no such job."""
        value = self._job_cell().read([]).value
        return None if value is None else JobState.load(value)

    def known(self) -> JobState:
        """The same; raises `Misuse` where there is no such job."""
        state = self.state()
        if state is None:
            raise Misuse(f"there is no job {self.job!r} on this engine")
        return state

    def enter(self, partitions: int | None, again: bool, join: Callable[[JobState], Share]) -> tuple[JobState, Share]:
        """Settle what this member is to do, and ``join`` while nobody else can settle anything else.

        Raises `Misuse` where the job has another number of partitions.
        """
        with self._lock("job") as lease:
            opened = self._job_cell().open(lease)
            stands = None if opened.value is None else JobState.load(opened.value)
            state = stands or JobState(partitions or PARTITIONS)
            if state.old is not None:  # who came before may have died between saying so and doing it
                self._drop(*state.old)
                state = replace(state, old=None)
            others = self.members(state).members()
            if stands is not None and again and not others and self._all_over(state):
                state = replace(
                    state,
                    partitions=partitions or state.partitions,
                    generation=state.generation + 1,
                    old=(state.generation, state.partitions),
                )
            self.check_partitions(state, partitions)
            if not others or state.stop:
                state = replace(state, session=state.session + 1, stop="")
            opened.put(state.dump())
            if state.old is not None:
                self._drop(*state.old)
            return state, join(state)

    def check_partitions(self, state: JobState, partitions: int | None) -> None:
        if partitions is not None and partitions != state.partitions:
            raise Misuse(
                f"job {self.job!r} has {state.partitions} partitions, and all its members and runs have the same: "
                f"give --partitions {state.partitions} or leave it out, not {partitions}"
            )

    def stop(self, session: int, why: str) -> None:
        """Let all members of this session stop, and say why."""
        with self._lock("job") as lease:
            opened = self._job_cell().open(lease)
            if opened.value is not None:
                state = JobState.load(opened.value)
                if state.session == session and not state.stop:
                    opened.put(replace(state, stop=why).dump())

    def members(self, state: JobState) -> Partitions:
        """The job's members, who share its partitions."""
        return self.client.partitions(f"each:{self.job}", state.partitions, self.ttl_s)

    def publishers(self) -> Group:
        """Those who are publishing just now: the job is not finished while there are any."""
        return self.client.group(f"each:publishing:{self.job}")

    def forget(self) -> None:
        """Remove everything of the job. For when it has no members."""
        state = self.state()
        if state is not None:
            for generation, partitions in [(state.generation, state.partitions), *([state.old] if state.old else [])]:
                self._drop(generation, partitions)
            self._job_cell().drop()

    # -- counting

    def tally(self, state: JobState) -> Tally:
        """Two looks at every partition's value."""
        numbers = range(state.partitions)
        counters = [Counters.load(one.value) for one in self._values([self._done(state, p) for p in numbers])]
        published = [Published.load(one.value) for one in self._values([self._in(state, p) for p in numbers])]
        return Tally(tuple(published), tuple(counters))

    def _all_over(self, state: JobState) -> bool:
        """Whether every item is done or has failed, in whatever session."""
        tally = self.tally(state)
        return tally.items > 0 and all(
            there.items <= one.done + one.failed for there, one in zip(tally.published, tally.counters, strict=True)
        )

    # -- publishing

    def adds(self, tally: Tally, shares: Mapping[int, Sequence[Item]]) -> dict[int, Sequence[Item]]:
        """Which of these partitions' items differ from exactly what is published."""
        return {
            partition: mine
            for partition, mine in shares.items()
            if Published(len(mine), digest(one.id for one in mine)) != tally.published[partition]
        }

    def missing(self, state: JobState, partition: int, mine: Sequence[Item]) -> list[Item]:
        """Which of these items are not published yet, by an unfenced look."""
        there = self._in_cell(state, partition).read().entries
        return [one for one in mine if one.id not in there]

    def publish(self, state: JobState, partition: int, mine: Sequence[Item], going: Callable[[], bool]) -> None:
        """Add what is missing, for as long as ``going()``."""
        for attempt in range(1, TRIES + 1):
            try:
                if missing := self.missing(state, partition, mine):
                    with self._lock(f"in:{partition}") as lease:
                        self._add(self._in_cell(state, partition).open(lease), missing, going)
                return
            except (StaleToken, LeaseLost):
                if attempt == TRIES:
                    raise

    def _add(self, opened: OpenCell, missing: Sequence[Item], going: Callable[[], bool]) -> None:
        there = set(opened.entries())
        published = Published.load(opened.value)
        for run in chunks([one for one in missing if one.id not in there], PUT_ITEMS, PUT_BYTES):
            if not going():
                return
            published = Published(published.items + len(run), published.digest ^ digest(one.id for one in run))
            opened.put(published.dump(), [Change(one.id, pack(one), True) for one in run])

    def published(self, state: JobState, partition: int) -> list[Item]:
        entries = self._in_cell(state, partition).read().entries
        return [unpack(item_id, data) for item_id, data in entries.items()]

    # -- results

    def open_done(self, state: JobState, partition: int, lease: Lease) -> OpenCell:
        return self.client.cell(self._done(state, partition)).open(lease)

    def results(self) -> Iterator[dict[str, Any]]:
        """Every recorded completion: item, occurrence, code, out, member, token, attempts."""
        state = self.known()
        for partition in range(state.partitions):
            records = self.client.cell(self._done(state, partition)).read().entries
            if any(not key.startswith("!") for key in records):
                for one in self.published(state, partition):
                    if one.id in records:
                        yield {**_told(one), "code": 0, "out": None, **json.loads(records[one.id])}

    def failures(self, state: JobState, tally: Tally) -> Iterator[dict[str, Any]]:
        """Every item that failed in this session: item, occurrence, code, attempts, member, note."""
        for partition, counters in enumerate(tally.counters):
            if counters.failed and counters.session == state.session:
                records = self.client.cell(self._done(state, partition)).read().entries
                for one in self.published(state, partition):
                    record = json.loads(records.get("!" + one.id, b"null"))
                    if record is not None and record.pop("session") == state.session:
                        yield {**_told(one), **record}

    # -- names

    def _lock(self, what: str) -> Any:
        return self.client.lock(f"each:{what}:{self.job}", ttl_s=self.ttl_s)

    def _job_cell(self) -> Cell:
        return self.client.cell(f"each:job:{self.job}")

    def _in(self, state: JobState, partition: int) -> str:
        return f"each:in:{state.generation}:{partition}:{self.job}"

    def _in_cell(self, state: JobState, partition: int) -> Cell:
        return self.client.cell(self._in(state, partition))

    def _done(self, state: JobState, partition: int) -> str:
        return f"each:done:{state.generation}:{partition}:{self.job}"

    # -- many at once

    def _values(self, cells: Sequence[str]) -> list[CellSnapshot]:
        engine = self.client.session.engine
        return self._ask_many([engine.read(cell, []) for cell in cells])

    def _drop(self, generation: int, partitions: int) -> None:
        state = JobState(partitions, generation)
        engine = self.client.session.engine
        names = [name(state, p) for p in range(partitions) for name in (self._in, self._done)]
        self._ask_many([engine.drop(name) for name in names])

    def _ask_many(self, requests: Sequence[Request[T]]) -> list[T]:
        """All of them, in order; one that failed is asked again. Raises `Unavailable`."""
        session = self.client.session
        found: list[T] = []
        for start in range(0, len(requests), READS_AT_ONCE):
            some = requests[start : start + READS_AT_ONCE]
            replies = drive(session.world.call_many(some, session.patience_s))
            for request, reply in zip(some, replies, strict=True):
                found.append(drive(session.ask(request)) if isinstance(reply, Exception) else reply)
        return found


def _told(one: Item) -> dict[str, Any]:
    return {"item": one.text, "occurrence": one.occurrence}


def in_some_order(partitions: Sequence[int]) -> list[int]:
    """Rotated by chance, so that members who publish the same input seldom meet at one partition's lock."""
    start = random.randrange(len(partitions)) if partitions else 0
    return [*partitions[start:], *partitions[:start]]
