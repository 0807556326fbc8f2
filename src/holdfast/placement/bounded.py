"""Bounded loads (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", 2016).

A key lives on the first node, in the order in which it wants them, that is not full. A node is full at its bound: its
weight's part of (1 + epsilon) times all keys, rounded up. It is computed in fractions, of epsilon and weights as a
person writes them: 0.1 is a tenth. The bounds together are never below the number of keys, so there is always a place.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from fractions import Fraction
from threading import Lock

from ..errors import Misuse
from ._kernel import Table, hash_key, mix
from .base import Placement
from .hashing import Key, key_bytes

Moves = dict[Key, tuple[str, str]]
"""Keys that moved, each with where it was and where it is now."""


class BoundedLoads:
    """No node gets more than its bound, over the order of nodes of any ``placement``.

    `assign` is for a batch: it remembers nothing, and the answer depends on the set of keys and the nodes alone.
    `place`, `release` and `settle` are for a stream, and move as few keys as keep the bounds: what they answer depends
    on what came before. Nodes are changed in the placement itself; `settle` afterwards says which keys move.
    """

    def __init__(self, placement: Placement, epsilon: float = 0.25) -> None:
        self._placement = placement
        self._epsilon = _checked_epsilon(epsilon)
        self._writing = Lock()
        self._node_of: dict[bytes, tuple[Key, str]] = {}
        self._keys_on: dict[str, dict[bytes, None]] = {}  # in the order in which they came
        self._table: Table | None = None
        self._bounds: dict[str, Fraction] = {}  # of one key
        self._tight = -1  # as long as there are more keys than this, no node is above its bound

    @property
    def placement(self) -> Placement:
        """Whose order of nodes counts, and whose nodes."""
        return self._placement

    @property
    def epsilon(self) -> float:
        """How far above its part of the mean a node may be."""
        return self._epsilon

    def bounds(self, keys: int) -> dict[str, int]:
        """The most that each node may have of so many keys."""
        return {name: math.ceil(keys * bound) for name, bound in self._bounds_of(self._placement).items()}

    def assign(self, keys: Iterable[Key]) -> dict[Key, str]:
        """Where each of these keys lives, if they are all there are. The order in which they are given does not matter:
        each has a rank of its own, and goes before those of a higher one.
        """
        if isinstance(keys, str | bytes):
            raise Misuse(f"keys are many: [{keys!r}]")
        given = list(keys)
        placement = self._placement.copy()
        distinct = {key_bytes(key): key for key in given}
        bounds = {name: math.ceil(len(distinct) * bound) for name, bound in self._bounds_of(placement).items()}
        loads = dict.fromkeys(bounds, 0)
        first = dict(zip(distinct, placement.locate(distinct.values()), strict=True)) if distinct else {}
        for raw in _ranked(distinct):
            name = first[raw]
            if loads[name] == bounds[name]:
                name = next(other for other in placement.iterate_nodes(raw) if loads[other] < bounds[other])
            loads[name] += 1
            first[raw] = name
        return {key: first[key_bytes(key)] for key in given}

    @property
    def loads(self) -> dict[str, int]:
        """How many keys of the stream each node has, by name."""
        with self._writing:
            nodes = self._placement.nodes
            return {name: len(self._keys_on.get(name, ())) for name in sorted({*nodes, *self._keys_on})}

    def place(self, key: Key) -> str:
        """Where ``key`` lives from now on; where it lives already, if it was placed and its node is still there.

        No other key moves.
        """
        raw = key_bytes(key)
        with self._writing:
            placement = self._current()
            if not len(placement):
                raise Misuse("there are no nodes: add_node first")
            if raw in self._node_of:
                name = self._node_of[raw][1]
                if name in placement:
                    return name
                self._take(raw)
            return self._put(raw, key, placement, len(self._node_of) + 1)

    def release(self, key: Key) -> Moves:
        """Forget a key. Fewer keys have lower bounds: gives those that must move for it, as few as there may be."""
        raw = key_bytes(key)
        with self._writing:
            if raw not in self._node_of:
                raise Misuse(f"the key {key!r} was not placed here, or released before")
            self._take(raw)
            placement = self._current()
            return self._settled(placement) if len(placement) and len(self) <= self._tight else {}

    def settle(self) -> Moves:
        """Bring the stream's keys in line with the nodes there are now; gives those that move.

        These are the keys of nodes that went, and of each node above its bound the latest that are too many: the fewest
        that can be.
        """
        with self._writing:
            placement = self._current()
            if len(self) and not len(placement):
                raise Misuse(f"there are no nodes for {len(self)} keys: add_node first")
            return self._settled(placement)

    def _settled(self, placement: Placement) -> Moves:
        count = len(self._node_of)
        moving: dict[bytes, tuple[Key, str]] = {}
        for name, keys in self._keys_on.items():
            bound = math.ceil(count * self._bounds[name]) if name in self._bounds else 0
            for raw in list(reversed(keys))[: max(0, len(keys) - bound)]:
                moving[raw] = self._node_of[raw]
        for raw in moving:
            self._take(raw)
        moved: Moves = {}
        for raw in _ranked(moving):
            key, old = moving[raw]
            moved[key] = old, self._put(raw, key, placement, count)
        self._tight = max((self._tight_for(name) for name in self._keys_on), default=-1)
        return moved

    def _put(self, raw: bytes, key: Key, placement: Placement, count: int) -> str:
        """Place a key, the last of ``count``."""
        on, bounds = self._keys_on, self._bounds
        order = placement.iterate_nodes(raw)
        name = next(name for name in order if len(on.get(name, ())) < math.ceil(count * bounds[name]))
        on.setdefault(name, {})[raw] = None
        self._node_of[raw] = key, name
        self._tight = max(self._tight, self._tight_for(name))
        return name

    def _take(self, raw: bytes) -> None:
        _, name = self._node_of.pop(raw)
        del self._keys_on[name][raw]
        if not self._keys_on[name]:
            del self._keys_on[name]

    def _tight_for(self, name: str) -> int:
        """The largest number of keys at which this node, as full as it is, is above its bound."""
        return math.floor((len(self._keys_on[name]) - 1) / self._bounds[name])

    def _current(self) -> Placement:
        """The placement in the state that is now, with the bounds that belong to it."""
        placement = self._placement.copy()
        table = placement._table  # pyright: ignore[reportPrivateUsage]
        if table is not self._table:
            self._table, self._bounds = table, self._bounds_of(placement)
            self._tight = sys.maxsize  # until the next `_settled`
        return placement

    def _bounds_of(self, placement: Placement) -> dict[str, Fraction]:
        weights = {name: _exact(node.weight) for name, node in placement.nodes.items()}
        total = sum(weights.values())
        return {name: (1 + _exact(self._epsilon)) * weight / total for name, weight in weights.items()}

    def __len__(self) -> int:
        """How many keys of the stream are placed."""
        return len(self._node_of)

    def __repr__(self) -> str:
        return f"<BoundedLoads of {self._placement!r}, epsilon {self._epsilon:g}, {len(self)} keys placed>"


def _ranked(keys: Iterable[bytes]) -> list[bytes]:
    """Keys by a rank of their own, which has nothing to do with where they live."""
    return sorted(keys, key=lambda raw: (mix(hash_key(raw)), raw))


def _checked_epsilon(epsilon: object) -> float:
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 <= epsilon < math.inf:
        raise Misuse(f"epsilon is a number from 0, such as 0.25, not {epsilon!r}")
    return epsilon


def _exact(number: float) -> Fraction:
    return Fraction(str(number))
