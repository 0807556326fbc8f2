"""The kernel in plain Python: what `_kernel.c` does, line by line simpler, for machines without a compiler.

Python imports the compiled module of this name where there is one, and this file where there is none. One suite holds
both to the same answers. Here are only the hot paths: finders (from a hash to a slot) and lookups (from a key to a
name); all that may be slow stands once, above, in `base` and in the file of each algorithm.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from sys import byteorder
from typing import Any, Protocol, Self, cast

from ..errors import Misuse
from .hashing import Hasher, Key, key_bytes, xxh64

__all__ = [
    "NAME",
    "Finder",
    "Lookup",
    "Ring",
    "Table",
    "fill",
    "hash_key",
    "mix",
    "native",
    "own_methods",
    "points_of",
    "xxh64",
]

NAME = "python"
_MASK = (1 << 64) - 1


def hash_key(key: Key) -> int:
    """XXH64 with seed 0 of a key's bytes: see `key_bytes` for what stands for what."""
    if type(key) is str:  # what it mostly is; the rest of this function does the same, slower
        try:
            return xxh64(key.encode())
        except UnicodeEncodeError:
            pass  # key_bytes says it better
    return xxh64(key_bytes(key))


def mix(value: int) -> int:
    """A bijection of 64-bit numbers that spreads every bit over all (the finalizer of SplitMix64)."""
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def points_of(raw: bytes, start: int, stop: int) -> array[int]:
    """XXH64 of ``raw`` and a number in four little-endian bytes, for each number in that range."""
    return array("Q", (xxh64(raw + number.to_bytes(4, "little")) for number in range(start, stop)))


class Finder(Protocol):
    """An algorithm's state, immutable: from the hash of a key to a slot."""

    def find(self, place: int) -> int: ...


class Ring:
    """Sorted points on the circle of 2**64, equal ones by their owners' names, and a guide on their top bits.

    ``guide[top]`` says how many points lie below those whose top bits are ``top``: about one entry a point, so that a
    search has one or two points to look at. ``owners`` are slots: one entry more than ``points``, the first again.
    """

    __slots__ = ("guide", "owners", "points", "shift")

    def __init__(self, points: Iterable[int], owners: Iterable[int], names: Sequence[str | None]) -> None:
        pairs = sorted(zip(points, owners, strict=True), key=lambda pair: (pair[0], names[pair[1]]))
        self._fill([point for point, _ in pairs], [owner for _, owner in pairs])

    def _fill(self, points: list[int], owners: list[int]) -> None:
        if not points:
            raise ValueError("a ring has at least one point")
        bits = max(1, min(20, (len(points) - 1).bit_length()))
        self.points, self.owners = points, owners + owners[:1]
        self.shift = 64 - bits
        counts = [0] * ((1 << bits) + 1)
        for point in points:
            counts[(point >> self.shift) + 1] += 1
        self.guide = list(accumulate(counts))

    def find(self, place: int) -> int:
        top = place >> self.shift
        return self.owners[bisect_left(self.points, place, self.guide[top], self.guide[top + 1])]

    def walk(self, place: int) -> Iterator[int]:
        """Every slot once, in the order of their first points from ``place`` on."""
        at, size = bisect_left(self.points, place), len(self.points)
        seen: set[int] = set()
        for step in range(size):
            owner = self.owners[(at + step) % size]
            if owner not in seen:
                seen.add(owner)
                yield owner

    def changed(self, slot: int, added: Iterable[int], removed: Iterable[int], names: Sequence[str | None]) -> Self:
        """The ring after ``slot`` got and lost these points; this one stays. ``names``: those of the new ring."""
        points, owners = list(self.points), self.owners[:-1]
        for point in removed:
            at = bisect_left(points, point)
            while points[at : at + 1] == [point] and owners[at] != slot:
                at += 1
            if points[at : at + 1] == [point]:
                del points[at], owners[at]
        for point in added:
            at = bisect_left(points, point)
            while points[at : at + 1] == [point] and cast(str, names[owners[at]]) < cast(str, names[slot]):
                at += 1
            points.insert(at, point)
            owners.insert(at, slot)
        ring = object.__new__(type(self))
        ring._fill(points, owners)
        return ring


@cache
def _tell_once() -> None:
    import logging

    logging.getLogger("holdfast.placement").warning(
        "the kernel in C is missing: it could not be built when holdfast was installed. Placements give the same"
        " answers without it, some ten times slower; a hundred times where the package xxhash is not installed either."
    )


class Table:
    """One state of a placement, never changed: which finder, whose names, and what else belongs to that state."""

    __slots__ = ("finder", "hash", "names", "state")

    def __init__(self, finder: Finder | None, names: tuple[str | None, ...], hasher: Hasher | None, state: Any) -> None:
        _tell_once()
        self.finder = finder  # None: there are no nodes
        self.names = names
        self.state = state
        self.hash: Callable[[Key], int] = hash_key if hasher is None else lambda key: hasher(key_bytes(key))


class Lookup:
    """From keys to names of nodes. Each call looks at ``_table`` once, so a reader sees one state or the next.

    What is not on the hot path is left to methods of a class above: ``_first_but(key, exclude)``, ``_refuse_empty()``.
    """

    _table: Table

    def get_node(self, key: Key, *, exclude: Iterable[str] = ()) -> str:
        """The node that ``key`` lives on: the first of `iterate_nodes` that is not in ``exclude``."""
        if exclude:
            return self._first_but(key, exclude)
        table = self._table
        if table.finder is None:
            raise self._refuse_empty()
        name = table.names[table.finder.find(table.hash(key))]
        assert name is not None
        return name

    def locate(self, keys: Iterable[Key]) -> list[str]:
        """The node of each key, all in one and the same state. A buffer of integers is a sequence of them."""
        table = self._table
        names = table.names
        return [names[slot] for slot in self._slots(table, keys)]  # type: ignore[misc]

    def locate_slots(self, keys: Iterable[Key]) -> memoryview:
        """The same as a buffer of unsigned 32-bit numbers, each a place in `slots`; numpy wraps it without copying."""
        from array import array

        return memoryview(array("I", self._slots(self._table, keys)))

    def _slots(self, table: Table, keys: Iterable[Key]) -> Iterator[int]:
        if isinstance(keys, str | bytes):
            raise Misuse(f"locate takes many keys; for the one key {keys!r} use get_node")
        if table.finder is None:
            raise self._refuse_empty()
        return map(table.finder.find, map(table.hash, _each(keys)))

    def _first_but(self, key: Key, exclude: Iterable[str]) -> str:
        raise NotImplementedError

    def _refuse_empty(self) -> Exception:
        raise NotImplementedError


def fill(
    size: int, at: array[int], steps: array[int], slots: array[int], shares: Sequence[float] | None
) -> array[int] | None:
    """Maglev's table, filled in C; here it is not, and `maglev` does it."""
    return None


def native(kind: str, *state: Any) -> Finder | None:
    """A finder in C that does what one in Python says, from its state; here there is none.

    A finder in Python may have a method ``native`` that calls this: a table in C does, and looks up by what it gets.
    """
    return None


def own_methods(cls: type) -> None:
    """Give a subclass of `Lookup` what makes its lookups quick. Here, nothing does; the compiled kernel has a way."""


def _each(keys: Iterable[Key]) -> Iterable[Key]:
    """The keys one by one. Of a buffer of integers, Python's own, as numpy's are none."""
    try:
        view = memoryview(cast(Any, keys))
    except (TypeError, ValueError, BufferError):
        return keys
    form = (view.format or "B").removeprefix("@").removeprefix("=").removeprefix("<" if byteorder == "little" else ">")
    if view.ndim != 1 or len(form) != 1 or form not in "bBhHiIlLqQnN":
        return keys
    size = {1: "b", 2: "h", 4: "i", 8: "q"}[view.itemsize]
    return memoryview(view.tobytes()).cast(size if form.islower() else size.upper())  # type: ignore[call-overload, no-any-return]
