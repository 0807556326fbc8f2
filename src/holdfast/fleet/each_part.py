"""One partition as its owner has it: its open cell, what is left to run, and what became of the rest."""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..errors import LeaseLost, OutcomeUnknown, Unavailable
from ..model import Change
from ..sync import Lease, OpenCell
from .each_items import Item
from .each_store import Counters, JobState, Store

AGAIN_S = 0.3
"""How long to wait before an engine that does not answer is asked to record once more."""


class Part:
    """What is known of one owned partition.

    The fields below, `take`, `add` and `again` are the member's, under its lock; `look`, `record`, `fail` and
    `hand_over` talk to the engine and have a lock of their own.
    """

    def __init__(self, store: Store, partition: int, lease: Lease, owner: str) -> None:
        self.partition = partition
        self.lease = lease
        self.running = 0  # calls that are under way for it: runs and looks
        self.closing = False  # it is being handed over, or is lost: nothing more is taken from it
        self.look_at = 0.0  # when to look what was published; infinity: not before somebody says so
        self.published = -1  # how many items stood there at the last look
        self.inherited = False  # its last owner left without handing it over
        self._fresh: deque[Item] = deque()
        self._retries: list[tuple[float, int, Item]] = []  # when, after how many tries
        self._store = store
        self._owner = owner
        self._lock = threading.Lock()
        self._opened: OpenCell | None = None
        self._state = JobState(0)
        self._done = 0
        self._known: set[str] = set()  # taken in, or recorded
        self._failed: set[str] = set()  # in this session
        self._marked: set[str] = set()  # with a failure on record, of whatever session

    @property
    def lost(self) -> bool:
        return self.lease.state in ("LOST", "RELEASED")

    @property
    def done(self) -> int:
        """How many completions are recorded, as far as we know."""
        return self._done

    # -- what there is to do

    @property
    def idle(self) -> bool:
        return not (self._fresh or self._retries or self.running) and self.look_at == float("inf")

    @property
    def due_at(self) -> float:
        """When there will be something to do here."""
        if self._fresh:
            return 0.0
        return min(self.look_at, self._retries[0][0] if self._retries else float("inf"))

    def take(self, count: int, now: float) -> tuple[list[Item], int]:
        """Up to ``count`` items and how often they were tried; one that is tried again is taken alone."""
        if self._retries and self._retries[0][0] <= now:
            _, tries, item = heapq.heappop(self._retries)
            return [item], tries
        return [self._fresh.popleft() for _ in range(min(count, len(self._fresh)))], 0

    def add(self, fresh: Sequence[Item]) -> None:
        self._fresh.extend(fresh)

    def again(self, item: Item, tries: int, at: float) -> None:
        heapq.heappush(self._retries, (at, tries, item))

    # -- the engine

    def look(self, state: JobState) -> list[Item]:
        """What is new since the last look; the first one opens the cell, which fences earlier owners out.

        Raises `StaleToken`, `LeaseLost`, `Unavailable`.
        """
        with self._lock:
            if self._opened is None:
                self._open(state)
            elif self._state.session != state.session:  # a new session tries again what failed in the last
                self._known -= self._failed
                self._failed.clear()
            self._state = state
            published = self._store.published(state, self.partition)
            fresh = [one for one in published if one.id not in self._known]
            self._known.update(one.id for one in fresh)
            self.published = len(published)
            if fresh and self._opened_counters().owner != self._owner:  # so that our heirs see it if we die
                self._put(Counters(self._done, len(self._failed)), [])
            return fresh

    def _open(self, state: JobState) -> None:
        opened = self._store.open_done(state, self.partition, self.lease)
        self.inherited = Counters.load(opened.value).owner not in ("", self._owner)
        records = opened.entries()
        self._marked = {key[1:] for key in records if key.startswith("!")}
        self._failed = {one for one in self._marked if json.loads(records["!" + one])["session"] == state.session}
        done = [key for key in records if not key.startswith("!")]
        self._done = len(done)
        self._known = {*done, *self._failed}
        self._opened = opened

    def record(self, done: Sequence[Item], outs: Sequence[str], tries: int) -> None:
        """Record completions, create-only. Raises `StaleToken`, `LeaseLost`."""
        with self._lock:
            changes: list[Change] = []
            for number, one in enumerate(done):
                record: dict[str, Any] = {"code": 0}
                if outs:
                    record["out"] = outs[number]
                record |= {"member": self._owner, "token": self.lease.token, "attempts": tries}
                changes.append(Change(one.id, json.dumps(record).encode(), True))
            changes += [Change("!" + one.id, None) for one in done if one.id in self._marked]
            self._put(Counters(self._done + len(done), len(self._failed)), changes)
            self._done += len(done)
            self._marked.difference_update(one.id for one in done)

    def fail(self, item: Item, code: int, tries: int, note: str) -> None:
        """Record that an item failed in this session. Raises `StaleToken`, `LeaseLost`."""
        with self._lock:
            record = {"code": code, "attempts": tries, "session": self._state.session, "member": self._owner}
            if note:
                record["note"] = note
            change = Change("!" + item.id, json.dumps(record).encode())
            self._put(Counters(self._done, len(self._failed) + 1), [change])
            self._failed.add(item.id)
            self._marked.add(item.id)

    def hand_over(self) -> None:
        """Say that we leave it in order. Raises `StaleToken`, `LeaseLost`."""
        with self._lock:
            if self._opened is not None and self._opened_counters().owner:
                self._opened.put(self._counters(Counters(self._done, len(self._failed)), "").dump())

    def _opened_counters(self) -> Counters:
        return Counters.load(self._opened.value if self._opened is not None else None)

    def _counters(self, counters: Counters, owner: str) -> Counters:
        left = self.published - counters.done - counters.failed
        return counters._replace(session=self._state.session, owner=owner if left > 0 else "")

    def _put(self, counters: Counters, changes: Sequence[Change]) -> None:
        """Put, and again for as long as the lease lasts: what a lost reply left behind, the next try finds."""
        assert self._opened is not None, "nothing is recorded before the first look"
        value = self._counters(counters, self._owner).dump()
        while True:
            try:
                self._opened.put(value, changes)
                return
            except (Unavailable, OutcomeUnknown):
                self._reopen()

    def _reopen(self) -> None:
        while not self.lost:
            time.sleep(AGAIN_S)
            try:
                self._opened = self._store.open_done(self._state, self.partition, self.lease)
                return
            except (Unavailable, OutcomeUnknown):
                pass
        raise LeaseLost(f"partition {self.partition} of {self._store.job!r} was lost while the engine did not answer")
