"""Keep a command running on exactly one of the machines that run this. POSIX only.

One thread decides everything: it sleeps until a signal, the end of a child, a message of CMD's or a time that was set,
looks at what is, and acts.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..core.recipe import ttl_of
from ..errors import LeaseLost, OutcomeUnknown, StaleToken, Unavailable, Unsupported
from ..sync import Client
from .child import CannotStart
from .lead_command import Command
from .lead_policy import Policy
from .lead_signals import Signals, Stopped, name_of
from .lead_term import Term
from .notify import Manager

__all__ = ["CannotStart", "Lead", "Policy"]

FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 30.0
"""Between two starts of a CMD that ends again and again, before jitter."""

DOUBLINGS = 10
"""More than it takes from the one to the other."""


class Lead:
    """`run` campaigns, leads, and stands by again, until a signal says to stop.

    ``tell`` gets a line for each event. What `Policy` and the engine cannot do raises `Misuse` and `Unsupported`.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        command: Sequence[str],
        policy: Policy,
        tell: Callable[[str], None],
        *,
        ttl_s: float | None = None,
    ) -> None:
        if os.name != "posix":
            raise Unsupported("lead needs a system with POSIX signals, to stop CMD if the lease is lost")
        # CMD is to be gone before the lease is given up: so it is no renewal that ends it, but `Term.why_not`
        self._election = client.election(name, ttl_s, on_unsure="keep_until_deadline")
        self._ttl_s = ttl_of(client.capabilities, ttl_s)
        self._signals = Signals()
        self._manager = Manager()
        self._command = Command(client, name, command, policy, tell, self._manager, self._signals)
        self._client = client
        self._name = name
        self._policy = policy
        self._say = tell
        self._failures: deque[float] = deque()

    def run(self) -> int:
        """The exit code: 0 after SIGTERM, 128 + n after another signal, CMD's own with ``once``.

        Raises `CannotStart`, and `Unavailable` where the engine cannot be reached at the start.
        """
        self._client.ping()
        self._command.adopt_orphans()
        manager = self._manager
        with contextlib.closing(self._command.inbox), self._signals.handled(), manager.pinged_while(self._renews):
            try:
                while True:
                    code = self._lead_once()
                    if code is not None:
                        return code
            except Stopped:
                signum = self._signals.stopped_by or signal.SIGTERM
                self._say(f"stopped by {name_of(signum)}")
                return 0 if signum == signal.SIGTERM else 128 + signum
            finally:
                manager.tell("STOPPING=1", "STATUS=stopped")

    def _renews(self) -> bool:
        """Whether leases are surely being renewed, or tried to: each try moves when the next is due."""
        session = self._client.session
        due = min((tenure.due for tenure in list(session.tenures.values())), default=math.inf)
        return session.world.now() - due < session.patience_s + 1.0

    # -- one time as the leader

    def _lead_once(self) -> int | None:
        """Wait for our turn, lead until that is over; then None, or the code to exit with."""
        term = self._campaign()
        if term is None:
            return None
        code: int | None = None
        try:
            self._say(f"leading {self._name} (token {term.token})")
            self._manager.status(f"leading, token {term.token}")
            if self._holds_off(term):
                code = self._keep_running(term)
        finally:
            self._give_up(term)
        self._signals.raise_if_stopped()
        if code is None and len(self._failures) > self._policy.restarts:
            self._sit_out()
        return code

    def _campaign(self) -> Term | None:
        try:
            with self._signals.interrupting():
                ahead = self._election.leader()
                where = f"standing by behind {ahead.owner}" if ahead else "standing by"
                self._say(where)
                self._manager.tell("READY=1", f"STATUS={where}")
                leadership = self._election.campaign()
        except (Unavailable, OutcomeUnknown, LeaseLost, StaleToken) as trouble:
            self._say(f"cannot stand by, trying again: {trouble}")
            self._manager.status(f"cannot stand by: {trouble}")
            self._pause(1.0 + random.random())
            return None
        return Term(leadership, self._policy, self._signals, self._ttl_s)

    def _holds_off(self, term: Term) -> bool:
        """Wait out ``hold_off_s`` where the last leader went without a word. False if we lead no longer."""
        if self._policy.hold_off_s and term.silent:
            self._say(f"{term.silent} went without a word: holding off for {self._policy.hold_off_s:g} s")
            term.note("holding off", "holding off")
            self._pause(self._policy.hold_off_s, term)
        return not term.why_not()

    def _give_up(self, term: Term) -> None:
        lost = term.is_lost
        term.resign()
        self._say(f"lost the lead of {self._name}" if lost else f"resigned from {self._name}")

    def _sit_out(self) -> None:
        self._failures.clear()
        self._say(f"CMD fails here: sitting out for {self._policy.sit_out_s:g} s, so that another gets its turn")
        self._manager.status(f"sitting out for {self._policy.sit_out_s:g} s")
        self._pause(self._policy.sit_out_s)
        self._signals.raise_if_stopped()

    # -- CMD, again and again

    def _keep_running(self, term: Term) -> int | None:
        """Until we must not, or it failed too often; the code to exit with if that is the end of all."""
        while True:
            ended = self._command.run(term)
            if term.why_not():
                return None
            if self._policy.once and ended.by_itself:
                return ended.code
            count = self._count_failure()
            if count > self._policy.restarts:
                self._say(f"{ended.why}, {count} times in {self._policy.window_s:g} s")
                return None
            delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(count - 1, DOUBLINGS)) * (0.5 + random.random())
            self._say(f"{ended.why} (restart {count} of {self._policy.restarts} in {delay_s:.1f} s)")
            self._manager.status(f"{ended.why}, restart {count} of {self._policy.restarts}")
            term.note("restarting", ended.why)
            self._pause(delay_s, term)
            if term.why_not():
                return None

    def _count_failure(self) -> int:
        """How often it failed within the window."""
        now = time.monotonic()
        self._failures.append(now)
        while self._failures[0] < now - self._policy.window_s:
            self._failures.popleft()
        return len(self._failures)

    def _pause(self, delay_s: float, term: Term | None = None) -> None:
        """Until the time is over, we are to stop, or (with ``term``) CMD must not run."""
        until = time.monotonic() + delay_s
        while not self._signals.stopping and (now := time.monotonic()) < until:
            self._command.reap_ended()
            if term is not None and term.why_not():
                return
            self._signals.wait(until if term is None else min(until, now + term.look_s))
