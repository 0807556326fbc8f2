"""How signals arrive: by a connection that listens; where a pooler lets none through, by looking often."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from ... import model
from ...contract import Deliver, Request
from ...errors import Misuse, Unavailable
from ...model import Signal, State
from .ear import Ear, Knock
from .target import Postgres

POLL_S = 0.2
"""How often those who wait look where no signals reach them."""


class Poller:
    """In place of an ear: has everybody who waits look, again and again."""

    def __init__(self) -> None:
        self.look_again: Callable[[], None] = lambda: None
        self._closing = threading.Event()
        threading.Thread(target=self._run, name="holdfast-postgres-polling", daemon=True).start()

    def _run(self) -> None:
        while not self._closing.wait(POLL_S):
            self.look_again()

    def close(self) -> None:
        self._closing.set()


class Listening:
    """A link's way to its signals, chosen when they are first needed."""

    def __init__(self, target: Postgres, inbox: str, knock: Knock) -> None:
        self._target = target
        self._inbox = inbox
        self._knock = knock
        self._lock = threading.Lock()
        self._ear: Ear | None = None
        self._poller: Poller | None = None
        self._tied: set[str] = set()

    def begin(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool:
        """As `contract.BlockingLink.listen`."""
        with self._held(timeout_s) as left_s:
            if self.goes_on(deliver, look_again):
                return False
            if self._ear is None and self._is_polling(left_s):
                self._poller = Poller()
                self._poller.look_again = look_again
                return True
            ear = self._listen(left_s)
            ear.deliver, ear.look_again = deliver, look_again
            return True

    def goes_on(self, deliver: Deliver, look_again: Callable[[], None]) -> bool:
        """Whether it has begun. Waits for nothing."""
        if self._poller is not None:
            self._poller.look_again = look_again
            return True
        ear = self._ear
        if ear is None or ear.deliver is None:
            return False
        ear.deliver, ear.look_again = deliver, look_again
        return True

    def _is_polling(self, timeout_s: float) -> bool:
        return not self._target.listens_elsewhere and self._knock(None, timeout_s)

    def _listen(self, timeout_s: float) -> Ear:
        if self._ear is None:
            ear = Ear(self._target, self._inbox)
            try:
                ear.broke = self._doubt
                ear.start(self._knock, timeout_s)
            except BaseException:
                ear.close()
                raise
            self._ear = ear
        return self._ear

    @contextlib.contextmanager
    def _held(self, timeout_s: float) -> Any:
        until = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):  # another thread is still connecting
            raise Unavailable(f"no signals from PostgreSQL at {self._target.where} within {timeout_s:.1f} s")
        try:
            yield max(0.001, until - time.monotonic())
        finally:
            self._lock.release()

    def watch(self, channel: str, address: str, timeout_s: float) -> None:
        if self._poller is not None:
            return
        if self._ear is None:
            raise Misuse("watch() needs listen() first")
        self._ear.add(channel, address, timeout_s)

    def unwatch(self, channel: str) -> None:
        if self._ear is not None:
            self._ear.remove(channel)

    # -- claims that end with this connection

    @property
    def is_up(self) -> bool:
        return self._ear is not None and self._ear.up.is_set()

    def tie(self, timeout_s: float) -> None:
        """Have the connection that claims are to hang on, or wait until it stands again."""
        with self._held(timeout_s) as left_s:
            if not self._listen(left_s).up.wait(left_s):
                raise Unavailable(f"the connection to {self._target.where} that claims hang on is not back yet")

    def note(self, request: Request[Any], outcome: Any) -> None:
        """Remember which claims stand."""
        if self._target.ends_with_connection and request.op in ("enter", "leave"):
            claim = request.body[1][1].decode()
            if request.op == "enter" and outcome.state in (State.ADMITTED, State.WAITING):
                self._tied.add(claim)
            else:
                self._tied.discard(claim)

    def _doubt(self) -> None:
        """The connection broke, and with it go our claims."""
        if self._ear is not None and self._ear.deliver is not None:
            for claim in list(self._tied):
                self._ear.deliver(Signal(model.UNSURE, claim))

    # -- ends

    def close(self) -> None:
        if self._ear is not None:
            self._ear.close()
        if self._poller is not None:
            self._poller.close()

    def abandon(self) -> None:
        if self._ear is not None:
            self._ear.abandon()
