"""CMD, as `holdfast lead` runs it: from its start until all that it started is gone. POSIX only."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..sync import Client
from .child import Child, adopt_orphans, children, reap, shell_code
from .lead_policy import Policy
from .lead_signals import Signals, name_of
from .lead_term import Term
from .notify import OURS, Inbox, Manager

PACE_S = 0.01
"""So often we look whether all that CMD started is gone, once CMD itself is."""


class Outcome(NamedTuple):
    """``why`` CMD ended, with which ``code`` as a shell would give it, and whether it did so by itself."""

    why: str
    code: int
    by_itself: bool


class Command:
    """What is to run; `run` does so once, and may be called again."""

    def __init__(
        self,
        client: Client,
        name: str,
        words: Sequence[str],
        policy: Policy,
        tell: Callable[[str], None],
        manager: Manager,
        signals: Signals,
    ) -> None:
        self.policy = policy
        self.say = tell
        self.manager = manager
        self.signals = signals
        self.inbox = Inbox()
        self._client = client
        self._name = name
        self._words = words
        self._not_ours: set[int] = set()  # children that were there before

    def adopt_orphans(self) -> None:
        self._not_ours = children()
        adopt_orphans()

    def reap_ended(self, *but: int) -> None:
        """Collect orphans that ended since the last time; a look at all processes only where something did."""
        if self.signals.has_child_ended():
            reap({*but, *self._not_ours})

    def reap(self) -> set[int]:
        """Collect what ended, CMD as well, and name the orphans that go on."""
        return reap(self._not_ours)

    def run(self, term: Term) -> Outcome:
        """Until all of it is gone, which it is before the lease is over. Raises `CannotStart`."""
        self.inbox.clear()
        child = Child(
            self._words,
            self._environment(term),
            self._client,
            inherits=self.inbox.inherits,
            orphan_signal=signal.SIGKILL,  # whatever it does about SIGTERM: two must not run
        )
        running = _Running(self, child, term)
        self.signals.forward = child.send
        try:
            running.begin()
            running.supervise()
        finally:
            self.signals.forward = None
            running.clear_away()  # also where we failed
        return Outcome(running.ending, shell_code(child.process.returncode), not running.told_to_end)

    def _environment(self, term: Term) -> Mapping[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in OURS}
        watchdog_s = self.policy.watchdog_s
        asked = {} if watchdog_s is None else {"WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        ours = {"HOLDFAST_TOKEN": str(term.token), "HOLDFAST_NAME": self._name}
        return {**kept, **asked, **self.inbox.environment, **ours}


class _Running:
    """One CMD. The lease's renewer and the record's writer have threads of their own and never hold this one up."""

    def __init__(self, command: Command, child: Child, term: Term) -> None:
        policy = command.policy
        self.ending = ""  # why it was told to end, or what it ended with
        self.told_to_end = False
        self._command = command
        self._child = child
        self._term = term
        self._ready = False
        self._ready_by = math.inf if policy.ready_timeout_s is None else time.monotonic() + policy.ready_timeout_s
        self._alive_by = math.inf
        self._kill_at = math.inf
        self._killed = False
        self._told: set[int] = set()  # orphans that got SIGTERM

    def begin(self) -> None:
        self._command.say(f"CMD started (pid {self._child.pid})")
        self._command.manager.status(f"leading, token {self._term.token}, CMD pid {self._child.pid}")
        waits = self._ready_by != math.inf
        self._term.note("starting" if waits else "running", "CMD started", serves=not waits)

    def supervise(self) -> None:
        """Until CMD and all that it started are gone."""
        command, child = self._command, self._child
        while True:
            self._read()
            command.reap_ended(child.pid)
            now = time.monotonic()
            code = child.process.poll()
            if not self.ending and (why := self._why_end(code, now)):
                self._end(why, now)
            if code is not None and self._is_gone():
                return
            if self.ending and now >= min(self._kill_at, now + self._term.left_s):
                self._kill()
            command.signals.wait(self._next(code is not None, now), command.inbox.files)

    def clear_away(self) -> None:
        while not self._is_gone():
            self._kill()
            time.sleep(PACE_S)

    def _why_end(self, code: int | None, now: float) -> str:
        if code is not None:
            return f"CMD was ended by {name_of(-code)}" if code < 0 else f"CMD ended with {code}"
        if why := self._term.why_not():
            return why
        if not self._ready and now >= self._ready_by:
            return f"CMD is not ready after {self._command.policy.ready_timeout_s:g} s"
        if now >= self._alive_by:
            return f"CMD is not heard of for {self._command.policy.watchdog_s:g} s"
        return ""

    def _end(self, why: str, now: float) -> None:
        """SIGTERM to all of it; SIGKILL follows."""
        self.ending = why
        self._kill_at = now + self._command.policy.grace_s
        if self._child.process.returncode is None:
            self.told_to_end = True
            self._command.say(f"{why}: stopping CMD")
            self._command.manager.status(f"{why}, stopping CMD")
        self._child.send_all(signal.SIGTERM)

    def _kill(self) -> None:
        if not self._killed and self._child.process.returncode is None:
            self._command.say("CMD goes on: killing it")
        self._killed = True
        self._child.send_all(signal.SIGKILL)
        if self._child.process.poll() is not None:
            _send(self._command.reap(), signal.SIGKILL)

    def _is_gone(self) -> bool:
        """Whether CMD ended, and all that it started: what left its group became ours as it was orphaned.

        Orphans that are new get SIGTERM.
        """
        if self._child.process.poll() is None:
            return False
        going = self._command.reap()
        _send(going - self._told, signal.SIGTERM)
        self._told |= going
        return not going and not self._child.left_behind()

    def _next(self, ended: bool, now: float) -> float:
        """When to look again, whatever comes before."""
        if ended or self._killed:
            return now + PACE_S
        term = self._term
        return max(now, min(now + term.look_s, now + term.left_s, self._kill_at, self._ready_by, self._alive_by))

    def _read(self) -> None:
        command, watchdog_s = self._command, self._command.policy.watchdog_s
        for key, value in command.inbox.read():
            if key == "READY" and value == "1":
                self._heard_ready()
            elif key == "WATCHDOG" and value == "1" and watchdog_s is not None:
                self._alive_by = time.monotonic() + watchdog_s
            elif key == "RELOADING" and value == "1":
                command.manager.reloading()
                command.say("CMD reloads")
            elif key == "STATUS":
                command.manager.status(f"leading, token {self._term.token}, CMD pid {self._child.pid}: {value}")

    def _heard_ready(self) -> None:
        self._command.manager.tell("READY=1")  # also the end of a reload
        if self._ready:
            return
        self._ready = True
        if self._command.policy.watchdog_s is not None:
            self._alive_by = time.monotonic() + self._command.policy.watchdog_s
        self._command.say("CMD is ready")
        self._term.note("ready", "CMD is ready", serves=True)


def _send(pids: set[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)
