"""A member of a job: its threads, what it owns, and when it is over."""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any

from ..errors import HoldfastError, LeaseLost, OutcomeUnknown, StaleToken, Unavailable
from ..model import NEVER_S
from ..sync import Lease, Share
from .each_exec import Command, Outcome, Running
from .each_input import Input
from .each_items import Item
from .each_part import Part
from .each_report import LISTED, Progress, Settings, Summary
from .each_store import REVOKE_TIMEOUT_S, JobState, Store, Tally, told

log = logging.getLogger("holdfast.each")

LOOK_MIN_S = 0.05
LOOK_MAX_S = 1.0
LOOK_SHARE = 0.1
"""How often a member looks at the whole job: quickly after a change, then less and less; and how much of its time."""

OUTAGE_S = 60.0
"""How long a member goes on with an engine that does not answer."""

RETRY_MIN_S = 0.2
RETRY_MAX_S = 10.0


class Member:
    """Runs ``command`` for its share of the job's items until the whole job is done.

    ``tell`` gets a line for people now and then, ``show`` the progress after each look. `interrupt` may be called by
    a signal handler.
    """

    def __init__(
        self,
        store: Store,
        command: Command,
        settings: Settings,
        items: Input,
        *,
        tell: Callable[[str], None] = log.info,
        show: Callable[[Progress], None] | None = None,
    ) -> None:
        self._store = store
        self._command = command
        self._settings = settings
        self._items = items
        self._tell = tell
        self._show = show
        self._owner = store.client.session.owner
        self._state = JobState(0)
        self._cond = threading.Condition()
        self._parts: dict[int, Part] = {}
        self._live: dict[int, Part] = {}  # those of them that may have something to do
        self._runs: dict[Running, Part] = {}
        self._stopping = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is safe in a signal handler
        self._signal = 0
        self._error: BaseException | None = None
        self._failure = ""
        self._published = False
        self._tally: Tally | None = None  # of a moment at which nobody was publishing
        self._summary = Summary(store.job, "finished", member=self._owner)
        self._before = 0

    # -- from outside

    def interrupt(self, signum: int = signal.SIGINT) -> None:
        """Stop: the first time in order, the second time at once."""
        if self._signal:
            for run in list(self._runs):
                threading.Thread(target=run.kill, daemon=True).start()
        self._signal = self._signal or signum
        self._wake.put(None)

    def run(self) -> Summary:
        """Take part until the job is finished, given up, or we are interrupted.

        Raises `CannotRun`, `Misuse`, and `Unavailable` where the engine stays away for long.
        """
        started = time.monotonic()
        self._command.check()
        if not self._nothing_new():
            self._take_part()
        summary, seconds = self._summary, time.monotonic() - started
        summary.seconds = round(seconds, 3)
        summary.items_per_s = round((summary.done + summary.done_by_others) / seconds, 1)
        return summary

    # -- before

    def _nothing_new(self) -> bool:
        """Whether we can go at once: the job is finished, and our input adds nothing to it."""
        state = self._store.state()
        if state is None:
            self._summary.status = "nothing to do"
            return not self._items
        if self._settings.again or self._store.publishers().members():
            return False
        self._store.check_partitions(state, self._settings.partitions)
        tally = self._store.tally(state)
        if tally.unfinished or (self._settings.retry_dead and tally.failed):
            return False
        if not self._store.has_all(state, tally, self._items):
            return False
        self._summary.status = "finished before" if tally.items else "nothing to do"
        self._state, self._before = state, tally.done
        self._count(tally)
        return True

    # -- during

    def _take_part(self) -> None:
        self._summary.status = "finished"
        with contextlib.ExitStack() as stack:
            if self._items:  # from before others can see us until all is published, the job is not finished
                stack.enter_context(self._publishing())
            self._state, share = self._store.enter(
                self._settings.partitions,
                self._join,
                brings=bool(self._items),
                again=self._settings.again,
                retry_dead=self._settings.retry_dead,
            )
            publishing = stack.pop_all()
        threads = [threading.Thread(target=self._guard, args=(self._publish, publishing), name="holdfast-publish")]
        threads += [
            threading.Thread(target=self._guard, args=(self._work,), name=f"holdfast-each-{number}")
            for number in range(self._settings.workers)
        ]
        try:
            self._before = self._store.tally(self._state).done
            for thread in threads:
                _start(thread)
            self._attend()
            if self._summary.failures:  # before what still runs has ended: the others need not wait for it
                self._store.stop(self._state.session, self._failure)
        finally:
            self._wind_up(threads, share)
        if self._error is not None:
            raise self._error
        self._conclude()

    def _join(self, state: JobState) -> Share:
        members = self._store.members(state)
        return members.join(b"", self._assigned, self._revoked, revoke_timeout_s=REVOKE_TIMEOUT_S)

    @contextlib.contextmanager
    def _publishing(self) -> Generator[None]:
        lease = self._store.publishers().join(ttl_s=self._store.ttl_s)
        try:
            yield
        finally:
            with contextlib.suppress(LeaseLost):
                lease.release()

    def _publish(self, publishing: contextlib.ExitStack) -> None:
        """Publish our items; where the engine does not answer or another is quicker, go on with what is left."""
        until = time.monotonic() + OUTAGE_S
        with publishing:
            while self._items:
                try:
                    self._store.publish(self._state, self._items, lambda: not self._stopping, self._look_again)
                    break
                except (StaleToken, LeaseLost, Unavailable, OutcomeUnknown):
                    if time.monotonic() > until:
                        raise
                    time.sleep(LOOK_MAX_S)
        self._published = True
        self._wake.put(None)

    def _attend(self) -> None:
        """Look at the job again and again until there is nothing left for us in it."""
        delay_s = LOOK_MIN_S
        seen: Tally | None = None
        heard = began = time.monotonic()
        while self._error is None and not self._signal and not self._stopping:
            try:
                tally = self._look()
                if tally is None:
                    return
                delay_s = LOOK_MIN_S if tally != seen else min(delay_s * 1.5, LOOK_MAX_S)
                seen, heard = tally, time.monotonic()
            except (Unavailable, OutcomeUnknown) as trouble:
                if time.monotonic() > heard + OUTAGE_S:
                    raise
                self._tell(f"going on without the engine: {trouble}")
                delay_s = LOOK_MAX_S
            rest_s = (time.monotonic() - began) * (1 / LOOK_SHARE - 1)
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=max(rest_s, delay_s if self._is_idle() else LOOK_MAX_S))
            began = time.monotonic()

    def _look(self) -> Tally | None:
        """One look; None where the job is over for us."""
        state, before = self._store.state(), self._state
        if state is None:
            raise HoldfastError(f"the engine has lost job {self._store.job!r}: run it again with its input")
        if state.generation != before.generation:  # we were away for long, and it was finished meanwhile
            if not self._published:
                raise HoldfastError("another run began this job afresh before our input was published: run it again")
            return None
        if state.session == before.session and state.stop:
            self._failure = self._failure or state.stop
            self._summary.status = "stopped"
            return None
        self._state = state
        mine = self._published and self._is_idle()
        publishing = bool(self._store.publishers().members())
        calm = self._tally if state == before and not publishing else None
        tally = self._count_up(calm)
        over = mine and not publishing and not tally.unfinished
        if over and calm is not None:  # what was known of it may not hold: an engine may come back with older data
            tally = self._count_up(None)
            over = not tally.unfinished
        self._tally = None if publishing else tally
        if self._show is not None:
            self._show(Progress(tally.items, tally.done, tally.failed, len(self._runs), len(self._parts)))
        return None if over else tally

    def _count_up(self, known: Tally | None) -> Tally:
        """See how far all are, and have read again what is not as we believe."""
        seen = {part: part.done for part in list(self._parts.values())}
        tally = self._store.tally(self._state, known)
        for part, done in seen.items():
            if tally.counters[part.partition].done < done:  # an engine that came back with older data
                self._drop(part)
        for partition in tally.unfinished:
            owned = self._parts.get(partition)
            if owned is not None and owned.is_behind(tally.published[partition], self._state):
                self._look_again(partition)
        return tally

    def _is_idle(self) -> bool:
        with self._cond:
            return not self._runs and all(part.idle for part in self._live.values())

    def _look_again(self, partition: int) -> None:
        with self._cond:
            part = self._parts.get(partition)
            if part is not None:
                part.load_at = 0.0
                self._live[partition] = part
                self._cond.notify()

    # -- partitions come and go: called by the share's thread

    def _assigned(self, partition: int, lease: Lease) -> None:
        with self._cond:
            if not self._stopping:
                self._parts[partition] = part = Part(self._store, partition, lease, self._owner)
                if self._tally is not None and partition not in self._tally.unfinished:
                    part.load_at = NEVER_S
                else:
                    self._live[partition] = part
                    self._cond.notify()

    def _revoked(self, partition: int) -> None:
        """Let what is running in it end, so that the next owner need not run it again; unless it is lost anyway."""
        with self._cond:
            part = self._parts.pop(partition, None)
            self._live.pop(partition, None)
            if part is None:
                return
            part.closing = True
            while part.running and not part.lost and not self._signal:
                self._cond.wait(0.2)
        if part.lost:
            self._stop_runs(part)
            return
        try:
            part.hand_over()
        except HoldfastError as trouble:
            log.info("partition %d was not handed over in order: %s", partition, trouble)

    def _stop_runs(self, part: Part | None = None) -> None:
        for run, its in list(self._runs.items()):
            if part is None or its is part:
                run.stop()

    # -- workers

    def _guard(self, body: Callable[..., None], *args: Any) -> None:
        """Run a thread's body; what it cannot deal with ends the member."""
        try:
            body(*args)
        except BaseException as error:
            self._error = self._error or error
            self._stop()
            self._wake.put(None)

    def _stop(self) -> None:
        with self._cond:
            self._stopping = True
            self._cond.notify_all()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            part, batch, tries = task
            try:
                if batch:
                    self._run(part, batch, tries)
                else:
                    self._load(part)
            finally:
                with self._cond:
                    part.running -= 1
                    self._cond.notify_all()
                if self._is_idle():
                    self._wake.put(None)

    def _next(self) -> tuple[Part, list[Item], int] | None:
        """What to do next: read a block of a partition (no items), or run items of one; None when it is over."""
        count = self._command.batch
        with self._cond:
            while not self._stopping:
                now = time.monotonic()
                idle: list[int] = []
                # Youngest first, since the oldest are handed over first: so a hand-over seldom waits for what runs.
                # Another block is read only where none in memory has a batch left, so few partitions have one.
                low: Part | None = None
                for partition, part in reversed(self._live.items()):
                    if part.closing or part.lost:
                        continue
                    if part.load_at <= now and part.is_low(count):
                        low = low or part
                        continue
                    batch, tries = part.take(count, now)
                    if batch:
                        part.running += 1
                        return part, batch, tries
                    if part.idle:
                        idle.append(partition)
                if low is not None:
                    low.load_at, low.loading = NEVER_S, True
                    low.running += 1
                    return low, [], 0
                for partition in idle:
                    del self._live[partition]
                until = min((part.due_at(count) for part in self._live.values() if not part.closing), default=NEVER_S)
                self._cond.wait(None if until == NEVER_S else max(0.0, until - now))
            return None

    def _load(self, part: Part) -> None:
        fresh: list[Item] = []
        failed = False
        try:
            if part.fenced or not self._given_up():
                fresh = part.load(self._state)
        except (StaleToken, LeaseLost):
            self._drop(part)
        except (Unavailable, OutcomeUnknown) as trouble:
            log.warning("partition %d cannot be read just now: %s", part.partition, trouble)
            failed = True
        with self._cond:
            part.loading = False
            part.add(fresh)
            if failed:
                part.load_at = time.monotonic() + LOOK_MAX_S

    def _given_up(self) -> bool:
        """Whether the job is, now: a partition may come from a member that stopped it, and left what it failed at."""
        state = self._store.state()
        given_up = state is not None and state.session == self._state.session and bool(state.stop)
        if given_up:
            self._wake.put(None)
        return given_up

    def _run(self, part: Part, batch: list[Item], tries: int) -> None:
        run = Running(self._command)
        self._runs[run] = part
        try:
            if self._stopping or part.closing or part.lost:
                return
            environment = {"HOLDFAST_TOKEN": str(part.lease.token), "HOLDFAST_JOB": self._store.job}
            outcome = run.run([one.line for one in batch], environment)
        finally:
            del self._runs[run]
        if outcome.stopped:
            return
        if outcome.code == 0:
            self._record(part, batch, tries + 1, outcome)
        elif tries < self._settings.retry:
            pause_s = min(RETRY_MAX_S, RETRY_MIN_S * 2**tries) * (0.5 + random.random() / 2)
            with self._cond:
                for one in batch:  # each alone: one bad item does not take the others of its batch with it
                    part.again(one, tries + 1, time.monotonic() + pause_s)
        else:
            for one in batch:
                self._fail(part, one, tries + 1, outcome)

    def _record(self, part: Part, batch: list[Item], tries: int, outcome: Outcome) -> None:
        left = len(batch)
        try:
            for count in part.record(batch, outcome.outs, tries):
                left -= count
                with self._cond:
                    self._summary.done += count
                    self._summary.taken_over += count if part.inherited else 0
        except (StaleToken, LeaseLost) as refused:
            log.info("%d completions were refused: %s", left, refused)
            with self._cond:
                self._summary.refused += left
            self._drop(part)

    def _fail(self, part: Part, item: Item, tries: int, outcome: Outcome) -> None:
        """It goes on the dead-letter list; or, where that would be the end of the job, stays to be done."""
        why = f"{item.text!r} failed with exit code {outcome.code} after {tries} {'try' if tries == 1 else 'tries'}"
        why += f": {outcome.note}" if outcome.note else ""
        self._tell(why)
        if self._settings.keep_going:
            try:
                part.fail(item, outcome, tries)
            except (StaleToken, LeaseLost):
                self._drop(part)
            return
        noted = {"note": outcome.note} if outcome.note else {}
        failure = {**told(item), "code": outcome.code, "attempts": tries, "member": self._owner, **noted}
        with self._cond:
            self._summary.failures.append(failure)
            self._failure = self._failure or why
            self._summary.status = "failed"
        self._stop()
        self._wake.put(None)

    def _drop(self, part: Part) -> None:
        """It is another's now; if our lease says otherwise (the engine lost the cell), begin with it anew."""
        with self._cond:
            part.closing = True
            if self._parts.get(part.partition) is part:
                del self._parts[part.partition]
                self._live.pop(part.partition, None)
                if not part.lost and not self._stopping:
                    anew = Part(self._store, part.partition, part.lease, self._owner)
                    anew.load_at = time.monotonic() + LOOK_MAX_S
                    self._parts[part.partition] = self._live[part.partition] = anew
                    self._cond.notify()
        self._stop_runs(part)

    # -- after

    def _wind_up(self, threads: Sequence[threading.Thread], share: Share) -> None:
        """Let what runs end (or, if we are interrupted, end it), and hand everything over."""
        self._stop()
        if self._error is not None or self._summary.status == "finished":
            self._stop_runs()  # finished with something running: it runs for a partition that another finished
        ended = not self._signal
        for thread in threads:
            while thread.is_alive():
                if self._signal and ended:
                    ended = False
                    self._stop_runs()
                thread.join(0.1)
        share.leave()

    def _conclude(self) -> None:
        summary = self._summary
        if self._signal:
            summary.status, summary.signal = "interrupted", self._signal
        summary.why = self._failure
        self._count(self._store.tally(self._state))

    def _count(self, tally: Tally) -> None:
        summary, state = self._summary, self._state
        summary.items = tally.items
        summary.dead = tally.failed
        summary.failed = tally.failed + len(summary.failures)
        summary.done_before = self._before
        summary.done_by_others = max(0, tally.done - self._before - summary.done)
        summary.generation, summary.session = state.generation, state.session
        if tally.failed:
            summary.failures += islice(self._store.dead(), max(0, LISTED - len(summary.failures)))


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:  # the system's limit of threads
        raise HoldfastError(f"this machine starts no more threads: {error}; use fewer --workers") from error
