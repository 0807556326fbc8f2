"""What a protocol may ask of the outside. Protocols import no clock, socket, thread or event loop: only this."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from .contract import Deliver, Request
from .model import Signal, Turnstile

T = TypeVar("T")


class Mailbox(Protocol):
    """Where one waiter's signals arrive."""

    def post(self, signal: Signal) -> None:
        """Drop a signal in: from any thread, from a finalizer in the middle of anything, without blocking."""
        ...


class World(Protocol):
    """Time, the engine and the rest of the process, as one protocol sees them.

    In ``worlds.threads`` the methods block and never suspend; in ``worlds.tasks`` they await asyncio; in a
    simulator they suspend into its scheduler.
    """

    @property
    def inbox(self) -> str:
        """Where the engine sends the signals of claims made here."""
        ...

    @property
    def link(self) -> Any:
        """The engine's link below, for what opens and closes it."""
        ...

    def now(self) -> float:
        """Seconds on a clock that only goes forward and goes on while the machine is suspended."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 by this machine's clock: for people who read when it was, and never to decide by."""
        ...

    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...

    def mutex(self) -> AbstractContextManager[object]:
        """For a few steps without I/O, against the other threads of the process."""
        ...

    def belongings(self) -> dict[Any, Any]:
        """What the running thread or task keeps here, gone when it is."""
        ...

    async def sleep(self, delay_s: float) -> None: ...

    async def call(self, request: Request[T], timeout_s: float) -> T:
        """Send one request. Raises `Unavailable` (nothing was done) or `OutcomeUnknown` (it may have been)."""
        ...

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]: ...

    def mailbox(self) -> Mailbox: ...

    async def wait_signal(self, mailbox: Any, deadline: float) -> Signal | None:
        """The next signal of that mailbox, or None once ``now()`` has reached ``deadline``."""
        ...

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool: ...

    async def watch(self, turnstile: Turnstile, timeout_s: float) -> None: ...

    async def unwatch(self, turnstile: Turnstile) -> None: ...

    async def shield(self, cleanup: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Run ``cleanup`` to its end, or for ``timeout_s``, whatever interrupts the caller meanwhile."""
        ...

    def spawn(self, protocol: Coroutine[Any, Any, None], name: str) -> object:
        """Run a protocol in the background until it returns."""
        ...

    def notify(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call a user's callback where it can hold up nothing of ours."""
        ...
