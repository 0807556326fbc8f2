"""A turnstile as one listing of its node shows it: everything that decides is in the names of its children. Pure.

    1c!CAPACITY!WEIGHT!A!ID!SEQUENCE   a claim, ephemeral; A is 'a' where the turnstile announces its changes, else '-'
    1x!OUTCOME!ID                      a tombstone: the claim was given up (1: it had stood), whatever stands or comes
    1w!SEQUENCE                        the claims up to this one are wanted by somebody who did not queue

The 1 is the layout. Identifiers are percent-encoded, so that no name has a '!' or '/' of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote
from urllib.parse import unquote as unquote

from ...contract import LAYOUT
from ...core import turnstile as rule
from ...errors import Misuse
from ...model import UNBOUNDED, Claim, Turnstile

_CLAIM, _TOMB, _WANT = f"{LAYOUT}c!", f"{LAYOUT}x!", f"{LAYOUT}w!"
_HALF, _FULL = 1 << 31, 1 << 32
_NEVER_FITS = UNBOUNDED + 1


@lru_cache(maxsize=1 << 14)
def node_name(text: str) -> str:
    """Any text as one part of a path."""
    name = quote(text, safe=":@+,=~")
    return name if name.strip(".") else name.replace(".", "%2E")


class Node(NamedTuple):
    """One claim."""

    name: str
    sequence: int
    id: str
    weight: int
    capacity: int
    announces: bool


def claim_prefix(turnstile: Turnstile, claim: Claim) -> str:
    """What the server completes with the next sequence number."""
    announces = "a" if turnstile.announces else "-"
    return f"{_CLAIM}{turnstile.capacity}!{claim.weight}!{announces}!{node_name(claim.id)}!"


def tomb_name(claim_id: str, stood: bool) -> str:
    return f"{_TOMB}{int(stood)}!{node_name(claim_id)}"


def want_name(node: Node) -> str:
    return f"{_WANT}{node.sequence}"


class Queue:
    """The live claims in order. ``strays`` are nodes that count for nothing: whoever sees them may delete them.

    Made at each turn of each waiter, so of most claims no more is read than their order.
    """

    __slots__ = ("_buried", "_fields", "_wanted", "names", "strays")

    def __init__(self, children: Iterable[str] = ()) -> None:
        found: list[tuple[int, str, list[str]]] = []
        self._buried: dict[str, bool] = {}
        marks: list[tuple[int, str]] = []
        for child in children:
            kind = child[:3]
            fields = child.split("!")
            if kind == _CLAIM:
                found.append((int(fields[5]), child, fields))
            elif kind == _TOMB:
                self._buried[fields[2]] = fields[1] == "1"
            elif kind == _WANT:
                marks.append((int(fields[1]), child))
            else:
                raise Misuse(
                    f"a node {child!r} is stored here and this release knows layout {LAYOUT}: let all users of this "
                    "ZooKeeper run the same release of holdfast"
                )
        found.sort()
        if found and found[-1][0] - found[0][0] >= _HALF:  # the numbers have wrapped
            found.sort(key=lambda one: _after(found[0][0], one[0]))
        self._fields: list[list[str]] = []
        self.names: dict[str, int] = {}  # where each stands
        self.strays: list[str] = []
        ids: set[str] = set()
        for _, name, fields in found:
            if fields[4] in ids or fields[4] in self._buried:  # a copy of its creation that came late
                self.strays.append(name)
                continue
            ids.add(fields[4])
            self.names[name] = len(self._fields)
            self._fields.append(fields)
        self._wanted: int | None = None
        for mark, name in marks:
            if not self._fields or _after(mark, int(self._fields[0][5])) > 0:  # whom it wanted is gone
                self.strays.append(name)
            elif self._wanted is None or _after(self._wanted, mark) > 0:
                self._wanted = mark

    def __len__(self) -> int:
        return len(self._fields)

    def node(self, place: int) -> Node:
        _, capacity, weight, announces, id, sequence = self._fields[place]
        name = "!".join(self._fields[place])
        return Node(name, int(sequence), unquote(id), int(weight), int(capacity), announces == "a")

    @property
    def nodes(self) -> list[Node]:
        return [self.node(place) for place in range(len(self))]

    @property
    def capacity(self) -> int:
        """As the first claim says; 0 where there is none."""
        return int(self._fields[0][1]) if self._fields else 0

    def find(self, claim_id: str) -> Node | None:
        id = node_name(claim_id)
        return next((self.node(place) for place, fields in enumerate(self._fields) if fields[4] == id), None)

    def buried(self, claim_id: str) -> bool | None:
        """Whether it had stood when it was given up; None if it was not."""
        return self._buried.get(node_name(claim_id)) if self._buried else None

    @property
    def admitted(self) -> int:
        """How many from the head on are admitted."""
        return rule.admitted(map(self._weight, self._fields), self.capacity)

    def fits(self, weight: int) -> bool:
        """Whether a new claim would be admitted at once."""
        return not self._fields or sum(map(self._weight, self._fields)) + weight <= self.capacity

    def is_admitted(self, name: str) -> bool:
        return self.names[name] < self.admitted

    def is_wanted(self, name: str) -> bool:
        """Whether somebody waits for what this admitted claim keeps, or was refused because of it."""
        return self.admitted < len(self) or self.is_marked(self.node(self.names[name]))

    def is_marked(self, node: Node) -> bool:
        return self._wanted is not None and _after(node.sequence, self._wanted) >= 0

    def blockers(self, name: str) -> list[str]:
        """The fewest of those just ahead that keep this one out: until one of them goes, it need not look."""
        place = self.names[name]
        ahead = (self._weight(self._fields[one]) for one in range(place - 1, -1, -1))
        found = rule.blockers(ahead, self._weight(self._fields[place]), self.capacity)
        return ["!".join(self._fields[place - 1 - one]) for one in found]

    def bequeather(self, name: str) -> str:
        """The claim just ahead, if that one's room is enough for this one: once it was admitted and leaves, this is."""
        place = self.names[name]
        if not place or self._weight(self._fields[place]) > self._weight(self._fields[place - 1]):
            return ""
        return "!".join(self._fields[place - 1])

    def _weight(self, fields: list[str]) -> int:
        """One that came with another capacity is refused as soon as it looks; until then nobody passes it."""
        return int(fields[2]) if fields[1] == self._fields[0][1] else _NEVER_FITS


def _after(one: int, other: int) -> int:
    """How far ``other`` comes after ``one``: sequence numbers wrap at 2^31, and a queue is shorter than that."""
    return (other - one + _HALF) % _FULL - _HALF
