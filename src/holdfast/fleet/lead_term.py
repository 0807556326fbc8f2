"""One time as the leader: until when CMD may run, and what others see of it."""

from __future__ import annotations

import contextlib
import threading

from ..errors import HoldfastError
from ..sync import Leadership
from .lead_policy import Policy
from .lead_signals import Signals

LOOK_S = 0.25
"""So often a leader looks at its lease; at a tenth of a short lease."""

CLOSING_S = 1.0
"""For so long at most a note that is being written holds up who resigns."""


class Term:
    """A leadership by `Policy`. What is noted, a thread of its own writes: an engine out of reach holds up nobody."""

    def __init__(self, leadership: Leadership, policy: Policy, signals: Signals, ttl_s: float) -> None:
        self.look_s = min(LOOK_S, ttl_s / 10)
        self.margin_s = min(0.5, ttl_s / 20)
        """So long before the lease is over CMD is to be gone."""

        self._leadership = leadership
        self._policy = policy
        self._signals = signals
        self._serves = False
        self._noted = threading.Event()
        self._closing = False
        self._writer = threading.Thread(target=self._write, name="holdfast-lead-record", daemon=True)
        self._writer.start()
        leadership.on_lost(signals.wake)

    @property
    def token(self) -> int:
        return self._leadership.token

    @property
    def is_lost(self) -> bool:
        return not self._leadership.is_leader

    @property
    def silent(self) -> str:
        """Who led before and went without a word; "" where it resigned, or nobody did."""
        before = self._leadership.predecessor
        return "" if before is None or before.resigned else before.owner

    @property
    def left_s(self) -> float:
        """For so long CMD may go on at most, if no renewal succeeds any more."""
        return self._leadership.remaining_s - self.margin_s

    def why_not(self) -> str:
        """Why CMD must not run (any more), by signals and the lease; "" where it may."""
        if self._signals.stopping:
            return self._signals.stopping
        state, left_s = self._leadership.state, self._leadership.remaining_s
        if not left_s:
            return "lost the lease"
        if state == "UNSURE" and (
            self._policy.on_unsure == "stop" or left_s <= self._policy.grace_s + self.margin_s + self.look_s
        ):
            return "unsure of the lease"
        return ""

    def note(self, state: str, step: str, *, serves: bool = False) -> None:
        """Our record says ``state`` from now on.

        The change that brought us here has another step, until CMD serves: what comes later is no part of it.
        """
        self._leadership.note("" if self._serves else step, state=state)
        self._serves = self._serves or serves
        self._noted.set()

    def resign(self) -> None:
        """Give the lead up; the next is admitted at once. What does not succeed goes on in the background."""
        self._closing = True
        self._noted.set()
        self._writer.join(CLOSING_S)
        with contextlib.suppress(HoldfastError):
            self._leadership.resign()

    def _write(self) -> None:
        while self._noted.wait() and not self._closing:
            self._noted.clear()
            with contextlib.suppress(HoldfastError):  # it is for people; the lease says whether we lead
                self._leadership.update()
