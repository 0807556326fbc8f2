"""Multi-probe consistent hashing (Appleton and O'Reilly, 2015): a node is one point, a key looks from several places.

The key belongs to the node whose point is nearest at or after any of its probes. Probe i, from 0, is
``mix(hash + i * 0x9E3779B97F4A7C15)``, a node's point ``mix(XXH64(name))``. Of equal distances the first probe's
counts, of equal points the name that sorts first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heapreplace
from typing import ClassVar, cast

from ..errors import Misuse
from ._kernel import Finder, Ring, Table, mix, native, xxh64
from .base import Change, Node, Placement
from .hashing import DEFAULT_HASH, is_whole

GOLDEN = 0x9E3779B97F4A7C15
MAX_PROBES = 1000
_MASK = (1 << 64) - 1

Point = tuple[int, str, int]
"""A place on the circle, whose it is, and that node's slot."""


class Probes:
    __slots__ = ("_places", "_probes", "_slots", "points")

    def __init__(self, points: list[Point], probes: int) -> None:
        self.points = points
        self._probes = [index * GOLDEN & _MASK for index in range(probes)]
        self._places = [place for place, _, _ in points]
        self._slots = [slot for _, _, slot in points]
        self._places.append(self._places[0] + _MASK + 1)  # past the last point comes the first again
        self._slots.append(self._slots[0])

    def find(self, place: int) -> int:
        places = self._places
        nearest, found = _MASK + 1, 0
        for step in self._probes:
            probe = mix((place + step) & _MASK)
            index = bisect_left(places, probe)
            if places[index] - probe < nearest:
                nearest, found = places[index] - probe, index
        return self._slots[found]

    def native(self) -> Finder | None:
        names: list[str | None] = [None] * (max(self._slots) + 1)
        for _, name, slot in self.points:
            names[slot] = name
        ring = Ring((place for place, _, _ in self.points), self._slots[:-1], names)
        return native("nearest", ring, len(self._probes))

    def walk(self, place: int) -> Iterator[int]:
        """Every slot, the nearest first: each probe goes on along the circle, and the next node found is the next."""
        points, size = self._places, len(self.points)
        nearest: list[tuple[int, int, int]] = []  # a distance, which probe's, and the index of the point there
        for number, step in enumerate(self._probes):
            probe = mix((place + step) & _MASK)
            index = bisect_left(points, probe)
            nearest.append((points[index] - probe, number, index % size))
        heapify(nearest)
        seen: set[int] = set()
        while len(seen) < size:
            distance, number, index = nearest[0]
            if index not in seen:
                seen.add(index)
                yield self._slots[index]
            heapreplace(nearest, (distance + points[index + 1] - points[index], number, (index + 1) % size))


class MultiProbe(Placement):
    """No node far above the mean (about 1.1 times) from a single point for each, though some stay far below it.

    A lookup makes ``probes`` searches.
    For many nodes and little memory, or where nodes come and go often. There are no weights.
    """

    algorithm: ClassVar[str] = "multiprobe"
    weighted: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("probes",)

    def __init__(
        self, nodes: Iterable[str] | Mapping[str, float | Node] = (), *, probes: int = 21, hash: str = DEFAULT_HASH
    ) -> None:
        if not is_whole(probes) or not 1 <= probes <= MAX_PROBES:
            raise Misuse(f"probes is a whole number from 1 to {MAX_PROBES}, not {probes!r}")
        self._probes = probes
        super().__init__(nodes, hash=hash)

    @property
    def probes(self) -> int:
        """How many places a key looks from."""
        return self._probes

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        points = sorted(_point(name, slot) for slot, name in enumerate(names) if name is not None)
        return Probes(points, self._probes)

    def _order(self, table: Table, place: int) -> Iterator[str]:
        return (cast(str, table.names[slot]) for slot in cast(Probes, table.finder).walk(place))

    def _next(self, names: tuple[str | None, ...], nodes: Mapping[str, Node], old: Table, change: Change) -> Finder:
        points, point = cast(Probes, old.finder).points.copy(), _point(change.name, change.slot)
        index = bisect_left(points, point)
        if change.old is None:
            points.insert(index, point)
        elif change.new is None:
            del points[index]
        return Probes(points, self._probes)


def _point(name: str, slot: int) -> Point:
    return mix(xxh64(name.encode(), 0)), name, slot
