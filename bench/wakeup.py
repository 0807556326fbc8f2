"""How long a hand-over takes on the embedded engine, beside a pipe: one process releases, another one waits.

*wake-up*: from right after the commit, before the signal is sent, until the waiter's ``acquire`` has returned in the
other process. *hand-over*: the same from the call of ``release``, so the transaction as well. A pipe's wake-up: from
before one process writes a byte until the other's read has returned. All on the clock that both processes share, in
interleaved rounds, each time after a pause in which the waiter has fallen asleep.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import holdfast
from holdfast import aio
from holdfast.engines.sqlite.signals import Post
from holdfast.lab.figures import percentile
from holdfast.model import ADMITTED, Signal

ASLEEP_S = 0.004
"""After so long the waiter sleeps in the kernel."""

FACES = ("threads", "asyncio")
PIPES = ("pipe", "pipe, asyncio")


def now() -> float:
    """The same clock in every process of a machine."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Face:
    """Acquire and release on one face, as plain calls."""

    def __init__(self, kind: str, url: str) -> None:
        self._runner = asyncio.Runner() if kind == "asyncio" else None
        self._client: Any = (aio if self._runner else holdfast).connect(url)
        self._lock = self._client.lock("wakeup", ttl_s=30.0)

    def run(self, call: Callable[[], Any]) -> Any:
        """Its result, and when it returned."""

        async def awaited() -> tuple[Any, float]:
            return await call(), now()

        return self._runner.run(awaited()) if self._runner else (call(), now())

    def acquire(self) -> tuple[Any, float]:
        lease, at = self.run(self._lock.acquire)
        return lease, at

    def release(self, lease: Any) -> None:
        self.run(lease.release)

    def close(self) -> None:
        self.run(self._client.aclose if self._runner else self._client.close)
        if self._runner:
            self._runner.close()


def waiter(control: Connection, pipe: int, url: str) -> None:
    """The process that waits, as told: answers when it was awake."""
    faces = {kind: Face(kind, url) for kind in FACES}
    with asyncio.Runner() as runner:
        serve(control, pipe, faces, runner)
    for face in faces.values():
        face.close()


def serve(control: Connection, pipe: int, faces: dict[str, Face], runner: asyncio.Runner) -> None:
    while order := control.recv():
        control.send("about to wait")
        if order == "pipe":
            os.read(pipe, 1)
            control.send(now())
        elif order == "pipe, asyncio":
            control.send(runner.run(read_on_loop(pipe)))
        else:
            lease, awake_at = faces[order].acquire()
            faces[order].release(lease)
            control.send(awake_at)


async def read_on_loop(pipe: int) -> float:
    """When a task that waited for a byte was awake."""
    loop = asyncio.get_running_loop()
    came = loop.create_future()
    loop.add_reader(pipe, lambda: came.set_result(os.read(pipe, 1)))
    await came
    awake_at = now()
    loop.remove_reader(pipe)
    return awake_at


def apart(*pids: int | None) -> None:
    """Each on a core of its own: on one, who is woken waits until the other one sleeps, and that is measured then."""
    if hasattr(os, "sched_setaffinity"):
        for pid, core in zip(pids, itertools.cycle(sorted(os.sched_getaffinity(0)))):
            os.sched_setaffinity(pid or 0, {core})


class Sent:
    """Notes when this process last began to tell somebody that it is admitted."""

    def __init__(self) -> None:
        self.at: float | None = None
        send = Post.send

        def noting(post: Post, inbox: str, signals: Sequence[Signal]) -> bool:
            if signals[0].kind == ADMITTED:
                self.at = now()
            return send(post, inbox, signals)

        Post.send = noting  # type: ignore[method-assign,assignment]


def measure(rounds: int, per_round: int) -> dict[str, list[list[float]]]:
    """Microseconds of each, by round."""
    found: dict[str, list[list[float]]] = {name: [] for name in PIPES}
    for kind in FACES:
        found[f"wake-up, {kind}"], found[f"hand-over, {kind}"] = [], []
    sent = Sent()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite://{folder}/wakeup.db"
        context = multiprocessing.get_context("fork")
        readable, writable = os.pipe()
        control, theirs = context.Pipe()
        child = context.Process(target=waiter, args=(theirs, readable, url))
        child.start()
        apart(os.getpid(), child.pid)
        faces = {kind: Face(kind, url) for kind in FACES}

        def asleep(order: str) -> None:
            control.send(order)
            control.recv()
            time.sleep(ASLEEP_S)

        def by_pipe(reader: str) -> None:
            asleep(reader)
            started = now()
            os.write(writable, b"x")
            times[reader].append(control.recv() - started)

        def by_lock(kind: str) -> None:
            lease, _ = faces[kind].acquire()
            asleep(kind)
            sent.at, started = None, now()
            faces[kind].release(lease)
            awake_at = control.recv()
            if sent.at is not None:  # else it did not wait yet
                times[f"wake-up, {kind}"].append(awake_at - sent.at)
                times[f"hand-over, {kind}"].append(awake_at - started)

        for _ in range(rounds + 1):
            times: dict[str, list[float]] = {name: [] for name in found}
            for _ in range(per_round):
                for reader in PIPES:
                    by_pipe(reader)
                for kind in FACES:
                    by_lock(kind)
            for name, values in times.items():
                found[name].append([value * 1e6 for value in values])
        control.send(None)
        child.join()
        for face in faces.values():
            face.close()
    return {name: each[1:] for name, each in found.items()}


def table(found: dict[str, list[list[float]]]) -> str:
    """p50 and p99 over all, and each round's p50 as a ratio to the pipe's of that round."""
    lines = ["| | p50 µs | p99 µs | p50 × the pipe's | least … most |", "| --- | ---: | ---: | ---: | ---: |"]
    base = [percentile(values, 0.5) for values in found["pipe"]]
    for name, each in found.items():
        ratios = [percentile(values, 0.5) / pipe for values, pipe in zip(each, base, strict=True)]
        whole = [value for values in each for value in values]
        lines.append(
            f"| {name} | {percentile(whole, 0.5):.0f} | {percentile(whole, 0.99):.0f} | "
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f} … {max(ratios):.2f} |"
        )
    return "\n".join(lines) + "\n"


def waiting_cpu(kind: str, control: Connection, url: str, seconds: float) -> None:
    """In a process of its own: the share of a core that it uses while one lock is waited for."""
    face = Face(kind, url)
    threading.Thread(target=face.acquire, daemon=True).start()
    time.sleep(1.0)
    used, began = time.process_time(), now()
    time.sleep(seconds)
    control.send((time.process_time() - used) / (now() - began))
    os._exit(0)


def cpu_table(seconds: float) -> str:
    lines = ["| waits for a lock that another process keeps | % of a core |", "| --- | ---: |"]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, holdfast.connect(f"sqlite://{folder}/wakeup.db") as holder:
        holder.lock("wakeup", ttl_s=60.0).acquire()
        for kind in FACES:
            control, theirs = context.Pipe()
            child = context.Process(target=waiting_cpu, args=(kind, theirs, f"sqlite://{folder}/wakeup.db", seconds))
            child.start()
            lines.append(f"| {kind} | {control.recv() * 100:.2f} |")
            child.join()
    return "\n".join(lines) + "\n"


def main(rounds: int = 7, per_round: int = 200) -> str:
    return "\n".join(["### Embedded: waking a waiter", "", table(measure(rounds, per_round)), cpu_table(5.0)])


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
