"""What every placement is: a set of nodes, lookups, an order of nodes for each key, changes, and an identity.

An algorithm brings a finder (from a hash to a slot) and says how a change of nodes makes the next one. Everything else,
zones, exclusion, checks, snapshots, data, is here, once, for all.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

from ..errors import Misuse, Unsupported
from ..model import check_name
from ._kernel import Finder, Lookup, Table, own_methods, xxh64
from .hashing import DEFAULT_HASH, Hasher, Key, hasher_of, is_whole
from .scores import Scores

if TYPE_CHECKING:
    from .plan import Plan

VERSION = 1


class Node(NamedTuple):
    """What a placement knows of a node. ``weight`` is relative to the others; ``zone`` is what fails with it."""

    weight: float = 1.0
    zone: str | None = None


@dataclass(slots=True)
class State:
    """What belongs to one state of a placement beside its finder. ``zones`` is empty where no node has one."""

    nodes: Mapping[str, Node]
    zones: Mapping[str, tuple[str, ...]]
    sizes: Mapping[tuple[str, ...], int]
    scores: Scores | None = None  # made when an order is first asked for


class Change(NamedTuple):
    """A step between two states: what stands in ``slot`` came (``old`` is None), went (``new`` is None), or changed."""

    slot: int
    name: str
    old: Node | None
    new: Node | None


class Placement(Lookup):
    """Which node, or which nodes, a key lives on.

    ``nodes`` are names, or a mapping of names to weights or to `Node`. Reading takes no lock: a reader sees the
    placement before a change or after it, never a mixture. Errors are `Misuse`, and `Unsupported` for what an algorithm
    cannot do.
    """

    algorithm: ClassVar[str]
    """Its name, in data and on the command line."""
    weighted: ClassVar[bool] = True
    """Whether nodes may have weights."""
    removes_any: ClassVar[bool] = True
    """Whether any node can be removed, and not only the last."""
    minimal: ClassVar[bool] = True
    """Whether no key ever moves between two nodes that stay."""
    ordered: ClassVar[bool] = False
    """Whether places depend on the order in which nodes came and went, so that it is a part of the identity."""

    def __init__(self, nodes: Iterable[str] | Mapping[str, float | Node] = (), *, hash: str = DEFAULT_HASH) -> None:
        self._hash = hash
        self._hasher = self._hasher_of(hash)
        self._writing = Lock()
        checked = self._checked_nodes(nodes)
        self._restore(tuple(checked), checked)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_methods(cls)

    # -- what an algorithm says

    options: ClassVar[tuple[str, ...]] = ()
    """Its own keyword arguments, each also an attribute: for data and the fingerprint."""

    @property
    def _deciding(self) -> tuple[str, ...]:
        """Those of the options that say where keys go, beside what each node's share says."""
        return self.options

    history: ClassVar[tuple[str, ...]] = ()
    """The fields of its data that say in which slots nodes are, and why: ``slots`` first. Empty unless `ordered`."""

    def _hasher_of(self, hash: str) -> Hasher | None:
        """What keys go through; None for the kernel's own."""
        return hasher_of(hash)

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        """The finder for nodes in these slots (None: an empty one)."""
        raise NotImplementedError

    def _next(self, names: tuple[str | None, ...], nodes: Mapping[str, Node], old: Table, change: Change) -> Finder:
        """The finder after ``change``, with nodes before and after it; made anew unless an algorithm knows better."""
        return self._finder(names, nodes)

    def _slot_for(self, table: Table) -> int:
        """Where a new node goes: the first empty slot."""
        return table.names.index(None) if None in table.names else len(table.names)

    def _without(self, table: Table, slot: int) -> tuple[str | None, ...]:
        """The slots after the node in ``slot`` has gone: without empty ones at the end."""
        names = (*table.names[:slot], None, *table.names[slot + 1 :])
        size = len(names)
        while size and names[size - 1] is None:
            size -= 1
        return names[:size]

    def _order(self, table: Table, place: int) -> Iterator[str]:
        """All nodes in the order in which a key at ``place`` wants them, zones left aside.

        After the primary, the others by rendezvous: so a node that comes or goes changes one of the first n at most,
        and what a failed node kept falls to all others alike. (With zones it may be two, if the primary is one of them;
        where an algorithm has an order of its own, it is always one.)
        """
        assert table.finder is not None
        primary = table.finder.find(place)
        yield cast(str, table.names[primary])
        for slot in self._scores(table).walk(place):
            if slot != primary:
                yield cast(str, table.names[slot])

    def _scores(self, table: Table) -> Scores:
        state: State = table.state
        if state.scores is None:  # two threads at once make the same twice
            state.scores = scores_of(table.names, state.nodes)
        return state.scores

    def _share(self, node: Node) -> object:
        """What of a node's weight decides where keys go, for the fingerprint."""
        return float(node.weight)

    def _shares(self, nodes: Mapping[str, Node]) -> Iterable[object]:
        """The same for all of them, where it depends on the others."""
        return map(self._share, nodes.values())

    def _told_history(self, table: Table) -> dict[str, Any]:
        """The values of `history`."""
        return {"slots": list(table.names)} if self.ordered else {}

    # -- reading; each method looks at self._table once

    def get_nodes(self, key: Key, n: int, *, exclude: Iterable[str] = ()) -> list[str]:
        """The ``n`` distinct nodes that ``key`` lives on, the primary first; n + 1 gives the same and one more.

        With zones no zone gets a second node before every zone has one, nor a third before every zone that has two
        nodes gave two, and so on. A node without a zone is a zone of its own.

        ``exclude`` skips nodes that are down: all others of the ``n`` stay, the first of them first, and stand-ins
        come in by the same rule of zones. Names in it that are unknown are passed over.
        """
        if not is_whole(n):
            raise Misuse(f"n is a whole number, not {n!r}")
        table = self._table
        state: State = table.state
        down = _checked_exclude(exclude) if exclude else frozenset[str]()
        left = len(state.nodes) - sum(name in state.nodes for name in down)
        if not left:
            raise Misuse("every node is excluded") if state.nodes else self._refuse_empty()
        if not 1 <= n <= left:
            without = " that are not excluded" if down else ""
            raise Misuse(f"n is from 1 to the {left} nodes there are{without}, not {n}")
        return list(islice(self._preference(table, table.hash(key), down), n))

    def iterate_nodes(self, key: Key) -> Iterator[str]:
        """Every node, the one to try first first: ``get_nodes`` without end, in the state that is now."""
        table = self._table
        if table.finder is None:
            raise self._refuse_empty()
        return self._preference(table, table.hash(key), frozenset())

    def arcs(self, n: int = 1) -> list[tuple[int, tuple[str, ...]]]:
        """The circle of hashes, cut where the first ``n`` nodes change: the last hash of each arc, and those nodes.

        The first arc begins at 0, each other one behind the one before, and the last ends at 2**64 - 1. Only a ring has
        arcs; from the others this is `Unsupported`.
        """
        raise Unsupported(f"{type(self).__name__} gives nodes no ranges of hashes, as HashRing does: give keys")

    def plan(self, after: Placement, *, keys: Iterable[Key] | None = None, replicas: int = 1) -> Plan:
        """What moves when this placement becomes ``after``: ranges of hashes, or with ``keys`` which of those.

        With ``replicas`` each key has that many copies, on `get_nodes`. Where there are no ranges (any algorithm but
        the ring) ``keys`` must be given: `Unsupported`. Two that place by different rules are `Misuse`.
        """
        from .plan import make_plan

        return make_plan(self.copy(), after.copy(), keys, replicas)

    def copy(self) -> Self:
        """Another placement in the same state, to be changed on its own. Costs next to nothing."""
        cls = type(self)
        twin = cls.__new__(cls)
        twin.__dict__.update(self.__dict__)
        twin._table, twin._writing = self._table, Lock()
        return twin

    def _preference(self, table: Table, place: int, exclude: frozenset[str]) -> Iterator[str]:
        state: State = table.state
        order = self._order(table, place)
        if state.zones:
            order = _spread(order, state.zones, state.sizes)
        if not exclude:
            return order
        order = (name for name in order if name not in exclude)
        if not state.zones:
            return order
        left = Counter(state.sizes)
        left.subtract(state.zones[name] for name in exclude if name in state.nodes)
        return _spread(order, state.zones, left)

    def _first_but(self, key: Key, exclude: Iterable[str]) -> str:
        return self.get_nodes(key, 1, exclude=exclude)[0]

    def _refuse_empty(self) -> Misuse:
        return Misuse("there are no nodes: add_node first")

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Every node with its weight and zone, sorted by name; a snapshot that cannot be changed."""
        return MappingProxyType(dict(sorted(self._table.state.nodes.items())))

    @property
    def slots(self) -> tuple[str | None, ...]:
        """What the numbers of `locate_slots` stand for; None is an empty place."""
        return self._table.names

    @property
    def hash(self) -> str:
        """The name of the hash, a part of the identity."""
        return self._hash

    def __contains__(self, name: object) -> bool:
        return name in self._table.state.nodes

    def __len__(self) -> int:
        return len(self._table.state.nodes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} nodes, {self._hash}>"

    # -- changing: one writer at a time makes a new table and publishes it by one assignment

    def add_node(self, name: str, weight: float = 1.0, zone: str | None = None) -> None:
        """Add a node: it takes its share of the keys, and no other key moves."""
        node = self._checked_node(name, Node(weight, zone))
        with self._writing:
            table = self._table
            if name in table.state.nodes:
                raise Misuse(f"there is a node {name!r} already; set_weight changes its weight")
            slot = self._slot_for(table)
            names = (*table.names[:slot], name, *table.names[slot + 1 :])
            self._publish(table, names, {**table.state.nodes, name: node}, Change(slot, name, None, node))

    def remove_node(self, name: str) -> None:
        """Remove a node: its keys go to the others, and no other key moves."""
        with self._writing:
            table = self._table
            node = self._known(table, name)
            slot = table.names.index(name)
            if not self.removes_any and slot != len(table.names) - 1:
                last = table.names[-1]
                raise Unsupported(f"{type(self).__name__} removes only the last node, {last!r}; Choose and Anchor any")
            rest = {other: kept for other, kept in table.state.nodes.items() if other != name}
            self._publish(table, self._without(table, slot), rest, Change(slot, name, node, None))

    def set_weight(self, name: str, weight: float) -> None:
        """Give a node another weight: keys move only to it when it grows, and only from it when it shrinks."""
        with self._writing:
            table = self._table
            old = self._known(table, name)
            new = self._checked_node(name, Node(weight, old.zone))
            change = Change(table.names.index(name), name, old, new)
            self._publish(table, table.names, {**table.state.nodes, name: new}, change)

    def _publish(self, old: Table, names: tuple[str | None, ...], nodes: dict[str, Node], change: Change) -> None:
        finder = None
        if nodes:
            finder = self._finder(names, nodes) if old.finder is None else self._next(names, nodes, old, change)
        self._table = self._state_of(names, nodes, finder)

    def _state_of(self, names: tuple[str | None, ...], nodes: Mapping[str, Node], finder: Finder | None) -> Table:
        zones: dict[str, tuple[str, ...]] = {}
        if any(node.zone is not None for node in nodes.values()):
            zones = {name: ("of its own", name) if node.zone is None else (node.zone,) for name, node in nodes.items()}
        return Table(finder, names, self._hasher, State(nodes, zones, Counter(zones.values())))

    # -- identity

    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for two placements that place alike, however they came about.

        Names of zones do not count, nor weights that come to the same. It finds mistakes, not forgers.
        """
        table = self._table
        nodes: Mapping[str, Node] = dict(sorted(table.state.nodes.items()))
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
        options = [(option, getattr(self, option)) for option in self._deciding]
        told: list[object] = [self.algorithm, self._hash, options]
        told += [
            (name, share, mates.get(index, 0))
            for index, (name, share) in enumerate(zip(nodes, self._shares(nodes), strict=True))
        ]
        told += self._told_history(table).values()
        return f"{xxh64(repr(told).encode(errors='surrogatepass'), 0):016x}"

    def to_dict(self) -> dict[str, Any]:
        """The placement as plain data for JSON or TOML, for `from_dict`."""
        table = self._table
        nodes = {name: _told(node) for name, node in sorted(table.state.nodes.items())}
        data: dict[str, Any] = {"version": VERSION, "algorithm": self.algorithm, "hash": self._hash}
        data |= {option: getattr(self, option) for option in self.options}
        return {**data, **self._told_history(table), "nodes": nodes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` described. Data of a newer release, or written by hand with a mistake, is refused."""
        algorithm = told_algorithm(data)
        if algorithm != cls.algorithm:
            raise Misuse(f"this algorithm is {algorithm!r}; {cls.__name__} reads {cls.algorithm!r} only")
        fields = _fields(data, "its data", "version", "algorithm", "hash", "nodes", *cls.options, *cls.history)
        nodes: dict[str, Node] = {}
        for name, value in _mapping(fields["nodes"], "nodes in its data").items():
            node = _fields(value, f"node {name!r}", "weight", optional="zone")
            nodes[name] = Node(node["weight"], node.get("zone"))
        made = cls(hash=fields["hash"], **{option: fields[option] for option in cls.options})
        checked = made._checked_nodes(nodes)
        history = {field: fields[field] for field in cls.history}
        names = _checked_slots(history.pop("slots"), checked) if history else tuple(checked)
        made._restore(names, checked, **history)
        return made

    def _restore(self, names: tuple[str | None, ...], nodes: dict[str, Node]) -> None:
        """Take on these nodes in these slots."""
        self._table = self._state_of(names, nodes, self._finder(names, nodes) if nodes else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)

    # -- checks

    def _checked_nodes(self, nodes: Iterable[str] | Mapping[str, float | Node]) -> dict[str, Node]:
        if isinstance(nodes, str | bytes):
            raise Misuse(f"nodes is a list of names, not one name: [{nodes!r}]")
        checked: dict[str, Node] = {}
        if isinstance(nodes, Mapping):
            for name, value in cast(Mapping[str, float | Node], nodes).items():
                checked[name] = self._checked_node(name, value if isinstance(value, Node) else Node(value))
            return checked
        for name in nodes:
            node = self._checked_node(name, Node())
            if name in checked:
                raise Misuse(f"the node {name!r} is there twice; a heavier node has a weight: {{{name!r}: 2}}")
            checked[name] = node
        return checked

    def _checked_node(self, name: str, node: Node) -> Node:
        check_name(name, "node name")
        if node.zone is not None:
            check_name(node.zone, "zone")
        weight = self._checked_weight(node.weight, name)
        if weight != 1.0 and not self.weighted:
            raise Unsupported(f"{type(self).__name__} knows no weights; HashRing and Rendezvous do")
        return Node(weight, node.zone)

    def _checked_weight(self, given: object, name: str) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise Misuse(f"the weight of node {name!r} is a number, not {type(given).__name__}: {given!r}")
        try:
            weight = float(given)
        except OverflowError:
            weight = math.inf
        if not 0 < weight < math.inf:
            raise Misuse(
                f"the weight of node {name!r} is above 0 and finite, not {weight!r}; remove_node takes a node out"
            )
        return weight

    def _known(self, table: Table, name: str) -> Node:
        try:
            return table.state.nodes[name]  # type: ignore[no-any-return]
        except (KeyError, TypeError):
            raise Misuse(f"there is no node {name!r} here") from None


def told_algorithm(data: object) -> object:
    """Whose data this is. The version is looked at first: what a newer release wrote may have any other fields."""
    fields = _mapping(data, "its data")
    version = fields.get("version", VERSION)  # that one is missing is told with all others that are
    if not is_whole(version) or version < 1:
        raise Misuse(f"the version of a placement's data is a whole number from 1, not {version!r}")
    if version > VERSION:
        raise Misuse(f"this was written in version {version}; this release reads up to {VERSION}: upgrade it")
    if "algorithm" not in fields:
        raise Misuse("its data lacks algorithm")
    return fields["algorithm"]


def scores_of(
    names: tuple[str | None, ...], nodes: Mapping[str, Node], known: Mapping[str, int] = MappingProxyType({})
) -> Scores:
    """The nodes in these slots by rendezvous; ``known``: seeds that need not be computed again."""
    slots = {name: slot for slot, name in enumerate(names) if name is not None}
    return Scores(slots, {name: node.weight for name, node in nodes.items()}, known)


def _spread(
    order: Iterator[str], zones: Mapping[str, tuple[str, ...]], sizes: Mapping[tuple[str, ...], int]
) -> Iterator[str]:
    """First the first node of each zone in ``order``, then the second of each, and so on."""
    met: Counter[tuple[str, ...]] = Counter()
    rounds: defaultdict[int, list[str]] = defaultdict(list)
    for number in range(max(sizes.values())):
        for index in range(sum(size > number for size in sizes.values())):
            while index >= len(rounds[number]):
                name = next(order)
                zone = zones[name]
                rounds[met[zone]].append(name)
                met[zone] += 1
            yield rounds[number][index]


def _told(node: Node) -> dict[str, Any]:
    return {"weight": node.weight} | ({} if node.zone is None else {"zone": node.zone})


def _checked_exclude(exclude: Iterable[str]) -> frozenset[str]:
    if isinstance(exclude, str | bytes):
        raise Misuse(f"exclude is a set of names, not one name: {{{exclude!r}}}")
    names: list[object] = list(exclude)
    for name in names:
        if not isinstance(name, str):
            raise Misuse(f"exclude holds names of nodes, not {type(name).__name__}: {name!r}")
    return frozenset(cast(list[str], names))


def _mapping(data: object, what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise Misuse(f"{what} is a mapping, not {type(data).__name__}")
    return dict(cast(Mapping[str, Any], data))


def _fields(data: object, what: str, *required: str, optional: str = "") -> dict[str, Any]:
    fields = _mapping(data, what)
    if missing := set(required) - fields.keys():
        raise Misuse(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := fields.keys() - {*required, optional}:
        raise Misuse(f"{what} holds what is unknown: {', '.join(sorted(map(repr, unknown)))}")
    return fields


def _checked_slots(slots: object, nodes: Mapping[str, Node]) -> tuple[str | None, ...]:
    if not isinstance(slots, list | tuple):
        raise Misuse(f"slots is a list of names, not {type(slots).__name__}")
    names = tuple(cast(list[str | None], slots))
    if sorted(name for name in names if name is not None) != sorted(nodes):
        raise Misuse("slots holds each node once, and null for an empty slot")
    return names
