"""Jump consistent hashing (Lamping and Veach, "A fast, minimal memory, consistent hash algorithm", 2014), and further.

Bucket i is slot i. The first slot of a key is the published function of its 64-bit hash, so that other implementations
agree. The function may be read like this: slots come one after the other, and slot n, as it comes, is the key's first
with probability 1 / (n + 1). `walk` goes on from there and makes an order of all slots: slot n, as it comes, is
inserted at one of the n + 1 places among those before, each equally likely, and never changes its place among them. So
one more slot changes nothing in the order of the others; nor does passing over slots that are empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

from ..errors import Misuse
from ._kernel import Finder, Table, mix, native
from .base import Node, Placement

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def jump(value: int, buckets: int) -> int:
    """The bucket, below ``buckets``, of a 64-bit number."""
    bucket, after = 0, 0
    while after < buckets:
        bucket = after
        value = (value * 2862933555777941757 + 1) & _MASK
        after = int((bucket + 1) * (2147483648.0 / ((value >> 33) + 1)))
    return bucket


def walk(place: int, slots: int) -> Iterator[int]:
    """Every slot below ``slots`` once, in the order of the key with that hash.

    Slot n is inserted at place p when p is the least for which n - p is among the buckets that the published function
    goes through for the p-th number of the key: its hash for p = 0, else ``mix(hash + p * 0x9E3779B97F4A7C15)``. The
    first k slots need the first k numbers only.
    """
    inserted: dict[int, int] = {}
    begin, end = 0, min(4, slots)
    while begin < slots:
        for index in range(begin, end):
            value, bucket = mix((place + index * GOLDEN) & _MASK) if index else place, 0
            while bucket < slots - index:
                inserted.setdefault(bucket + index, index)
                value = (value * 2862933555777941757 + 1) & _MASK
                bucket = int((bucket + 1) * (2147483648.0 / ((value >> 33) + 1)))
        order: list[int] = []
        for slot in sorted(inserted):
            order.insert(inserted[slot], slot)
            del order[end:]
        yield from order[begin:]
        begin, end = end, min(2 * end, slots)


class JumpFinder:
    __slots__ = ("_slots",)

    def __init__(self, slots: int) -> None:
        self._slots = slots

    def find(self, place: int) -> int:
        return jump(place, self._slots)

    def native(self) -> Finder | None:
        return native("jump", self._slots)


class Jump(Placement):
    """Perfectly even shares from no memory at all, for numbered shards: nodes in the order given, which is part of it.

    Only the last node can be removed, and there are no weights.
    """

    algorithm: ClassVar[str] = "jump"
    weighted: ClassVar[bool] = False
    removes_any: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    history: ClassVar[tuple[str, ...]] = ("slots",)

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        if None in names:
            raise Misuse("Jump has no empty slots: it removes the last node only")
        return JumpFinder(len(names))

    def _order(self, table: Table, place: int) -> Iterator[str]:
        return (cast(str, table.names[slot]) for slot in walk(place, len(table.names)))
