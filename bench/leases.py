"""What leases cost to keep, and how soon a waiter is in when its predecessor dies."""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from servers import RedisServer

import holdfast
from holdfast.lab.figures import percentile

from .common import serving

DEATHS = 15
ASLEEP_S = 0.15
"""After so long the waiter surely sleeps in the queue."""


def renewals(url: str, leases: int = 10_000, seconds: float = 20.0) -> str:
    """CPU share of one process that holds many leases and does nothing else."""
    hf = holdfast.connect(url)
    held = [hf.lock(f"kept:{number}").acquire() for number in range(leases)]
    time.sleep(6.0)  # past the first round of renewals
    started, started_cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - started_cpu) / (time.perf_counter() - started)
    states = {lease.state for lease in held}
    hf.close()
    return f"- {leases} leases of 15 s kept on Redis: {share:.1%} of a core (states: {', '.join(sorted(states))})\n"


def takeovers(url: str, times: int) -> list[float]:
    """Milliseconds from the SIGKILL of the holder, another process, until the waiter here holds the lock."""
    context = multiprocessing.get_context("spawn")
    found = []
    with holdfast.connect(url) as hf:
        for _ in range(times):
            ours, theirs = context.Pipe()
            holder = context.Process(target=_hold, args=(url, theirs))
            holder.start()
            ours.recv()
            killed: list[float] = []
            threading.Timer(ASLEEP_S, _kill, (holder, killed)).start()
            with hf.lock("taken over"):
                found.append((time.perf_counter() - killed[0]) * 1e3)
            holder.join()
    return found


def _hold(url: str, pipe: Connection) -> None:
    lease = holdfast.connect(url).lock("taken over").acquire()
    pipe.send("held")
    time.sleep(60)
    lease.release()


def _kill(holder: BaseProcess, killed: list[float]) -> None:
    killed.append(time.perf_counter())
    holder.kill()


def imports() -> str:
    def best(code: str) -> float:
        times = []
        for _ in range(20):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - started)
        return min(times)

    empty, ours = best("pass"), best("import holdfast")
    ratio = ours / empty
    return f"- `import holdfast`: {ours * 1e3:.1f} ms beside an empty Python's {empty * 1e3:.1f} ms ({ratio:.2f} ×)\n"


def main() -> str:
    lines = ["## Leases\n\n"]
    with serving(RedisServer) as server:
        lines.append(renewals(server.url))
    with tempfile.TemporaryDirectory() as folder:
        found = takeovers(f"sqlite:///{Path(folder) / 'hf.db'}", DEATHS)
        lines.append(
            f"- SQLite, from a holder's SIGKILL to the waiter's holding: median {statistics.median(found):.2f} ms, "
            f"p90 {percentile(found, 0.9):.2f} ms (n = {DEATHS})\n"
        )
    lines.append(imports())
    return "".join(lines)


if __name__ == "__main__":
    print(main())
