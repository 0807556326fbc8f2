"""Rendezvous: every node has a score for every key, and the best score wins (Thaler and Ravishankar, 1998).

The score of a node is ``-log2(u) / weight``, the lowest is best (Schindelhauer and Schomaker, 2005). For u the 64-bit
number ``mix(place ^ seed)`` is read as a fraction, where the seed is the XXH64 of the node's name. The logarithm is a
table with straight lines between its entries, in whole numbers that fit in 64 bits; the division is a single one of two
IEEE doubles. So every machine and every language gets the same scores. Whatever the rounding, an order made from a
score of each node's own moves nothing between two nodes that stay.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from functools import cache
from heapq import heapify, heappop

from ._kernel import Finder, native, xxh64

BITS = 47
"""Binary places of a logarithm. The largest, 64, is then 2**53: every one of them is a double exactly."""
LINES = 10
"""The table has 2**LINES straight lines: at most 2e-7 too high, and near 0, where winners are, too high by a factor."""
_MASK = (1 << 64) - 1
_REST = BITS - LINES - 11  # the binary places between two entries: with a step of the table they make 64 bits at most


@cache
def log2_table() -> tuple[int, ...]:
    """``floor(log2(1 + i / 2**LINES) * 2**BITS)`` for i from 0 to 2**LINES, computed in whole numbers."""
    scale, logs = 1 << 128, [0]
    for n in range(1 << LINES, 2 << LINES):
        # ln((n + 1) / n) = 2 * (x + x**3 / 3 + x**5 / 5 + …) where 1 / x = 2 * n + 1
        odd, power, total = 1, scale // (2 * n + 1), 0
        while power:
            total += power // odd
            odd, power = odd + 2, power // (2 * n + 1) ** 2
        logs.append(logs[-1] + 2 * total)
    return tuple((log << BITS) // logs[-1] for log in logs)


def minus_log2(value: int) -> int:
    """``-log2(value / 2**64) * 2**BITS``, never smaller for a smaller value; from 1 to 2**53."""
    table = log2_table()
    value |= 1
    zeros = 64 - value.bit_length()
    value <<= zeros
    line = value >> 63 - LINES & (1 << LINES) - 1
    rest = value >> 63 - LINES - _REST & (1 << _REST) - 1
    return ((zeros + 1) << BITS) - table[line] - ((table[line + 1] - table[line]) * rest >> _REST)


class Scores:
    """A finder. With equal weights the score's order is that of the 64-bit numbers, so those are compared alone.

    Equal scores go by those numbers, the higher first, and equal numbers (two names of one hash) by the names.
    """

    __slots__ = ("_seeds", "_slots", "_weights", "seeds")

    def __init__(self, slots: Mapping[str, int], weights: Mapping[str, float], known: Mapping[str, int]) -> None:
        names = sorted(slots)
        self.seeds = {name: known[name] if name in known else xxh64(name.encode(), 0) for name in names}
        self._seeds = list(self.seeds.values())
        self._slots = [slots[name] for name in names]
        self._weights = [weights[name] for name in names] if len(set(weights.values())) > 1 else None

    def find(self, place: int) -> int:
        numbers = self._numbers(place)
        if self._weights is None:
            return self._slots[numbers.index(max(numbers))]
        return self._slots[min(self._ranked(numbers))[2]]

    def native(self) -> Finder | None:
        return native("best", array("Q", self._seeds), array("I", self._slots), self._weights, log2_table())

    def walk(self, place: int) -> Iterator[int]:
        """Every slot, the best first."""
        ranked = self._ranked(self._numbers(place))
        heapify(ranked)
        while ranked:
            yield self._slots[heappop(ranked)[2]]

    def _ranked(self, numbers: list[int]) -> list[tuple[float, int, int]]:
        if self._weights is None:
            return [(0.0, -number, index) for index, number in enumerate(numbers)]
        return [
            (minus_log2(number) / weight, -number, index)
            for index, (number, weight) in enumerate(zip(numbers, self._weights, strict=True))
        ]

    def _numbers(self, place: int) -> list[int]:
        numbers: list[int] = []
        add = numbers.append
        for value in self._seeds:
            value ^= place  # `mix`, written out: a call would take as long again
            value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
            value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
            add(value ^ value >> 31)
        return numbers
