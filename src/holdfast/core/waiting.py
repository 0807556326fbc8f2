"""How to wait for a lock. `Queue` is the default; the others exist since people know them, and to be measured.

Each is a small frozen object, given per lock: ``hf.lock("x", strategy=Backoff())``. What they cost is said in orders of
magnitude, for processes that contend for one lock on a Redis and keep it for 1 ms; docs/waiting.md has the figures, and
``holdfast bench waiting`` those of your machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .. import model
from ..errors import AcquireTimeout, Misuse
from ..model import State
from .session import Session
from .tenure import Tenure

CROWD = 16
"""A client with so many claims listens before it queues, so that not each of them looks again once signals flow."""


class Strategy(Protocol):
    """A way to wait. ``take`` returns once ``tenure`` is admitted, or raises `AcquireTimeout` at ``deadline``."""

    async def take(self, session: Session, tenure: Tenure, deadline: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Queue:
    """Join the turnstile's queue and sleep until it is our turn: fair, first come, first served.

    Cost: two commands, 0.4 ms of all clients' CPU and one wake-up per hand-over, however many wait. While it waits, no
    commands but a renewal each third of its lease, and 0.01 % of a core.
    """

    async def take(self, session: Session, tenure: Tenure, deadline: float) -> None:
        if len(session.tenures) >= CROWD and not session.listening:
            await session.listen(deadline)
        listened = session.listening
        standing = await session.enter(tenure, nowait=False, give_up_at=deadline)
        if standing.state is not State.ADMITTED and (await session.listen(deadline) or not listened):
            standing = await session.renew_one(tenure, deadline)  # what was said before signals flowed is lost
        trusts = True  # what a signal says of our place
        while standing.state is not State.ADMITTED:
            if standing.state is not State.WAITING:  # our place was lost: a long pause, or the engine's data is gone
                standing = await session.enter(tenure, nowait=False, give_up_at=deadline)
                trusts = False  # a late one may speak of the place that was lost
                continue
            signal = await session.world.wait_signal(tenure.mailbox, deadline)
            if signal is None:
                raise _timeout(tenure)
            left_s = tenure.deadline - session.world.now()
            if signal.kind == model.ADMITTED and trusts and left_s > tenure.claim.ttl_s / 3:
                return
            # A hint that can't be relied on: ask.
            standing = await session.renew_one(tenure, deadline)


async def _retry(session: Session, tenure: Tenure, deadline: float, pauses: _Pauses) -> None:
    attempt = 0
    while (await session.enter(tenure, nowait=True, give_up_at=deadline)).state is not State.ADMITTED:
        left_s = deadline - session.world.now()
        if left_s <= 0:
            raise _timeout(tenure)
        tenure.tell("waiting")
        await session.world.sleep(min(left_s, pauses.pause_s(attempt, session.world.random())))
        attempt += 1


class _Pauses(Protocol):
    def pause_s(self, attempt: int, random: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Spin:
    """The busy wait: ask again at once, for ever. Simple, and the quickest to notice on an idle machine.

    Cost: up to a core per waiter and thousands of commands a second, which hold up the holder's release; tens of
    commands and 2 … 5 ms of CPU per hand-over. No order among waiters: some wait ten times as long as others.
    """

    async def take(self, session: Session, tenure: Tenure, deadline: float) -> None:
        await _retry(session, tenure, deadline, self)

    def pause_s(self, attempt: int, random: float) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Poll:
    """Ask every ``interval_s`` seconds.

    Cost: one command per interval and waiter, at 0.1 s 0.3 % of a core. A free lock is found half an interval late on
    average, a busy one hardly ever: some hand-overs a second where `Queue` has hundreds, and waits of seconds.
    """

    interval_s: float = 0.1

    def __post_init__(self) -> None:
        if not self.interval_s > 0:
            raise Misuse(f"interval_s is above 0 seconds, not {self.interval_s!r}; Spin() asks without a pause")

    async def take(self, session: Session, tenure: Tenure, deadline: float) -> None:
        await _retry(session, tenure, deadline, self)

    def pause_s(self, attempt: int, random: float) -> float:
        return self.interval_s


@dataclass(frozen=True, slots=True)
class Backoff:
    """Ask after random pauses whose bound doubles from ``first_s`` to ``most_s`` (full jitter, as AWS describes it).

    Cost: half of `Poll`'s while it waits, for more hand-overs, yet a tenth of `Queue`'s. The longest waiter is the
    least likely to win, so waits are the most uneven.
    """

    first_s: float = 0.005
    most_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.most_s:
            raise Misuse(f"0 < first_s <= most_s, not first_s={self.first_s!r}, most_s={self.most_s!r}")

    async def take(self, session: Session, tenure: Tenure, deadline: float) -> None:
        await _retry(session, tenure, deadline, self)

    def pause_s(self, attempt: int, random: float) -> float:
        return min(self.most_s, self.first_s * 2.0 ** min(attempt, 30)) * random


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Ask again at once for ``spin_s``, ``most_asks`` times in all, in case the holder is about to go; then `Queue`.

    Who asks is not in the queue yet, so a newcomer may be quicker; nobody goes before one that queues.

    Cost: `Queue`'s, and a command for each time that it asked in vain: four per hand-over where others always wait. It
    saves a wake-up where sections are shorter than a round trip and hardly anybody waits.
    """

    spin_s: float = 0.001
    most_asks: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.spin_s <= 1:
            raise Misuse(f"spin_s is above 0 seconds and at most 1, not {self.spin_s!r}; Queue() does not spin")
        if not (isinstance(self.most_asks, int) and 1 <= self.most_asks <= 1000):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Misuse(f"most_asks is a whole number from 1 to 1000, not {self.most_asks!r}")

    async def take(self, session: Session, tenure: Tenure, deadline: float) -> None:
        world = session.world
        spin_until = min(world.now() + self.spin_s, deadline)
        for _ in range(self.most_asks):
            if (await session.enter(tenure, nowait=True, give_up_at=deadline)).state is State.ADMITTED:
                return
            await world.sleep(0.0)  # lets the holder run, if it is another thread or task of ours
            if world.now() >= spin_until:
                break
        if world.now() >= deadline:
            raise _timeout(tenure)
        await Queue().take(session, tenure, deadline)


def _timeout(tenure: Tenure) -> AcquireTimeout:
    return AcquireTimeout(f"{tenure.turnstile.address} was not free in time; nothing of ours is left in its queue")
