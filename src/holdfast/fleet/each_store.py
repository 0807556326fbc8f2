"""Where a job stands: its cells, read and written here only.

A job has one cell of its own, and per generation and partition an input cell and a done cell:

    each2:job:JOB          what the job is: `JobState`, written under the lock of the same name
    each2:in:G:P:JOB       the items published so far: entry N is block N of them; its value is `Published`; written by
                           one publisher at a time, under the lock each:in:JOB
    each2:done:G:P:JOB     what became of them: id -> record of the completion, "!"+id -> record of a failure for good,
                           "#"+N -> block N has had some; its value is `Counters`; written by the partition's owner
                           only, under the partition's lease

Entries are read by their keys, a block's at once: so no answer grows with the job. The job's name stands last, so that
no two jobs share a cell; the 2 is the layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from ..core.recipe import ttl_of
from ..errors import AcquireTimeout, Misuse
from ..model import Change, check_name
from ..sync import Cell, Client, Group, OpenCell, Partitions, Share
from ..worlds.threads import drive
from .each_input import Input, Print
from .each_items import Item, blocks, pack, unpack

PARTITIONS = 64
MAX_PARTITIONS = 16_384
REVOKE_TIMEOUT_S = 1e8
"""A CMD may take as long as it likes before its partition is handed over."""


@dataclass(frozen=True)
class JobState:
    """What all members agree on.

    ``session`` rises when a member joins and finds no other, or finds ``stop``, which says why the session was given
    up. ``inputs`` counts the members that came with items; ``retrials``, how often the dead letters were to be tried
    again. ``old`` is a generation (its number and partitions) whose cells are to be dropped.
    """

    partitions: int
    generation: int = 1
    session: int = 0
    stop: str = ""
    inputs: int = 0
    retrials: int = 0
    old: tuple[int, int] | None = None

    @staticmethod
    def load(data: bytes) -> JobState:
        fields = json.loads(data)
        old = fields.pop("old")
        return JobState(**fields, old=None if old is None else (old[0], old[1]))

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Counters(NamedTuple):
    """A done cell's value.

    ``failed`` since the retrial of that number. ``owner`` is empty where nothing was left to run: another name there
    means that it died. Of the blocks up to ``over`` nothing is left, and of those after ``begun`` nothing is recorded.
    """

    done: int = 0
    failed: int = 0
    retrial: int = 0
    owner: str = ""
    over: int = 0
    begun: int = 0

    @staticmethod
    def load(data: bytes | None) -> Counters:
        return Counters(*json.loads(data)) if data else Counters()

    def dump(self) -> bytes:
        return json.dumps(self).encode()

    def dead(self, retrials: int) -> int:
        """How many have failed for good, and are not to be tried again."""
        return self.failed if self.retrial == retrials else 0


class Published(NamedTuple):
    """An input cell's value."""

    print: Print = Print()
    blocks: int = 0

    @staticmethod
    def load(data: bytes | None) -> Published:
        return Published(Print(*(found := json.loads(data))[0]), found[1]) if data else Published()

    def dump(self) -> bytes:
        return json.dumps(self).encode()


@dataclass(frozen=True)
class Tally:
    """All partitions' counters at one moment, the done ones read before the published ones.

    Both only rise, so a tally that says `finished` was right when its second half was read.
    """

    published: tuple[Published, ...]
    counters: tuple[Counters, ...]
    retrials: int

    @property
    def items(self) -> int:
        return sum(one.print.items for one in self.published)

    @property
    def done(self) -> int:
        return sum(one.done for one in self.counters)

    @property
    def failed(self) -> int:
        return sum(one.dead(self.retrials) for one in self.counters)

    @property
    def unfinished(self) -> list[int]:
        """The partitions with items that are neither done nor dead."""
        return [p for p in range(len(self.counters)) if self.left(p) > self.counters[p].dead(self.retrials)]

    def left(self, partition: int) -> int:
        """How many are not done, the dead ones included."""
        return self.published[partition].print.items - self.counters[partition].done


class Store:
    """One job on one engine."""

    def __init__(self, client: Client, job: str, ttl_s: float | None = None) -> None:
        check_name(job, "job")
        check_name(f"each2:done:{1 << 40}:{1 << 16}:{job}", "job's name with what we put before it")
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

    def enter(
        self,
        partitions: int | None,
        join: Callable[[JobState], Share],
        *,
        brings: bool = False,
        again: bool = False,
        retry_dead: bool = False,
    ) -> tuple[JobState, Share]:
        """Settle what this member is to do, and ``join`` while nobody else can settle anything else.

        ``brings``: it has items. Raises `Misuse` where the job has another number of partitions.
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
            state = replace(state, inputs=state.inputs + brings, retrials=state.retrials + retry_dead)
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

    def tally(self, state: JobState, known: Tally | None = None) -> Tally:
        """Two looks at partitions' values. With ``known``: at those only that were unfinished in that earlier tally."""
        numbers = None if known is None else known.unfinished
        counters = dict(enumerate(known.counters)) if known is not None else {}
        published = dict(enumerate(known.published)) if known is not None else {}
        counters |= {p: Counters.load(value) for p, value in self._values(self._done, state, numbers)}
        published |= {p: Published.load(value) for p, value in self._values(self._in, state, numbers)}
        return Tally(tuple(published.values()), tuple(counters.values()), state.retrials)

    def _values(
        self, name: Callable[[JobState, int], str], state: JobState, partitions: Sequence[int] | None = None
    ) -> Iterator[tuple[int, bytes | None]]:
        """What stands in these cells (all, if None), by partition."""
        numbers = range(state.partitions) if partitions is None else partitions
        session = self.client.session
        found = drive(session.ask_many([session.engine.read(name(state, p), []) for p in numbers]))
        return ((p, one.value) for p, one in zip(numbers, found, strict=True))

    def _all_over(self, state: JobState) -> bool:
        tally = self.tally(state)
        return tally.items > 0 and not tally.unfinished

    # -- publishing

    def has_all(self, state: JobState, tally: Tally, items: Input) -> bool:
        """Whether every one of these items is published."""
        return not any(
            any(self._missing(state, partition, tally.published[partition], items))
            for partition in self._differing(state, tally.published, items)
        )

    def publish(self, state: JobState, items: Input, going: Callable[[], bool], then: Callable[[int], None]) -> None:
        """Add what is missing, for as long as ``going()``; ``then`` is told of each partition that got some.

        Raises `StaleToken`, `LeaseLost`, `Unavailable`, `OutcomeUnknown`; it may be called again.
        """
        lock = self._lock("in")
        while going():
            try:
                lease = lock.acquire(timeout_s=1.0)
            except AcquireTimeout:
                continue
            with lease:
                published = {p: Published.load(value) for p, value in self._values(self._in, state)}
                for partition in self._differing(state, published, items):
                    if self._add(self._in_cell(state, partition).open(lease), state, partition, items, going):
                        then(partition)
            return

    def _add(self, opened: OpenCell, state: JobState, partition: int, items: Input, going: Callable[[], bool]) -> bool:
        before = there = Published.load(opened.value)
        for block in blocks(self._missing(state, partition, there, items)):
            if not going():
                break
            there = Published(there.print.plus(bytes.fromhex(one.id) for one in block), there.blocks + 1)
            opened.put(there.dump(), [Change(str(there.blocks), pack(block), True)])
        return there != before

    def _differing(
        self, state: JobState, published: Mapping[int, Published] | tuple[Published, ...], items: Input
    ) -> Iterator[int]:
        """The partitions where not exactly these items are published."""
        for partition, mine in enumerate(items.prints(state.partitions)):
            if mine.items and mine != published[partition].print:
                yield partition

    def _missing(self, state: JobState, partition: int, there: Published, items: Input) -> Iterator[Item]:
        numbers = range(1, there.blocks + 1)
        known = (bytes.fromhex(one.id) for number in numbers for one in self.block(state, partition, number)[1])
        return items.but(known, partition, state.partitions)

    def block(self, state: JobState, partition: int, number: int) -> tuple[Published, list[Item]]:
        """Block ``number`` (from 1) of a partition's items, empty where there is none; and how many there are."""
        found = self._in_cell(state, partition).read([str(number)])
        data = found.entries.get(str(number))
        return Published.load(found.value), [] if data is None else unpack(data, number)

    # -- results

    def done_cell(self, state: JobState, partition: int) -> Cell:
        return self.client.cell(self._done(state, partition))

    def results(self) -> Iterator[dict[str, Any]]:
        """Every recorded completion: item, occurrence, code, out, member, token, attempts."""
        state = self.known()
        tally = self.tally(state)
        for partition, counters in enumerate(tally.counters):
            for number in range(1, (counters.begun if counters.done else 0) + 1):
                items = self.block(state, partition, number)[1]
                records = self.done_cell(state, partition).read([one.id for one in items]).entries
                for one in items:
                    if one.id in records:
                        yield {**told(one), "code": 0, "out": None, **json.loads(records[one.id])}

    def dead(self) -> Iterator[dict[str, Any]]:
        """Every item that failed for good and is not done since: item, occurrence, code, attempts, member, note."""
        state = self.known()
        tally = self.tally(state)
        for partition, counters in enumerate(tally.counters):
            if counters.begun and tally.left(partition):
                marks = self.done_cell(state, partition).read([f"#{n}" for n in range(1, counters.begun + 1)]).entries
                for mark in marks:
                    items = self.block(state, partition, int(mark[1:]))[1]
                    records = self.done_cell(state, partition).read(["!" + one.id for one in items]).entries
                    for one in items:
                        record = json.loads(records.get("!" + one.id, b"null"))
                        if record is not None:
                            del record["retrial"]
                            yield {**told(one), **record}

    # -- names

    def _lock(self, what: str) -> Any:
        return self.client.lock(f"each:{what}:{self.job}", ttl_s=self.ttl_s)

    def _job_cell(self) -> Cell:
        return self.client.cell(f"each2:job:{self.job}")

    def _in(self, state: JobState, partition: int) -> str:
        return f"each2:in:{state.generation}:{partition}:{self.job}"

    def _in_cell(self, state: JobState, partition: int) -> Cell:
        return self.client.cell(self._in(state, partition))

    def _done(self, state: JobState, partition: int) -> str:
        return f"each2:done:{state.generation}:{partition}:{self.job}"

    def _drop(self, generation: int, partitions: int) -> None:
        state = JobState(partitions, generation)
        session = self.client.session
        names = [name(state, p) for p in range(partitions) for name in (self._in, self._done)]
        drive(session.ask_many([session.engine.drop(name) for name in names]))


def told(one: Item) -> dict[str, Any]:
    return {"item": one.text, "occurrence": one.occurrence}
