"""Placement beside its peers and a floor in C: prints tables, and writes them to docs/measured-placement.md.

On real keys, interleaved, with the targets that were set before and what was reached.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from tooz import hashring as tooz_ring
from uhashring import HashRing as Uhashring

from holdfast.placement import HashRing, kernel

from . import placement_algorithms as algorithms
from .common import machine
from .placement_floor import floor_of
from .placement_keys import ids, lines, node_names, paths
from .placement_peers import POINTS, ours, peers
from .placement_timing import Batch, Times, brief, interleaved, least_ms, one_by_one, table, traced

PAGE = Path(__file__).parent.parent / "docs" / "measured-placement.md"
HOT = 1000
"""Keys of a hot set: they and what they touch stay in the caches of the processor's core."""
COLD = 1_000_000
UHASHRINGS = ("uhashring, xxh3", "uhashring, md5", "uhashring, ketama")


class Target(NamedTuple):
    what: str
    target: str
    reached: str
    holds: bool | None
    """None: there is a figure, but no target."""


def main() -> None:
    if kernel() != "c":
        raise SystemExit("bench: the kernel in C was not built, so there is nothing to measure")
    targets: list[Target] = []
    parts = [_scalar(targets), _hot_batches(targets), _cold_batches(targets), _changes(targets), _algorithms(targets)]
    order = list(dict.fromkeys(one.target for one in targets))
    targets.sort(key=lambda one: order.index(one.target))
    verdict = {None: "", True: "holds", False: "**falls short**"}
    rows = [[one.what, one.target, one.reached, verdict[one.holds]] for one in targets]
    page = "\n".join([HEAD, table(["", "target", "reached", ""], rows, words=4), *parts])
    print(page)
    PAGE.write_text(page)


HEAD = f"""# Placement, measured

Made by `make bench-placement`: {machine()}.

Times are CPU time of the thread, as others were at work on that machine: of a batch the least of all rounds. Rounds are
short and interleaved; a ratio is taken within each round, and given as the median of the rounds and, in brackets, the
middle half of them. The *floor* is a C extension for one version of Python that has nothing but a ring's hot path for
`str` keys (`bench/placement_floor.c`), on the same points. Rings have 160 points a node where nothing else is said.

## Targets
"""


ONE_KEY = f"""`get_node(key)` in a `for` loop over {HOT} hot keys. `paths` are those of the files under the Python
installation, {{mean}} characters on average; `ids` are decimal numbers of 8 digits.
"""


def _scalar(targets: list[Target]) -> str:
    parts = ["## One key at a time\n", ONE_KEY.format(mean=round(sum(map(len, paths())) / len(paths())))]
    sets = {"paths": paths()[:HOT], "ids": ids(HOT)}
    for nodes in (10, 100, 1000):
        contenders = {**ours(nodes), **peers(nodes)}
        times = {
            name: interleaved({who: one_by_one(call, keys) for who, call in contenders.items()})
            for name, keys in sets.items()
        }
        rows = [
            [who, *(cell for one in times.values() for cell in (brief(one.least(who)), one.ratio(who, "floor")))]
            for who in contenders
        ]
        parts.append(f"### {nodes} nodes\n")
        parts.append(table(["", *(f"{name}{what}" for name in sets for what in (", ns", ": × floor"))], rows))
        for name, one in times.items():
            _judge_scalar(targets, nodes, name, one)
        print(f"  one key at a time, {nodes} nodes", flush=True)
    return "\n".join(parts)


def _judge_scalar(targets: list[Target], nodes: int, keys: str, times: Times) -> None:
    best = min(UHASHRINGS, key=times.least)
    where = f"N = {nodes}, {keys}"
    floor = times.ratio("holdfast", "floor")
    if nodes > 10:
        targets.append(Target(f"`get_node`, {where}", "≤ 1.3 × floor", str(floor), floor.median <= 1.3))
        gain = times.ratio(best, "holdfast")
        targets.append(Target(f"`get_node`, {where}", "≥ 15 × faster than uhashring", str(gain), gain.median >= 15))
    gain = times.ratio(best, "holdfast, plain Python + xxhash")
    what = f"without a compiler, with xxhash, {where}"
    targets.append(Target(what, "≥ 1.5 × faster than uhashring", str(gain), gain.median >= 1.5))
    if nodes == 100:
        alone = times.least("holdfast, plain Python")
        targets.append(Target(f"with neither, {where}", "is told", f"{alone / 1000:.1f} µs a key", None))


def _hot_batches(targets: list[Target]) -> str:
    parts = ["## Many keys at once\n", f"One call for a list of {HOT} hot keys.\n"]
    for nodes in (100, 1000):
        for name, keys in {"paths": paths()[:HOT], "ids": ids(HOT)}.items():
            times = interleaved(_batches(nodes, keys))
            parts += [f"### Hot: {nodes} nodes, {name}\n", _against_floor(times)]
            ratio = times.ratio("holdfast locate", "floor locate")
            what = f"`locate`, hot list of str, N = {nodes}, {name}"
            targets.append(Target(what, "≤ 1.3 × floor's batch", str(ratio), ratio.median <= 1.3))
    return "\n".join(parts)


def _cold_batches(targets: list[Target]) -> str:
    parts = [
        f"{COLD:,} shuffled keys, every one of them cold, 1000 nodes. `lines` are `path:number` of lines of Python.\n"
    ]
    for name, keys in {"lines": lines(COLD), "ids": ids(COLD)}.items():
        times = interleaved(_batches(1000, keys), rounds=9)
        times["numpy, both"] = [
            one + other for one, other in zip(times["numpy, hashing"], times["numpy, searchsorted"], strict=True)
        ]
        parts += [f"### Cold: 1000 nodes, {name}\n", _against_floor(times)]
        for method in ("locate", "locate_slots"):
            gain = times.ratio("numpy, both", f"holdfast {method}")
            what = f"`{method}`, {COLD:,} cold keys, N = 1000, {name}"
            targets.append(Target(what, "≥ 3 × faster than numpy", str(gain), gain.median >= 3))
        print(f"  cold batches, {name}", flush=True)
    return "\n".join(parts)


def _batches(nodes: int, keys: list[str]) -> dict[str, Batch]:
    """numpy does its work in two steps: `xxhash` hashes each key, then one search gives the numbers of the nodes."""
    ring = HashRing(node_names(nodes))
    finder: Any = ring._table.finder
    points = np.frombuffer(memoryview(finder.points).tobytes(), np.uint64)
    owners = np.frombuffer(memoryview(finder.owners).tobytes(), np.uint32)
    digest, count = xxhash.xxh64_intdigest, len(keys)

    def hashing() -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.fromiter((digest(key.encode()) for key in keys), np.uint64, count)

    hashes = hashing()
    assert np.array_equal(owners[np.searchsorted(points, hashes)], np.asarray(ring.locate_slots(keys)))
    numbers = array("Q", range(count))
    floor = floor_of(ring)
    batches: dict[str, Callable[[], object]] = {
        "floor locate": lambda: floor.locate(keys),
        "holdfast locate": lambda: ring.locate(keys),
        "holdfast locate_slots": lambda: ring.locate_slots(keys),
        "holdfast locate_slots, a buffer of integers": lambda: ring.locate_slots(numbers),
        "numpy, hashing": hashing,
        "numpy, searchsorted": lambda: owners[np.searchsorted(points, hashes)],
    }
    return {name: (call, count) for name, call in batches.items()}


def _against_floor(times: Times) -> str:
    rows = [[who, brief(times.least(who)), times.ratio(who, "floor locate")] for who in times]
    return table(["", "ns a key", "× floor"], rows)


def _changes(targets: list[Target]) -> str:
    rows = []
    for who, (make, rounds) in {
        "holdfast": (_holdfast, 25),
        "uhashring, xxh3": (_uhashring, 3),
        "tooz": (_tooz, 3),
    }.items():
        build, add, remove, each, many = _changed(make, rounds)
        rows.append([who, *map(brief, (build, add, remove, each, many))])
        if who == "holdfast":
            targets += [
                Target("add a node at 1000 × 512 points", "≤ 2 ms", f"{add:.2f} ms", add <= 2),
                Target("remove a node at 1000 × 512 points", "≤ 2 ms", f"{remove:.2f} ms", remove <= 2),
                Target("memory at 1000 × 512 points", "≤ 24 bytes a point", f"{each:.1f}", each <= 24),
                Target("build 10,000 nodes × 160 points", "≤ 1 s", f"{many / 1000:.2f} s", many <= 1000),
            ]
        print(f"  changes, {who}", flush=True)
    head = ["", "build ms", "add ms", "remove ms", "bytes a point", "build 10,000 × 160, ms"]
    return "\n".join(
        ["## Changes and memory\n", "1000 nodes of 512 points, and a node more or less.\n", table(head, rows)]
    )


Maker = Callable[[list[str], int], Any]


def _changed(make: Maker, rounds: int) -> tuple[float, float, float, float, float]:
    """A build, a node more, a node less, bytes a point, and a build of 10,000 nodes; times in milliseconds."""
    names, points = node_names(1000), 512
    build = least_ms(lambda: make(names, points), 3)
    ring, memory = traced(lambda: make(names, points))
    pairs = [
        (least_ms(lambda: ring.add_node("new"), 1), least_ms(lambda: ring.remove_node("new"), 1)) for _ in range(rounds)
    ]
    add, remove = map(min, zip(*pairs, strict=True))
    many = least_ms(lambda: make(node_names(10_000), POINTS), 3)
    return build, add, remove, memory / (len(names) * points), many


def _holdfast(names: list[str], points: int) -> Any:
    return HashRing(names, points=points)


def _uhashring(names: list[str], points: int) -> Any:
    digest = xxhash.xxh3_64_intdigest
    return Uhashring(names, vnodes=points, hash_fn=lambda key: digest(key.encode()))


def _tooz(names: list[str], points: int) -> Any:
    return tooz_ring.HashRing(names, partitions=points)


def _algorithms(targets: list[Target]) -> str:
    report = algorithms.main()
    minimal = [name for name in report.strays if name != "maglev"]
    strays = sum(report.strays[name] for name in minimal)
    moved = sum(report.moved[name] for name in minimal)
    of = f"of {moved:,} moved keys (all but Maglev, which is labelled)"
    targets.append(Target("keys that move between nodes that stayed", "none", f"{strays} {of}", strays == 0))
    outside = "; ".join(report.outside) or f"all of {report.judged} within three standard deviations"
    targets.append(Target("moved share", "the ideal, within sampling error", outside, not report.outside))
    return f"## All algorithms\n\n{algorithms.LEGEND}\n{report.page}"


if __name__ == "__main__":
    main()
