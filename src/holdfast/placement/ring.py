"""The ring: every node owns many points on a circle of 2**64, a key belongs to the first point at or after its hash."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from threading import Lock
from typing import Any, Self, cast

from ..errors import Misuse
from ..model import check_name
from .hashing import HASH_NAME, Key, hash_key, is_whole, xxh64
from .table import GUIDE_SHIFT, Node, Table, build, point_count, u32

VERSION = 1
MAX_POINTS = 1 << 20
"""The most points that one node may have: ``points * weight`` stays at or below this."""


class HashRing:
    """Consistent hashing: which node, or which nodes, a key lives on.

    ``nodes`` are names, or a mapping of names to weights or to `Node`; ``points`` is how many points on the circle a
    node of weight 1 has: more make the shares more even and the ring larger. The order in which nodes were added never
    matters.

    Reading takes no lock: a reader sees the ring before a change or after it, never a mixture. Errors are `Misuse`.
    """

    def __init__(self, nodes: Iterable[str] | Mapping[str, float | Node] = (), *, points: int = 160) -> None:
        if not is_whole(points) or not 1 <= points <= MAX_POINTS:
            raise Misuse(f"points is a whole number from 1 to {MAX_POINTS}, not {points!r}")
        self._points = points
        self._writing = Lock()
        self._table = build(_checked_nodes(nodes, points), points)

    # Reading: each method looks at self._table once.

    def get_node(self, key: Key, *, exclude: Iterable[str] = ()) -> str:
        """The node that ``key`` lives on: the first of `iterate_nodes` that is not in ``exclude``."""
        if exclude:
            return self.get_nodes(key, 1, exclude=exclude)[0]
        table = self._table
        guide = table.guide
        place = hash_key(key)
        top = place >> GUIDE_SHIFT
        try:
            return table.owners[bisect_left(table.points, place, guide[top], guide[top + 1])]
        except IndexError:
            raise _empty() from None

    def get_nodes(self, key: Key, n: int, *, exclude: Iterable[str] = ()) -> list[str]:
        """The ``n`` distinct nodes that ``key`` lives on, the primary first; n + 1 gives the same and one more.

        With zones no zone gets a second node before every zone has one, nor a third before every zone that has two
        nodes gave two, and so on. A node without a zone is a zone of its own.

        ``exclude`` skips nodes that are down: all others of the ``n`` stay, the first of them first, and stand-ins
        come in by the same rule of zones. Names in it that the ring does not know are passed over.
        """
        if not is_whole(n):
            raise Misuse(f"n is a whole number, not {n!r}")
        table = self._table
        down = _checked_exclude(exclude) if exclude else frozenset[str]()
        left = len(table.nodes) - sum(name in table.nodes for name in down)
        if not left:
            raise Misuse("every node of the ring is excluded") if table.nodes else _empty()
        if not 1 <= n <= left:
            without = " that are not excluded" if down else ""
            raise Misuse(f"n is from 1 to the {left} nodes of the ring{without}, not {n}")
        return list(islice(table.preference(hash_key(key), down), n))

    def iterate_nodes(self, key: Key) -> Iterator[str]:
        """Every node, the one to try first first: ``get_nodes`` without end, on the ring as it is now."""
        table = self._table
        if not table.nodes:
            raise _empty()
        return table.preference(hash_key(key), frozenset())

    def locate(self, keys: Iterable[Key]) -> list[str]:
        """The node of each key, all looked up in one and the same state of the ring."""
        if isinstance(keys, str | bytes):
            raise Misuse(f"locate takes many keys; for the one key {keys!r} use get_node")
        table = self._table
        points, owners, guide = table.points, table.owners, table.guide
        if not points:
            raise _empty()
        return [
            owners[bisect_left(points, place, guide[top := place >> GUIDE_SHIFT], guide[top + 1])]
            for place in map(hash_key, keys)
        ]

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Every node with its weight and zone, sorted by name; a snapshot that cannot be changed."""
        return self._table.nodes

    @property
    def points(self) -> int:
        """How many points a node of weight 1 has."""
        return self._points

    def __contains__(self, name: object) -> bool:
        return name in self._table.nodes

    def __len__(self) -> int:
        return len(self._table.nodes)

    def __repr__(self) -> str:
        table = self._table
        return f"<HashRing of {len(table.nodes)} nodes, {len(table.points)} points, {HASH_NAME}>"

    # Changing: one writer at a time makes a new table and publishes it by one assignment.

    def add_node(self, name: str, weight: float = 1.0, zone: str | None = None) -> None:
        """Add a node: it takes its share of the keys, and no other key moves."""
        node = _checked_node(name, Node(weight, zone), self._points)
        with self._writing:
            table = self._table
            if name in table.nodes:
                raise Misuse(f"there is a node {name!r} already; set_weight changes its weight")
            self._table = table.changed({**table.nodes, name: node}, name, 0, point_count(node, self._points))

    def remove_node(self, name: str) -> None:
        """Remove a node: its keys go to the others, and no other key moves."""
        with self._writing:
            table = self._table
            node = _known(table, name)
            rest = {other: kept for other, kept in table.nodes.items() if other != name}
            self._table = table.changed(rest, name, point_count(node, self._points), 0)

    def set_weight(self, name: str, weight: float) -> None:
        """Give a node another weight: keys move only to it when it grows, and only from it when it shrinks."""
        with self._writing:
            table = self._table
            old = _known(table, name)
            new = _checked_node(name, Node(weight, old.zone), self._points)
            nodes = {**table.nodes, name: new}
            self._table = table.changed(nodes, name, point_count(old, self._points), point_count(new, self._points))

    # Identity.

    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for two rings of the same points and zones, however they came about.

        Names of zones do not count, nor weights that make the same number of points. It finds mistakes, not forgers.
        """
        nodes = self._table.nodes
        zones: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(nodes.values()):
            if node.zone is not None:
                zones[node.zone].append(index)
        # A zone of one node, and one zone that holds all of them, place as no zone does.
        mates = {
            index: first + 1
            for first, *others in zones.values()
            if 0 < len(others) < len(nodes) - 1
            for index in (first, *others)
        }
        text = bytearray(f"holdfast ring 1 {HASH_NAME}".encode())
        for index, (name, node) in enumerate(nodes.items()):
            raw = name.encode()
            text += u32(len(raw)) + raw + u32(point_count(node, self._points)) + u32(mates.get(index, 0))
        return f"{xxh64(bytes(text), 0):016x}"

    def to_dict(self) -> dict[str, Any]:
        """The ring as plain data for JSON or TOML, for `from_dict`."""
        return {
            "version": VERSION,
            "algorithm": "ring",
            "hash": HASH_NAME,
            "points": self._points,
            "nodes": {
                name: {"weight": node.weight} | ({} if node.zone is None else {"zone": node.zone})
                for name, node in self._table.nodes.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The ring that `to_dict` described. One written by a newer release, or by hand with a mistake, is refused."""
        fields = _fields(data, "a ring's data", "version", "algorithm", "hash", "points", "nodes")
        version = fields["version"]
        if not is_whole(version) or version < 1:
            raise Misuse(f"the version of a ring's data is a whole number from 1, not {version!r}")
        if version > VERSION:
            raise Misuse(f"this ring was written in version {version}; this release reads up to {VERSION}: upgrade it")
        for field, ours in (("algorithm", "ring"), ("hash", HASH_NAME)):
            if fields[field] != ours:
                raise Misuse(f"this ring's {field} is {fields[field]!r}; HashRing reads {ours!r} only")
        nodes: dict[str, float | Node] = {}
        for name, value in _mapping(fields["nodes"], "nodes in a ring's data").items():
            node = _fields(value, f"node {name!r}", "weight", optional="zone")
            nodes[name] = Node(node["weight"], node.get("zone"))
        return cls(nodes, points=fields["points"])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)


def _checked_nodes(nodes: Iterable[str] | Mapping[str, float | Node], points: int) -> dict[str, Node]:
    if isinstance(nodes, str | bytes):
        raise Misuse(f"nodes is a list of names, not one name: [{nodes!r}]")
    checked: dict[str, Node] = {}
    if isinstance(nodes, Mapping):
        for name, value in cast(Mapping[str, float | Node], nodes).items():
            checked[name] = _checked_node(name, value if isinstance(value, Node) else Node(value), points)
        return checked
    for name in nodes:
        node = _checked_node(name, Node(), points)
        if name in checked:
            raise Misuse(f"the node {name!r} is there twice; a heavier node has a weight: {{{name!r}: 2}}")
        checked[name] = node
    return checked


def _checked_node(name: str, node: Node, points: int) -> Node:
    check_name(name, "node name")
    if node.zone is not None:
        check_name(node.zone, "zone")
    return Node(_checked_weight(node.weight, name, points), node.zone)


def _checked_weight(given: object, name: str, points: int) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise Misuse(f"the weight of node {name!r} is a number, not {type(given).__name__}: {given!r}")
    try:
        weight = float(given)
    except OverflowError:
        weight = math.inf
    if not (weight > 0 and weight < math.inf):
        raise Misuse(f"the weight of node {name!r} is above 0 and finite, not {weight!r}; remove_node takes a node out")
    if weight > MAX_POINTS / points:
        raise Misuse(
            f"the weight {weight:g} of node {name!r} with {points} points a unit makes more than {MAX_POINTS} points: "
            "weights are relative, so divide them all by the same number"
        )
    return weight


def _checked_exclude(exclude: Iterable[str]) -> frozenset[str]:
    if isinstance(exclude, str | bytes):
        raise Misuse(f"exclude is a set of names, not one name: {{{exclude!r}}}")
    names: list[object] = list(exclude)
    for name in names:
        if not isinstance(name, str):
            raise Misuse(f"exclude holds names of nodes, not {type(name).__name__}: {name!r}")
    return frozenset(cast(list[str], names))


def _known(table: Table, name: str) -> Node:
    try:
        return table.nodes[name]
    except (KeyError, TypeError):
        raise Misuse(f"there is no node {name!r} in this ring") from None


def _mapping(data: object, what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise Misuse(f"{what} is a mapping, not {type(data).__name__}")
    return dict(cast(Mapping[str, Any], data))


def _fields(data: object, what: str, *required: str, optional: str = "") -> dict[str, Any]:
    fields = _mapping(data, what)
    if missing := set(required) - fields.keys():
        raise Misuse(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := fields.keys() - {*required, optional}:
        raise Misuse(f"{what} holds what no ring has: {', '.join(sorted(map(repr, unknown)))}")
    return fields


def _empty() -> Misuse:
    return Misuse("the ring has no nodes: add_node first")
