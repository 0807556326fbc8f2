"""Fake time for asyncio, and the client that lives in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from .. import aio
from ..contract import Request
from ..core.lease import LeaseBase
from ..core.session import Session
from ..core.tenure import Tenure
from ..errors import Misuse
from ..hooks import Hook
from ..model import NEVER_S, Signal
from ..sync import whoami
from ..worlds.tasks import TaskMailbox, Tasks
from .engine import ScriptedEngine, make_losable, take_away

T = TypeVar("T")

START_S = 1_000_000.0
LEAST_SLEEP_S = 0.001
"""A pause of none at all would be a loop in which time stands still."""

REAL_S = 1.0
"""How long, really, a task waits for others before it turns the clock itself, so that no test hangs."""

QUIET_TURNS = 20
"""All has settled once the loop turned this often without a step of ours."""

MAX_TURNS = 20_000


class Mailbox(TaskMailbox):
    """Signals for one waiter; the clock may wake it without one."""

    __slots__ = ()

    @property
    def is_empty(self) -> bool:
        return not self._signals

    def wake(self) -> None:
        self._wake()


class AsyncClock:
    """Seconds that pass when they are told to: for leases, renewals, time-outs and tokens.

    A pause between two tries turns the clock itself; so does a wait with a deadline that nobody ends for a real second.
    """

    def __init__(self) -> None:
        self._now = START_S
        self._waits: dict[object, tuple[Mailbox, float]] = {}
        self._steps = 0
        self._turning = False

    def now(self) -> float:
        """Seconds since some moment."""
        return self._now

    async def advance(self, seconds: float) -> None:
        """Let time pass, in steps: at each moment when something is due it is done, and what follows from it.

        Tasks that were made before run first, until they wait. Not for two tasks at once.
        """
        if not seconds >= 0:
            raise Misuse(f"time goes forward only, not by {seconds!r} seconds")
        until = self._now + seconds
        self._turning = True
        try:
            await self._settle()
            while (alarm := self._next_alarm()) <= until:
                self._set(alarm)
                await self._settle()
            self._set(until)
            await self._settle()
        finally:
            self._turning = False

    # -- for the world

    def use(self) -> None:
        """Something of ours happened."""
        self._steps += 1

    async def wait(self, mailbox: Mailbox, deadline: float, turns_after_s: float) -> Signal | None:
        """The next signal, or None at ``deadline``; the waiting task turns the clock after so many real seconds."""
        wait = object()
        self._waits[wait] = mailbox, deadline
        self._steps += 1
        turns_at = time.monotonic() + (turns_after_s if deadline < NEVER_S else NEVER_S)
        try:
            while mailbox.is_empty and self._now < deadline:
                left_s = turns_at - time.monotonic()
                if left_s > 0 or self._turning:
                    signal = await mailbox.get(None if left_s == NEVER_S else max(left_s, 0.001))
                    if signal is not None:
                        return signal
                else:
                    await self._step(mailbox, deadline)
            return None if mailbox.is_empty else await mailbox.get(0.0)
        finally:
            del self._waits[wait]
            self._steps += 1

    async def _step(self, mailbox: Mailbox, deadline: float) -> None:
        self._turning = True
        try:
            await self._settle()
            if mailbox.is_empty and self._now < deadline:
                self._set(self._next_alarm())
        finally:
            self._turning = False

    async def _settle(self) -> None:
        quiet = 0
        for _ in range(MAX_TURNS):
            steps = self._steps
            await asyncio.sleep(0)
            quiet = quiet + 1 if steps == self._steps else 0
            if quiet == QUIET_TURNS:
                return
        raise TimeoutError(f"the tasks did not come to rest in {MAX_TURNS} turns of the loop")

    def _next_alarm(self) -> float:
        return min((deadline for _, deadline in self._waits.values()), default=NEVER_S)

    def _set(self, now: float) -> None:
        self._now = max(self._now, now)
        self._steps += 1
        for mailbox, deadline in self._waits.values():
            if deadline <= self._now:
                mailbox.wake()


class FakeTasks(Tasks):
    """The asyncio world in fake time. No randomness."""

    def __init__(self, engine: ScriptedEngine, clock: AsyncClock) -> None:
        super().__init__(engine.async_link(), clock.now)
        self._clock = clock

    random = staticmethod(lambda: 0.5)

    def mailbox(self) -> Mailbox:
        return Mailbox(self._loop, self._thread_id)

    async def sleep(self, delay_s: float) -> None:
        await self._clock.wait(self.mailbox(), self.now() + max(delay_s, LEAST_SLEEP_S), 0.0)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        self._clock.use()
        return await super().call(request, timeout_s)

    async def wait_signal(self, mailbox: Any, deadline: float) -> Signal | None:
        ours = asyncio.current_task() in self._background
        return await self._clock.wait(mailbox, deadline, NEVER_S if ours else REAL_S)

    def spawn(self, protocol: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self._clock.use()
        return super().spawn(protocol, name)


class AsyncFakeSession(Session):
    """Makes its leases ones that can be lost."""

    def watch_handle(self, tenure: Tenure, handle: object) -> None:
        super().watch_handle(tenure, handle)
        make_losable(handle)


class AsyncFakeClient(aio.Client):
    """A client in fake time: `clock`, `engine`, `lose`, and `other` for another process on the same engine."""

    def __init__(self, engine: ScriptedEngine, clock: AsyncClock, patience_s: float, hooks: Sequence[Hook]) -> None:
        super().__init__(engine, patience_s=patience_s, hooks=hooks)
        self.engine = engine
        self.clock = clock
        self._others: list[AsyncFakeClient] = []

    def _new_session(self) -> Session:
        world = FakeTasks(self.engine, self.clock)
        return AsyncFakeSession(self.engine, world, patience_s=self._patience_s, owner=whoami(), hooks=self._hooks)

    def other(self) -> AsyncFakeClient:
        """Another client of the same engine and time, as another process would be. Closed with this one."""
        self._others.append(AsyncFakeClient(self.engine, self.clock, self._patience_s, self._hooks))
        return self._others[-1]

    def lose(self, lease: LeaseBase) -> None:
        """The same as ``lease.lose()``, in a way that type checkers know."""
        take_away(lease)

    async def aclose(self) -> None:
        for other in self._others:
            await other.aclose()
        await super().aclose()


def new_client(patience_s: float, hooks: Sequence[Hook]) -> AsyncFakeClient:
    clock = AsyncClock()
    return AsyncFakeClient(ScriptedEngine(clock.now), clock, patience_s, hooks)
