"""Redisson and Curator: bench/java, built by Maven where its sources are newer, and its processes."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from holdfast.lab.figures import Contest

from . import Missing, Peer

SOURCES = Path(__file__).parents[1] / "java"
POM = SOURCES / "pom.xml"
BUILT = Path(__file__).parents[2] / "build" / "bench-java"
CLASSPATH = BUILT / "classpath"

OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""A small heap, and the compiler that is done soon."""
WARM_UP = 1000
"""Pairs until the hot path is compiled."""
WARM_UP_S = 10.0
"""The same for a contest of all."""
JVMS = 4
"""32 of them would take minutes to be warm; and this is how Java's services are: many threads, one client."""
PATIENCE_S = 60.0
"""A wake-up that Redisson's fair lock loses can cost minutes: 5 s for each that waits."""
MOST = 1000
"""Threads of one JVM; they are numbered through."""


def command(kind: str) -> Callable[[str], list[str]]:
    """The command line of a worker with a lock of that kind, but for its number and its board."""
    return lambda url: ["java", *OPTIONS, "-cp", _built(), "Worker", kind, url]


@functools.cache
def _built() -> str:
    for tool in ("javac", "mvn"):
        if not shutil.which(tool):
            raise Missing(f"{tool} is not installed")
    newest = max(path.stat().st_mtime for path in SOURCES.rglob("*") if path.is_file())
    if not CLASSPATH.exists() or CLASSPATH.stat().st_mtime < newest:
        goals = ["compile", "dependency:build-classpath", f"-Dmdep.outputFile={CLASSPATH}"]
        maven = ["mvn", "--quiet", "--batch-mode", f"--file={POM}", *goals]
        done = subprocess.run(maven, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stdout.splitlines() if line.startswith("[ERROR] ")]
            raise Missing(f"Maven: {errors[0][8:200] if errors else 'failed'}")
        CLASSPATH.touch()
    return f"{BUILT / 'classes'}:{CLASSPATH.read_text().strip()}"


class JavaTeam:
    """JVMs of one lock, whose threads contend for it as the processes of `holdfast.lab.team.Team` do."""

    def __init__(self, peer: Peer, url: str, jvms: int = JVMS) -> None:
        self._command = peer.make(url)
        self._jvms = jvms
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            file = self._stack.enter_context(tempfile.NamedTemporaryFile())
            file.truncate(24)
            self._board = memoryview(mmap.mmap(file.fileno(), 24)).cast("q")
            self._workers = [self._start(str(n * MOST), file.name) for n in range(self._jvms)]
            self._answers(self._workers)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [*self._command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._stack.callback(worker.wait)
        self._stack.callback(worker.kill)
        return worker

    def pair_times(self, count: int) -> list[float]:
        """Seconds of each of ``count`` pairs, by the first."""
        (answer,) = self._ask(self._workers[:1], f"pairs {count}")
        return list(answer["times"])

    def contest(self, threads: int, seconds: float, inside_s: float) -> Contest:
        """So many threads in all."""
        board, workers = self._board, self._workers
        board[0], board[1], board[2] = -1, 0, 0
        started = time.perf_counter()
        for worker in workers:
            self._tell(worker, f"contend {inside_s * 1e6:.0f} {threads // len(workers)}")
        time.sleep(seconds)
        in_time, elapsed = board[1], time.perf_counter() - started
        board[2] = 1
        shares = self._answers(workers)
        return Contest(
            seconds=elapsed,
            handovers_in_time=in_time,
            handovers=board[1],
            waits=[waits for share in shares for waits in share["waits"]],
            cpu_s=sum(share["cpu"] for share in shares),
            calls=0,
        )

    def _ask(self, workers: Sequence[subprocess.Popen[str]], line: str) -> list[Any]:
        for worker in workers:
            self._tell(worker, line)
        return self._answers(workers)

    @staticmethod
    def _tell(worker: subprocess.Popen[str], line: str) -> None:
        assert worker.stdin is not None
        worker.stdin.write(line + "\n")

    def _answers(self, workers: Sequence[subprocess.Popen[str]]) -> list[Any]:
        """One line of JSON of each; who takes too long is ended, and raises."""
        with _ended_later(workers):
            lines = [worker.stdout.readline() for worker in workers if worker.stdout]
        if not all(lines):
            raise RuntimeError(f"a JVM ended, or did not answer within {PATIENCE_S:g} s")
        return [json.loads(line) for line in lines]


@contextlib.contextmanager
def _ended_later(workers: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    def end() -> None:
        for worker in workers:
            worker.kill()

    timer = threading.Timer(PATIENCE_S, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
