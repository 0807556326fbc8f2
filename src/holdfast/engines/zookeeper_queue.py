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

from ..contract import LAYOUT
from ..core import turnstile as rule
from ..errors import Misuse
from ..model import UNBOUNDED, Claim, Turnstile

_CLAIM, _TOMB, _WANT = f"{LAYOUT}c!", f"{LAYOUT}x!", f"{LAYOUT}w!"
_HALF, _FULL = 1 << 31, 1 << 32
_NEVER_FITS = UNBOUNDED + 1


@lru_cache(maxsize=1 << 14)
def node_name(text: str) -> str:
    """Any text as one part of a path."""
    return quote(text, safe=":@+,=~").replace(".", "%2E")


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
    """The live claims in order. ``strays`` are nodes that count for nothing: whoever sees them may delete them."""

    __slots__ = ("_wanted", "buried", "names", "nodes", "strays")

    def __init__(self, children: Iterable[str] = ()) -> None:
        found: list[Node] = []
        self.buried: dict[str, bool] = {}
        marks: list[tuple[int, str]] = []
        for child in children:
            kind = child[:3]
            if kind == _CLAIM:
                _, capacity, weight, announces, id, sequence = child.split("!")
                found.append(Node(child, int(sequence), unquote(id), int(weight), int(capacity), announces == "a"))
            elif kind == _TOMB:
                _, stood, id = child.split("!")
                self.buried[unquote(id)] = stood == "1"
            elif kind == _WANT:
                marks.append((int(child[3:]), child))
            else:
                raise Misuse(
                    f"a node {child!r} is stored here and this release knows layout {LAYOUT}: let all users of this "
                    "ZooKeeper run the same release of holdfast"
                )
        if len(found) > 1:
            base = found[0].sequence
            found.sort(key=lambda node: _after(base, node.sequence))
        self.nodes: list[Node] = []
        self.names: dict[str, int] = {}  # where each stands
        self.strays: list[str] = []
        ids: set[str] = set()
        for node in found:
            if node.id in ids or node.id in self.buried:  # a copy of its creation that came late
                self.strays.append(node.name)
                continue
            ids.add(node.id)
            self.names[node.name] = len(self.nodes)
            self.nodes.append(node)
        self._wanted: int | None = None
        for mark, name in marks:
            if not self.nodes or _after(mark, self.nodes[0].sequence) > 0:  # whom it wanted is gone
                self.strays.append(name)
            elif self._wanted is None or _after(self._wanted, mark) > 0:
                self._wanted = mark

    @property
    def capacity(self) -> int:
        """As the first claim says; 0 where there is none."""
        return self.nodes[0].capacity if self.nodes else 0

    def find(self, claim_id: str) -> Node | None:
        return next((node for node in self.nodes if node.id == claim_id), None)

    @property
    def admitted(self) -> int:
        """How many from the head on are admitted."""
        return rule.admitted(map(self._weight, self.nodes), self.capacity)

    def fits(self, weight: int) -> bool:
        """Whether a new claim would be admitted at once."""
        return not self.nodes or sum(map(self._weight, self.nodes)) + weight <= self.capacity

    def is_admitted(self, name: str) -> bool:
        return self.names[name] < self.admitted

    def is_wanted(self, name: str) -> bool:
        """Whether somebody waits for what this admitted claim keeps, or was refused because of it."""
        return self.admitted < len(self.nodes) or self.is_marked(self.nodes[self.names[name]])

    def is_marked(self, node: Node) -> bool:
        return self._wanted is not None and _after(node.sequence, self._wanted) >= 0

    def blockers(self, name: str) -> list[str]:
        """The shortest run just ahead that keeps this one out: until one of those goes, it need not look."""
        place = self.names[name]
        node = self.nodes[place]
        count = rule.blockers([self._weight(one) for one in self.nodes[:place]], node.weight, self.capacity)
        return [one.name for one in self.nodes[place - count : place]]

    def _weight(self, node: Node) -> int:
        """One that came with another capacity is refused as soon as it looks; until then nobody passes it."""
        return node.weight if node.capacity == self.nodes[0].capacity else _NEVER_FITS


def _after(one: int, other: int) -> int:
    """How far ``other`` comes after ``one``: sequence numbers wrap at 2^31, and a queue is shorter than that."""
    return (other - one + _HALF) % _FULL - _HALF
