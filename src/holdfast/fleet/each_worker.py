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
from dataclasses import dataclass, field
from typing import Any

from ..errors import HoldfastError, LeaseLost, Misuse, OutcomeUnknown, StaleToken, Unavailable
from ..model import NEVER_S
from ..sync import Lease, Share
from .each_exec import Command, Outcome, Running
from .each_items import Item, by_partition
from .each_part import Part
from .each_store import JobState, Store, Tally, in_some_order

log = logging.getLogger("holdfast.each")

LOOK_MIN_S = 0.05
LOOK_MAX_S = 1.0
"""How often a member looks at the whole job: quickly after a change, then less and less."""

OUTAGE_S = 60.0
"""How long a member goes on with an engine that does not answer."""

RETRY_MIN_S = 0.2
RETRY_MAX_S = 10.0
LISTED = 20


@dataclass(frozen=True)
class Settings:
    """How one member takes part. ``workers``: how many CMDs at once; ``retries``: further tries after the first."""

    workers: int
    partitions: int | None = None
    retries: int = 2
    keep_going: bool = False
    again: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise Misuse(f"a member has 1 worker or more, not {self.workers}")
        if self.retries < 0:
            raise Misuse(f"retries is 0 or more, not {self.retries}")


@dataclass(frozen=True)
class Progress:
    """The job at one look."""

    items: int
    done: int
    failed: int
    running: int
    partitions: int


@dataclass
class Summary:
    """What came of it. ``status``: finished, finished before, failed, stopped (another member gave up), interrupted,
    nothing to do. ``done`` by this member, ``done_by_others`` since it came, ``done_before`` it came."""

    job: str
    status: str
    items: int = 0
    done: int = 0
    done_by_others: int = 0
    done_before: int = 0
    taken_over: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0
    generation: int = 0
    session: int = 0
    member: str = ""
    why: str = ""
    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    signal: int = 0


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
        items: Sequence[Item],
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
        self._runs: dict[Running, Part] = {}
        self._stopping = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is safe in a signal handler
        self._signal = 0
        self._error: BaseException | None = None
        self._failure = ""
        self._published = False
        self._summary = Summary(store.job, "finished", member=self._owner)
        self._failed_here = False
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
        self._summary.seconds = round(time.monotonic() - started, 3)
        return self._summary

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
        if not tally.finished(0):
            return False
        adds = self._store.adds(tally, by_partition(self._items, state.partitions))
        if any(self._store.missing(state, partition, mine) for partition, mine in adds.items()):
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
            self._state, share = self._store.enter(self._settings.partitions, self._settings.again, self._join)
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
            if self._failed_here:  # before what still runs has ended: the others need not wait for it
                self._store.stop(self._state.session, self._failure)
        finally:
            self._wind_up(threads, share)
        if self._error is not None:
            raise self._error
        self._conclude()

    def _join(self, state: JobState) -> Share:
        return self._store.members(state).join(b"", self._assigned, self._revoked)

    @contextlib.contextmanager
    def _publishing(self) -> Generator[None]:
        lease = self._store.publishers().join(ttl_s=self._store.ttl_s)
        try:
            yield
        finally:
            with contextlib.suppress(LeaseLost):
                lease.release()

    def _publish(self, publishing: contextlib.ExitStack) -> None:
        with publishing:
            shares = by_partition(self._items, self._state.partitions)
            if shares:
                adds = self._store.adds(self._store.tally(self._state), shares)
                for partition in in_some_order(sorted(adds)):
                    if self._stopping:
                        return
                    self._store.publish(self._state, partition, adds[partition], lambda: not self._stopping)
                    with self._cond:
                        self._look_again(partition)
        self._published = True
        self._wake.put(None)

    def _attend(self) -> None:
        """Look at the job again and again until there is nothing left for us in it."""
        delay_s = LOOK_MIN_S
        seen: Tally | None = None
        heard = time.monotonic()
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
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=delay_s if self._is_idle() else LOOK_MAX_S)

    def _look(self) -> Tally | None:
        """One look; None where the job is over for us."""
        state = self._store.state()
        if state is None:
            raise HoldfastError(f"the engine has lost job {self._store.job!r}: run it again with its input")
        if state.generation != self._state.generation:  # we were away for long, and it was finished meanwhile
            if not self._published:
                raise HoldfastError("another run began this job afresh before our input was published: run it again")
            return None
        if state.session != self._state.session:
            with self._cond:
                self._state = state
                for partition in list(self._parts):
                    self._look_again(partition)
        elif state.stop:
            self._failure = self._failure or state.stop
            self._summary.status = "stopped"
            return None
        mine = self._published and self._is_idle()
        publishing = bool(self._store.publishers().members()) if mine else True
        seen = {part: part.done for part in list(self._parts.values())}
        tally = self._store.tally(state)
        for part, done in seen.items():
            if tally.counters[part.partition].done < done:  # an engine that came back with older data
                self._drop(part)
        with self._cond:
            for partition, part in self._parts.items():
                if part.published not in (-1, tally.published[partition].items):
                    self._look_again(partition)
        if self._show is not None:
            failed = tally.failed(state.session)
            self._show(Progress(tally.items, tally.done, failed, len(self._runs), len(self._parts)))
        return None if mine and not publishing and tally.finished(state.session) else tally

    def _is_idle(self) -> bool:
        with self._cond:
            return not self._runs and all(part.idle for part in self._parts.values())

    def _look_again(self, partition: int) -> None:
        part = self._parts.get(partition)
        if part is not None:
            part.look_at = 0.0
            self._cond.notify()

    # -- partitions come and go: called by the share's thread

    def _assigned(self, partition: int, lease: Lease) -> None:
        with self._cond:
            if not self._stopping:
                self._parts[partition] = Part(self._store, partition, lease, self._owner)
                self._cond.notify()

    def _revoked(self, partition: int) -> None:
        """Let what is running in it end, so that the next owner need not run it again; unless it is lost anyway."""
        with self._cond:
            part = self._parts.pop(partition, None)
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
                    self._look_into(part)
            finally:
                with self._cond:
                    part.running -= 1
                    self._cond.notify_all()
                if self._is_idle():
                    self._wake.put(None)

    def _next(self) -> tuple[Part, list[Item], int] | None:
        """What to do next: look into a partition (no items), or run items of one; None when it is over."""
        with self._cond:
            while not self._stopping:
                now = time.monotonic()
                parts = [part for part in self._parts.values() if not part.closing and not part.lost]
                for part in parts:  # looks first: they also fence the last owners out
                    if part.look_at <= now:
                        part.look_at = NEVER_S
                        part.running += 1
                        return part, [], 0
                # Youngest first, since the oldest are handed over first: so a hand-over seldom waits for what runs.
                for part in reversed(parts):
                    batch, tries = part.take(self._command.batch, now)
                    if batch:
                        part.running += 1
                        return part, batch, tries
                until = min((part.due_at for part in parts), default=NEVER_S)
                self._cond.wait(None if until == NEVER_S else max(0.0, until - now))
            return None

    def _look_into(self, part: Part) -> None:
        try:
            fresh = part.look(self._state)
        except (StaleToken, LeaseLost):
            self._drop(part)
        except (Unavailable, OutcomeUnknown) as trouble:
            log.warning("partition %d cannot be read just now: %s", part.partition, trouble)
            with self._cond:
                part.look_at = time.monotonic() + LOOK_MAX_S
        else:
            with self._cond:
                part.add(fresh)
                self._cond.notify_all()

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
        try:
            self._settle(part, batch, tries + 1, outcome)
        except (StaleToken, LeaseLost) as refused:
            log.info("%d completions were refused: %s", len(batch), refused)
            with self._cond:
                self._summary.refused += len(batch)
            self._drop(part)

    def _settle(self, part: Part, batch: list[Item], tries: int, outcome: Outcome) -> None:
        if outcome.stopped:
            return
        if outcome.code == 0:
            part.record(batch, outcome.outs, tries)
            with self._cond:
                self._summary.done += len(batch)
                self._summary.taken_over += len(batch) if part.inherited else 0
        elif tries <= self._settings.retries:
            pause_s = min(RETRY_MAX_S, RETRY_MIN_S * 2 ** (tries - 1)) * (0.5 + random.random() / 2)
            with self._cond:
                for one in batch:  # each alone: one bad item does not take the others of its batch with it
                    part.again(one, tries, time.monotonic() + pause_s)
                self._cond.notify_all()
        else:
            for one in batch:
                self._fail(part, one, tries, outcome)

    def _fail(self, part: Part, item: Item, tries: int, outcome: Outcome) -> None:
        why = f"{item.text!r} failed with exit code {outcome.code} after {tries} {'try' if tries == 1 else 'tries'}"
        why += f": {outcome.note}" if outcome.note else ""
        part.fail(item, outcome.code, tries, outcome.note)
        self._tell(why)
        if not self._settings.keep_going:
            self._failure = self._failure or why
            self._failed_here = True
            self._summary.status = "failed"
            self._stop()
            self._wake.put(None)

    def _drop(self, part: Part) -> None:
        """It is another's now; if our lease says otherwise (the engine lost the cell), begin with it anew."""
        with self._cond:
            part.closing = True
            if self._parts.get(part.partition) is part:
                del self._parts[part.partition]
                if not part.lost and not self._stopping:
                    anew = self._parts[part.partition] = Part(self._store, part.partition, part.lease, self._owner)
                    anew.look_at = time.monotonic() + LOOK_MAX_S
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
        summary.failed = tally.failed(state.session)
        summary.done_before = self._before
        summary.done_by_others = max(0, tally.done - self._before - summary.done)
        summary.generation, summary.session = state.generation, state.session
        if summary.failed:
            for failure in self._store.failures(state, tally):
                summary.failures.append(failure)
                if len(summary.failures) == LISTED:
                    break


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:  # the system's limit of threads
        raise HoldfastError(f"this machine starts no more threads: {error}; use fewer --workers") from error
