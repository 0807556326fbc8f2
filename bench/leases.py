"""What leases cost to keep, and how soon a waiter is in when its predecessor dies or releases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from servers import RedisServer

import holdfast

from .common import percentile, serving


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


def _holder(url: str, pipe: Connection) -> None:
    hf = holdfast.connect(url)
    while pipe.recv() == "take":
        lease = hf.lock("handed").acquire()
        pipe.send("held")
        if pipe.recv() == "release":
            pipe.send(time.clock_gettime(time.CLOCK_MONOTONIC))
            lease.release()
        else:
            time.sleep(60)


def wakeups(url: str, kind: str, times: int) -> list[float]:
    """Milliseconds from a release, or from SIGKILL, in another process until the waiter here holds the lock."""
    context = multiprocessing.get_context("spawn")
    hf = holdfast.connect(url)
    found = []
    pipe = worker = None
    for _ in range(times):
        if worker is None or not worker.is_alive():
            pipe, theirs = context.Pipe()
            worker = context.Process(target=_holder, args=(url, theirs))
            worker.start()
        assert pipe is not None
        pipe.send("take")
        pipe.recv()
        # the waiter must sleep in the queue before the holder goes
        timer = multiprocessing.get_context("fork").Process(target=_later, args=(pipe, worker.pid, kind))
        timer.start()
        lease = hf.lock("handed").acquire()
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        timer.join()
        if kind == "release":
            found.append((now - pipe.recv()) * 1e3)
        else:
            found.append((now - float(Path(_KILLED).read_text())) * 1e3)
            worker.join()
        lease.release()
    if worker is not None and worker.is_alive() and pipe is not None:
        pipe.send("end")
        worker.join()
    hf.close()
    return found


_KILLED = os.path.join(tempfile.gettempdir(), f"holdfast-bench-{os.getpid()}")


def _later(pipe: Connection, pid: int, kind: str) -> None:
    time.sleep(0.15)
    if kind == "release":
        pipe.send("release")
    else:
        Path(_KILLED).write_text(str(time.clock_gettime(time.CLOCK_MONOTONIC)))
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


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
        url = f"sqlite:///{Path(folder) / 'hf.db'}"
        for kind, times in (("release", 100), ("SIGKILL", 15)):
            found = wakeups(url, kind, times)
            lines.append(
                f"- SQLite, from a holder's {kind} to the waiter's holding: median {statistics.median(found):.2f} ms, "
                f"p90 {percentile(found, 0.9):.2f} ms (n = {times})\n"
            )
    lines.append(imports())
    return "".join(lines)


if __name__ == "__main__":
    print(main())
