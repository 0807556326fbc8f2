"""A bound on the connections that the threads of one process open, and a queue of threads in front of them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Generic, TypeVar

from ..errors import Unavailable

W = TypeVar("W")


class Busy(Unavailable):
    """All connections are in use: nothing was asked."""


class Room(Generic[W]):
    """For ``most`` of ``wires``, of which those in ``idle`` may be taken. It costs nothing while there is one to take.

    Whoever finds none asks here, and is served in turn. Whoever gives one back, or closes one, calls `serve` if there
    is a `queue`.
    """

    def __init__(self, most: int, idle: deque[W], wires: set[W], where: str) -> None:
        self._most = most
        self._idle = idle
        self._wires = wires
        self._where = where
        self._dialling = 0
        self._lock = threading.RLock()  # a signal's handler may come to the same place
        self.queue: deque[queue.SimpleQueue[W | None]] = deque()

    def wait(self, timeout_s: float) -> W | None:
        """One that is free now. Or None: there is room, so dial one, and say `dialled` whatever came of it."""
        ticket: queue.SimpleQueue[W | None] = queue.SimpleQueue()
        self.queue.append(ticket)
        self.serve()
        try:
            return ticket.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            if (served := self._withdraw(ticket)) is not None:
                return served.get()
            why = f"all {self._most} connections of this process to {self._where} were busy for {timeout_s:.1f} s"
            raise Busy(why) from None
        except BaseException:
            if (served := self._withdraw(ticket)) is not None:
                self._give_back(served.get())
            raise

    def serve(self) -> None:
        """Let those in the queue go on for whom there is a connection, or room for one."""
        with self._lock:
            while self.queue:
                ticket = self.queue.popleft()
                try:
                    ticket.put(self._idle.pop())
                except IndexError:
                    if len(self._wires) + self._dialling >= self._most:
                        self.queue.appendleft(ticket)
                        return
                    self._dialling += 1
                    ticket.put(None)

    def dialled(self) -> None:
        """It is among the wires by now, or none was made."""
        with self._lock:
            self._dialling -= 1
        if self.queue:
            self.serve()

    def _withdraw(self, ticket: queue.SimpleQueue[W | None]) -> queue.SimpleQueue[W | None] | None:
        """The ticket if it was served in the same moment."""
        with self._lock:
            if ticket not in self.queue:
                return ticket
            self.queue.remove(ticket)
            return None

    def _give_back(self, wire: W | None) -> None:
        if wire is None:
            self.dialled()
        else:
            self._idle.append(wire)
            self.serve()
