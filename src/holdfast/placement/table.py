"""One state of a ring: sorted points and their owners, made once and never changed.

Point i of a node is XXH64 of the node's name in UTF-8 followed by i in four little-endian bytes. The width is fixed, so
no two (name, i) share those bytes, whatever stands in a name. A node has round(points * weight) of them, at least one,
numbered from 0: they depend on that node alone, which is why a change moves keys only to or from the node that changed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

from .hashing import xxh64

GUIDE_BITS = 10
GUIDE_SHIFT = 64 - GUIDE_BITS


class Node(NamedTuple):
    """What a ring knows of a node. ``weight`` is relative to the others; ``zone`` is what fails together with it."""

    weight: float = 1.0
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One state of a ring; nothing in it is ever changed.

    ``points`` are sorted, equal ones by their owners' names. ``owners`` has one entry more, the first again: a key
    after the last point belongs to the first one. ``guide[top]`` says how many points lie below those whose highest
    `GUIDE_BITS` bits are ``top``: a search between two of its entries takes half the time of one over all points.
    ``zones`` is empty where no node has a zone.
    """

    nodes: Mapping[str, Node]
    points: list[int]
    owners: list[str]
    guide: list[int]
    zones: Mapping[str, tuple[str, ...]]
    sizes: Mapping[tuple[str, ...], int]

    def changed(self, nodes: Mapping[str, Node], name: str, old: int, new: int) -> Table:
        """The table after the number of points of ``name`` went from ``old`` to ``new``."""
        points: list[int] = []
        owners: list[str] = []
        done = 0
        for point in sorted(_node_points(name, min(old, new), max(old, new))):
            at = bisect_left(self.points, point, done)
            while at < len(self.points) and self.points[at] == point and self.owners[at] < name:
                at += 1
            points += self.points[done:at]
            owners += self.owners[done:at]
            if new > old:
                points.append(point)
                owners.append(name)
            done = at if new > old else at + 1
        points += self.points[done:]
        owners += self.owners[done : len(self.points)]
        return _table(nodes, points, owners)

    def preference(self, place: int, exclude: frozenset[str]) -> Iterator[str]:
        """All nodes but the excluded, in the order in which a key at ``place`` wants them."""
        order = self._walk(place)
        if self.zones:
            order = self._spread(order, self.sizes)
        if not exclude:
            return order
        order = (name for name in order if name not in exclude)
        if not self.zones:
            return order
        left = Counter(self.sizes)
        left.subtract(self.zones[name] for name in exclude if name in self.nodes)
        return self._spread(order, left)

    def _walk(self, place: int) -> Iterator[str]:
        owners, size, start = self.owners, len(self.points), bisect_left(self.points, place)
        seen: set[str] = set()
        for at in chain(range(start, size), range(start)):
            name = owners[at]
            if name not in seen:
                seen.add(name)
                yield name
                if len(seen) == len(self.nodes):
                    return

    def _spread(self, order: Iterator[str], sizes: Mapping[tuple[str, ...], int]) -> Iterator[str]:
        """First the first node of each zone in ``order``, then the second of each, and so on."""
        met: Counter[tuple[str, ...]] = Counter()
        rounds: defaultdict[int, list[str]] = defaultdict(list)
        for number in range(max(sizes.values())):
            for index in range(sum(size > number for size in sizes.values())):
                while index >= len(rounds[number]):
                    name = next(order)
                    zone = self.zones[name]
                    rounds[met[zone]].append(name)
                    met[zone] += 1
                yield rounds[number][index]


def _table(nodes: Mapping[str, Node], points: list[int], owners: list[str]) -> Table:
    """A table of these sorted points; ``owners`` gets its extra entry here."""
    nodes = dict(sorted(nodes.items()))
    zones: dict[str, tuple[str, ...]] = {}
    if any(node.zone is not None for node in nodes.values()):
        zones = {name: ("of its own", name) if node.zone is None else (node.zone,) for name, node in nodes.items()}
    owners += owners[:1]
    guide = [bisect_left(points, top << GUIDE_SHIFT) for top in range((1 << GUIDE_BITS) + 1)]
    return Table(MappingProxyType(nodes), points, owners, guide, zones, Counter(zones.values()))


def build(nodes: Mapping[str, Node], points: int) -> Table:
    """The table of these nodes, where a node of weight 1 has ``points`` points."""
    places: list[int] = []
    names: list[str] = []
    for name, node in sorted(nodes.items()):
        count = point_count(node, points)
        places += _node_points(name, 0, count)
        names += [name] * count
    # The sort is stable and names come in order, so equal points end up in the order of their names.
    order = sorted(range(len(places)), key=places.__getitem__)
    return _table(nodes, [places[at] for at in order], [names[at] for at in order])


def _node_points(name: str, start: int, stop: int) -> list[int]:
    raw = name.encode()
    return [xxh64(raw + u32(index), 0) for index in range(start, stop)]


def u32(number: int) -> bytes:
    """``number`` in four little-endian bytes."""
    return number.to_bytes(4, "little")


def point_count(node: Node, points: int) -> int:
    """How many points ``node`` has where weight 1 has ``points``; a half is rounded to even."""
    return max(1, round(points * node.weight))
