"""Rings and tables that others speak, for living beside them: ketama as memcached's clients have it, and Envoy's.

They place as the originals do, with what is odd about them. None is minimal: in each, a change may move keys between
nodes that stay. For anything new `HashRing` is the better choice.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import ClassVar, cast

from ..errors import Misuse, Unsupported
from ._kernel import Finder, Ring, Table, xxh64
from .base import Node, Placement
from .hashing import DEFAULT_HASH, Hasher, is_whole
from .maglev import Maglev

Nodes = Iterable[str] | Mapping[str, float | Node]
MAX_WEIGHT = (1 << 32) - 1
_WORD = (1 << 32) - 1


class _Circle(Placement):
    """A ring with someone else's points. A key's other nodes are the next on it, and last those without points."""

    minimal: ClassVar[bool] = False

    def _points(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Iterator[tuple[int, int]]:
        """Each point and its slot."""
        raise NotImplementedError

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        points = list(self._points(names, nodes))
        return Ring([point for point, _ in points], [slot for _, slot in points], names)

    def _order(self, table: Table, place: int) -> Iterator[str]:
        seen: set[int] = set()
        for slot in chain(cast(Ring, table.finder).walk(place), self._scores(table).walk(place)):  # some have no points
            if slot not in seen:
                seen.add(slot)
                yield cast(str, table.names[slot])

    def _checked_weight(self, given: object, name: str) -> float:
        weight = super()._checked_weight(given, name)
        if not weight.is_integer() or weight > MAX_WEIGHT:
            raise Misuse(f"the weight of node {name!r} is a whole number up to {MAX_WEIGHT} here, not {weight!r}")
        return weight


class Ketama(_Circle):
    """Ketama on 32 bits, as libmemcached and twemproxy have it.

    Nodes are ``host:port`` (or whatever name the configuration gives); ``:11211`` at the end does not count, as there.
    Keys are hashed by ``md5``, ``fnv1a_64`` or ``one_at_a_time``, the first two cut to 32 bits, as there. With
    ``points=160`` each MD5 makes four points, and weights count: a node has its weight's part of all points, rounded,
    so that a light node among heavy ones may have none, and a changed weight moves keys between the others. With
    ``points=100`` points are made by the hash of keys, and there are no weights.
    """

    algorithm: ClassVar[str] = "ketama"
    options: ClassVar[tuple[str, ...]] = ("points",)

    def __init__(self, nodes: Nodes = (), *, points: int = 160, hash: str = "md5") -> None:
        if points not in (160, 100):
            raise Misuse(f"points is 160 or, for ketama without weights in libmemcached, 100, not {points!r}")
        self._count = points
        super().__init__(nodes, hash=hash)

    @property
    def points(self) -> int:
        """How many points a node of the mean weight has."""
        return self._count

    def _hasher_of(self, hash: str) -> Hasher:
        if hash not in _KETAMA_HASHES:
            raise Misuse(f"ketama hashes keys by {' or '.join(_KETAMA_HASHES)}, not {hash!r}")
        return _KETAMA_HASHES[hash]

    def _points(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Iterator[tuple[int, int]]:
        counts = dict(zip(nodes, cast(Iterable[int], self._shares(nodes)), strict=True))
        for slot, name in enumerate(names):
            if name is not None:
                host = name.removesuffix(":11211")
                for index in range(counts[name]):
                    for point in self._made_of(f"{host}-{index}".encode()):
                        yield point, slot

    def _made_of(self, data: bytes) -> list[int]:
        if self._count == 100:
            return [self._hasher_of(self._hash)(data)]
        return [point << 32 for point in struct.unpack("<4I", _md5(data))]

    def _shares(self, nodes: Mapping[str, Node]) -> list[int]:
        """How many times a node's name is hashed: computed in single precision, as there."""
        if self._count == 100:
            if any(node.weight != 1 for node in nodes.values()):
                raise Unsupported("ketama of 100 points knows no weights; with points=160 it does")
            return [100] * len(nodes)
        total = _single(sum(node.weight for node in nodes.values()))
        shares: list[int] = []
        for node in nodes.values():
            part = _single(_single(_single(_single(node.weight) / total) * 160) / 4)
            shares.append(math.floor(_single(_single(part * len(nodes)) + 1e-10)))
        return shares


class EnvoyRing(_Circle):
    """Envoy's ring hash with its default, XXH64: at least ``min_size`` points in all, at most about ``max_size``.

    Nodes are addresses such as ``10.0.0.1:80`` (or host names), in Envoy's order of hosts: how many points a node has
    depends on how many there are, and where they do not divide evenly, on those before it.
    """

    algorithm: ClassVar[str] = "envoy-ring"
    ordered: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("min_size", "max_size")
    history: ClassVar[tuple[str, ...]] = ("slots",)

    def __init__(
        self, nodes: Nodes = (), *, min_size: int = 1024, max_size: int = 1 << 23, hash: str = DEFAULT_HASH
    ) -> None:
        if not (is_whole(min_size) and is_whole(max_size)) or not 1 <= min_size <= max_size <= 1 << 23:
            raise Misuse(f"1 <= min_size <= max_size <= {1 << 23}, whole numbers, not {min_size!r} and {max_size!r}")
        self._sizes = min_size, max_size
        super().__init__(nodes, hash=hash)

    @property
    def min_size(self) -> int:
        """How many points there are at least."""
        return self._sizes[0]

    @property
    def max_size(self) -> int:
        """How many points there are at most, but for rounding."""
        return self._sizes[1]

    def _hasher_of(self, hash: str) -> Hasher | None:
        if hash != DEFAULT_HASH:
            raise Misuse(f"the hash of Envoy's ring is {DEFAULT_HASH} here, not {hash!r}")
        return None

    def _points(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Iterator[tuple[int, int]]:
        shares = dict(zip(nodes, self._shares(nodes), strict=True))
        lightest = min(shares.values())
        scale = min(math.ceil(lightest * self.min_size) / lightest, float(self.max_size))
        made, target = 0, 0.0
        for slot, name in enumerate(names):
            if name is not None:
                target += scale * shares[name]
                index = 0
                while made < target:
                    yield xxh64(f"{name}_{index}".encode(), 0), slot
                    made, index = made + 1, index + 1

    def _shares(self, nodes: Mapping[str, Node]) -> list[float]:
        total = sum(node.weight for node in nodes.values())
        return [node.weight / total for node in nodes.values()]

    def _slot_for(self, table: Table) -> int:
        return len(table.names)

    def _without(self, table: Table, slot: int) -> tuple[str | None, ...]:
        return table.names[:slot] + table.names[slot + 1 :]


def ketama_libmemcached(nodes: Nodes = (), *, weighted: bool = True) -> Ketama:
    """As libmemcached places with KETAMA_WEIGHTED (the mode that other clients share), or with KETAMA alone.

    Bytes above 127 in keys count as on x86 in the latter, where char is signed.
    """
    return Ketama(nodes) if weighted else Ketama(nodes, points=100, hash="one_at_a_time")


def ketama_twemproxy(nodes: Nodes = (), *, hash: str = "fnv1a_64") -> Ketama:
    """As twemproxy places with ``distribution: ketama``; ``hash`` as in its configuration, `fnv1a_64` or `md5`.

    Bytes above 127 in keys count as on x86, where char is signed.
    """
    return Ketama(nodes, hash=hash)


def envoy_ring_hash(nodes: Nodes = (), *, minimum_ring_size: int = 1024, maximum_ring_size: int = 1 << 23) -> EnvoyRing:
    """As Envoy's ``RING_HASH`` places a key by a hash policy of one header, cookie or the like."""
    return EnvoyRing(nodes, min_size=minimum_ring_size, max_size=maximum_ring_size)


def envoy_maglev(nodes: Nodes = (), *, table_size: int = 65537) -> Maglev:
    """As Envoy's ``MAGLEV`` places a key by a hash policy of one header, cookie or the like."""
    return Maglev(nodes, table_size=table_size)


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _ketama_md5(data: bytes) -> int:
    return int.from_bytes(_md5(data)[:4], "little") << 32


def _ketama_fnv(data: bytes) -> int:
    value = 0x84222325  # 64-bit FNV-1a in a 32-bit variable
    for char in struct.unpack(f"{len(data)}b", data):
        value = ((value ^ char & _WORD) * 0x1B3) & _WORD
    return value << 32


def _one_at_a_time(data: bytes) -> int:
    value = 0
    for char in struct.unpack(f"{len(data)}b", data):
        value = ((value + char) * 1025) & _WORD
        value ^= value >> 6
    value = (value * 9) & _WORD
    value = ((value ^ value >> 11) * 32769) & _WORD
    return value << 32


def _single(value: float) -> float:
    """Rounded to IEEE single precision."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    return float(rounded)


_KETAMA_HASHES: dict[str, Hasher] = {"md5": _ketama_md5, "fnv1a_64": _ketama_fnv, "one_at_a_time": _one_at_a_time}
