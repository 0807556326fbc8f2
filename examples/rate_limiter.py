"""A rate limiter for many processes: at most so many calls at once, and at most so many starts in any window of time.

Both are semaphores. A permit to be *in* a call is held for as long as the call takes. A permit to *start* one is taken
and never given back: it is detached from its process, and ends by itself when the window that began with the start is
over. So a start still counts when who made it was killed, and no process has to remember anything. What was detached
too late to cover a whole window from now on is left alone, and another permit is asked for. (A process that is paused
between its permit and the call starts late; only the service that is called could refuse that.) ZooKeeper's leases
cannot be detached; all other engines with semaphores will do.

    python examples/rate_limiter.py                                         # on the embedded engine; or on yours:
    python examples/rate_limiter.py --engine redis://localhost --calls 100 --per-window 20 --window 1
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness

import holdfast
from holdfast.sync import Client


class Limiter:
    """``with limiter.call(): …``, in any number of processes and threads."""

    def __init__(self, hf: Client, name: str, at_once: int, per_window: int, window_s: float) -> None:
        shortest_s, self.slack_s = hf.capabilities.min_ttl_s, window_s / 10
        self.calls = hf.semaphore(f"{name}/calls", at_once, ttl_s=max(0.5, shortest_s))
        self.starts = hf.semaphore(f"{name}/starts", per_window, ttl_s=max(window_s + self.slack_s, shortest_s))

    @contextlib.contextmanager
    def call(self) -> Iterator[float]:
        """Wait until a call may start; gives the time of that."""
        with self.calls:
            yield self._start()

    def _start(self) -> float:
        for _ in range(100):
            lease = self.starts.acquire()
            began = time.monotonic()
            lease.detach()  # from now on it stands for a window and some slack, whatever becomes of us
            now = time.monotonic()
            if now - began <= self.slack_s:
                return now
        raise TimeoutError("the engine is too slow for this window")


def worker(url: str | None, name: str, limits: tuple[int, int, float], calls: int, notes: Path) -> None:
    with holdfast.connect(url) as hf, notes.open("w") as file:
        limiter = Limiter(hf, name, *limits)
        for _ in range(calls):
            with limiter.call() as now:
                print("start", now, file=file, flush=True)
                time.sleep(0.02)  # the call
                print("end", time.monotonic(), file=file, flush=True)


def spans(folder: Path) -> list[tuple[float, float]]:
    """When each call began and ended; one whose process was killed ended, for all we know, as it began."""
    found: list[tuple[float, float]] = []
    for notes in folder.iterdir():
        for line in notes.read_text().split("\n")[:-1]:
            what, at = line.split()
            found.append((float(at), float(at)) if what == "start" else (found.pop()[0], float(at)))
    return sorted(found)


def most_at_once(calls: list[tuple[float, float]]) -> int:
    return max(sum(begin <= moment <= end for begin, end in calls) for moment, _ in calls)


def most_starts(calls: list[tuple[float, float]], window_s: float) -> int:
    """In any window that begins with a start, and so in any at all."""
    return max(sum(first <= begin < first + window_s for begin, _ in calls) for first, _ in calls)


def main() -> bool:
    given = harness.options(
        __doc__, workers=4, calls=30, at_once=3, per_window=6, window=0.5, kill_every=1.0, kills=1000
    )
    name, limits = f"rate-{secrets.token_hex(4)}", (given.at_once, given.per_window, given.window)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)

        def arguments(number: int, start: int) -> tuple[Any, ...]:
            done = sum(notes.read_text().count("end") for notes in folder.glob(f"{number}-*"))
            mine = len(range(number, given.calls, given.workers))
            return given.engine, name, limits, mine - done, folder / f"{number}-{start}"

        kills = harness.through_kills(worker, arguments, given.workers, given.kill_every, given.kills)
        calls = spans(folder)
    at_once, starts = most_at_once(calls), most_starts(calls, given.window)
    print(f"{len(calls)} calls by {given.workers} workers, of whom {kills} were killed")
    print(f"at once: {at_once} at most, of {given.at_once} allowed")
    print(f"starts in {given.window:g} s: {starts} at most, of {given.per_window} allowed")
    return bool(at_once <= given.at_once and starts <= given.per_window)


if __name__ == "__main__":
    raise SystemExit(not main())
