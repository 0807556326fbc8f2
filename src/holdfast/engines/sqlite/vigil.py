"""Keeps an eye on the processes ahead of our waiters, without touching the database, and says when one has died."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ... import model
from ...model import Signal

TICK_S = 0.02
PROBES_PER_TICK = 16
"""So its cost is bounded: a fraction of a percent of a core while somebody waits; more processes take turns."""


class Vigil:
    """Which of our waiters (the signals that would nudge them) stand where, and which processes are ahead of them.

    Any thread says who waits; only the one that ticks works on the books, so an interrupt leaves no lock behind.
    """

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._expected: dict[Signal, str] = {}
        self._news: deque[tuple[str, Signal, Iterable[str] | None]] = deque()
        self._waiting: dict[str, dict[Signal, None]] = {}  # by address, oldest first
        self._ahead: dict[str, dict[str, None]] = {}  # by inbox, addresses where it is ahead of ours
        self._rota: deque[str] = deque()

    @property
    def needed(self) -> bool:
        return bool(self._expected)

    def expect(self, address: str, waiter: Signal, inboxes: Iterable[str]) -> None:
        """``waiter`` stands at ``address`` behind these processes, or watches them."""
        self._expected[waiter] = address
        self._news.append((address, waiter, inboxes))

    def forget(self, waiter: Signal) -> None:
        """It waits no longer."""
        address = self._expected.pop(waiter, None)
        if address is not None:
            self._news.append((address, waiter, None))

    def tick(self) -> list[Signal]:
        """Probe the next few. For each dead one nudge the watchers, and one waiter per turnstile: it will sweep."""
        while self._news:
            self._note(*self._news.popleft())
        signals: dict[Signal, None] = {}
        for inbox in self._next():
            if not self._is_alive(inbox):
                self._rota.remove(inbox)
                for address in self._ahead.pop(inbox):
                    signals.update(dict.fromkeys(self._nudges(address)))
        return list(signals)

    def _note(self, address: str, waiter: Signal, inboxes: Iterable[str] | None) -> None:
        if inboxes is None:
            waiters = self._waiting.get(address, {})
            waiters.pop(waiter, None)
            if not waiters:
                self._waiting.pop(address, None)
            return
        self._waiting.setdefault(address, {})[waiter] = None
        for inbox in inboxes:
            if inbox not in self._ahead:
                self._ahead[inbox] = {}
                self._rota.append(inbox)
            self._ahead[inbox][address] = None

    def _next(self) -> list[str]:
        batch: list[str] = []
        for _ in range(min(PROBES_PER_TICK, len(self._rota))):
            inbox = self._rota.popleft()
            addresses = self._ahead[inbox]
            while addresses and (first := next(iter(addresses))) not in self._waiting:
                del addresses[first]
            if addresses:
                self._rota.append(inbox)
                batch.append(inbox)
            else:
                del self._ahead[inbox]
        return batch

    def _nudges(self, address: str) -> Iterable[Signal]:
        nudged = False
        for waiter in self._waiting.get(address, {}):
            if waiter.kind == model.CHANGED:
                yield waiter
            elif not nudged:
                nudged = True
                yield waiter
