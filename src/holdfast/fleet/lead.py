"""Keep a command running on exactly one of the machines that run this. POSIX only.

One thread decides everything: it sleeps until a signal, the end of a child, a message of CMD's or a time that was set,
looks at what is, and acts. The lease's renewer and the leader's record have threads of their own and never hold it up.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import LeaseLost, Misuse, OutcomeUnknown, StaleToken, Unavailable, Unsupported
from ..sync import Client
from .child import CannotStart, Child, adopt_orphans, children, handling, reap, shell_code
from .notify import OURS, Inbox, Manager
from .seat import Seat, Term

__all__ = ["CannotStart", "Lead", "Policy"]

STOPPING = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGQUIT", signal.SIGINT))
FORWARDED = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
CHILD_ENDED = getattr(signal, "SIGCHLD", None)

LOOK_S = 0.25
"""So often a leader looks at its lease; at a tenth of a short lease."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 30.0
"""Between two starts of a CMD that ends again and again, before jitter."""

PACE_S = 0.01
"""So often we look whether all that CMD started is gone, once CMD itself is."""


@dataclass(frozen=True)
class Policy:
    """How CMD is kept. Times are in seconds.

    ``on_unsure``: "stop" ends CMD at the first failed renewal, "keep" when ``grace_s`` is left of the lease.
    """

    on_unsure: Literal["stop", "keep"] = "stop"
    grace_s: float = 10.0
    ready_timeout_s: float | None = None
    watchdog_s: float | None = None
    restarts: int = 5
    window_s: float = 300.0
    sit_out_s: float = 30.0
    hold_off_s: float = 0.0
    once: bool = False

    def __post_init__(self) -> None:
        if self.on_unsure not in ("stop", "keep"):
            raise Misuse(f"on_unsure is 'stop' or 'keep', not {self.on_unsure!r}")
        if self.restarts < 0:
            raise Misuse(f"restarts is 0 or more, not {self.restarts!r}")
        for name in ("grace_s", "window_s", "sit_out_s", "hold_off_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Misuse(f"{name} is 0 seconds or more and finite, not {getattr(self, name)!r}")
        for name in ("ready_timeout_s", "watchdog_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise Misuse(f"{name} is above 0 seconds and finite, not {value!r}")


class _Stop(BaseException):
    """A signal that asks us to stop came while the main thread waited for our turn."""


class _Run:
    """One CMD from its start until all that it started is gone."""

    def __init__(self, child: Child, policy: Policy) -> None:
        now = time.monotonic()
        self.child = child
        self.ready = False
        self.ready_by = math.inf if policy.ready_timeout_s is None else now + policy.ready_timeout_s
        self.alive_by = math.inf
        self.ending = ""  # why it was told to end, or what it ended with
        self.kill_at = math.inf
        self.killed = False
        self.told: set[int] = set()  # orphans that got SIGTERM


class Lead:
    """`run` campaigns, leads, and stands by again, until a signal says to stop.

    ``tell`` gets a line for each event. What `Policy` and the engine cannot do raises `Misuse` and `Unsupported`.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        command: Sequence[str],
        policy: Policy,
        tell: Callable[[str], None],
        *,
        ttl_s: float | None = None,
    ) -> None:
        if os.name != "posix":
            raise Unsupported("lead needs a system with POSIX signals, to stop CMD if the lease is lost")
        self._seat = Seat(client, name, ttl_s)
        self._inbox = Inbox()
        self._client = client
        self._name = name
        self._command = command
        self._policy = policy
        self._say = tell
        self._look_s = min(LOOK_S, self._seat.ttl_s / 10)
        self._margin_s = min(0.5, self._seat.ttl_s / 20)
        self._manager = Manager()
        self._stopped_by: int | None = None
        self._interruptible = False  # the main thread waits for our turn, and a signal to stop may raise there
        self._child_ended = False  # CMD, or an orphan that we adopted
        self._run: _Run | None = None
        self._failures: deque[float] = deque()
        self._not_ours: set[int] = set()  # children that were there before
        self._wake_reader = self._wake_writer = -1

    def run(self) -> int:
        """The exit code: 0 after SIGTERM, 128 + n after another signal, CMD's own with ``once``.

        Raises `CannotStart`, and `Unavailable` where the engine cannot be reached at the start.
        """
        self._client.ping()
        self._not_ours = children()
        adopt_orphans()
        with contextlib.closing(self._inbox), self._woken_by_signals(), self._watchdog():
            try:
                while True:
                    code = self._lead_once()
                    if code is not None:
                        return code
            except _Stop:
                signum = self._stopped_by or signal.SIGTERM
                self._say(f"stopped by {signal.Signals(signum).name}")
                return 0 if signum == signal.SIGTERM else 128 + signum
            finally:
                self._manager.tell("STOPPING=1", "STATUS=stopped")

    # -- one time in the seat

    def _lead_once(self) -> int | None:
        """Wait for our turn, lead until that is over; then None, or the code to exit with."""
        term = self._campaign()
        if term is None:
            return None
        code: int | None = None
        try:
            term.on_lost(self._wake)
            self._say(f"leading {self._name} (token {term.token})")
            self._status(f"leading, token {term.token}")
            if self._holds_off(term):
                code = self._keep_running(term)
        finally:
            self._give_up(term)
        if self._stopped_by is not None:
            raise _Stop
        if code is None and len(self._failures) > self._policy.restarts:
            self._failures.clear()
            self._say(f"CMD fails here: sitting out for {self._policy.sit_out_s:g} s, so that another gets its turn")
            self._status(f"sitting out for {self._policy.sit_out_s:g} s")
            self._pause(self._policy.sit_out_s)
            if self._stopped_by is not None:
                raise _Stop
        return code

    def _campaign(self) -> Term | None:
        try:
            self._interruptible = True
            if self._stopped_by is not None:
                raise _Stop
            ahead = self._seat.taken_by()
            where = f"standing by behind {ahead}" if ahead else "standing by"
            self._say(where)
            self._manager.tell("READY=1", f"STATUS={where}")
            return self._seat.wait_for_turn()
        except (Unavailable, OutcomeUnknown, LeaseLost, StaleToken) as trouble:
            self._interruptible = False
            self._say(f"cannot stand by, trying again: {trouble}")
            self._status(f"cannot stand by: {trouble}")
            self._pause(1.0 + random.random())
            return None
        finally:
            self._interruptible = False

    def _holds_off(self, term: Term) -> bool:
        """Wait out ``hold_off_s`` where the last leader went without a word. False if we lead no longer."""
        if self._policy.hold_off_s and term.silent is not None:
            self._say(f"{term.silent} went without a word: holding off for {self._policy.hold_off_s:g} s")
            term.note("holding off", "holding off")
            self._pause(self._policy.hold_off_s, term)
        return not self._over(term)

    def _give_up(self, term: Term) -> None:
        lost = not term.lease.is_held
        term.resign()
        self._say(f"lost the lead of {self._name}" if lost else f"resigned from {self._name}")

    def _over(self, term: Term) -> str:
        """Why CMD must not run (any more) by signals and the lease; "" where it may."""
        if self._stopped_by is not None:
            return f"stopping on {signal.Signals(self._stopped_by).name}"
        state, left_s = term.lease.state, term.lease.remaining_s
        if not left_s:
            return "lost the lease"
        if state == "UNSURE" and (
            self._policy.on_unsure == "stop" or left_s <= self._policy.grace_s + self._margin_s + self._look_s
        ):
            return "unsure of the lease"
        return ""

    # -- CMD, again and again

    def _keep_running(self, term: Term) -> int | None:
        """Until we must not, or it failed too often; the code to exit with if that is the end of all."""
        policy = self._policy
        while True:
            ended = self._run_once(term)
            code = shell_code(ended.child.process.returncode)
            if self._over(term):
                return None
            if policy.once and not ended.ending.startswith("CMD is not"):
                return code
            now = time.monotonic()
            self._failures.append(now)
            while self._failures[0] < now - policy.window_s:
                self._failures.popleft()
            count = len(self._failures)
            if count > policy.restarts:
                self._say(f"{ended.ending}, {count} times in {policy.window_s:g} s")
                return None
            delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (count - 1)) * (0.5 + random.random())
            self._say(f"{ended.ending} (restart {count} of {policy.restarts} in {delay_s:.1f} s)")
            self._status(f"{ended.ending}, restart {count} of {policy.restarts}")
            term.note("restarting", ended.ending)
            self._pause(delay_s, term)
            if self._over(term):
                return None

    def _run_once(self, term: Term) -> _Run:
        self._inbox.clear()
        child = Child(
            self._command,
            self._environment(term),
            self._client,
            inherits=self._inbox.inherits,
            orphan_signal=signal.SIGKILL,  # whatever it does about SIGTERM: two must not run
        )
        self._run = run = _Run(child, self._policy)
        self._say(f"CMD started (pid {child.pid})")
        self._status(f"leading, token {term.token}, CMD pid {child.pid}")
        term.note("running" if run.ready_by == math.inf else "starting", "CMD started")
        try:
            self._supervise(run, term)
        finally:
            self._run = None
            while not self._gone(run):  # also where we failed
                self._kill(run)
                time.sleep(PACE_S)
        return run

    def _environment(self, term: Term) -> Mapping[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in OURS}
        watchdog_s = self._policy.watchdog_s
        asked = {} if watchdog_s is None else {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        ours = {"HOLDFAST_TOKEN": str(term.token), "HOLDFAST_NAME": self._name}
        return {**kept, **asked, **self._inbox.environment, **ours}

    def _supervise(self, run: _Run, term: Term) -> None:
        """Until CMD and all that it started are gone."""
        while True:
            self._read(run, term)
            self._reap_orphans(run.child.pid)
            now = time.monotonic()
            code = run.child.process.poll()
            if not run.ending:
                why = self._why_end(run, term, code, now)
                if why:
                    self._end(run, why, now)
            if code is not None and self._gone(run):
                return
            if run.ending and now >= min(run.kill_at, now + term.lease.remaining_s - self._margin_s):
                self._kill(run)
            self._wait(self._next(run, term, code is not None, now), self._inbox.files)

    def _why_end(self, run: _Run, term: Term, code: int | None, now: float) -> str:
        if code is not None:
            return f"CMD was ended by {_signal_name(-code)}" if code < 0 else f"CMD ended with {code}"
        over = self._over(term)
        if over:
            return over
        if not run.ready and now >= run.ready_by:
            return f"CMD is not ready after {self._policy.ready_timeout_s:g} s"
        if now >= run.alive_by:
            return f"CMD is not heard of for {self._policy.watchdog_s:g} s"
        return ""

    def _end(self, run: _Run, why: str, now: float) -> None:
        """SIGTERM to all of it; SIGKILL follows."""
        run.ending = why
        run.kill_at = now + self._policy.grace_s
        if run.child.process.returncode is None:
            self._say(f"{why}: stopping CMD")
            self._status(f"{why}, stopping CMD")
        run.child.send_all(signal.SIGTERM)

    def _kill(self, run: _Run) -> None:
        if not run.killed and run.child.process.returncode is None:
            self._say("CMD goes on: killing it")
        run.killed = True
        run.child.send_all(signal.SIGKILL)
        if run.child.process.poll() is not None:
            for pid in reap(self._not_ours):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _gone(self, run: _Run) -> bool:
        """Whether CMD ended, and all that it started: what left its group became ours as it was orphaned.

        Orphans that are new get SIGTERM.
        """
        if run.child.process.poll() is None:
            return False
        going = reap(self._not_ours)
        for pid in going - run.told:
            run.told.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGTERM)
        return not going and not run.child.left_behind()

    def _reap_orphans(self, *but: int) -> None:
        """Collect what ended since the last time; a look at all processes only where something did."""
        if self._child_ended:
            self._child_ended = False
            reap({*but, *self._not_ours})

    def _next(self, run: _Run, term: Term, ended: bool, now: float) -> float:
        """When to look again, whatever comes before."""
        if ended or run.killed:
            return now + PACE_S
        last_s = term.lease.remaining_s - self._margin_s
        return max(now, min(now + self._look_s, now + last_s, run.kill_at, run.ready_by, run.alive_by))

    def _read(self, run: _Run, term: Term) -> None:
        for key, value in self._inbox.read():
            if key == "READY" and value == "1":
                self._heard_ready(run, term)
            elif key == "WATCHDOG" and value == "1" and self._policy.watchdog_s is not None:
                run.alive_by = time.monotonic() + self._policy.watchdog_s
            elif key == "RELOADING" and value == "1":
                self._manager.reloading()
                self._say("CMD reloads")
            elif key == "STATUS":
                self._status(f"leading, token {term.token}, CMD pid {run.child.pid}: {value}")

    def _heard_ready(self, run: _Run, term: Term) -> None:
        self._manager.tell("READY=1")  # also the end of a reload
        if run.ready:
            return
        run.ready = True
        if self._policy.watchdog_s is not None:
            run.alive_by = time.monotonic() + self._policy.watchdog_s
        self._say("CMD is ready")
        term.note("ready", "CMD is ready")

    # -- sleeping and waking

    def _pause(self, delay_s: float, term: Term | None = None) -> None:
        """Until the time is over, we are to stop, or (with ``term``) lead no longer."""
        until = time.monotonic() + delay_s
        while self._stopped_by is None and (now := time.monotonic()) < until:
            self._reap_orphans()
            if term is not None and self._over(term):
                return
            self._wait(until if term is None else min(until, now + self._look_s), [])

    def _wait(self, until: float, files: Sequence[int]) -> None:
        left_s = min(max(0.0, until - time.monotonic()), 3600.0)
        ready, _, _ = select.select([self._wake_reader, *files], [], [], left_s)
        if self._wake_reader in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_reader, 4096)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: nobody sleeps
            os.write(self._wake_writer, b"!")

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Generator[None]:
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        signums = (*STOPPING, *FORWARDED, *(() if CHILD_ENDED is None else (CHILD_ENDED,)))
        try:
            with handling(signums, self._handle):
                yield
        finally:
            os.close(self._wake_reader)
            os.close(self._wake_writer)
            self._wake_reader = self._wake_writer = -1

    def _handle(self, signum: int, frame: object) -> None:
        self._wake()
        if signum in STOPPING:
            self._stopped_by = self._stopped_by or signum
            if self._interruptible:
                self._interruptible = False  # once: what it interrupts tidies up undisturbed
                raise _Stop
        elif signum in FORWARDED and self._run is not None:
            self._run.child.send(signum)
        elif signum == CHILD_ENDED:
            self._child_ended = True

    # -- the service manager

    def _status(self, text: str) -> None:
        self._manager.tell(f"STATUS={text}")

    @contextlib.contextmanager
    def _watchdog(self) -> Generator[None]:
        """Tell the manager that we live, as long as leases are surely being renewed, or tried to."""
        every_s = self._manager.watchdog_s
        done = threading.Event()
        if every_s is not None:
            threading.Thread(target=self._ping, args=(every_s / 3, done), daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _ping(self, every_s: float, done: threading.Event) -> None:
        session = self._client.session
        while not done.wait(every_s):
            due = min((tenure.due for tenure in list(session.tenures.values())), default=math.inf)
            if session.world.now() - due < session.patience_s + 1.0:  # each try moves it, whether it succeeds or not
                self._manager.tell("WATCHDOG=1")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"
