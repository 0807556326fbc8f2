"""Fake time for threads, and the blocking client that lives in it."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import FrameType
from typing import Any, TypeVar

from .. import sync
from ..contract import Request
from ..core.lease import LeaseBase
from ..core.session import Session
from ..core.tenure import Tenure
from ..errors import Misuse
from ..hooks import Hook
from ..model import NEVER_S, Signal
from ..worlds.threads import Threads, drive
from .engine import ScriptedEngine, make_losable, take_away

T = TypeVar("T")

START_S = 1_000_000.0
LEAST_SLEEP_S = 0.001
"""A pause of none at all would be a loop in which time stands still."""

REAL_S = 1.0
"""How long, really, a thread waits for others before it turns the clock itself, so that no test hangs."""

STUCK_S = 10.0


class Mailbox:
    """Signals for one waiter, told to the clock."""

    __slots__ = ("_changed", "signals")

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self.signals: deque[Signal] = deque()

    def post(self, signal: Signal) -> None:
        with self._changed:
            self.signals.append(signal)
            self._changed.notify_all()


class Clock:
    """Seconds that pass when they are told to: for leases, renewals, time-outs and tokens.

    A wait with a deadline in the test's own thread turns the clock itself, as nobody else would; so does a pause
    between two tries, in any thread.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._now = START_S
        self._waits: dict[threading.Thread, tuple[Mailbox, float]] = {}
        self._spawned: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._users: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._test = threading.current_thread()
        self._turning = False

    def now(self) -> float:
        """Seconds since some moment."""
        return self._now

    def advance(self, seconds: float, *, waiters: int = 0) -> None:
        """Let time pass, in steps: at each moment when something is due it is done, and what follows from it.

        What your threads do after a wait of theirs is over is not waited for. ``waiters``: begin once that many threads
        wait for a lock or for time to pass.
        """
        if not seconds >= 0:
            raise Misuse(f"time goes forward only, not by {seconds!r} seconds")
        with self.changed:
            self._await(lambda: not self._turning and self._waiting_users() >= waiters, f"{waiters} waiting threads")
            until = self._now + seconds
            with self._turn():
                self._settle()
                while (alarm := self._next_alarm()) <= until:
                    self._set(alarm)
                    self._settle()
                self._set(until)
                self._settle()

    # -- for the world

    def use(self) -> None:
        """The running thread is one that works with this engine."""
        self._users.add(threading.current_thread())

    def wait(self, mailbox: Mailbox, deadline: float, turns_after_s: float | None = None) -> Signal | None:
        """The next signal, or None at ``deadline``; the waiting thread turns the clock after so many real seconds."""
        with self.changed, self._waiting(mailbox, deadline) as me:
            if turns_after_s is None:
                turns_after_s = self._patience_s(me)
            turns_at = time.monotonic() + (turns_after_s if deadline < NEVER_S else NEVER_S)
            while self._is_idle(me):
                left_s = turns_at - time.monotonic()
                if left_s > 0 or self._turning:
                    self.changed.wait(None if left_s == NEVER_S else max(left_s, 0.001))
                    continue
                with self._turn():
                    self._settle()
                    if self._is_idle(me):
                        self._set(self._next_alarm())
            return mailbox.signals.popleft() if mailbox.signals else None

    @contextlib.contextmanager
    def resting(self) -> Generator[None]:
        """For a thread that waits for another: it is not waited for."""
        with self._waiting(Mailbox(self.changed), NEVER_S):
            yield

    def start(self, thread: threading.Thread) -> None:
        """Start a thread of ours, which is waited for whenever the clock is turned."""
        with self.changed:
            thread.start()
            self._spawned.add(thread)

    # -- who waits, who works

    @contextlib.contextmanager
    def _waiting(self, mailbox: Mailbox, deadline: float) -> Generator[threading.Thread]:
        me = threading.current_thread()
        with self.changed:
            self._users.add(me)
            self._waits[me] = mailbox, deadline
            self.changed.notify_all()
        try:
            yield me
        finally:
            with self.changed:
                del self._waits[me]

    def _patience_s(self, me: threading.Thread) -> float:
        if me in self._spawned:
            return NEVER_S
        others = [user for user in self._users if user.is_alive() and user is not me and user not in self._spawned]
        return 0.0 if me is self._test and all(user in self._waits for user in others) else REAL_S

    def _waiting_users(self) -> int:
        return sum(self._is_idle(thread) and thread not in self._spawned for thread in self._waits)

    def _is_idle(self, thread: threading.Thread) -> bool:
        if thread not in self._waits:
            return False
        mailbox, deadline = self._waits[thread]
        return not mailbox.signals and self._now < deadline

    def _busy(self) -> threading.Thread | None:
        """A thread that is in the middle of something of ours."""
        frames = _current_frames()
        for thread in {*self._users, *self._spawned} - {threading.current_thread()}:
            in_protocol = thread in self._spawned or _drives(frames.get(thread.ident or 0))
            if thread.is_alive() and in_protocol and not self._is_idle(thread):
                return thread
        return None

    # -- turning; with ``changed`` held, which every wait lets go

    @contextlib.contextmanager
    def _turn(self) -> Generator[None]:
        self._turning = True
        try:
            yield
        finally:
            self._turning = False
            self.changed.notify_all()

    def _settle(self) -> None:
        """Wait, really, until every thread of ours waits for the clock or is done."""
        self._await(lambda: self._busy() is None, "the threads to come to rest")

    def _await(self, settled: Callable[[], bool], what: str) -> None:
        give_up_at = time.monotonic() + STUCK_S
        while not settled():
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"the clock waited for {what} for {STUCK_S:g} real seconds; busy: {self._busy()}")
            self.changed.wait(0.0005)  # the end of a thread is told to nobody

    def _next_alarm(self) -> float:
        return min((deadline for _, deadline in self._waits.values()), default=NEVER_S)

    def _set(self, now: float) -> None:
        self._now = max(self._now, now)
        self.changed.notify_all()


def _current_frames() -> dict[int, FrameType]:
    """Collecting garbage in there, a Python before 3.11.8 or 3.12.2 may wait for itself for ever (gh-106883)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    finally:
        if collects:
            gc.enable()


def _drives(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is drive.__code__:
            return True
        frame = frame.f_back
    return False


class FakeThreads(Threads):
    """The blocking world in fake time. No randomness."""

    def __init__(self, engine: ScriptedEngine, clock: Clock) -> None:
        super().__init__(engine.blocking_link(), clock.now)
        self._clock = clock

    random = staticmethod(lambda: 0.5)

    def mailbox(self) -> Mailbox:  # type: ignore[override]
        return Mailbox(self._clock.changed)

    async def sleep(self, delay_s: float) -> None:
        self._clock.wait(self.mailbox(), self.now() + max(delay_s, LEAST_SLEEP_S), turns_after_s=0.0)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        self._clock.use()
        return await super().call(request, timeout_s)

    async def wait_signal(self, mailbox: Any, deadline: float) -> Signal | None:
        return self._clock.wait(mailbox, deadline)

    async def shield(self, cleanup: Coroutine[Any, Any, None], timeout_s: float) -> None:
        with self._clock.resting():
            await super().shield(cleanup, timeout_s)

    def spawn(self, protocol: Coroutine[Any, Any, None], name: str) -> threading.Thread:
        thread = threading.Thread(target=drive, args=(protocol,), name=name, daemon=True)
        self._clock.start(thread)
        return thread

    def notify(self, callback: Callable[..., Any], *args: Any) -> None:
        """In a thread as ever, but waited for, so that a test sees what it did."""
        thread = threading.Thread(target=callback, args=args, name="holdfast-callback", daemon=True)
        thread.start()
        with self._clock.resting():
            thread.join(REAL_S)


class FakeSession(Session):
    """Makes its leases ones that can be lost."""

    def watch_handle(self, tenure: Tenure, handle: object) -> None:
        super().watch_handle(tenure, handle)
        make_losable(handle)


class FakeClient(sync.Client):
    """A client in fake time: `clock`, `engine`, `lose`, and `other` for another process on the same engine."""

    def __init__(self, engine: ScriptedEngine, clock: Clock, patience_s: float, hooks: Sequence[Hook]) -> None:
        super().__init__(engine, patience_s=patience_s, hooks=hooks)
        self.engine = engine
        self.clock = clock
        self._others: list[FakeClient] = []

    def _new_session(self) -> Session:
        world = FakeThreads(self.engine, self.clock)
        return FakeSession(self.engine, world, patience_s=self._patience_s, owner=sync.whoami(), hooks=self._hooks)

    def other(self) -> FakeClient:
        """Another client of the same engine and time, as another process would be. Closed with this one."""
        self._others.append(FakeClient(self.engine, self.clock, self._patience_s, self._hooks))
        return self._others[-1]

    def lose(self, lease: LeaseBase) -> None:
        """The same as ``lease.lose()``, in a way that type checkers know."""
        take_away(lease)

    def close(self) -> None:
        for other in self._others:
            other.close()
        super().close()


def new_client(patience_s: float, hooks: Sequence[Hook]) -> FakeClient:
    clock = Clock()
    return FakeClient(ScriptedEngine(clock.now), clock, patience_s, hooks)
