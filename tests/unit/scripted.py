"""A world for protocols alone: one thread, a clock that waits turn, an engine whose answers can be scripted.

Nothing runs beside the protocol: what others do meanwhile is told to `World.at`, and happens while the protocol
waits; the renewer's rounds as well (`World.renewer_at`).
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from holdfast.contract import Deliver, Request
from holdfast.core.session import Session
from holdfast.engines.memory import MemoryEngine, MemoryLink
from holdfast.errors import OutcomeUnknown, Unavailable
from holdfast.hooks import Event
from holdfast.model import NEVER_S, Signal, Snapshot, Turnstile
from holdfast.worlds.threads import drive

T = TypeVar("T")

START_S = 1000.0
LOCK = Turnstile("lock", "x", 1)

Answer = Callable[[Callable[[], Any]], Any]
"""How a call goes: it is given what would do it at the engine, and gives the reply or raises."""


def done(do: Callable[[], Any]) -> Any:
    return do()


def unavailable(do: Callable[[], Any]) -> Any:
    """It surely did nothing."""
    raise Unavailable("scripted")


def request_lost(do: Callable[[], Any]) -> Any:
    """Nobody knows that it did nothing."""
    raise OutcomeUnknown("scripted")


def reply_lost(do: Callable[[], Any]) -> Any:
    """It did what it was asked, and nobody knows."""
    do()
    raise OutcomeUnknown("scripted")


def says(reply: Any) -> Answer:
    """The engine was not even asked."""
    return lambda do: reply


class Sent(NamedTuple):
    """One call, as it was sent."""

    op: str
    at: float
    timeout_s: float


class Box:
    def __init__(self) -> None:
        self.signals: deque[Signal] = deque()

    def post(self, signal: Signal) -> None:
        self.signals.append(signal)


class World:
    """See above. ``answers`` by operation, first to last; what has none is `done`; ``down``: none is."""

    inbox = "me"
    link = None

    def __init__(self) -> None:
        self.time = START_S
        self.engine = MemoryEngine(self.now, lambda: self.time * 1e6)
        self.answers: dict[str, list[Answer]] = {}
        self.down = False
        self.calls: list[Sent] = []
        self.slept: list[float] = []
        self.events: list[Event] = []
        self._link = MemoryLink(self.engine)
        self._link.inbox = self.inbox
        self.mine: dict[Any, Any] = {}
        self.session = Session(self.engine, self, patience_s=5.0, owner="test", hooks=(self.events.append,))
        self.hears = True  # whether the engine's signals reach us
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._background: list[Coroutine[Any, Any, None]] = []

    # -- for tests

    def ops(self) -> list[str]:
        """What was called since this was last asked."""
        ops = [sent.op for sent in self.calls]
        self.calls.clear()
        return ops

    def kinds(self) -> list[str]:
        """What the hooks heard."""
        return [event.kind for event in self.events]

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something so many seconds from now, in the middle of whatever waits then."""
        self._plans.append((self.time + seconds, next(self._order), action))
        self._plans.sort()

    def renewer_at(self, *seconds: float) -> None:
        """Let the renewer do a round then."""
        for after_s in seconds:
            self.at(after_s, lambda: drive(self.session.renewer._round()))

    def pass_time(self, seconds: float) -> None:
        self._turn(self.time + seconds)

    def ask(self, request: Request[T]) -> T:
        """What another client asks, whatever is scripted for us."""
        return self._link.call(request, 1.0)

    def look(self, turnstile: Turnstile = LOCK) -> Snapshot:
        return self.ask(self.engine.look(turnstile))

    def close(self) -> None:
        for protocol in self._background:
            protocol.close()

    def _turn(self, until: float, box: Box | None = None) -> None:
        """Go forward, plan by plan, until then or until there is a signal in ``box``."""
        while self._plans and self._plans[0][0] <= until and not (box and box.signals):
            at, _, action = self._plans.pop(0)
            self.time = max(self.time, at)
            action()
        if not (box and box.signals):
            assert until < NEVER_S, "the protocol waits for ever"
            self.time = max(self.time, until)

    # -- for protocols

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    def random(self) -> float:
        return 0.5

    def mutex(self) -> threading.Lock:
        return threading.Lock()

    def belongings(self) -> dict[Any, Any]:
        return self.mine

    def mailbox(self) -> Box:
        return Box()

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self._turn(self.time + delay_s)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        self.calls.append(Sent(request.op, self.time, timeout_s))
        answers = self.answers.get(request.op)
        answer = unavailable if self.down else answers.pop(0) if answers else done
        return answer(lambda: self.ask(request))  # type: ignore[no-any-return]

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        replies: list[T | Exception] = []
        for request in requests:
            try:
                replies.append(await self.call(request, timeout_s))
            except Exception as error:
                replies.append(error)
        return replies

    async def wait_signal(self, mailbox: Box, deadline: float) -> Signal | None:
        if not mailbox.signals:
            self._turn(max(deadline, self.time), mailbox)
        return mailbox.signals.popleft() if mailbox.signals else None

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool:
        return self._link.listen(lambda signal: deliver(signal) if self.hears else None, look_again)

    async def watch(self, turnstile: Turnstile, timeout_s: float) -> None:
        self._link.watch(turnstile)

    async def unwatch(self, turnstile: Turnstile) -> None:
        self._link.unwatch(turnstile)

    async def shield(self, cleanup: Coroutine[Any, Any, None], timeout_s: float) -> None:
        await cleanup

    def spawn(self, protocol: Coroutine[Any, Any, None], name: str) -> object:
        self._background.append(protocol)
        return protocol

    def notify(self, callback: Callable[..., Any], *args: Any) -> None:
        callback(*args)
