"""A team of processes that contend for one lock, all at once, and end with us whatever happens."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Generator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self, cast

from ..errors import HoldfastError
from .contender import Make
from .figures import Contest, Idle
from .worker import HANDOVERS, LAST, STOP, interrupts_held_back, work

PATIENCE_S = 120.0
"""How long workers may take for what they are told, beyond what that takes by itself."""
SETTLE_S = 0.2
"""Until every waiter surely waits."""


class Team:
    """``size`` processes, used in a ``with``. Those that are `hired` have a lock, which a `Crew` measures."""

    def __init__(self, size: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._board = self._context.RawArray("q", 3)
        self._pipes: list[Connection] = []
        self._workers: list[Any] = []
        self._size = size

    def __enter__(self) -> Self:
        try:
            with interrupts_held_back():  # they stay so in the children: it is we who end them
                for number in range(self._size):
                    self._start(number)
            _answers(self._pipes)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self, number: int) -> None:
        ours, theirs = self._context.Pipe()
        worker = self._context.Process(target=work, args=(number, theirs, self._board, os.getpid()), daemon=True)
        self._pipes.append(ours)
        worker.start()
        self._workers.append(worker)
        theirs.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End those that we started, each by its own id, whatever they are doing."""
        for pipe in self._pipes:
            pipe.close()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join(5)
            if worker.is_alive():
                worker.kill()
                worker.join()

    @contextlib.contextmanager
    def hired(self, number: int, make: Make) -> Generator[Crew]:
        """The first ``number`` of them, each with a lock of its own making, which it has taken once."""
        pipes = self._pipes[:number]
        _tell(pipes, make)
        yield Crew(pipes, self._board, make)
        _tell(pipes, "finish")


class Crew:
    """Those of a team that contend for one lock."""

    def __init__(self, pipes: Sequence[Connection], board: Any, make: Make) -> None:
        self._pipes = pipes
        self._board = board
        self._make = make

    def contest(self, seconds: float, inside_s: float) -> Contest:
        """Let each take the lock again and again, and keep it for ``inside_s``."""
        board = self._board
        board[LAST], board[HANDOVERS], board[STOP] = -1, 0, 0
        started = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(("contest", inside_s))
        connection.wait(self._pipes, seconds)  # earlier only if one failed
        in_time, elapsed = board[HANDOVERS], time.perf_counter() - started
        board[STOP] = 1
        shares = _answers(self._pipes)
        return Contest(
            seconds=elapsed,
            handovers_in_time=in_time,
            handovers=board[HANDOVERS],
            waits=[waits for waits, _, _ in shares],
            cpu_s=sum(cpu_s for _, cpu_s, _ in shares),
            calls=sum(calls for _, _, calls in shares),
        )

    def idle(self, seconds: float) -> Idle:
        """Hold the lock while the others wait, and see what waiting alone takes."""
        waiters = self._pipes[1:]
        lock = self._make()
        try:
            with lock:
                samples = _tell(waiters, "wait", SETTLE_S, seconds)
            _answers(waiters)  # each had its turn after us
        finally:
            lock.close()
        return Idle(
            cpu_share=sum(cpu_s / elapsed for elapsed, cpu_s, _ in samples),
            calls_per_s=sum(calls / elapsed for elapsed, _, calls in samples),
        )


def _tell(pipes: Sequence[Connection], *command: Any) -> list[Any]:
    for pipe in pipes:
        pipe.send(command)
    return _answers(pipes)


def _answers(pipes: Sequence[Connection]) -> list[Any]:
    """One of each. The first failure is raised."""
    answers: dict[Any, Any] = {}
    until = time.monotonic() + PATIENCE_S
    while len(answers) < len(pipes):
        missing = [pipe for pipe in pipes if pipe not in answers]
        ready = connection.wait(missing, max(0.0, until - time.monotonic()))
        if not ready:
            raise HoldfastError(f"{len(missing)} of {len(pipes)} workers did not answer within {PATIENCE_S:g} s")
        for pipe in ready:
            try:
                answer = cast(Connection, pipe).recv()
            except (EOFError, OSError):
                raise HoldfastError("a worker ended in the middle of its work") from None
            if isinstance(answer, BaseException):
                raise answer
            answers[pipe] = answer
    return [answers[pipe] for pipe in pipes]
