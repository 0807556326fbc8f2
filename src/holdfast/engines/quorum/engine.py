"""A quorum of independent Redis servers: a lock without a single point of failure, and with a fencing token.

Redlock, with what it lacks: a majority grants *and* agrees on a number that rises with every holder; a node that lost
its memory does not count until every lease that it may have forgotten is over; cells check the token on a majority. It
is exclusive (no semaphores, no groups) and not fair: who waits is woken in about the order of arrival, and anybody may
be quicker.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from ...contract import TOMBSTONE_S, AsyncLink, BlockingLink, Capabilities, Request
from ...errors import Unsupported
from ...model import CellReply, CellSnapshot, Change, Claim, Fence, Snapshot, Standing, State, Turnstile
from ..redis.wire import CHANNELS, Eval, bulk
from . import cells, protocol, scripts, views
from .nodes import ADMITS, NODE_KEYS, Nodes, targets_at, warn_if_even
from .protocol import Talk

T = TypeVar("T")

CAPABILITIES = Capabilities(
    engine="quorum",
    scope="fleet",
    fair=False,
    weighted=False,
    signals=True,
    cells=True,
    groups=False,
    survives_restart=False,
    token_survives_failover=True,
    token_source="counters that a majority of the nodes agrees on",
    min_ttl_s=0.05,
    max_value_bytes=16 << 20,
)

RENEW_BATCH = 100

TOKENS = 1 << 16
"""How many tokens a client remembers; without, a lease that most nodes forgot is over."""

SHARDS = 1 << 14
"""How many counters a node has at most; names that share one only ever skip numbers."""

_SIX = bulk("6")
_YES, _NO = bulk("1"), bulk("0")
_TOMBSTONE_MS = bulk(b"%d" % (TOMBSTONE_S * 1000))


class Body(Generic[T]):
    """An operation on the quorum: makes its talk when a link is about to hold it.

    ``alone`` is a claim's id where two talks about it may not overlap: one could give back what the other counts on.
    """

    __slots__ = ("alone", "talk")

    def __init__(self, talk: Callable[[Nodes], Talk[T]], alone: str = "") -> None:
        self.talk = talk
        self.alone = alone


class QuorumEngine:
    """Turnstiles of capacity 1, and cells, on a majority of independent Redis or Valkey servers.

    ``url`` is ``redis+quorum://user:password@h1:p1,h2:p2,h3:p3/0`` (``rediss+quorum://`` for TLS) with every option
    that redis-py reads from one. Raises `Misuse`; warns where the number of hosts is even.
    """

    capabilities = CAPABILITIES

    def __init__(self, url: str, namespace: str = "") -> None:
        self._url = url
        self._targets = targets_at(url, asynchronous=False)
        warn_if_even(len(self._targets))
        self.identity = f"quorum:{','.join(sorted(target.identity for target in self._targets))}#{namespace}"
        self._namespace = namespace
        self._attempts = itertools.count(1)
        self._waiting: set[str] = set()  # claims that this client waits with: renewing one is trying to take
        self._tokens: dict[str, int] = {}  # of the claims that were admitted here

    def blocking_link(self) -> BlockingLink:
        from .links import QuorumLink

        return QuorumLink(self._targets)

    def async_link(self) -> AsyncLink:
        from .tasks import AsyncQuorumLink

        return AsyncQuorumLink(targets_at(self._url, asynchronous=True))

    # -- requests: turnstiles

    def ping(self) -> Request[None]:
        return _request("ping", lambda nodes: protocol.tell("ping", nodes.size, ADMITS.state))

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Request[Standing]:
        if turnstile.capacity != 1 or claim.weight != 1:
            raise Unsupported(f"the quorum engine has exclusive locks only: {turnstile.address} is none")
        return _request("enter", lambda nodes: self._take(nodes, turnstile, claim, waits=not nowait), alone=claim.id)

    def _take(self, nodes: Nodes, turnstile: Turnstile, claim: Claim, *, waits: bool) -> Talk[Standing]:
        yield from nodes.announce(claim.ttl_s * 1000)
        attempt = self._attempt(turnstile, claim, next(self._attempts), waits)  # a resend is another one
        standing = yield from protocol.take(nodes.size, attempt, waits, random.random)
        if standing.state is State.WAITING:
            self._waiting.add(claim.id)
        else:
            self._waiting.discard(claim.id)
        if standing.state is State.ADMITTED:
            self._tokens[claim.id] = standing.token
            if len(self._tokens) > TOKENS:
                del self._tokens[next(iter(self._tokens))]
        return standing

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Request[bool]:
        rest = bulk(claim_id) + (_YES if bury else _NO) + _TOMBSTONE_MS
        body = Eval(scripts.LEAVE, 12, _SIX + self._keys(turnstile, claim_id) + rest)

        def talk(nodes: Nodes) -> Talk[bool]:
            self._waiting.discard(claim_id)
            self._tokens.pop(claim_id, None)
            return protocol.leave(nodes.size, body)

        return _request("leave", talk, alone=claim_id)

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Request[dict[str, Standing]]]:
        held = [(turnstile, claim) for turnstile, claim in items if claim.id not in self._waiting]
        for start in range(0, len(held), RENEW_BATCH):
            batch = held[start : start + RENEW_BATCH]
            yield _request("renew", partial(self._renew, batch=batch))
        for turnstile, claim in items:
            if claim.id in self._waiting:
                yield self._try_again(turnstile, claim)

    def _renew(self, nodes: Nodes, *, batch: Sequence[tuple[Turnstile, Claim]]) -> Talk[dict[str, Standing]]:
        packed = [bulk(b"%d" % (2 + 3 * len(batch))), NODE_KEYS]
        packed += [self._base_keys(turnstile) for turnstile, _ in batch]
        for _, claim in batch:
            packed += (bulk(claim.id), _milliseconds(claim.ttl_s), _channel(claim.inbox))
        body = Eval(scripts.RENEW, 5 + 6 * len(batch), b"".join(packed))
        kept = [
            (claim.id, self._attempt(turnstile, claim, 0, True), self._tokens.get(claim.id, 0))
            for turnstile, claim in batch
        ]
        return protocol.renew(nodes.size, body, kept)

    def _try_again(self, turnstile: Turnstile, claim: Claim) -> Request[dict[str, Standing]]:
        def talk(nodes: Nodes) -> Talk[dict[str, Standing]]:
            if claim.id not in self._waiting:  # it was admitted meanwhile, or left
                return (yield from self._renew(nodes, batch=[(turnstile, claim)]))
            standing = yield from self._take(nodes, turnstile, claim, waits=True)
            if standing.state is State.BURIED:
                standing = Standing(State.GONE)
            return {claim.id: standing}

        return _request("renew", talk, alone=claim.id)

    def look(self, turnstile: Turnstile) -> Request[Snapshot]:
        body = Eval(scripts.LOOK, 8, bulk("5") + NODE_KEYS + self._base_keys(turnstile))
        return _request("look", lambda nodes: views.look(nodes.size, turnstile, body))

    # -- requests: cells

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        return _request("open", lambda nodes: cells.open_cell(nodes.size, self._cell(cell), fence))

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        put = cells.Put(fence, version, op_id, value, changes)
        return _request("put", lambda nodes: cells.put(nodes.size, self._cell(cell), put))

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        return _request("read", lambda nodes: cells.read(nodes.size, self._cell(cell), keys))

    def drop(self, cell: str) -> Request[bool]:
        return _request("drop", lambda nodes: cells.drop(nodes.size, self._cell(cell)))

    # -- keys

    def _attempt(self, turnstile: Turnstile, claim: Claim, number: int, waits: bool) -> _Attempt:
        return _Attempt(self._keys(turnstile, claim.id), claim, self._shard(turnstile), number, waits)

    def _base(self, address: str) -> str:
        return f"{CHANNELS}quorum:{views.quote(self._namespace)}:{views.quote(address)}"

    def _base_keys(self, turnstile: Turnstile) -> bytes:
        base = self._base(turnstile.address)
        return b"".join(bulk(f"{base}:{suffix}") for suffix in "hwc")

    def _keys(self, turnstile: Turnstile, claim_id: str) -> bytes:
        return NODE_KEYS + self._base_keys(turnstile) + bulk(f"{self._base(turnstile.address)}:x:{claim_id}")

    def _cell(self, cell: str) -> bytes:
        base = self._base(f"cell:{cell}")
        return NODE_KEYS + bulk(f"{base}:cell") + bulk(f"{base}:entries")

    def _shard(self, turnstile: Turnstile) -> bytes:
        return bulk(b"%d" % (zlib.crc32(f"{self._namespace}:{turnstile.address}".encode()) % SHARDS))

    # -- what stands; last, because from here on `list` is this one

    def list(self, prefix: str) -> Request[Sequence[Turnstile]]:
        space = f"{CHANNELS}quorum:{views.quote(self._namespace)}:"
        return _request("list", lambda nodes: views.list_all(nodes.size, space, prefix, self._base_keys))


class _Attempt:
    """What one attempt of a claim asks of each node. The arguments are the same for all of it."""

    def __init__(self, keys: bytes, claim: Claim, shard: bytes, number: int, waits: bool) -> None:
        self._rest = b"".join((
            _SIX,
            keys,
            bulk(claim.id),
            bulk(b"%d" % number),
            _YES if waits else _NO,
            _milliseconds(claim.ttl_s),
            _channel(claim.inbox),
            bulk(claim.owner),
            bulk(claim.payload),
            shard,
        ))  # fmt: skip
        self.take = Eval(scripts.TAKE, 17, self._rest)

    @property
    def undo(self) -> Eval:
        return Eval(scripts.UNDO, 17, self._rest)

    def mark(self, number: int) -> Eval:
        return Eval(scripts.MARK, 18, self._rest + bulk(b"%d" % number))

    def regrant(self, token: int, strict: bool) -> Eval:
        return Eval(scripts.REGRANT, 19, self._rest + bulk(b"%d" % token) + (_YES if strict else _NO))


def _request(op: str, talk: Callable[[Nodes], Talk[Any]], alone: str = "") -> Request[Any]:
    return Request(op, Body(talk, alone), _same)


def _same(outcome: T) -> T:
    return outcome


def _milliseconds(seconds: float) -> bytes:
    return bulk(repr(seconds * 1000))


def _channel(inbox: str) -> bytes:
    return bulk(f"{CHANNELS}{inbox}" if inbox else "")
