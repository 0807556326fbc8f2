"""The leader's seat: an exclusive claim that everyone may watch, and the record of who sat there, under its token."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from ..core import chronicle
from ..core import lease as leases
from ..core.chronicle import Step
from ..core.election import RESIGNED, Record, election_turnstile, succeed
from ..core.recipe import Recipe, ttl_of
from ..errors import HoldfastError
from ..sync import Client, Lease
from ..sync.cell import OpenCell
from ..worlds.threads import drive

SERVING = ("running", "ready")


class Seat:
    """One name's seat, as one candidate sees it."""

    def __init__(self, client: Client, name: str, ttl_s: float | None) -> None:
        engine = client.capabilities
        self.client = client
        self.ttl_s = ttl_of(engine, ttl_s)
        self.turnstile = election_turnstile(engine, name)
        self._recipe = Recipe(self.turnstile, ttl_s=self.ttl_s)

    def taken_by(self) -> str | None:
        """Who has it now. Raises `Unavailable`."""
        session = self.client.session
        admitted = drive(session.ask(session.engine.look(self.turnstile))).admitted
        return admitted[0].owner if admitted else None

    def wait_for_turn(self) -> Term:
        """Raises `Unavailable`, and then has left the queue; so it does for any interrupt."""
        session = self.client.session
        tenure = leases.new_tenure(session, self._recipe)
        lease = Lease(session, tenure)
        drive(leases.acquire(session, tenure, self._recipe.strategy, None))
        try:
            cell = None
            if self.client.capabilities.cells:
                cell = self.client.cell(self.turnstile.address).open(lease)
        except BaseException:
            with contextlib.suppress(HoldfastError):
                lease.release()
            raise
        return Term(session.owner, lease, cell)


class Term:
    """Our time in the seat. What is noted is written by a thread of its own: an engine out of reach holds up nobody."""

    def __init__(self, owner: str, lease: Lease, cell: OpenCell | None) -> None:
        self.lease = lease
        self._cell = cell
        before = Record.load(cell.value) if cell is not None else None
        self.silent: str | None = before.leader if before is not None and before.state != RESIGNED else None
        """Who led before and went without a word."""
        self._record = succeed(before, owner, lease.token, b"", time.time())
        self._serves = False
        self._notes: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="holdfast-lead-record", daemon=True)
        self._writer.start()
        self.note("elected")

    @property
    def token(self) -> int:
        return self.lease.token

    def on_lost(self, callback: Callable[[], object]) -> None:
        self.lease.on_lost(callback)

    def note(self, state: str, step: str = "") -> None:
        """Our record says ``state`` from now on.

        The change that brought us here has another step, until CMD serves: what comes later is no part of it.
        """
        if step and not self._serves and len(self._record.changes[-1].steps) < chronicle.KEPT:
            self._record = self._record.with_step(Step(step, time.time()))
        self._serves = self._serves or state in SERVING
        self._record = self._record._replace(state=state, at=time.time())
        self._notes.put(self._record.dump())

    def resign(self) -> None:
        """Give the seat up; the next is admitted at once. What does not succeed, goes on in the background."""
        if self.lease.state == "HELD":
            self.note(RESIGNED)
        self._notes.put(None)
        self._writer.join(1.0)
        with contextlib.suppress(HoldfastError):
            self.lease.release()

    def _write(self) -> None:
        while (note := self._notes.get()) is not None:
            while not self._notes.empty():  # the last one says it all
                later = self._notes.get()
                if later is None:
                    self._put(note)
                    return
                note = later
            self._put(note)

    def _put(self, note: bytes) -> None:
        if self._cell is not None:
            with contextlib.suppress(HoldfastError):  # it is for people; the lease says whether we lead
                self._cell.put(note)
