"""One partition as its owner has it: its open cell, a block or two of what is left to run, how far it is."""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import LeaseLost, OutcomeUnknown, Unavailable
from ..model import NEVER_S, Change
from ..sync import Cell, Lease, OpenCell
from .each_exec import Outcome
from .each_items import Item, runs
from .each_store import Counters, JobState, Published, Store

AGAIN_S = 0.3
"""How long to wait before an engine that does not answer is asked to record once more."""

PUT_ITEMS = 500
WAITING = 1000
"""How many items may wait for their next try before no more are read."""


class Part:
    """What is known of one owned partition.

    The fields below, `take`, `add` and `again` are the member's, under its lock; `load`, `record`, `fail` and
    `hand_over` talk to the engine and have a lock of their own.
    """

    def __init__(self, store: Store, partition: int, lease: Lease, owner: str) -> None:
        self.partition = partition
        self.lease = lease
        self.running = 0  # calls that are under way for it: runs and loads
        self.loading = False
        self.closing = False  # it is being handed over, or is lost: nothing more is taken from it
        self.load_at = 0.0  # when to read the next block; infinity: not before somebody says so
        self.blocks = 0  # how many were published at the last load
        self.inherited = False  # its last owner left without handing it over
        self._fresh: deque[Item] = deque()
        self._retries: list[tuple[float, int, Item]] = []  # when, after how many tries
        self._store = store
        self._owner = owner
        self._lock = threading.Lock()
        self._cell: Cell | None = None
        self._opened: OpenCell | None = None
        self._counters = Counters()
        self._loaded = 0  # the blocks up to this one were taken in
        self._left: dict[int, set[str]] = {}  # what of them is neither done nor dead, by block

    @property
    def lost(self) -> bool:
        return self.lease.state in ("LOST", "RELEASED")

    @property
    def done(self) -> int:
        """How many completions are recorded, as far as we know."""
        return self._counters.done

    @property
    def fenced(self) -> bool:
        """Whether its cell was opened: earlier owners can record nothing more."""
        return self._opened is not None

    # -- what there is to do

    @property
    def idle(self) -> bool:
        return not (self._fresh or self._retries or self.running) and self.load_at == NEVER_S

    def due_at(self, count: int) -> float:
        """When there will be something to do here, where there is nothing now."""
        return min(self.load_at if self.is_low(count) else NEVER_S, self._retries[0][0] if self._retries else NEVER_S)

    def is_low(self, count: int) -> bool:
        """Whether the next block is wanted, so that ``count`` items can be taken."""
        return not self.loading and len(self._fresh) < count and len(self._retries) < WAITING

    def take(self, count: int, now: float) -> tuple[list[Item], int]:
        """Up to ``count`` items and how often they were tried; one that is tried again is taken alone."""
        if self._retries and self._retries[0][0] <= now:
            _, tries, item = heapq.heappop(self._retries)
            return [item], tries
        if self.loading and len(self._fresh) < count:
            return [], 0
        return [self._fresh.popleft() for _ in range(min(count, len(self._fresh)))], 0

    def is_behind(self, published: Published, state: JobState) -> bool:
        """Whether a load would find what the last one did not."""
        return self.blocks != published.blocks or self._counters.retrial != state.retrials

    def add(self, fresh: Sequence[Item]) -> None:
        self._fresh.extend(fresh)
        if self._loaded < self.blocks:
            self.load_at = 0.0

    def again(self, item: Item, tries: int, at: float) -> None:
        heapq.heappush(self._retries, (at, tries, item))

    # -- the engine

    def load(self, state: JobState) -> list[Item]:
        """What is left of the next block; the first time opens the cell, which fences earlier owners out.

        Raises `StaleToken`, `LeaseLost`, `Unavailable`.
        """
        with self._lock:
            if self._opened is None:
                if not self._store.block(state, self.partition, 0)[0].blocks:
                    return []
                self._cell = self._store.done_cell(state, self.partition)
                self._opened = self._cell.open(self.lease)
                self._counters = Counters.load(self._opened.value)
                self._loaded = self._counters.over
                self.inherited = self._counters.owner not in ("", self._owner)
            if self._counters.retrial != state.retrials:
                if self._counters.failed:  # they are in any of the blocks: look through all once more
                    self._loaded = 0
                self._counters = self._counters._replace(failed=0, retrial=state.retrials)
            published, items = self._store.block(state, self.partition, self._loaded + 1)
            self.blocks = published.blocks
            if items:
                self._loaded += 1
                if self._loaded <= self._counters.begun:
                    items = self._undone(items)
                if items:
                    self._left.setdefault(self._loaded, set()).update(one.id for one in items)
            return items

    def _undone(self, items: Sequence[Item]) -> list[Item]:
        """Those that are neither done, nor dead, nor taken in already."""
        assert self._opened is not None
        mark = f"#{self._loaded}"
        records = self._opened.entries([mark, *(one.id for one in items)])
        here = self._left.get(self._loaded, ())
        left = [one for one in items if one.id not in records and one.id not in here]
        if mark not in records:
            return left
        failures = self._opened.entries(["!" + one.id for one in left])
        dead = {key[1:] for key, data in failures.items() if json.loads(data)["retrial"] == self._counters.retrial}
        return [one._replace(failed="!" + one.id in failures) for one in left if one.id not in dead]

    def record(self, done: Sequence[Item], outs: Sequence[str], tries: int) -> Iterator[int]:
        """Record completions, create-only, in a few puts; says of each how many. Raises `StaleToken`, `LeaseLost`."""
        changes: list[Change] = []
        for number, one in enumerate(done):
            record: dict[str, Any] = {"code": 0, **({"out": outs[number]} if outs else {})}
            record |= {"member": self._owner, "token": self.lease.token, "attempts": tries}
            changes.append(Change(one.id, json.dumps(record).encode(), True))
        together = runs(zip(done, changes, strict=True), lambda pair: len(pair[1].value or b""), PUT_ITEMS)
        for run in together:
            buried = [Change("!" + one.id, None) for one, _ in run if one.failed]
            with self._lock:
                counters = self._counters._replace(done=self._counters.done + len(run))
                self._settle([one for one, _ in run], counters, [change for _, change in run] + buried)
            yield len(run)

    def fail(self, item: Item, outcome: Outcome, tries: int) -> None:
        """Put an item on the dead-letter list. Raises `StaleToken`, `LeaseLost`."""
        with self._lock:
            record = {"code": outcome.code, "attempts": tries, "member": self._owner, "retrial": self._counters.retrial}
            if outcome.note:
                record["note"] = outcome.note
            changes = [Change("!" + item.id, json.dumps(record).encode()), Change(f"#{item.block}", b"")]
            self._settle([item], self._counters._replace(failed=self._counters.failed + 1), changes)

    def _settle(self, items: Sequence[Item], counters: Counters, changes: Sequence[Change]) -> None:
        """Write what became of some items; if that raises, this part is over."""
        for one in items:
            left = self._left[one.block]
            left.discard(one.id)
            if not left:
                del self._left[one.block]
        over = min([self._loaded + 1, *self._left]) - 1
        owner = self._owner if self._left or self._loaded < self.blocks else ""
        counters = counters._replace(owner=owner, over=over, begun=max(counters.begun, self._loaded))
        self._put(counters.dump(), changes)
        self._counters = counters  # not before: `done` is never ahead of the engine

    def hand_over(self) -> None:
        """Say that we leave it in order. Raises `StaleToken`, `LeaseLost`."""
        with self._lock:
            if self._opened is not None and self._counters.owner:
                self._opened.put(self._counters._replace(owner="").dump())

    def _put(self, value: bytes, changes: Sequence[Change]) -> None:
        """Put, and again for as long as the lease lasts: what a lost reply left behind, the next try finds."""
        while True:
            assert self._opened is not None, "nothing is recorded before the first load"
            try:
                self._opened.put(value, changes)
                return
            except (Unavailable, OutcomeUnknown):
                self._reopen()

    def _reopen(self) -> None:
        assert self._cell is not None
        while not self.lost:
            time.sleep(AGAIN_S)
            try:
                self._opened = self._cell.open(self.lease)
                return
            except (Unavailable, OutcomeUnknown):
                pass
        raise LeaseLost(f"partition {self.partition} of {self._store.job!r} was lost while the engine did not answer")
