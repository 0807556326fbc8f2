"""Keeps an eye on the processes ahead of our waiters, without touching the database, and says when one has died."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from .. import model
from ..model import Signal

TICK_S = 0.02
PROBES_PER_TICK = 16
"""So its cost is bounded: a fraction of a percent of a core while somebody waits; more processes take turns."""


class Vigil:
    """Which of our waiters (the signals that would nudge them) stand where, and which processes are ahead of them."""

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._lock = threading.Lock()
        self._where: dict[Signal, str] = {}
        self._waiting: dict[str, dict[Signal, None]] = {}  # by address, oldest first
        self._ahead: dict[str, dict[str, None]] = {}  # by inbox, addresses where it is ahead of ours
        self._rota: deque[str] = deque()

    @property
    def needed(self) -> bool:
        return bool(self._where)

    def expect(self, address: str, waiter: Signal, inboxes: Iterable[str]) -> None:
        """``waiter`` stands at ``address`` behind these processes, or watches them."""
        with self._lock:
            self._where[waiter] = address
            self._waiting.setdefault(address, {})[waiter] = None
            for inbox in inboxes:
                if inbox not in self._ahead:
                    self._ahead[inbox] = {}
                    self._rota.append(inbox)
                self._ahead[inbox][address] = None

    def forget(self, waiter: Signal) -> None:
        """It waits no longer."""
        with self._lock:
            address = self._where.pop(waiter, None)
            if address is not None:
                waiters = self._waiting[address]
                del waiters[waiter]
                if not waiters:
                    del self._waiting[address]

    def tick(self) -> list[Signal]:
        """Probe the next few. For each dead one nudge the watchers, and one waiter per turnstile: it will sweep."""
        signals: dict[Signal, None] = {}
        for inbox in self._next():
            if not self._is_alive(inbox):
                with self._lock:
                    self._rota.remove(inbox)
                    for address in self._ahead.pop(inbox):
                        signals.update(dict.fromkeys(self._nudges(address)))
        return list(signals)

    def _next(self) -> list[str]:
        batch: list[str] = []
        with self._lock:
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
