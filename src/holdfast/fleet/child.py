"""CMD as a child process: what it inherits, how signals reach it, and how all that it started ends. POSIX only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path

from ..sync import Client

FROM_TERMINAL = (signal.SIGINT, getattr(signal, "SIGQUIT", None))

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class CannotStart(Exception):
    """CMD could not be started; ``code`` is what a shell would exit with: 127 not found, 126 not executable."""

    def __init__(self, command: str, error: OSError) -> None:
        super().__init__(f"cannot run {command!r}: {error.strerror or error}")
        self.code = 127 if isinstance(error, FileNotFoundError) else 126


class Child:
    """CMD. It keeps a copy of the engine's lifeline: an embedded claim lives as long as either of us.

    Without a terminal it is a process group of its own, so that all of it can be ended. At a terminal it stays in ours:
    job control (reading, Ctrl-Z) works by groups. On Linux it gets ``orphan_signal`` if we are killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        client: Client,
        *,
        inherits: Sequence[int] = (),
        orphan_signal: int = signal.SIGTERM,
    ) -> None:
        lifeline = client.session.world.link.lifeline
        copies = () if lifeline is None else (os.dup(lifeline),)
        before_exec = _die_with_parent(orphan_signal)  # looked up here: a forked child should do little
        self._grouped = terminal_group() is None
        try:
            self.process = subprocess.Popen(
                command,
                env=environment,
                pass_fds=(*copies, *inherits),
                preexec_fn=before_exec,  # noqa: PLW1509
                process_group=0 if self._grouped else None,
            )
        except OSError as error:
            raise CannotStart(command[0], error) from error
        finally:
            for copy in copies:
                os.close(copy)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, signum: int) -> None:
        """To CMD alone."""
        self.process.send_signal(signum)

    def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after ``grace_s``: to its whole group where it has one."""
        until = time.monotonic() + grace_s
        going = self.send_all(signal.SIGTERM)
        while going and time.monotonic() < until:
            time.sleep(0.02)
            going = self.send_all(0)
        if going:
            self.send_all(signal.SIGKILL)

    def left_behind(self) -> bool:
        """Whether others of its group go on after it; never where it has no group of its own."""
        return self._grouped and self.send_all(0)

    def send_all(self, signum: int) -> bool:
        """To its group where it has one; False where nobody is left."""
        if not self._grouped:
            self.process.send_signal(signum)
            return self.process.returncode is None
        try:
            os.killpg(self.process.pid, signum)
        except ProcessLookupError:
            return False
        except PermissionError:  # some are left that became another user's
            return True
        return True


def shell_code(returncode: int) -> int:
    """As a shell would give it: 128 + n where signal n ended it."""
    return returncode if returncode >= 0 else 128 - returncode


@contextlib.contextmanager
def handling(signums: Iterable[int], handle: Callable[[int, object], None]) -> Generator[None]:
    """Have ``handle`` called with these signals. What is ignored (nohup, a shell's ``&``) stays so, for CMD as well."""
    before: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():  # Python handles signals there only
        heard = [signum for signum in signums if signal.getsignal(signum) is not signal.SIG_IGN]
        before = {signum: signal.signal(signum, handle) for signum in heard}
    try:
        yield
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)  # type: ignore[arg-type]


def terminal_group() -> int | None:
    """The process group in the foreground of our terminal; None where we have no terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return None
    with contextlib.closing(os.fdopen(terminal)):
        return os.tcgetpgrp(terminal)


def _die_with_parent(signum: int) -> Callable[[], None] | None:
    """On Linux: have the kernel send the child a signal when we are killed, since nobody would stop it then."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signum)

    return in_child


# -- what CMD started and left behind


def adopt_orphans() -> None:
    """On Linux: what CMD's children leave behind becomes ours, as it does for process 1 of a container anyway."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Our child processes, zombies included; on Linux only."""
    found: set[int] = set()
    ours = str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text(errors="replace").rpartition(")")[2].split()[1] == ours:
                found.add(int(stat.parent.name))
    return found


def reap(but: Iterable[int]) -> set[int]:
    """Collect adopted processes that ended, and name those that go on. Never ``but`` these: others wait for them."""
    going: set[int] = set()
    for pid in children().difference(but):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                going.add(pid)
    return going
