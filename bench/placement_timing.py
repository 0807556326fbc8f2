"""Nanoseconds that hold on a busy machine: CPU time of the thread, short interleaved rounds, ratios within a round."""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from time import thread_time_ns
from typing import NamedTuple, TypeVar

ROUNDS = 41
ROUND_NS = 3_000_000

Made = TypeVar("Made")
Batch = tuple[Callable[[], object], int]
"""What a round of a contender calls, and how many keys, or changes, that is."""


class Times(dict[str, list[float]]):
    """Nanoseconds a key of each contender, one number a round; the numbers of one round belong together."""

    def least(self, name: str) -> float:
        return min(self[name])

    def ratio(self, name: str, base: str) -> Ratio:
        ratios = sorted(one / other for one, other in zip(self[name], self[base], strict=True))
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return Ratio(statistics.median(ratios), low, high)


class Ratio(NamedTuple):
    """The median of the rounds, and the middle half of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} … {self.high:.2f})"


def one_by_one(call: Callable[[str], object], keys: Sequence[str]) -> Batch:
    """A batch of calls with one key each, as long as a round should be."""

    def batch_of(count: int) -> Batch:
        chosen = list(islice(cycle(keys), count))

        def run() -> None:
            for key in chosen:
                call(key)

        return run, count

    run, count = batch_of(50)
    run()
    started = thread_time_ns()
    run()
    each = max(1.0, (thread_time_ns() - started) / count)
    return batch_of(min(100_000, max(50, int(ROUND_NS / each))))


def interleaved(batches: Mapping[str, Batch], *, rounds: int = ROUNDS) -> Times:
    """All contenders take turns, after each was called once."""
    times = Times({name: [] for name in batches})
    for run, _ in batches.values():
        run()
    gc.collect()
    gc.disable()  # a collection would be charged to whoever is at work
    try:
        for _ in range(rounds):
            for name, (run, count) in batches.items():
                started = thread_time_ns()
                run()
                times[name].append((thread_time_ns() - started) / count)
    finally:
        gc.enable()
    return times


def least_ms(call: Callable[[], object], rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        gc.collect()
        started = thread_time_ns()
        call()
        spent.append((thread_time_ns() - started) / 1e6)
    return min(spent)


def traced(make: Callable[[], Made]) -> tuple[Made, int]:
    """What it makes, and the bytes that this took and still takes."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return made, memory


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, words: int = 1) -> str:
    """A Markdown table: the first ``words`` columns to the left, all others to the right."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    lines = [[*head], rule, *[[str(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("|  |", "| |") + "\n"


def brief(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
