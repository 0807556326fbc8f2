"""A world in which everything that can go wrong with a quorum goes wrong, in every order, within bounds.

The clients are the real protocol (`engines.quorum.protocol`), fed reply by reply; the nodes are `Node` below, a few
lines that answer as the scripts do (`test_quorum_nodes` holds them to that). What may happen next, at any moment: a
node does what it was asked, and its answer is heard or lost; a client stops waiting; its time runs out; a node drops a
claim whose time ran out at its client; a holder releases; a node restarts without its memory, but never a majority at
once; somebody lets it count again. That a node hears of a release, soon, late or never, is the same as that the claim
expires there at any moment.

Time is an order of events: a node never drops a claim before its client has stopped to rely on it (a node counts from
when it was asked, its client from before it asked, less the drift), and a node that restarted is old enough once every
client that may have been granted something there has stopped to rely on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from holdfast.engines.quorum import protocol
from holdfast.engines.quorum.protocol import Round
from holdfast.errors import HoldfastError, Unavailable
from holdfast.model import Standing, State

NOT_ASKED = Unavailable("not asked")
Message = tuple[Any, ...]
History = tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Rules:
    """What a node keeps to. Each is there for a reason: without it there is a violation."""

    sits_out: bool = True  # a node that lost its memory does not count
    waits: bool = True  # until all leases that it may have forgotten are over
    is_given_highest: bool = True  # and it has been given a majority's highest number
    marks_own_only: bool = True  # the counter is raised only for an attempt that still holds
    regrants_with_token: bool = True  # a renewal gets back only what nobody can have had since


class Node(NamedTuple):
    number: int = 0
    holder: int = -1
    held: int = 0
    lease: int = 0  # which of its holder's leases the grant belongs to
    counts: bool = True
    floor: int = 0
    forgot: frozenset[tuple[int, int]] = frozenset()  # the leases that were relied on when it lost its memory

    def do(self, who: int, lease: int, message: Message, rules: Rules) -> tuple[Node, Any]:
        """What the scripts do."""
        if not self.counts:
            return self, b"Q"
        ours = self.holder == who
        match message:
            case ("take",):
                if ours:
                    return self._replace(lease=max(lease, self.lease)), b"H %d 0" % self.held
                if self.holder >= 0:
                    return self, b"W 1 0"
                number = max(self.number, self.floor) + 1
                return self._replace(number=number, holder=who, held=number, lease=lease), b"G %d 0" % number
            case ("mark", number):
                if not ours and rules.marks_own_only:
                    return self, 0
                held = number if ours else self.held
                return self._replace(number=max(self.number, self.floor, number), held=held), 1
            case ("renew",):
                if ours:
                    return self._replace(lease=max(lease, self.lease)), b"H %d 0" % self.held
                return self, b"- 0 0" if self.holder >= 0 else b"- 1 0"
            case ("regrant", token, strict):
                last = max(self.number, self.floor) if strict else self.number
                refuses = last > token and rules.regrants_with_token
                if self.held > token if ours else self.holder >= 0 or refuses:
                    return self, 0
                number = max(self.number, token)
                return self._replace(number=number, holder=who, held=token, lease=max(lease, self.lease)), 1
            case _:
                raise AssertionError(message)

    def restarted(self, relied_on: frozenset[tuple[int, int]], rules: Rules) -> Node:
        return Node(counts=not rules.sits_out, forgot=relied_on)


class Asks:
    """Requests as data."""

    take: Message = ("take",)
    undo: Message = ("undo",)
    state: Message = ("state",)

    def mark(self, number: int) -> Message:
        return ("mark", number)

    def regrant(self, token: int, strict: bool) -> Message:
        return ("regrant", token, strict)

    def admit(self, since: bytes, highest: int, longest_ms: float, whole: bool) -> Message:
        return ("admit", highest)


ASKS = Asks()


class Column(NamedTuple):
    """A node, and for each client: what is on its way there, and what it said in the round that is on."""

    node: Node
    queues: tuple[tuple[tuple[int, int, Message], ...], ...]  # (lease, number of the round, message)
    said: tuple[Any, ...]


class Client(NamedTuple):
    """``talk``: what it is about to do ("take", or renewing a token, or nothing), and what it heard in the rounds
    before; ``valid``: which of its leases may still be relied on; ``holds``: under which of them it does."""

    talk: str = ""
    heard: History = ()
    valid: tuple[bool, ...] = ()
    holds: int = -1
    token: int = 0
    renewals: int = 0

    @property
    def round(self) -> int:
        return len(self.valid) * 10 + len(self.heard)


class World(NamedTuple):
    columns: tuple[Column, ...]
    clients: tuple[Client, ...]
    last: int  # the highest token that was ever held
    restarts: int
    late: int  # how many more requests may arrive when nobody waits for the answer, or their answers be lost


ANY = 99
"""No bound."""


@dataclass
class Bounds:
    clients: int = 3
    nodes: int = 3
    restarts: int = 0
    renewals: int = 0
    late: int = ANY


@dataclass
class Found:
    states: int = 0
    violation: str = ""
    held: set[int] = field(default_factory=set[int])


_alike: dict[Any, History] = {}


def step(talk: str, size: int, heard: History) -> Any:
    """Where the real protocol stands after these rounds: its next `Round`, or its outcome."""
    if talk == "take":
        running: Any = protocol.take(size, ASKS, False, lambda: 0.0)
    else:
        running = protocol.renew(size, ("renew",), [("me", ASKS, int(talk))])
    try:
        round = next(running)
        for replies in heard:
            round = running.send(_replies(replies))
    except StopIteration as done:
        return done.value
    except HoldfastError as error:
        return error
    return round


step_again = lru_cache(maxsize=None)(step)


def as_heard(talk: str, size: int, heard: History, round: Round) -> History:
    """One history for all that led to the same question: what was said before is in what is asked now."""
    key = (talk, len(heard), tuple(sorted(map(repr, round.bodies.values()))))
    return _alike.setdefault(key, heard)


class Checker:
    """Every order of events from one beginning; each state is looked at once."""

    def __init__(self, bounds: Bounds, rules: Rules) -> None:
        self.bounds = bounds
        self.rules = rules
        self.found = Found()

    def run(self) -> Found:
        clients = self.bounds.clients
        columns = (Column(Node(), ((),) * clients, ("",) * clients),) * self.bounds.nodes
        begin = World(columns, (Client(),) * clients, 0, self.bounds.restarts, self.bounds.late)
        seen = {begin}
        stack = [begin]
        while stack and not self.found.violation:
            for after in self.after(stack.pop()):
                if after not in seen:
                    seen.add(after)
                    stack.append(after)
        self.found.states = len(seen)
        return self.found

    def after(self, world: World) -> Iterator[World]:
        columns, clients = world.columns, world.clients
        for who, client in enumerate(clients):
            if not client.valid and (who == 0 or clients[who - 1].valid):  # all clients are alike
                yield self.begin(world, who, "take")
            if client.talk:
                yield self.advance(world, who)  # it stops waiting
            elif client.holds >= 0:
                yield self.over(world, who, client)  # it releases
            if client.token and not client.talk and client.renewals < self.bounds.renewals:
                yield self.begin(world, who, str(client.token))  # also when its time is over
            if True in client.valid:
                yield self.time_is_up(world, who, client)
        for at, column in enumerate(columns):
            if at and column == columns[at - 1]:
                continue
            node = column.node
            for who, queue in enumerate(column.queues):
                if queue:
                    yield from self.deliver(world, at, who)
            if node.holder >= 0 and not clients[node.holder].valid[node.lease]:
                yield self.with_node(world, at, node._replace(holder=-1, held=0, lease=0))
            if world.restarts and all(other.node.counts for other in columns):  # no majority forgets at once
                yield self.restart(world, at)
        if any(not column.node.counts for column in columns):
            yield from self.admit(world)

    # -- events

    def begin(self, world: World, who: int, talk: str) -> World:
        client = world.clients[who]
        client = client._replace(
            talk=talk, heard=(), valid=(*client.valid, True), renewals=client.renewals + (talk != "take")
        )
        return self.go_on(world, who, client)

    def advance(self, world: World, who: int) -> World:
        client = world.clients[who]
        replies = tuple(column.said[who] for column in world.columns)
        return self.go_on(world, who, client._replace(heard=(*client.heard, replies)))

    def go_on(self, world: World, who: int, client: Client) -> World:
        """Ask the protocol what comes now, and do it."""
        columns, size = world.columns, len(world.columns)
        while True:
            outcome = step(client.talk, size, client.heard)
            if not isinstance(outcome, Round):
                return self.end(world._replace(columns=columns), who, client, outcome)
            if set(outcome.bodies.values()) == {ASKS.undo}:
                return self.over(world._replace(columns=columns), who, client)
            client = client._replace(heard=as_heard(client.talk, size, client.heard, outcome))
            lease = len(client.valid) - 1
            fresh: list[Column] = []
            for at, column in enumerate(columns):
                queue, said = column.queues[who], "not asked"
                if at in outcome.bodies:
                    queue, said = (*queue, (lease, client.round, outcome.bodies[at])), None
                fresh.append(Column(column.node, _put(column.queues, who, queue), _put(column.said, who, said)))
            columns = tuple(fresh)
            replies = tuple(column.said[who] for column in columns)
            if not outcome.enough(_replies(replies)):
                return _sorted(world._replace(columns=columns, clients=_put(world.clients, who, client)))
            client = client._replace(heard=(*client.heard, replies))

    def end(self, world: World, who: int, client: Client, outcome: Any) -> World:
        if isinstance(outcome, dict):
            outcome = outcome["me"]
        lease = len(client.valid) - 1
        if not (isinstance(outcome, Standing) and outcome.state is State.ADMITTED):
            return self.over(world, who, client)
        others = [other for at, other in enumerate(world.clients) if at != who and other.holds >= 0]
        if others:
            self.found.violation = f"two hold at once: tokens {outcome.token} and {others[0].token}"
        elif outcome.token < world.last or (outcome.token == world.last and client.token != world.last):
            self.found.violation = f"token {outcome.token} is held after {world.last}"
        self.found.held.add(outcome.token)
        client = client._replace(talk="", heard=(), holds=lease, token=outcome.token)
        return self.silent(world._replace(last=max(world.last, outcome.token)), who, client)

    def silent(self, world: World, who: int, client: Client) -> World:
        """It waits for no answer any more."""
        columns = tuple(column._replace(said=_put(column.said, who, "")) for column in world.columns)
        return _sorted(world._replace(columns=columns, clients=_put(world.clients, who, client)))

    def over(self, world: World, who: int, client: Client) -> World:
        """It failed, or releases: it relies on nothing any more. That a node then hears of it, soon, late or never,
        is the same as that its claim expires there at any moment."""
        valid = (False,) * len(client.valid)
        return self.silent(world, who, Client(valid=valid, renewals=self.bounds.renewals))

    def time_is_up(self, world: World, who: int, client: Client) -> World:
        """The oldest of its leases is over. In the middle of a talk it gives up, but for a renewal under a new one."""
        lease = client.valid.index(True)
        client = client._replace(valid=_put(client.valid, lease, False))
        if client.talk and lease == len(client.valid) - 1:
            client = client._replace(talk="", heard=(), holds=-1)
            return self.silent(world, who, client)
        if client.holds <= lease:
            client = client._replace(holds=-1)
        return world._replace(clients=_put(world.clients, who, client))

    def deliver(self, world: World, at: int, who: int) -> Iterator[World]:
        column, client = world.columns[at], world.clients[who]
        lease, number, message = column.queues[who][0]
        node, reply = column.node.do(who, lease, message, self.rules)
        column = column._replace(node=node, queues=_put(column.queues, who, column.queues[who][1:]))
        awaited = bool(client.talk) and number == client.round
        if world.late:  # nobody waits for the answer, or it is lost
            yield _sorted(world._replace(columns=_put(world.columns, at, column), late=world.late - (world.late < ANY)))
        if awaited:
            column = column._replace(said=_put(column.said, who, reply))
            world = world._replace(columns=_put(world.columns, at, column))
            round = step_again(client.talk, len(world.columns), client.heard)
            if round.enough(_replies(one.said[who] for one in world.columns)):
                yield self.advance(world, who)
            else:
                yield _sorted(world)

    def with_node(self, world: World, at: int, node: Node) -> World:
        return _sorted(world._replace(columns=_put(world.columns, at, world.columns[at]._replace(node=node))))

    def restart(self, world: World, at: int) -> World:
        """It loses its memory, and what was on its way to it."""
        column = world.columns[at]
        relied = frozenset(
            (who, lease)
            for who, client in enumerate(world.clients)
            for lease, valid in enumerate(client.valid)
            if valid
        )
        node = column.node.restarted(relied, self.rules)
        column = Column(node, tuple(() for _ in column.queues), column.said)
        return _sorted(world._replace(columns=_put(world.columns, at, column), restarts=world.restarts - 1))

    def admit(self, world: World) -> Iterator[World]:
        """Somebody asks all nodes, hears some of them, and admits whom the real protocol admits."""
        size = len(world.columns)
        for deaf in (None, *range(size)):
            talk = protocol.admit(size, ASKS, 0.0)
            next(talk)
            replies = [
                None if at == deaf else self.state_of(world, column.node) for at, column in enumerate(world.columns)
            ]
            try:
                round = talk.send(replies)
            except StopIteration:
                continue
            columns = list(world.columns)
            for at, (_, highest) in round.bodies.items():
                floor = highest if self.rules.is_given_highest else 0
                columns[at] = columns[at]._replace(
                    node=columns[at].node._replace(counts=True, floor=floor, forgot=frozenset())
                )
            yield _sorted(world._replace(columns=tuple(columns)))

    def state_of(self, world: World, node: Node) -> list[Any]:
        old = not any(world.clients[who].valid[lease] for who, lease in node.forgot)
        aged = old or not self.rules.waits
        highest = b"%d" % max(node.number, node.floor)
        return [int(node.counts), highest, b"100", b"1", b"1000" if aged else b"0"]


def _replies(said: Iterable[Any]) -> list[Any]:
    return [NOT_ASKED if one == "not asked" else one for one in said]


def _put(items: tuple[Any, ...], at: int, one: Any) -> tuple[Any, ...]:
    return (*items[:at], one, *items[at + 1 :])


def _sorted(world: World) -> World:
    """All nodes are alike, so their order is nothing: one state for all orders. Nor is what can't arrive any more."""
    if not world.late:
        rounds = [client.round if client.talk else -1 for client in world.clients]
        world = world._replace(
            columns=tuple(
                column._replace(
                    queues=tuple(
                        tuple(one for one in queue if one[1] == rounds[who]) for who, queue in enumerate(column.queues)
                    )
                )
                for column in world.columns
            )
        )
    return world._replace(columns=tuple(sorted(world.columns, key=hash)))


def check(bounds: Bounds, rules: Rules | None = None) -> Found:
    _alike.clear()
    step_again.cache_clear()
    return Checker(bounds, rules or Rules()).run()
