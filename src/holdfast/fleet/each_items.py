"""Items: lines of input, and who they are. Pure.

An item is a line and its how-many-th occurrence, so that a line given twice is run twice, and the same input given by
two members is run once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar

from ..errors import Misuse

T = TypeVar("T")

LINE_BYTES = 1 << 18
"""The longest line. Linux passes half of that in one argument; every engine stores it."""

BLOCK_ITEMS = 1000
BLOCK_BYTES = 1 << 18
"""A block is what is published, read and held at once: that many items, or about that many bytes."""


class Item(NamedTuple):
    """One line to run: its bytes without the newline, and which of its occurrences this is, from 1.

    ``block``: where it is published; ``failed``: it is on the dead-letter list.
    """

    id: str
    line: bytes
    occurrence: int
    block: int = 0
    failed: bool = False

    @property
    def text(self) -> str:
        """The line for people and JSON: bytes that are not UTF-8 as lone surrogates, as Python's own file names."""
        return self.line.decode(errors="surrogateescape")


def identity(line: bytes, occurrence: int) -> bytes:
    # The number first: no line can be taken for another line with a number.
    return blake2b(b"%d %s" % (occurrence, line), digest_size=16).digest()


def item(line: bytes, occurrence: int, block: int = 0) -> Item:
    return Item(identity(line, occurrence).hex(), line, occurrence, block)


def lines_of(source: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that are items. Raises `Misuse` for one that no argument can carry."""
    for number, raw in enumerate(source, start=1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if b"\0" in line:
            raise Misuse(f"line {number} of the input holds a NUL byte, which no command's argument can carry")
        if len(line) > LINE_BYTES:
            raise Misuse(f"line {number} of the input has {len(line):,} bytes; an item has {LINE_BYTES:,} at most")
        if line:
            yield line


def bounds(partition: int, partitions: int) -> tuple[bytes, bytes]:
    """The first and the last identity that belong to a partition: all identities, cut into equal runs."""
    first, end = (-(-(at << 128) // partitions) for at in (partition, partition + 1))
    return first.to_bytes(16, "big"), (end - 1).to_bytes(16, "big")


def runs(things: Iterable[T], size: Callable[[T], int], most: int = BLOCK_ITEMS) -> Iterator[list[T]]:
    """``things`` in runs of at most ``most``, and of about `BLOCK_BYTES` in all by ``size``."""
    run: list[T] = []
    total = 0
    for one in things:
        if run and (len(run) == most or total + size(one) > BLOCK_BYTES):
            yield run
            run, total = [], 0
        run.append(one)
        total += size(one)
    if run:
        yield run


def blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    return runs(items, lambda one: len(one.line))


def pack(items: Sequence[Item]) -> bytes:
    return b"\n".join(b"%d %s" % (one.occurrence, one.line) for one in items)


def unpack(data: bytes, block: int) -> list[Item]:
    found: list[Item] = []
    for packed in data.split(b"\n"):
        occurrence, _, line = packed.partition(b" ")
        found.append(item(line, int(occurrence), block))
    return found
