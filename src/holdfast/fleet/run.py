"""Run a command while holding a lock: ``flock`` for a fleet. POSIX only."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from ..core.recipe import ttl_of
from ..errors import Misuse, Unsupported
from ..sync import Client

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
FROM_TERMINAL = (signal.SIGINT, getattr(signal, "SIGQUIT", None))


class CannotStart(Exception):
    """CMD could not be started; ``code`` is what a shell would exit with: 127 not found, 126 not executable."""

    def __init__(self, command: str, error: OSError) -> None:
        super().__init__(f"cannot run {command!r}: {error.strerror or error}")
        self.code = 127 if isinstance(error, FileNotFoundError) else 126


def run(
    client: Client,
    name: str,
    command: Sequence[str],
    *,
    ttl_s: float | None = None,
    timeout_s: float | None,
    grace_s: float = 10.0,
) -> int:
    """Hold the lock ``name`` while ``command`` runs; its exit code, as a shell would give it.

    The command finds its fencing token in HOLDFAST_TOKEN. Signals are forwarded. If the lease is lost it gets SIGTERM,
    and SIGKILL after ``grace_s`` seconds. Raises `AcquireTimeout`, `LeaseLost`, `CannotStart`; in each case the lock
    is given back. While waiting for the lock a signal ends the process, out of the queue, with 128 + its number.
    """
    if os.name != "posix":
        raise Unsupported("run needs a system with POSIX signals, to stop CMD if the lease is lost")
    if not 0 <= grace_s < math.inf:
        raise Misuse(f"grace_s is 0 seconds or more and finite, not {grace_s!r}")
    lock = client.lock(name, ttl_s=ttl_of(client.capabilities, ttl_s), timeout_s=timeout_s)
    with _Signals() as signals, lock.acquire() as lease:  # leaving it raises LeaseLost if it was lost
        signals.wait_for_child()
        child = _Child(command, {"HOLDFAST_TOKEN": str(lease.token), "HOLDFAST_NAME": name}, client)
        lease.on_lost(lambda: child.end(grace_s))
        signals.forward_to(child)
        code = child.process.wait()
        if not lease.is_held:
            child.end(grace_s)  # what it started may go on
    return code if code >= 0 else 128 - code


class _Child:
    """CMD. It keeps a copy of the engine's lifeline: an embedded claim lives as long as either of us.

    Without a terminal it is a process group of its own, so that all of it can be ended. At a terminal it stays in ours:
    job control (reading, Ctrl-Z) works by groups.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], client: Client) -> None:
        lifeline = client.session.world.link.lifeline
        copies = () if lifeline is None else (os.dup(lifeline),)
        before_exec = _die_with_parent()  # two system calls, looked up here: a forked child should do little
        self._grouped = _terminal_group() is None
        try:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                pass_fds=copies,
                preexec_fn=before_exec,  # noqa: PLW1509
                process_group=0 if self._grouped else None,
            )
        except OSError as error:
            raise CannotStart(command[0], error) from error
        finally:
            for copy in copies:
                os.close(copy)

    def send(self, signum: int) -> None:
        """To CMD alone."""
        self.process.send_signal(signum)

    def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after ``grace_s``: to its whole group where it has one."""
        until = time.monotonic() + grace_s
        going = self._send_all(signal.SIGTERM)
        while going and time.monotonic() < until:
            time.sleep(0.02)
            going = self._send_all(0)
        if going:
            self._send_all(signal.SIGKILL)

    def _send_all(self, signum: int) -> bool:
        """False where nobody is left."""
        if not self._grouped:
            self.process.send_signal(signum)
            return self.process.returncode is None
        try:
            os.killpg(self.process.pid, signum)
        except ProcessLookupError:
            return False
        return True


class _Signals:
    """What reaches us: it ends us while we wait for the lock, and reaches CMD once that is there.

    What is ignored (nohup, a shell's ``&``) stays so, for CMD as well.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._held: list[int] | None = None  # what came while CMD was being started
        self._before: dict[int, object] = {}

    def wait_for_child(self) -> None:
        self._held = []

    def forward_to(self, child: _Child) -> None:
        self._child = child
        for signum in self._held or ():
            child.send(signum)

    def _handle(self, signum: int, frame: object) -> None:
        if self._child is not None:
            # once: a terminal sends to the whole foreground group, and CMD is in it
            if signum not in FROM_TERMINAL or _terminal_group() != os.getpgrp():
                self._child.send(signum)
        elif self._held is not None:
            self._held.append(signum)
        else:
            sys.exit(128 + signum)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python handles signals there only
            heard = [signum for signum in FORWARDED if signal.getsignal(signum) is not signal.SIG_IGN]
            self._before = {signum: signal.signal(signum, self._handle) for signum in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, former in self._before.items():
            signal.signal(signum, former)  # type: ignore[arg-type]


def _terminal_group() -> int | None:
    """The process group in the foreground of our terminal; None where we have no terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return None
    with contextlib.closing(os.fdopen(terminal)):
        return os.tcgetpgrp(terminal)


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux: have the kernel send the child SIGTERM when we are killed, since nobody would stop it then."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signal.SIGTERM)

    return in_child
