"""A turnstile as one listing of its keys shows it: everything that decides is in the keys. Pure.

    HOME c/CAPACITY/ID!WEIGHT!TTL_S!A!1   a claim; A is 'a' where the turnstile announces its changes, else '-'
    HOME x/ID                             a tombstone: the claim was given up ('1': it had stood), whatever comes
    HOME w                                the admitted up to this revision are wanted by somebody who did not queue

The 1 is the layout. A claim's token, and its place in the queue, is the revision that created its key. Identifiers are
percent-encoded, so that no name has a '!' or '/' of its own.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from ..contract import LAYOUT
from ..core import turnstile as rule
from ..errors import Misuse
from ..model import Claim, Turnstile


@lru_cache(maxsize=1 << 14)
def quoted(text: str) -> bytes:
    return quote(text, safe=":@+,=~").encode()


def space_of(namespace: str) -> bytes:
    return b"holdfast/%b/" % quoted(namespace)


class Home:
    """The keys of one turnstile."""

    __slots__ = ("base", "claims", "mark", "turnstile")

    def __init__(self, space: bytes, turnstile: Turnstile) -> None:
        self.turnstile = turnstile
        self.base = b"%bt/%b/" % (space, quoted(turnstile.address))
        self.claims = self.base + b"c/"
        self.mark = self.base + b"w"

    def claim(self, claim: Claim) -> bytes:
        announces = b"a" if self.turnstile.announces else b"-"
        return b"%b%d!%b!%b!%d" % (self.of(claim.id), claim.weight, repr(claim.ttl_s).encode(), announces, LAYOUT)

    def of(self, claim_id: str, capacity: int | None = None) -> bytes:
        """What the key of that claim starts with."""
        capacity = self.turnstile.capacity if capacity is None else capacity
        return b"%b%d/%b!" % (self.claims, capacity, quoted(claim_id))

    def tomb(self, claim_id: str) -> bytes:
        return b"%bx/%b" % (self.base, quoted(claim_id))


class Node(NamedTuple):
    """One claim."""

    token: int
    key: bytes
    id: str
    weight: int
    capacity: int
    ttl_s: float
    announces: bool
    lease: str


def node_of(kv: dict[str, Any], home: Home) -> Node:
    key = base64.b64decode(kv["key"])
    capacity, _, rest = key[len(home.claims) :].decode().partition("/")
    fields = rest.split("!")
    if len(fields) != 5 or fields[4] != str(LAYOUT):
        raise Misuse(
            f"a key {key!r} is stored here and this release knows layout {LAYOUT}: let all users of this etcd run the "
            "same release of holdfast"
        )
    id, weight, ttl_s, announces, _ = fields
    return Node(
        int(kv["create_revision"]), key, unquote(id), int(weight), int(capacity), float(ttl_s), announces == "a",
        kv.get("lease", "0"),
    )  # fmt: skip


class Queue:
    """The live claims in order, at one revision."""

    __slots__ = ("_mark", "admitted", "nodes", "places", "revision", "values")

    def __init__(self, kvs: Iterable[dict[str, Any]], marks: list[dict[str, Any]], home: Home, revision: int) -> None:
        both = sorted(((node_of(kv, home), kv) for kv in kvs), key=lambda one: one[0].token)
        self.nodes = [node for node, _ in both]
        self.values = [kv.get("value") for _, kv in both]
        self.places = {node.id: place for place, node in enumerate(self.nodes)}
        self.admitted = rule.admitted((node.weight for node in self.nodes), self.capacity)
        self.revision = revision
        self._mark = int(base64.b64decode(marks[0]["value"])) if marks else 0

    @property
    def capacity(self) -> int:
        """0 where nobody is."""
        return self.nodes[0].capacity if self.nodes else 0

    def find(self, claim_id: str) -> Node | None:
        place = self.places.get(claim_id)
        return None if place is None else self.nodes[place]

    def fits(self, weight: int) -> bool:
        """Whether a new claim would be admitted at once."""
        return not self.nodes or sum(node.weight for node in self.nodes) + weight <= self.capacity

    def is_admitted(self, node: Node) -> bool:
        return self.places[node.id] < self.admitted

    def is_wanted(self, node: Node) -> bool:
        """Whether somebody waits for what this admitted claim keeps, or was refused because of it."""
        return self.admitted < len(self.nodes) or self.is_marked(node)

    def is_marked(self, node: Node) -> bool:
        return node.token <= self._mark

    def blockers(self, node: Node) -> list[Node]:
        """The shortest run just ahead that keeps this one out: until one of those goes, it need not look."""
        place = self.places[node.id]
        ahead = self.nodes[:place]
        count = rule.blockers([one.weight for one in ahead], node.weight, self.capacity)
        return ahead[place - count :]

    def look_in_s(self, node: Node) -> float:
        """When what stands before a waiter ends if it is dead: the admitted, or else the one just ahead."""
        place = self.places[node.id]
        first = 0 if place <= self.admitted else place - 1
        return min(one.ttl_s for one in self.nodes[first:place])
