"""Run a command while holding a lock: ``flock`` for a fleet. POSIX only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence

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
    client: Client, name: str, command: Sequence[str], *, ttl_s: float, timeout_s: float | None, grace_s: float = 10.0
) -> int:
    """Hold the lock ``name`` while ``command`` runs; its exit code, as a shell would give it.

    The command finds its fencing token in HOLDFAST_TOKEN. Signals are forwarded. If the lease is lost it gets SIGTERM,
    and SIGKILL after ``grace_s`` seconds. Raises `AcquireTimeout`, `LeaseLost`, `CannotStart`; in each case the lock
    is given back. While waiting for the lock a signal ends the process, out of the queue, with 128 + its number.
    """
    lock = client.lock(name, ttl_s=ttl_s, timeout_s=timeout_s)
    with _signals_exit():
        lease = lock.acquire()
    with lease:  # leaving it raises LeaseLost if it was lost
        child = _start(command, {"HOLDFAST_TOKEN": str(lease.token), "HOLDFAST_NAME": name}, client)
        with _signals_to(child):
            lease.on_lost(lambda: _stop(child, grace_s))
            code = child.wait()
    return code if code >= 0 else 128 - code


def _start(command: Sequence[str], environment: Mapping[str, str], client: Client) -> subprocess.Popen[bytes]:
    """The child keeps a copy of the engine's lifeline: an embedded claim lives as long as either of us."""
    lifeline = client.session.world.link.lifeline
    copies = () if lifeline is None else (os.dup(lifeline),)
    before_exec = _die_with_parent()  # two system calls, looked up here: a forked child should do little
    try:
        return subprocess.Popen(command, env={**os.environ, **environment}, pass_fds=copies, preexec_fn=before_exec)  # noqa: PLW1509
    except OSError as error:
        raise CannotStart(command[0], error) from error
    finally:
        for copy in copies:
            os.close(copy)


def _stop(child: subprocess.Popen[bytes], grace_s: float) -> None:
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()


@contextlib.contextmanager
def _signals_exit() -> Generator[None]:
    """While waiting: leave the queue in order. Ctrl-C does so by itself."""

    def leave(signum: int, frame: object) -> None:
        sys.exit(128 + signum)

    with _handlers(leave, [signum for signum in FORWARDED if signum != signal.SIGINT]):
        yield


@contextlib.contextmanager
def _signals_to(child: subprocess.Popen[bytes]) -> Generator[None]:
    """While it runs: what reaches us reaches the child, once: a terminal sends to the whole foreground group."""

    def forward(signum: int, frame: object) -> None:
        if signum not in FROM_TERMINAL or not _in_foreground():
            child.send_signal(signum)

    with _handlers(forward, FORWARDED):
        yield


@contextlib.contextmanager
def _handlers(handler: Callable[[int, object], None], signums: Sequence[int]) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in its main thread only
        return
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # stdin is no terminal
        return False


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
