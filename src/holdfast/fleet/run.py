"""Run a command while holding a lock: ``flock`` for a fleet. POSIX only."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from ..core.recipe import ttl_of
from ..errors import Misuse, Unsupported
from ..sync import Client
from .child import FROM_TERMINAL, CannotStart, Child, handling, shell_code, terminal_group

__all__ = ["CannotStart", "run"]

FORWARDED = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


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
        environment = {**os.environ, "HOLDFAST_TOKEN": str(lease.token), "HOLDFAST_NAME": name}
        child = Child(command, environment, client)
        lease.on_lost(lambda: child.end(grace_s))
        signals.forward_to(child)
        code = child.process.wait()
        if not lease.is_held:
            child.end(grace_s)  # what it started may go on
    return shell_code(code)


class _Signals:
    """What reaches us: it ends us while we wait for the lock, and reaches CMD once that is there.

    What is ignored (nohup, a shell's ``&``) stays so, for CMD as well.
    """

    def __init__(self) -> None:
        self._child: Child | None = None
        self._held: list[int] | None = None  # what came while CMD was being started
        self._handling = contextlib.ExitStack()

    def wait_for_child(self) -> None:
        self._held = []

    def forward_to(self, child: Child) -> None:
        self._child = child
        for signum in self._held or ():
            child.send(signum)

    def _handle(self, signum: int, frame: object) -> None:
        if self._child is not None:
            # once: a terminal sends to the whole foreground group, and CMD is in it
            if signum not in FROM_TERMINAL or terminal_group() != os.getpgrp():
                self._child.send(signum)
        elif self._held is not None:
            self._held.append(signum)
        else:
            sys.exit(128 + signum)

    def __enter__(self) -> Self:
        self._handling.enter_context(handling(FORWARDED, self._handle))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.close()
