"""A turnstile as one listing of its keys shows it: everything that decides is in the keys. Pure.

    HOME c/CAPACITY/SLOT!WEIGHT!TTL_S!A!1   a claim; A is 'a' where the turnstile announces its changes, else '-'
    HOME x/ID                               a tombstone: the claim was given up ('1': it had stood), whatever comes
    HOME w                                  the admitted up to this revision are wanted by one who did not queue
    HOME l                                  the last who left after it had waited and was admitted, by its token

The 1 is the layout. A claim's token, and its place in the queue, is the revision that created its key. Its id is in the
value: etcd visits deleted keys, too, until its history is compacted, so keys have to be used again and again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

from ...contract import LAYOUT
from ...core import turnstile as rule
from ...errors import Misuse
from ...model import Claim, Turnstile
from .messages import Keys, absent, after, get, under
from .replies import Kv

FIRST_SLOTS = 8
FEW = 16
"""Of a turnstile that admits no more, who comes in needs to see no more."""
MANY_SLOTS = 1024


@lru_cache(maxsize=1 << 14)
def quoted(text: str) -> bytes:
    return quote(text, safe=":@+,=~").encode()


def space_of(namespace: str) -> bytes:
    return b"holdfast/%b/" % quoted(namespace)


class Home:
    """The keys of one turnstile, and which slots we have and had there."""

    __slots__ = ("_free", "_ours", "base", "claims", "last", "left", "listing", "mark", "no_others", "turnstile")

    def __init__(self, space: bytes, turnstile: Turnstile) -> None:
        self.turnstile = turnstile
        self.base = b"%bt/%b/" % (space, quoted(turnstile.address))
        self.claims = under(self.base + b"c/")
        self.mark = self.base + b"w"
        self.left = Keys(self.base + b"l")
        alike = b"%b%d/" % (self.claims.key, turnstile.capacity)
        self.no_others = [absent(Keys(self.claims.key, alike)), absent(Keys(after(alike), self.claims.end))]
        """Comparisons: nobody stands with another capacity."""
        self.listing = [get(self.claims, keys_only=True), get(Keys(self.mark))]
        """Operations that show the queue."""
        self.last = self.listing[0]
        """An operation that shows the youngest claim and who can keep it out: so many, where each weighs something."""
        if turnstile.capacity <= FEW and not turnstile.announces:
            self.last = get(self.claims, keys_only=True, newest=True, limit=turnstile.capacity + 1)
        self._free: list[int] = []
        self._ours: set[int] = set()

    def claim(self, slot: int, claim: Claim) -> bytes:
        announces = b"a" if self.turnstile.announces else b"-"
        return b"%b%d/%d!%d!%b!%b!%d" % (
            self.claims.key, self.turnstile.capacity, slot, claim.weight, repr(claim.ttl_s).encode(), announces, LAYOUT,
        )  # fmt: skip

    def tomb(self, claim_id: str) -> Keys:
        return Keys(b"%bx/%b" % (self.base, quoted(claim_id)))

    def slot(self, taken: Collection[int] = ()) -> int:
        """One that we had before and left, else any that no claim of ours has, and none of those ``taken``.

        Others may have it, or want it: it is one of more than are needed, so that not all choose the same.
        """
        while self._free:
            with contextlib.suppress(IndexError):  # another thread took the last
                if (slot := self._free.pop()) not in taken:
                    self._ours.add(slot)
                    return slot
        slots = 2 * (len(taken) + len(self._ours)) + FIRST_SLOTS
        while (slot := random.randrange(slots)) in self._ours or slot in taken:
            pass
        self._ours.add(slot)
        return slot

    def give_back(self, slot: int, was_ours: bool = True) -> None:
        """No claim of ours is there any more, or it was another's."""
        self._ours.discard(slot)
        if was_ours and len(self._free) < MANY_SLOTS:
            self._free.append(slot)


class Node(NamedTuple):
    """One claim. ``value`` is there in a full listing only."""

    token: int
    key: bytes
    slot: int
    weight: int
    capacity: int
    ttl_s: float
    announces: bool
    lease: int
    value: bytes

    def said(self) -> Any:
        return json.loads(self.value)


def node_of(kv: Kv, home: Home) -> Node:
    return Node(kv.created, kv.key, *_read(kv.key, len(home.claims.key)), kv.lease, kv.value)


@lru_cache(maxsize=1 << 14)
def _read(key: bytes, start: int) -> tuple[int, int, int, float, bool]:
    capacity, _, rest = key[start:].decode().partition("/")
    fields = rest.split("!")
    if len(fields) != 5 or fields[4] != str(LAYOUT):
        raise Misuse(
            f"a key {key!r} is stored here and this release knows layout {LAYOUT}: let all users of this etcd run the "
            "same release of holdfast"
        )
    slot, weight, ttl_s, announces, _ = fields
    return int(slot), int(weight), int(capacity), float(ttl_s), announces == "a"


class Queue:
    """The live claims in order, at one revision. ``more``: before those that are known stand others."""

    __slots__ = ("_mark", "_places", "admitted", "more", "nodes", "revision")

    def __init__(
        self, kvs: Iterable[Kv], marks: Sequence[Kv], home: Home, revision: int, *, more: bool = False
    ) -> None:
        self.nodes = sorted(node_of(kv, home) for kv in kvs)
        self._places = {node.key: place for place, node in enumerate(self.nodes)}
        self.admitted = 0 if more else rule.admitted((node.weight for node in self.nodes), self.capacity)
        self.revision = revision
        self.more = more
        self._mark = int(marks[0].value) if marks else 0

    @property
    def capacity(self) -> int:
        """0 where nobody is."""
        return self.nodes[0].capacity if self.nodes else 0

    def at(self, key: bytes, token: int = 0) -> Node | None:
        """The claim there, if it is the one with that token."""
        place = self._places.get(key)
        if place is None or token not in (0, self.nodes[place].token):
            return None
        return self.nodes[place]

    def called(self, claim_id: str) -> Node | None:
        """The claim with this id, in a full listing."""
        return next((node for node in self.nodes if node.said()["id"] == claim_id), None)

    @property
    def slots(self) -> set[int]:
        return {node.slot for node in self.nodes}

    def fits(self, weight: int) -> bool:
        """Whether a new claim would be admitted at once."""
        return not self.nodes or sum(node.weight for node in self.nodes) + weight <= self.capacity

    def is_admitted(self, node: Node) -> bool:
        return self._places[node.key] < self.admitted

    def is_wanted(self, node: Node) -> bool:
        """Whether somebody waits for what this admitted claim keeps, or was refused because of it."""
        return self.admitted < len(self.nodes) or self.is_marked(node)

    def is_marked(self, node: Node) -> bool:
        return node.token <= self._mark

    def blockers(self, node: Node) -> list[Node]:
        """The fewest of those just ahead that keep this one out: until one of them goes, it need not look."""
        place = self._places[node.key]
        ahead = (self.nodes[one].weight for one in range(place - 1, -1, -1))
        return [self.nodes[place - 1 - one] for one in rule.blockers(ahead, node.weight, self.capacity)]

    def inherits(self, node: Node, blocker: Node) -> bool:
        """Whether this one is admitted as soon as that one ahead is gone, however it went."""
        load = node.weight - blocker.weight
        for ahead in itertools.islice(self.nodes, self._places[node.key]):
            load += ahead.weight
            if load > self.capacity:
                return False
        return not self.more

    def bequeather(self, node: Node) -> Node | None:
        """The one just ahead, if its room is enough for this one: once that was admitted and leaves, this one is."""
        place = self._places[node.key]
        return self.nodes[place - 1] if place and node.weight <= self.nodes[place - 1].weight else None

    def look_in_s(self, node: Node) -> float:
        """When what stands before a waiter ends if it is dead: the admitted, or else the one just ahead."""
        place = self._places[node.key]
        first = 0 if place <= self.admitted else place - 1
        return min(one.ttl_s for one in self.nodes[first:place])
