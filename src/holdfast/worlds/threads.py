"""The blocking world: every method does its work and returns without suspending.

So a protocol runs to its end in one ``send(None)``; one that awaits something foreign fails loudly.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from ..contract import BlockingLink, Deliver, Request
from ..model import NEVER_S, Signal, Turnstile
from . import clock

T = TypeVar("T")

LONGEST_S = 86400.0
"""No sleep goes on for longer at once: what the system's calls take is bounded."""


def drive(protocol: Coroutine[Any, Any, T]) -> T:
    """Run a protocol of this world to its end."""
    try:
        protocol.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    protocol.close()
    raise RuntimeError(f"{protocol!r} awaited something that is not of the blocking world")


class Reading(Protocol):
    """How a waiting thread reads its process's signals itself, which spares a wake-up: a link's ``reading``, if any."""

    def begin(self, reader: object) -> bool:
        """From now on ``reader`` reads; False where another does."""
        ...

    def end(self, reader: object) -> None:
        """It does no longer, if it did."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Deliver what comes, or return when the time is over or `interrupt` was called; or earlier."""
        ...

    def interrupt(self) -> None:
        """End the `wait` that sleeps, or else the next one. From any thread, from a finalizer, without blocking."""
        ...


class ThreadMailbox:
    """A `SimpleQueue`: its put never blocks and may run inside a finalizer of the thread that holds it."""

    __slots__ = ("_interrupt", "_queue")

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Signal] = queue.SimpleQueue()
        self._interrupt: Callable[[], None] | None = None  # where its owner sleeps elsewhere

    def post(self, signal: Signal) -> None:
        self._queue.put(signal)
        interrupt = self._interrupt
        if interrupt is not None:
            interrupt()

    def get(self, timeout_s: float | None) -> Signal | None:
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def read(self, reading: Reading, timeout_s: float | None) -> Signal | None:
        """`get`, reading what comes for this process meanwhile, if nobody does yet."""
        try:
            try:
                if not reading.begin(self):
                    return self.get(timeout_s)
                self._interrupt = reading.interrupt
                self._read(reading, NEVER_S if timeout_s is None else time.monotonic() + timeout_s)
            finally:
                self._interrupt = None
                reading.end(self)
        finally:  # an interrupt may have hit the lines above
            self._interrupt = None
            reading.end(self)
        return None if self._queue.empty() else self._queue.get_nowait()

    def _read(self, reading: Reading, until: float) -> None:
        while self._queue.empty() and (left_s := until - time.monotonic()) > 0:
            reading.wait(min(left_s, LONGEST_S))


class _Background(threading.Thread):
    """A thread of ours. It never reads for others: it may be busy elsewhere when something comes."""


class Threads:
    """One process's threads over one link."""

    def __init__(self, link: BlockingLink, now: Callable[[], float] = clock.now) -> None:
        self.link = link
        self.inbox = link.inbox
        self.now = now
        self._reading: Reading | None = getattr(link, "reading", None)
        self._local = threading.local()

    wall = staticmethod(time.time)
    random = staticmethod(random.random)
    mutex = staticmethod(threading.Lock)
    mailbox = staticmethod(ThreadMailbox)

    def belongings(self) -> dict[Any, Any]:
        return self._local.__dict__

    async def sleep(self, delay_s: float) -> None:
        time.sleep(delay_s)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        return self.link.call(request, timeout_s)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        return self.link.call_many(requests, timeout_s)

    async def wait_signal(self, mailbox: ThreadMailbox, deadline: float) -> Signal | None:
        timeout_s = None if deadline == NEVER_S else max(0.0, min(deadline - self.now(), threading.TIMEOUT_MAX))
        if self._reading is None or type(threading.current_thread()) is _Background:
            return mailbox.get(timeout_s)
        return mailbox.read(self._reading, timeout_s)

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool:
        return self.link.listen(deliver, look_again, timeout_s)

    async def watch(self, turnstile: Turnstile, timeout_s: float) -> None:
        self.link.watch(turnstile, timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        self.link.unwatch(turnstile)

    async def shield(self, cleanup: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """In a thread of its own, which no interrupt reaches; one that hits the waiting caller is raised after it.

        Not by joining that thread: before Python 3.13 a join that is interrupted takes it for ended.
        """
        ended = threading.Event()
        bell: queue.SimpleQueue[None] = queue.SimpleQueue()

        async def whole() -> None:
            try:
                await cleanup
            finally:
                ended.set()
                bell.put(None)

        self.spawn(whole(), "holdfast-cleanup")
        until = self.now() + timeout_s
        interrupt: BaseException | None = None
        while not ended.is_set():
            try:
                left_s = until - self.now()
                if left_s <= 0:
                    break
                bell.get(timeout=left_s)
            except queue.Empty:
                pass
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def spawn(self, protocol: Coroutine[Any, Any, None], name: str) -> threading.Thread:
        thread = _Background(target=drive, args=(protocol,), name=name, daemon=True)
        thread.start()
        return thread

    def notify(self, callback: Callable[..., Any], *args: Any) -> None:
        threading.Thread(target=callback, args=args, name="holdfast-callback", daemon=True).start()
