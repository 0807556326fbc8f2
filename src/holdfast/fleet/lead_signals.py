"""What reaches `holdfast lead`: signals, and the sleep that they end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Generator, Sequence

from .child import handling

STOPPING = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGQUIT", signal.SIGINT))
FORWARDED = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
CHILD_ENDED = getattr(signal, "SIGCHLD", None)

LONGEST_S = 3600.0


class Stopped(BaseException):
    """A signal that asks us to stop came while the main thread waited for our turn."""


class Signals:
    """Of one process; the main thread sleeps in `wait`, and any thread may `wake` it."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self.forward: Callable[[int], object] | None = None
        """Who gets HUP, USR1 and USR2; nobody at first."""

        self._interruptible = False
        self._child_ended = False  # CMD, or an orphan that we adopted
        self._reader = self._writer = -1

    @contextlib.contextmanager
    def handled(self) -> Generator[None]:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        signums = (*STOPPING, *FORWARDED, *(() if CHILD_ENDED is None else (CHILD_ENDED,)))
        try:
            with handling(signums, self._handle):
                yield
        finally:
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1

    @contextlib.contextmanager
    def interrupting(self) -> Generator[None]:
        """Meanwhile one that asks us to stop raises `Stopped`; one that came before does so at once."""
        try:
            self._interruptible = True
            self.raise_if_stopped()
            yield
        finally:
            self._interruptible = False

    def raise_if_stopped(self) -> None:
        if self.stopped_by is not None:
            raise Stopped

    @property
    def stopping(self) -> str:
        """ "" unless we are to stop."""
        return "" if self.stopped_by is None else f"stopping on {name_of(self.stopped_by)}"

    def has_child_ended(self) -> bool:
        """Since this was asked last."""
        if not self._child_ended:
            return False
        self._child_ended = False  # what ends from here on, the caller sees or is told of again
        return True

    def wait(self, until: float, files: Sequence[int] = ()) -> None:
        """Until then (by the monotonic clock), a signal, a `wake`, or something to read."""
        left_s = min(max(0.0, until - time.monotonic()), LONGEST_S)
        ready, _, _ = select.select([self._reader, *files], [], [], left_s)
        if self._reader in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: nobody sleeps
            os.write(self._writer, b"!")

    def _handle(self, signum: int, frame: object) -> None:
        self.wake()
        if signum in STOPPING:
            self.stopped_by = self.stopped_by or signum
            if self._interruptible:
                self._interruptible = False  # once: what it interrupts tidies up undisturbed
                raise Stopped
        elif signum in FORWARDED and self.forward is not None:
            self.forward(signum)
        elif signum == CHILD_ENDED:
            self._child_ended = True


def name_of(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time one
        return f"signal {signum}"
