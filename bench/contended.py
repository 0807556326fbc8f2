"""One key, many processes: hand-overs to a different worker, waits, fairness, commands and CPU per acquisition.

Acquisitions alone say little: a polling lock's are nearly all one worker taking it again.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from servers import RedisServer

from .common import jain, percentile, serving

MakeLock = Callable[[str], Any]


def holdfast_lock(url: str) -> Any:
    import holdfast

    return holdfast.connect(url).lock("contended")


def _redis_py(sleep_s: float, url: str) -> Any:
    import redis

    return redis.Redis.from_url(url).lock("redis-py", timeout=30, sleep=sleep_s)


class _PythonRedisLock:
    """Its locks are good for one turn."""

    def __init__(self, url: str) -> None:
        import redis

        self.client = redis.Redis.from_url(url)

    def __enter__(self) -> None:
        import redis_lock

        self.lock = redis_lock.Lock(self.client, "prl", expire=30)
        self.lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self.lock.release()


def _filelock(path: str) -> Any:
    import filelock

    return filelock.FileLock(path)


ON_REDIS: dict[str, MakeLock] = {
    "holdfast": holdfast_lock,
    "redis-py Lock 0.1 s": functools.partial(_redis_py, 0.1),
    "redis-py Lock 1 ms": functools.partial(_redis_py, 0.001),
    "python-redis-lock": _PythonRedisLock,
}


def _worker(make_lock: MakeLock, url: str, number: int, inside_s: float, pipe: Connection, shared: Any) -> None:
    """Take the lock again and again until told to stop; ``shared`` is the last holder and the number of hand-overs."""
    lock = make_lock(url)
    with lock:  # connected, scripts loaded
        pass
    pipe.send("ready")
    pipe.recv()
    started_cpu = time.process_time()
    waits: list[float] = []
    counting = True
    while counting:
        asked = time.perf_counter()
        with lock:
            waits.append(time.perf_counter() - asked)
            if shared[0] != number:
                shared[0] = number
                shared[1] += 1
            if inside_s:
                time.sleep(inside_s)
            counting = not shared[2]
    pipe.send((waits, time.process_time() - started_cpu))
    os._exit(0)


def run(
    make_lock: MakeLock, url: str, processes: int, inside_s: float, seconds: float, monitor: bool = False
) -> dict[str, float]:
    """What ``processes`` get of one lock that each makes by ``make_lock(url)``, which another process must import.

    ``monitor`` also counts the commands that a Redis was sent and slows it down: take no other figure from such a run.
    """
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", [-1, 0, 0], lock=False)
    pipes, workers = [], []
    for number in range(processes):
        ours, theirs = context.Pipe()
        worker = context.Process(target=_worker, args=(make_lock, url, number, inside_s, theirs, shared))
        worker.start()
        pipes.append(ours)
        workers.append(worker)
    for pipe in pipes:
        pipe.recv()
    counter = _Counter(url) if monitor else None
    started = time.perf_counter()
    for pipe in pipes:
        pipe.send("go")
    time.sleep(seconds)
    shared[2] = 1
    results = [pipe.recv() for pipe in pipes]
    elapsed = time.perf_counter() - started
    for worker in workers:
        worker.join()
    counts = [len(waits) for waits, _ in results]
    waits = [wait for some, _ in results for wait in some]
    total = sum(counts)
    return {
        "hand-overs/s": shared[1] / elapsed,
        "acquisitions/s": total / elapsed,
        "p50 ms": percentile(waits, 0.5) * 1e3,
        "p99 ms": percentile(waits, 0.99) * 1e3,
        "max ms": max(waits) * 1e3,
        "Jain": jain(counts),
        "client CPU µs": sum(cpu for _, cpu in results) / total * 1e6,
        **({"commands": counter.stop() / total} if counter else {}),
    }


class _Counter(threading.Thread):
    """Counts the commands that clients send, by MONITOR: those that scripts make are marked 'lua' and left out."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.count = 0
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port))
        self.socket.sendall(b"MONITOR\r\n")
        self.socket.recv(64)
        self.start()

    def run(self) -> None:
        rest = b""
        while chunk := self.socket.recv(1 << 16):
            *lines, rest = (rest + chunk).split(b"\r\n")
            self.count += sum(b" lua]" not in line for line in lines)

    def stop(self) -> int:
        time.sleep(0.2)
        self.socket.shutdown(socket.SHUT_RDWR)
        self.join()
        return self.count


def table(title: str, rows: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(rows.values())))
    lines = [f"### {title}", "", "| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, row in rows.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{row[c]:.3f}" if c == "Jain" else f"{row[c]:.1f}" for c in columns) + " |"
        )
    return "\n".join(lines) + "\n"


def main(seconds: float = 4.0) -> str:
    parts = []
    with serving(RedisServer) as server:
        url = server.url
        for processes in (8, 32):
            for inside_s in (0.0, 0.001):
                rows = {}
                for name, make_lock in ON_REDIS.items():
                    rows[name] = run(make_lock, url, processes, inside_s, seconds)
                    counted = run(make_lock, url, processes, inside_s, seconds / 2, monitor=True)
                    rows[name]["commands"] = counted["commands"]
                parts.append(table(f"Redis, one key, {processes} processes, {inside_s * 1e3:.0f} ms inside", rows))
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "holdfast": run(holdfast_lock, f"sqlite:///{Path(folder) / 'hf.db'}", 8, 0.0, seconds),
            "filelock": run(_filelock, str(Path(folder) / "theirs.lock"), 8, 0.0, seconds),
        }
        parts.append(table("One machine (SQLite), one key, 8 processes, 0 ms inside", rows))
    return "\n".join(parts)


if __name__ == "__main__":
    print(main())
