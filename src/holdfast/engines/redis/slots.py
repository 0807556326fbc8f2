"""Which node of a cluster serves which slot, and how calls find their way: no I/O.

`routed` is a conversation that both kinds of link hold: it yields errands to nodes and is sent what came of them. It
follows MOVED and ASK, and learns the map anew when a node that it relied on does not answer.
"""

from __future__ import annotations

import random
from binascii import crc_hqx
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from ...errors import HoldfastError, Misuse, Unavailable
from .places import Address, Cluster
from .wire import Eval, Refusal, Wait, answered, pack

SLOTS = 1 << 14
MAX_HOPS = 5
"""Redirections that one call follows: a slot that is handed on more often is left to its retry."""

ASK_SLOTS = pack("CLUSTER", "SLOTS")
ASKING = pack("ASKING")


class Errand(NamedTuple):
    """What one node is to be asked, over one connection, within this share of the time that is left."""

    node: Address
    bodies: Sequence[Any]
    share: float = 1.0


class At(NamedTuple):
    """A command for one node, whatever its slots."""

    node: Address
    command: bytes


PRIMARIES = object()
"""A body that is answered with the addresses of all primaries, freshly asked for."""


def slot_of(body: Eval) -> int:
    """A script call's keys share one hash tag, the first braces of the packed call."""
    start = body.rest.index(b"{") + 1
    return crc_hqx(body.rest[start : body.rest.index(b"}", start)], 0) % SLOTS


def slot_of_channel(channel: bytes) -> int:
    return crc_hqx(channel[channel.index(b"{") + 1 : channel.index(b"}")], 0) % SLOTS


class Slots:
    """The map as last heard. ``stale``: it is to be heard again before it is used."""

    def __init__(self, cluster: Cluster) -> None:
        self.stale = True
        self._cluster = cluster
        self._owners: dict[int, Address] = {}
        self._nodes: tuple[Address, ...] = ()

    @property
    def primaries(self) -> list[Address]:
        return sorted(set(self._owners.values()))

    def some_nodes(self) -> list[Address]:
        """All that are known, in random order, those last heard of first."""
        known = list(self._nodes)
        random.shuffle(known)
        return list(dict.fromkeys([*known, *self._cluster.seeds]))

    def owner(self, slot: int) -> Address:
        """Raises `Unavailable` for a slot that nobody serves."""
        try:
            return self._owners[slot]
        except KeyError:
            self.stale = True
            raise Unavailable(f"no node of {self._cluster.where} serves slot {slot}") from None

    def any(self) -> Address:
        return random.choice(self.primaries or self.some_nodes())

    def note(self, slot: int, said: str, asked: Address) -> Address:
        """Who serves a slot by the word of a redirection."""
        node = self._owners[slot] = self.named(said, asked)
        return node

    def named(self, said: str, asked: Address) -> Address:
        """The node that ``asked`` calls ``host:port``; without a host it is on the same."""
        host, _, port = said.rpartition(":")
        return self._reached((host or asked[0], int(port)))

    def _reached(self, node: Address) -> Address:
        return self._cluster.remap(node) if self._cluster.remap else node

    def learn(self, reply: Any, asked: Address) -> None:
        """Take in a reply to CLUSTER SLOTS."""
        owners: dict[int, Address] = {}
        nodes: dict[Address, None] = {}
        for first, last, *replicas in reply:
            places = [
                self._reached((asked[0] if host in (None, b"", b"?") else host.decode(), int(port)))
                for host, port, *_ in replicas
            ]
            nodes.update(dict.fromkeys(places))
            owners.update(dict.fromkeys(range(first, last + 1), places[0]))
        self._owners, self._nodes = owners, tuple(nodes)
        self.stale = False


def learned(slots: Slots) -> Generator[list[Errand], list[list[Any]], None]:
    """Hear the map from whichever node answers. Raises `Misuse` where one is of no cluster or refuses us."""
    troubles: list[str] = []
    for node in slots.some_nodes():
        ((reply,),) = yield [Errand(node, [ASK_SLOTS], 1 / 3)]
        if type(reply) is Refusal and "cluster support disabled" in reply.text:
            where = f"{node[0]}:{node[1]}"
            raise Misuse(f"the Redis at {where} is of no cluster: a server of its own is named redis://{where}")
        reply = answered(reply)
        if isinstance(reply, Misuse):
            raise reply
        if not isinstance(reply, Exception):
            slots.learn(reply, node)
            return
        troubles.append(str(reply))
    raise Unavailable(f"no node of the cluster answers: {'; '.join(troubles)}")


def routed(slots: Slots, bodies: Sequence[Any]) -> Generator[list[Errand], list[list[Any]], list[Any]]:
    """Returns for each body its node's own words, or why there are none."""
    replies: list[Any] = [None] * len(bodies)
    asked_by: dict[int, Address] = {}  # whom an ASK names, for those
    missed: set[int] = set()
    todo = list(range(len(bodies)))
    for _ in range(MAX_HOPS):
        if slots.stale or any(bodies[i] is PRIMARIES for i in todo):
            try:
                yield from learned(slots)
            except HoldfastError as error:
                for i in todo:
                    replies[i] = error
                break
        groups = _grouped(slots, bodies, todo, asked_by, replies)
        answers = yield [Errand(node, sent) for node, (sent, _) in groups.items()]
        todo, asked_by = list[int](), {}
        for (node, (_, places)), answer in zip(groups.items(), answers, strict=True):
            for i, at in places:
                reply = replies[i] = answer[at]
                if type(bodies[i]) is Wait:
                    if todo and todo[-1] == i - 1:  # it goes with the call before it
                        todo.append(i)
                elif type(reply) is Refusal:
                    code, _, said = reply.text.partition(" ")
                    if code == "MOVED":
                        slots.note(int(said.split(" ")[0]), said.split(" ")[1], node)
                        todo.append(i)
                    elif code == "ASK":
                        asked_by[i] = slots.named(said.split(" ")[1], node)
                        todo.append(i)
                    elif code == "CLUSTERDOWN":
                        slots.stale = True
                elif isinstance(reply, Exception):
                    slots.stale = True
                    if type(reply) is Unavailable and i not in missed:  # not sent: its slot may be elsewhere by now
                        missed.add(i)
                        todo.append(i)
        if not todo:
            break
    return [_plain(bodies[i], reply) for i, reply in enumerate(replies)]


def _grouped(
    slots: Slots, bodies: Sequence[Any], todo: Sequence[int], asked_by: dict[int, Address], replies: list[Any]
) -> dict[Address, tuple[list[Any], list[tuple[int, int]]]]:
    """By node: what it is sent, and at which place of that the reply to which body will be."""
    groups: dict[Address, tuple[list[Any], list[tuple[int, int]]]] = {}
    node: Address | None = None
    for i in todo:
        body: Any = bodies[i]
        try:
            if body is PRIMARIES:
                replies[i] = slots.primaries
                continue
            if type(body) is At:
                node, body = body.node, body.command
            elif type(body) is not Wait:
                node = asked_by.get(i) or (slots.owner(slot_of(body)) if type(body) is Eval else slots.any())
        except Unavailable as error:
            replies[i], node = error, None
            continue
        if node is None:
            replies[i] = replies[i - 1]
            continue
        sent, places = groups.setdefault(node, ([], []))
        if i in asked_by and type(body) is Eval:
            sent += (ASKING, body.by_text())
        else:
            sent.append(body)
        places.append((i, len(sent) - 1))
    return groups


def _plain(body: Any, reply: Any) -> Any:
    """A redirection that is still one after `MAX_HOPS`, and a node that is not there, in words of their own."""
    if type(reply) is Refusal and reply.text.partition(" ")[0] in ("MOVED", "ASK"):
        return Unavailable(f"this name's slot is being moved from node to node: {reply.text}")
    if type(reply) is Unavailable and type(body) is Eval:
        return Unavailable(f"slot {slot_of(body)} of the cluster is not served at present: {reply}")
    return reply
