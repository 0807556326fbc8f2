"""One leader among many candidates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core import election as elections
from ..core.chronicle import Change
from ..core.election import Candidate, Leader, LeadershipBase, Rules, Term
from ..core.session import Session
from ..core.tenure import Tenure
from ..worlds.threads import drive
from .lease import Lease
from .watch import follow

if TYPE_CHECKING:
    from .client import Client


class Election:
    """Who leads what has this name: at most one of those who campaign, in the order in which they came."""

    __slots__ = ("_client", "_rules")

    def __init__(self, client: Client, rules: Rules) -> None:
        self._client, self._rules = client, rules

    @property
    def name(self) -> str:
        return self._rules.turnstile.name

    def campaign(self, payload: bytes = b"", timeout_s: float | None = None) -> Leadership:
        """Wait for our turn to lead, for at most ``timeout_s``; others then see ``payload`` (up to 4096 bytes).

        May run in several threads or tasks at once. Raises `AcquireTimeout`, `Unavailable`, and `LeaseLost` where our
        turn came and was over before we knew; nothing is left behind then.
        """
        session = self._client.session
        tenure, term = elections.candidate(session, self._rules, payload), Term(payload)
        leadership = Leadership(session, tenure, term)
        drive(elections.campaign(session, tenure, term, timeout_s))
        return leadership

    def leader(self) -> Leader | None:
        """Who leads now; None where nobody does."""
        return drive(elections.leader(self._client.session, self._rules))

    def observe(self, timeout_s: float | None = None) -> Iterator[Leader | None]:
        """The leader now (or None), and again after each change; ends once nothing changed for ``timeout_s``.

        Never misses the last state; may skip ones in between. What `Leadership.update` changes is seen within 5 s. Goes
        on when the engine comes back; raises `Unavailable` where it is out of reach at the end.
        """
        session = self._client.session
        return follow(session, elections.watch(session, self._rules), timeout_s)

    def candidates(self) -> list[Candidate]:
        """Who waits to lead, in the order of their turn."""
        return drive(elections.candidates(self._client.session, self._rules))

    def history(self) -> list[Change]:
        """The last changes of leader, the latest last: who noticed what, when, and how long it took."""
        return drive(elections.history(self._client.session, self._rules))

    def __repr__(self) -> str:
        return f"<Election {self._rules.turnstile.address}>"


class Leadership(LeadershipBase, Lease):
    """What the leader holds: a lease, and the record that others see. ``with`` resigns at the end."""

    __slots__ = ("_lock", "_term")

    def __init__(self, session: Session, tenure: Tenure, term: Term) -> None:
        self._term, self._lock = term, threading.Lock()
        super().__init__(session, tenure)

    def update(self, payload: bytes | None = None) -> None:
        """Let others see another payload, if given, and what was noted.

        Raises `LeaseLost` or `StaleToken` once we lead no more.
        """
        self._session.refuse_fork()
        with self._lock:
            drive(self._term.update(self._session, self._tenure, payload))

    def resign(self) -> None:
        """Give it up: the next candidate leads at once. Raises `LeaseLost` if it was lost; twice does nothing."""
        drive(self._term.resign(self._session, self._tenure))

    def release(self) -> None:
        """The same as `resign`."""
        self.resign()
