"""Items: lines of input, and who they are. Pure.

An item is a line and its how-many-th occurrence, so that a line given twice is run twice, and the same input given by
two members is run once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from ..errors import Misuse


class Item(NamedTuple):
    """One line to run: its bytes without the newline, and which of its occurrences this is, from 1."""

    id: str
    line: bytes
    occurrence: int

    @property
    def text(self) -> str:
        """The line for people and JSON: bytes that are not UTF-8 as lone surrogates, as Python's own file names."""
        return self.line.decode(errors="surrogateescape")


def item(line: bytes, occurrence: int) -> Item:
    # The number first: no line can be taken for another line with a number.
    return Item(blake2b(b"%d %s" % (occurrence, line), digest_size=16).hexdigest(), line, occurrence)


def read_items(lines: Iterable[bytes]) -> list[Item]:
    """The items of an input; empty lines are none. Raises `Misuse` for a line that no argument can carry."""
    seen: Counter[bytes] = Counter()
    found: list[Item] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not line:
            continue
        if b"\0" in line:
            raise Misuse(f"line {number} of the input holds a NUL byte, which no command's argument can carry")
        seen[line] += 1
        found.append(item(line, seen[line]))
    return found


def partition_of(item_id: str, partitions: int) -> int:
    return int(item_id, 16) % partitions


def by_partition(items: Iterable[Item], partitions: int) -> dict[int, list[Item]]:
    shares: dict[int, list[Item]] = {}
    for one in items:
        shares.setdefault(partition_of(one.id, partitions), []).append(one)
    return shares


def digest(ids: Iterable[str]) -> int:
    """The same for the same ids in any order, and extended by those that are added."""
    total = 0
    for one in ids:
        total ^= int(one, 16)
    return total


def pack(one: Item) -> bytes:
    return b"%d %s" % (one.occurrence, one.line)


def unpack(item_id: str, data: bytes) -> Item:
    occurrence, _, line = data.partition(b" ")
    return Item(item_id, line, int(occurrence))


def chunks(items: Sequence[Item], count: int, size_bytes: int) -> Iterable[list[Item]]:
    """``items`` in runs of at most ``count``, and of about ``size_bytes`` of text."""
    run: list[Item] = []
    size = 0
    for one in items:
        if run and (len(run) == count or size + len(one.line) > size_bytes):
            yield run
            run, size = [], 0
        run.append(one)
        size += len(one.line)
    if run:
        yield run
