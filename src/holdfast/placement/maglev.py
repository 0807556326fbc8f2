"""Maglev (Eisenbud et al., "Maglev: a fast and reliable software network load balancer", 2016): one large table.

Nodes, sorted by name, take turns; at each turn a node takes the next free place of its own permutation of the table.
The permutation starts at ``XXH64(name) % size`` and steps by ``XXH64(name, seed 1) % (size - 1) + 1``, and lighter
nodes sit out turns, both as Envoy has it. A key belongs to the place ``hash % size``.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapreplace
from itertools import cycle, islice
from typing import ClassVar

from ..errors import Misuse
from ._kernel import Finder, fill, native, xxh64
from .base import Node, Placement
from .hashing import DEFAULT_HASH, is_whole

MAX_SIZE = 1 << 26


class Entries:
    """A finder: the slot of each place in the table."""

    __slots__ = ("_entries", "_size")

    def __init__(self, entries: array[int]) -> None:
        self._entries = entries
        self._size = len(entries)

    def find(self, place: int) -> int:
        return self._entries[place % self._size]

    def native(self) -> Finder | None:
        return native("entries", self._entries)


class Maglev(Placement):
    """A lookup is one look into a table, whatever the number of nodes; the shares are even to the size of the table.

    Not minimal: a change moves some keys (a few in a hundred) between nodes that stay. For spreading connections or
    cache entries, where that costs little; not for data that has to be copied. ``table_size`` is a prime, best a
    hundred times the number of nodes or more.
    """

    algorithm: ClassVar[str] = "maglev"
    minimal: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("table_size",)

    def __init__(
        self,
        nodes: Iterable[str] | Mapping[str, float | Node] = (),
        *,
        table_size: int = 65537,
        hash: str = DEFAULT_HASH,
    ) -> None:
        if not is_whole(table_size) or not 2 <= table_size <= MAX_SIZE or not is_prime(table_size):
            raise Misuse(f"table_size is a prime from 2 to {MAX_SIZE}, such as 65537 or 655373, not {table_size!r}")
        self._table_size = table_size
        super().__init__(nodes, hash=hash)

    @property
    def table_size(self) -> int:
        """How many places the table has."""
        return self._table_size

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        size = self._table_size
        if len(nodes) > size:
            enough = next(filter(is_prime, range(min(100 * len(nodes), MAX_SIZE - 1000), MAX_SIZE)))
            raise Misuse(f"a table of {size} has no place for each of {len(nodes)} nodes: table_size={enough} has")
        slots = {name: slot for slot, name in enumerate(names) if name is not None}
        order = sorted(slots)
        shares = dict(zip(nodes, self._shares(nodes), strict=True))
        return Entries(_filled(size, order, [slots[name] for name in order], [shares[name] for name in order]))

    def _shares(self, nodes: Mapping[str, Node]) -> list[float]:
        _, exponent = math.frexp(max((node.weight for node in nodes.values()), default=1.0))
        weights = [math.ldexp(node.weight, -exponent) for node in nodes.values()]  # so that no sum overflows
        total = math.fsum(weights)
        return [weight / total for weight in weights]


def _filled(size: int, order: list[str], slots: list[int], shares: list[float]) -> array[int]:
    at = array("I", [xxh64(name.encode(), 0) % size for name in order])
    steps = array("I", [xxh64(name.encode(), 1) % (size - 1) + 1 for name in order])
    equal = min(shares) == max(shares)
    entries = fill(size, at, steps, array("I", slots), None if equal else shares)
    if entries is None:
        turns = cycle(range(len(shares))) if equal else _turns(shares, size)
        entries = array("I", _fill(size, list(at), list(steps), slots, turns))
    return entries


def _turns(shares: list[float], size: int) -> Iterator[int]:
    """Whose turn it is, as long as places are free. The heaviest has one in every round, so ``size`` rounds suffice.

    A node's turn comes in the first round r with ``r * share`` at or above ``largest`` times its turns so far.
    """
    largest = max(shares)
    due = [(1, index) for index in range(len(shares))]
    reached = [0.0] * len(shares)
    while True:
        number, index = due[0]
        yield index
        target, share = reached[index] + largest, shares[index]
        reached[index] = target
        later = size + 1 if target > size * share else max(number, math.ceil(target / share) - 2) + 1
        while later * share < target and later <= size:
            later += 1
        heapreplace(due, (later, index))


def _fill(size: int, at: list[int], steps: list[int], slots: list[int], turns: Iterator[int]) -> list[int]:
    free = -1
    entries = [free] * size
    for turn in islice(turns, size):
        place, step = at[turn], steps[turn]
        while entries[place] != free:
            place += step
            if place >= size:
                place -= size
        entries[place] = slots[turn]
        at[turn] = place
    return entries


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
