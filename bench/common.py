"""What every bench needs: a server of its own, interleaved rounds, ratios with their spread, the machine's name."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from servers import Server

S = TypeVar("S", bound=Server)


@contextlib.contextmanager
def serving(kind: Callable[[Path], S]) -> Iterator[S]:
    """A server of our own, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, kind(Path(folder)) as server:
        yield server


def interleaved(actions: Mapping[str, Callable[[], object]], *, rounds: int, per_round: int) -> dict[str, list[float]]:
    """Microseconds per call of each action, one median per round; the rounds of all take turns."""
    medians: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        for _ in range(20):
            action()
    for _ in range(rounds):
        for name, action in actions.items():
            times = []
            for _ in range(per_round):
                started = time.perf_counter()
                action()
                times.append(time.perf_counter() - started)
            medians[name].append(statistics.median(times) * 1e6)
    return medians


def ratio_table(title: str, medians: Mapping[str, list[float]], floor: str) -> str:
    """A Markdown table: median µs, and the ratio to ``floor`` round by round (median, and its least and most)."""
    lines = [f"### {title}", "", "| | median µs | × " + floor + " | least … most |", "| --- | ---: | ---: | ---: |"]
    for name, values in medians.items():
        ratios = [value / base for value, base in zip(values, medians[floor], strict=True)]
        lines.append(
            f"| {name} | {statistics.median(values):.1f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} … {max(ratios):.2f} |"
        )
    return "\n".join(lines) + "\n"


def jain(counts: list[int]) -> float:
    """Jain's fairness index: 1 where all got the same, 1/n where one got everything."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else 0.0


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{time.strftime('%Y-%m-%d')}; a shared machine: trust ratios, not microseconds"
    )
