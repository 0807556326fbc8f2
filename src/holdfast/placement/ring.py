"""The ring: every node owns many points on a circle of 2**64, a key belongs to the first point at or after its hash.

Karger et al., "Consistent hashing and random trees" (1997), with virtual nodes. Point i of a node is the hash of the
node's name in UTF-8 followed by i in four little-endian bytes. The width is fixed, so no two (name, i) share those
bytes, whatever stands in a name. A node has round(points * weight) of them, at least one, numbered from 0: they depend
on that node alone, which is why a change moves keys only to or from the node that changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import ClassVar, cast

from ..errors import Misuse
from ._kernel import Finder, Ring, Table, points_of
from .base import Change, Node, Placement
from .hashing import DEFAULT_HASH, is_whole

LAST = (1 << 64) - 1
MAX_POINTS = 1 << 20
"""The most points that one node may have: ``points * weight`` stays at or below this."""


class HashRing(Placement):
    """Consistent hashing: which node, or which nodes, a key lives on.

    ``nodes`` are names, or a mapping of names to weights or to `Node`; ``points`` is how many points on the circle a
    node of weight 1 has: more make the shares more even and the ring larger. The order in which nodes were added never
    matters.

    Reading takes no lock: a reader sees the ring before a change or after it, never a mixture. Errors are `Misuse`.
    """

    algorithm: ClassVar[str] = "ring"
    options: ClassVar[tuple[str, ...]] = ("points",)

    def __init__(
        self,
        nodes: Iterable[str] | Mapping[str, float | Node] = (),
        *,
        points: int = 160,
        hash: str = DEFAULT_HASH,
    ) -> None:
        if not is_whole(points) or not 1 <= points <= MAX_POINTS:
            raise Misuse(f"points is a whole number from 1 to {MAX_POINTS}, not {points!r}")
        self._points = points
        super().__init__(nodes, hash=hash)

    @property
    def points(self) -> int:
        """How many points a node of weight 1 has."""
        return self._points

    def arcs(self, n: int = 1) -> list[tuple[int, tuple[str, ...]]]:
        table = self._table
        nodes: Mapping[str, Node] = table.state.nodes
        if not nodes:
            raise self._refuse_empty()
        if not is_whole(n) or not 1 <= n <= len(nodes):
            raise Misuse(f"n is a whole number from 1 to the {len(nodes)} nodes there are, not {n!r}")
        owners: dict[int, str] = {}
        for name in sorted(nodes):  # of equal points the first name's counts
            for point in self._node_points(name, 0, self._share(nodes[name])):
                owners.setdefault(point, name)
        places = sorted(owners)
        arcs: list[tuple[int, tuple[str, ...]]] = [(place, (owners[place],)) for place in places]
        if n > 1:
            arcs = [(place, tuple(islice(self._preference(table, place, frozenset()), n))) for place in places]
        return arcs if places[-1] == LAST else [*arcs, (LAST, arcs[0][1])]

    @property
    def _deciding(self) -> tuple[str, ...]:
        return ()  # a node's share is how many points it has, whatever the points for a weight of 1

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        points, owners = array("Q"), array("I")
        for slot, name in enumerate(names):
            if name is not None:
                of_node = self._node_points(name, 0, self._share(nodes[name]))
                points += of_node
                owners += array("I", (slot,)) * len(of_node)
        return Ring(points, owners, names)

    def _next(self, names: tuple[str | None, ...], nodes: Mapping[str, Node], old: Table, change: Change) -> Finder:
        before = 0 if change.old is None else self._share(change.old)
        after = 0 if change.new is None else self._share(change.new)
        added = self._node_points(change.name, before, after)
        removed = self._node_points(change.name, after, before)
        return cast(Ring, old.finder).changed(change.slot, added, removed, names)

    def _node_points(self, name: str, start: int, stop: int) -> array[int]:
        raw, hasher = name.encode(), self._hasher
        if hasher is None:
            return points_of(raw, start, stop)
        return array("Q", (hasher(raw + index.to_bytes(4, "little")) for index in range(start, stop)))

    def _order(self, table: Table, place: int) -> Iterator[str]:
        names = table.names
        return (cast(str, names[slot]) for slot in cast(Ring, table.finder).walk(place))

    def _share(self, node: Node) -> int:
        return max(1, round(self._points * node.weight))

    def _checked_weight(self, given: object, name: str) -> float:
        weight = super()._checked_weight(given, name)
        if weight > MAX_POINTS / self._points:
            raise Misuse(
                f"the weight {weight:g} of node {name!r} with {self._points} points a unit makes more than {MAX_POINTS}"
                " points: weights are relative, so divide them all by the same number"
            )
        return weight

    def __repr__(self) -> str:
        total = sum(self._share(node) for node in self._table.state.nodes.values())
        return f"<HashRing of {len(self)} nodes, {total} points, {self._hash}>"
