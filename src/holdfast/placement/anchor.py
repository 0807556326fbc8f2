"""AnchorHash (Mendelson et al., "AnchorHash: a scalable consistent hash", 2020): even shares, any node may go.

There are ``capacity`` buckets, most of them without a node. A key's hash names a bucket; where that one was removed,
the key goes on to a bucket among those that were there just after its removal, until it meets one that works. So the
order of removals is a part of the state, and a new node takes the bucket that was removed last.

The key's bucket is first ``mix(hash) % capacity``, and from a removed bucket b that left n others
``mix(hash + (b + 1) * 0x9E3779B97F4A7C15) % n``, which is then followed to what has taken its place, as published.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

from ..errors import Misuse
from ._kernel import Finder, Table, mix, native
from .base import Change, Node, Placement
from .hashing import DEFAULT_HASH, is_whole

GOLDEN = 0x9E3779B97F4A7C15
MAX_CAPACITY = 1 << 24
_MASK = (1 << 64) - 1


class Buckets:
    """A finder. The arrays are the paper's: A, the number of buckets left after a removal (0: it works); W, the working
    ones in their order; L, where in it each is; K, what took each one's place; R, the removed ones, the last at the
    end.
    """

    __slots__ = ("_a", "_k", "_l", "_w", "removed")

    def __init__(self, capacity: int) -> None:
        self._a = array("I", bytes(4 * capacity))
        self._w = array("I", range(capacity))
        self._l = array("I", self._w)
        self._k = array("I", self._w)
        self.removed = array("I")

    def copy(self) -> Buckets:
        twin = object.__new__(Buckets)
        twin._a, twin._w, twin._l, twin._k = self._a[:], self._w[:], self._l[:], self._k[:]
        twin.removed = self.removed[:]
        return twin

    def remove(self, bucket: int) -> None:
        left = len(self._a) - len(self.removed) - 1
        self.removed.append(bucket)
        self._a[bucket] = left
        last = self._w[left]
        self._w[self._l[bucket]] = self._k[bucket] = last
        self._l[last] = self._l[bucket]

    def restore(self) -> None:
        """Put the bucket that was removed last to work again."""
        bucket, left = self.removed.pop(), len(self._a) - len(self.removed) - 1
        self._a[bucket] = 0
        self._l[self._w[left]] = left
        self._w[self._l[bucket]] = self._k[bucket] = bucket

    def find(self, place: int) -> int:
        a, k = self._a, self._k
        bucket = mix(place) % len(a)
        while left := a[bucket]:
            after = mix((place + (bucket + 1) * GOLDEN) & _MASK) % left
            while a[after] >= left:
                after = k[after]
            bucket = after
        return bucket

    def native(self) -> Finder | None:
        return native("anchor", self._a, self._k)


class Anchor(Placement):
    """Perfectly even shares, any node may go, and a lookup of a few steps: more, the more of ``capacity`` is free.

    At most ``capacity`` nodes fit, and it cannot be changed without moving keys. Nodes are in the order given, and it
    matters in which order they go. There are no weights. With zones, a key whose primary moves may move one more copy,
    so that copies stay spread: `Choose` needs to move the primary only.
    """

    algorithm: ClassVar[str] = "anchor"
    weighted: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("capacity",)
    history: ClassVar[tuple[str, ...]] = ("slots", "removed")

    def __init__(
        self, nodes: Iterable[str] | Mapping[str, float | Node] = (), *, capacity: int = 1024, hash: str = DEFAULT_HASH
    ) -> None:
        if not is_whole(capacity) or not 1 <= capacity <= MAX_CAPACITY:
            raise Misuse(f"capacity is a whole number from 1 to {MAX_CAPACITY}, not {capacity!r}")
        self._capacity = capacity
        super().__init__(nodes, hash=hash)

    @property
    def capacity(self) -> int:
        """How many nodes there may be at once."""
        return self._capacity

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Buckets:
        if len(names) > self._capacity:
            raise Misuse(
                f"{len(names)} nodes do not fit into capacity={self._capacity}; another capacity moves most keys"
            )
        buckets = Buckets(self._capacity)
        for bucket in range(self._capacity - 1, len(names) - 1, -1):
            buckets.remove(bucket)
        return buckets

    def _next(self, names: tuple[str | None, ...], nodes: Mapping[str, Node], old: Table, change: Change) -> Finder:
        buckets = cast(Buckets, old.finder).copy()
        if change.old is None:
            buckets.restore()
        elif change.new is None:
            buckets.remove(change.slot)
        return buckets

    def _slot_for(self, table: Table) -> int:
        if table.finder is None:
            return 0
        removed = cast(Buckets, table.finder).removed
        if not removed:
            raise Misuse(f"capacity={self._capacity} is used up; a larger one moves most keys")
        return removed[-1]

    def _without(self, table: Table, slot: int) -> tuple[str | None, ...]:
        names = (*table.names[:slot], None, *table.names[slot + 1 :])
        return names[: self._used([*self._gone(table), slot], len(names))] if any(names) else ()

    def _told_history(self, table: Table) -> dict[str, Any]:
        return {**super()._told_history(table), "removed": self._gone(table)}

    def _restore(self, names: tuple[str | None, ...], nodes: dict[str, Node], removed: object = ()) -> None:
        gone = list(cast(list[int], removed)) if isinstance(removed, list | tuple) else [-1]
        empty = [slot for slot, name in enumerate(names) if name is None]
        if not all(map(is_whole, gone)) or sorted(gone) != empty:
            raise Misuse(
                f"removed holds each empty one of the slots, in the order of removals: {empty}, not {removed!r}"
            )
        super()._restore(names, nodes)
        if gone and nodes:
            table = self._table
            for slot in gone:
                cast(Buckets, table.finder).remove(slot)
            self._table = self._state_of(names[: self._used(gone, len(names))], nodes, table.finder)

    def _gone(self, table: Table) -> list[int]:
        """The empty slots among ``table.names`` in the order of removals."""
        return (
            []
            if table.finder is None
            else list(cast(Buckets, table.finder).removed[self._capacity - len(table.names) :])
        )

    @staticmethod
    def _used(gone: list[int], size: int) -> int:
        """How many of ``size`` slots were ever used: not those that were removed first of all, from the last one on."""
        for slot in gone:
            if slot != size - 1:
                break
            size -= 1
        return size
