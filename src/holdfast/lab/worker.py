"""One process of a team: does what it is told over a pipe until that is closed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Generator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from ..errors import HoldfastError
from .contender import Contender

LAST, HANDOVERS, STOP = range(3)
"""What stands on the board that all share: who held it last, how often it was another, and whether to stop.

The first two are written by whoever holds the lock.
"""


@contextlib.contextmanager
def interrupts_held_back() -> Generator[None]:
    """Signals wait until the end of this; a process that is started in it never hears of them, but for SIGTERM."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # as it starts it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(number: int, pipe: Connection, board: Any, parent: int) -> None:
    """Answer each command. What fails is an answer too, and the last."""
    logging.getLogger("holdfast").setLevel(logging.ERROR)
    try:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        pipe.send("here")
        while True:
            (make,) = pipe.recv()
            lock: Contender = make()
            with lock:  # connected, scripts loaded
                pass
            pipe.send("ready")
            _serve(number, lock, pipe, board, parent)
            lock.close()
            pipe.send("finished")
    except (EOFError, BrokenPipeError):  # our parent is gone, or has done with us
        pass
    except HoldfastError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(HoldfastError(f"a worker failed: {type(error).__name__}: {error}"))


def _serve(number: int, lock: Contender, pipe: Connection, board: Any, parent: int) -> None:
    while True:
        command, *given = pipe.recv()
        if command == "contest":
            (inside_s,) = given
            pipe.send(_contest(number, lock, inside_s, board, parent))
        elif command == "wait":
            settle_s, measure_s = given
            _wait(lock, pipe, settle_s, measure_s)
        else:
            return


def _contest(number: int, lock: Contender, inside_s: float, board: Any, parent: int) -> tuple[list[float], float, int]:
    """Take it again and again until told to stop: what each turn waited, the CPU time and the calls of it all."""
    cpu_s, calls = time.process_time(), lock.calls
    waits: list[float] = []
    counting = True
    while counting:
        asked = time.perf_counter()
        with lock:
            waits.append(time.perf_counter() - asked)
            if board[LAST] != number:
                board[HANDOVERS] += board[LAST] >= 0
                board[LAST] = number
            if inside_s:
                time.sleep(inside_s)
            counting = not board[STOP] and os.getppid() == parent
    return waits, time.process_time() - cpu_s, lock.calls - calls


def _wait(lock: Contender, pipe: Connection, settle_s: float, measure_s: float) -> None:
    """Wait for what another holds, and say what ``measure_s`` of that took; then take it as our turn comes."""
    failed: list[Exception] = []

    def take() -> None:
        try:
            with lock:
                pass
        except Exception as error:
            failed.append(error)

    taker = threading.Thread(target=take, name="lab-taker")
    taker.start()
    time.sleep(settle_s)
    since = time.perf_counter(), time.process_time(), lock.calls
    time.sleep(measure_s)
    until = time.perf_counter(), time.process_time(), lock.calls
    pipe.send(tuple(after - before for before, after in zip(since, until, strict=True)))
    taker.join()
    if failed:
        raise failed[0]
    pipe.send("had it")
