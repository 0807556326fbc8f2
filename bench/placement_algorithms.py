"""All algorithms, from ten nodes to a hundred thousand: lookups, memory, changes, balance and movement."""

from __future__ import annotations

import math
import random
import statistics
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from time import thread_time
from typing import Any

import numpy as np

from holdfast import placement
from holdfast.placement import Placement
from holdfast.placement.maglev import is_prime

from .placement_keys import node_names, paths
from .placement_timing import brief, interleaved, least_ms, one_by_one, table, traced

ALGORITHMS = ("ring", "rendezvous", "choose", "jump", "anchor", "multiprobe", "maglev")
SIZES = (10, 100, 1000, 10_000, 100_000)
CHANGES = 8
BALANCE_KEYS = 10_000_000
MOVING_KEYS = 1_000_000
ENOUGH = 25
"""So many keys have to be expected to move before a share of them says anything."""

SPREAD = {"ring": 1 / math.sqrt(160), "multiprobe": 1 / math.sqrt(2 * 21 + 1)}
"""The standard deviation of one node's share by design, in means: 160 points, 21 probes. Of the others it is none."""

LEGEND = f"""- `bytes / node`: all that building took and keeps, by tracemalloc, the names themselves not counted.
- `max / mean`: the busiest node's share beside the mean. Exact by arcs (`HashRing`) and by the table (`Maglev`),
  else by {BALANCE_KEYS:,} keys, beside what a choice at random, perfectly even, of as many keys would show.
- `moved / ideal`: {CHANGES} nodes added one after the other, {CHANGES} removed, {CHANGES} weights doubled, with
  {MOVING_KEYS:,} keys. The ± is one standard deviation of the sample, and of a node's share in `HashRing` (160 points)
  and `MultiProbe` (21 probes).
- `between others`: keys that moved between two nodes that stayed.
- `Rendezvous` looks at every node for every key, so the more nodes the fewer keys: 2 × 10⁹ and 5 × 10⁸ scores at most.
- `Jump` removes the last node only. `Maglev` has a prime of at least 65,537 places, and of at least 100 a node.
  `Anchor` has room for twice its nodes.
"""


@dataclass
class Moved:
    """What some changes of one kind moved: keys, how many ideally, and how many between nodes that stayed."""

    keys: int = 0
    strays: int = 0
    ideal: float = 0.0
    variance: float = 0.0

    @property
    def error(self) -> float:
        """One standard deviation of the keys."""
        return math.sqrt(self.variance)

    @property
    def within(self) -> bool:
        return abs(self.keys - self.ideal) <= 3 * self.error

    def __str__(self) -> str:
        if self.ideal < ENOUGH:
            return "too few"
        return f"{self.keys / self.ideal:.2f} ± {self.error / self.ideal:.2f}"


@dataclass
class Report:
    """All rows, and what of them concerns a target."""

    page: str = ""
    strays: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    judged: int = 0


def made(algorithm: str, size: int) -> Callable[[], Placement]:
    """How to build one with room for that many nodes."""
    names, options = node_names(size), {}
    if algorithm == "maglev":
        options = {"table_size": 65537 if size <= 655 else next(filter(is_prime, count(100 * size)))}
    if algorithm == "anchor":
        options = {"capacity": 2 * size}
    return lambda: placement.make(algorithm, names, **options)


def main() -> Report:
    report = Report()
    parts = []
    for size in SIZES:
        rows = [_row(algorithm, size, report) for algorithm in ALGORITHMS]
        head = ["", "get_node, hot, ns", "batch, cold, ns", "bytes / node", "build ms", "add ms", "remove ms"]
        head += ["max / mean", "add: moved / ideal", "remove", "weight", "between others"]
        parts.append(f"### {size:,} nodes\n\n{table(head, rows)}")
    report.page = "\n".join(parts)
    return report


def _row(algorithm: str, size: int, report: Report) -> list[str]:
    build = made(algorithm, size)
    built_ms = least_ms(build, 3)
    ring, memory = traced(build)
    scores = size if algorithm == "rendezvous" else 1  # nodes that a lookup looks at, where it is all of them
    hot = interleaved({"it": one_by_one(ring.get_node, paths()[:1000])}, rounds=11).least("it")
    keys = _keys(min(MOVING_KEYS, 500_000_000 // scores))
    cold = interleaved({"it": (lambda: ring.locate_slots(keys), len(keys))}, rounds=3 if scores == 1 else 1).least("it")
    balance = _balance(algorithm, ring, min(BALANCE_KEYS, 2_000_000_000 // scores))
    added, add_ms = _changes(ring, keys, "add")
    removed, remove_ms = _changes(ring, keys, "remove")
    weighed, _ = _changes(ring, keys, "weigh") if ring.weighted else (None, 0.0)
    kinds = {"add": added, "remove": removed, "weight": weighed}
    strays = sum(moved.strays for moved in kinds.values() if moved)
    total = sum(moved.keys for moved in kinds.values() if moved)
    report.strays[algorithm] = report.strays.get(algorithm, 0) + strays
    report.moved[algorithm] = report.moved.get(algorithm, 0) + total
    if ring.minimal:
        for kind, moved in kinds.items():
            if moved and moved.ideal >= ENOUGH:
                report.judged += 1
                if not moved.within:
                    report.outside.append(f"{algorithm}, {size:,} nodes, {kind}: {moved}")
    print(f"  {algorithm}, {size:,} nodes", flush=True)
    return [
        f"`{type(ring).__name__}`", brief(hot), brief(cold), brief(memory / size),
        brief(built_ms), brief(add_ms), brief(remove_ms), balance,
        str(added), str(removed), str(weighed) if weighed else "no weights",
        str(strays) if not strays else f"{strays / total:.0%} of what moved",
    ]  # fmt: skip


def _keys(count: int, seed: int = 4) -> array[int]:
    return array("Q", np.random.default_rng(seed).integers(0, 1 << 63, count, dtype=np.uint64).tobytes())


def _changes(base: Placement, keys: array[int], kind: str) -> tuple[Moved, float]:
    """Some changes of a kind, one after the other, and the least milliseconds that one took."""
    ring, moved, spent = base.copy(), Moved(), []
    before = np.asarray(ring.locate_slots(keys))
    chosen = random.Random(len(ring)).sample(list(ring.nodes), CHANGES)
    for number, name in enumerate(chosen):
        total = sum(node.weight for node in ring.nodes.values())
        if not ring.removes_any:
            name = str(ring.slots[-1])
        if kind == "add":
            name, share, change = f"new-{number}.example.net", 1 / (total + 1), ring.add_node
        elif kind == "remove":
            share, change = 1 / total, ring.remove_node
        else:
            share, change = 2 / (total + 1) - 1 / total, partial(ring.set_weight, weight=2)
        slot = ring.slots.index(name) if kind != "add" else -1
        started = thread_time()
        change(name)
        spent.append((thread_time() - started) * 1e3)
        slot = ring.slots.index(name) if kind == "add" else slot
        after = np.asarray(ring.locate_slots(keys))
        changed = before != after
        moved.keys += int(changed.sum())
        moved.strays += int((changed & ((before if kind == "remove" else after) != slot)).sum())
        ideal = share * len(keys)
        moved.ideal += ideal
        moved.variance += ideal * (1 - share) + (ideal * SPREAD.get(ring.algorithm, 0.0)) ** 2
        before = after
    return moved, min(spent)


def _balance(algorithm: str, ring: Any, count: int) -> str:
    """max / mean, exactly where the shares can be seen; else by keys, beside what an even spread of as many gives."""
    finder, size = ring._table.finder, len(ring)
    if algorithm == "ring":
        points = np.frombuffer(memoryview(finder.points).tobytes(), np.uint64)
        owners = np.frombuffer(memoryview(finder.owners).tobytes(), np.uint32)[: len(points)]
        arcs = np.diff(points, prepend=points[-1:]).astype(np.float64)  # of unsigned numbers: the first one wraps
        return f"{np.bincount(owners, arcs).max() / arcs.sum() * size:.3f}"
    if algorithm == "maglev":
        loads = np.bincount(np.frombuffer(finder._entries, np.uint32))
        return f"{loads.max() / loads.mean():.3f}"
    loads = np.zeros(size, np.int64)
    chunk = min(count, 1_000_000)
    for number in range(count // chunk):
        slots = np.asarray(ring.locate_slots(_keys(chunk, seed=10 + number)))
        loads += np.bincount(slots, minlength=size)
    if loads.mean() < 10:
        return "too few"
    random_even = np.random.default_rng(5).poisson(loads.mean(), (9, size)).max(axis=1) / loads.mean()
    return f"{loads.max() / loads.mean():.3f} (even: {statistics.median(random_even):.3f})"
