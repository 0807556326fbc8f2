"""Redis and Valkey: every operation is one script call, and a release hands over inside it.

What the engine promises rests on one server's memory: a failover to a replica, or a restart without persistence,
forgets who holds what. Tokens go on rising through both (they follow the server's clock), so a cell on storage
that did not forget still refuses the former holder.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from ...contract import LAYOUT, TOMBSTONE_S, AsyncLink, BlockingLink, Capabilities, Request
from ...core import turnstile as rule
from ...errors import Misuse, OutcomeUnknown
from ...model import (
    NEVER_S,
    CellReply,
    CellSnapshot,
    Change,
    Claim,
    ClaimView,
    Fence,
    Snapshot,
    Standing,
    State,
    Turnstile,
)
from . import scripts
from .places import Acks, Cluster, Sentinels, acks_in, place_at, place_of
from .slots import PRIMARIES, At, slot_of_channel
from .wire import CHANNELS, Eval, Wait, all_of, bulk, pack

T = TypeVar("T")

CAPABILITIES = Capabilities(
    engine="redis",
    scope="fleet",
    fair=True,
    weighted=True,
    signals=True,
    cells=True,
    groups=True,
    survives_restart=False,
    token_survives_failover=True,
    token_source="the server's clock in µs, or the last token + 1",
    min_ttl_s=0.05,
    max_value_bytes=256 << 20,
)

RENEW_BATCH = 100
"""Claims per script call: about half a millisecond of the server's time."""

_STATES = {b"%d" % state: state for state in State}
_TOMBSTONE_MS = bulk(b"%d" % (TOMBSTONE_S * 1000))
_SIX, _FIVE, _TWO = bulk("6"), bulk("5"), bulk("2")
_YES, _NO = bulk("1"), bulk("0")
_BURY, _GO = _YES + _TOMBSTONE_MS, _NO + _TOMBSTONE_MS
_IN_ITS_SHARD = bulk("2")


class RedisEngine:
    """Turnstiles and cells on one Redis or Valkey server, on the primary that Sentinel names, or on a cluster.

    ``target`` is a URL (``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, each also with ``+sentinel`` or
    ``+cluster``, and ``unix://``; with everything that redis-py reads from one) or a client that the user already has.
    Of a client, only its settings are used: the connections are ours. Raises `Misuse` for options that redis-py does
    not know.
    """

    capabilities = CAPABILITIES

    def __init__(self, target: Any, namespace: str = "") -> None:
        self._acks: Acks | None = None
        if isinstance(target, str):
            target, self._acks = acks_in(target)
            self._asynchronous, self._place = None, place_at(target, asynchronous=False)
        else:
            self._asynchronous, self._place = place_of(target)
        self._target = target
        self._clustered = isinstance(self._place, Cluster)
        self._announces = _IN_ITS_SHARD if self._clustered else _YES
        self.identity = f"{self._place.identity}#{namespace}"
        self._space = f"{CHANNELS}{{{_quote(namespace).replace(':', '%3A')}:"
        self._keys = lru_cache(maxsize=1 << 14)(self._pack_keys)
        self._entry = lru_cache(maxsize=1 << 10)(self._pack_entry)
        self._channel = lru_cache(maxsize=1 << 10)(_pack_channel)

    def blocking_link(self) -> BlockingLink:
        if self._asynchronous:
            raise Misuse("this client is for asyncio: give it to holdfast.aio.connect(), or a redis.Redis to this one")
        from .cluster import ClusterLink
        from .links import RedisLink
        from .sentinel import SentinelLink

        place = self._place
        if isinstance(place, Cluster):
            return ClusterLink(place, self.changed_channel)
        if isinstance(place, Sentinels):
            return SentinelLink(place, self.changed_channel)
        return RedisLink(place, self.changed_channel)

    def async_link(self) -> AsyncLink:
        if self._asynchronous is False:
            raise Misuse("this client blocks: give it to holdfast.connect(), or a redis.asyncio.Redis to this one")
        from .cluster import AsyncClusterLink
        from .links import AsyncRedisLink
        from .sentinel import AsyncSentinelLink

        place = place_at(self._target, asynchronous=True) if isinstance(self._target, str) else self._place
        if isinstance(place, Cluster):
            return AsyncClusterLink(place, self.changed_channel)
        if isinstance(place, Sentinels):
            return AsyncSentinelLink(place, self.changed_channel)
        return AsyncRedisLink(place, self.changed_channel)

    # -- keys

    def changed_channel(self, turnstile: Turnstile) -> bytes:
        """Where an announcing turnstile says that it changed: the name of its first key."""
        return f"{self._base(turnstile.address)}:h".encode()

    def _base(self, address: str) -> str:
        return f"{self._space}{_quote(address)}}}"

    def _pack_keys(self, address: str) -> Keys:
        base = self._base(address)
        return Keys(b"".join(bulk(f"{base}:{suffix}") for suffix in "hawet"), f"{base}:x:".encode())

    def _cell(self, cell: str) -> bytes:
        base = f"{self._space}{_quote(cell)}}}"
        return _TWO + bulk(f"{base}:cell") + bulk(f"{base}:entries")

    # -- requests: turnstiles

    def ping(self) -> Request[None]:
        return Request("ping", pack("PING"), _nothing)

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Request[Standing]:
        id, *about = claim
        entry = self._entry(nowait, turnstile.capacity, turnstile.announces, *about)
        rest = self._keys(turnstile.address).about(id, entry)
        request = Request("enter", Eval(scripts.ENTER, 16, rest), lambda reply: _entered(turnstile, reply))
        return request if self._acks is None else _acknowledged(request, self._acks, _is_made)

    def _pack_entry(
        self, nowait: bool, capacity: int, announces: bool, weight: int, ttl_s: float, inbox: str, owner: str,
        payload: bytes,
    ) -> bytes:  # fmt: skip
        """An enter's arguments but for the id: the same whenever a lock is taken again."""
        return b"".join((
            _YES if nowait else _NO,
            bulk(b"%d" % weight),
            _milliseconds(ttl_s),
            bulk(b"%d" % capacity),
            self._announces if announces else _NO,
            self._channel(inbox),
            bulk(owner),
            bulk(payload),
        ))  # fmt: skip

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Request[bool]:
        rest = self._keys(turnstile.address).about(claim_id, _BURY if bury else _GO)
        return Request("leave", Eval(scripts.LEAVE, 10, rest), _truth)

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Request[dict[str, Standing]]]:
        for batch in self._batches(items):
            packed = [bulk(b"%d" % (5 * len(batch)))]
            packed += [self._keys(turnstile.address).packed for turnstile, _ in batch]
            for _, claim in batch:
                packed += (bulk(claim.id), _milliseconds(claim.ttl_s), self._channel(claim.inbox))
            body = Eval(scripts.RENEW, 1 + 8 * len(batch), b"".join(packed))
            yield Request("renew", body, _renewed([claim.id for _, claim in batch]))

    def _batches(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Sequence[tuple[Turnstile, Claim]]]:
        """As many as one script call may renew; in a cluster, all of one slot."""
        groups: dict[int, list[tuple[Turnstile, Claim]]] = {}
        for item in items:
            slot = slot_of_channel(self.changed_channel(item[0])) if self._clustered else 0
            groups.setdefault(slot, []).append(item)
        for group in groups.values():
            for start in range(0, len(group), RENEW_BATCH):
                yield group[start : start + RENEW_BATCH]

    def look(self, turnstile: Turnstile) -> Request[Snapshot]:
        def parse(reply: Any) -> Snapshot:
            capacity, *claims = _checked(reply)
            views = sorted((_view(*claim) for claim in claims), key=lambda view: view.token)
            return Snapshot(turnstile.kind, turnstile.name, capacity, tuple(views))

        return Request("look", Eval(scripts.LOOK, 6, _FIVE + self._keys(turnstile.address).packed), parse)

    # -- requests: cells

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        rest = self._cell(cell) + _fence(fence)
        request = Request("open", Eval(scripts.OPEN, 7, rest), _cell_reply)
        return request if self._acks is None else _acknowledged(request, self._acks, _is_accepted)

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        packed = [self._cell(cell), _fence(fence), bulk(b"%d" % version), bulk(op_id)]
        packed += (_NO if value is None else _YES, bulk(value or b""))
        for change in changes:
            verb = "delete" if change.value is None else "create" if change.create else "set"
            packed += (bulk(verb), bulk(change.key), bulk(change.value or b""))
        request = Request("put", Eval(scripts.PUT, 11 + 3 * len(changes), b"".join(packed)), _cell_reply)
        return request if self._acks is None else _acknowledged(request, self._acks, _is_accepted)

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        wanted = [] if keys is None else ["keys", *keys]
        rest = self._cell(cell) + b"".join(map(bulk, wanted))
        return Request("read", Eval(scripts.READ, 3 + len(wanted), rest), _cell_snapshot)

    def drop(self, cell: str) -> Request[bool]:
        return Request("drop", Eval(scripts.DROP, 3, self._cell(cell)), _truth)

    # -- what stands; last, because from here on `list` is this one

    def list(self, prefix: str) -> Request[list[Turnstile]]:
        return Request("list", lambda: self._list(prefix), same)

    def _list(self, prefix: str) -> Generator[Sequence[Request[Any]], Sequence[Any], Sequence[Turnstile]]:
        """A conversation: yields requests, is sent their replies, returns the outcome."""
        pattern = _escape_glob(f"{self._space}{_quote(prefix)}") + "*}:h"
        nodes: Sequence[Any] = (None,)
        if self._clustered:
            (nodes,) = all_of((yield [Request("list", PRIMARIES, same)]))
        found: set[str] = set()
        for node in nodes:
            cursor, keys = b"0", list[bytes]()
            while True:
                scan = pack("SCAN", cursor, "MATCH", pattern, "COUNT", "1000")
                replies = yield [Request("list", scan if node is None else At(node, scan), same)]
                ((cursor, keys),) = all_of(replies)
                found.update(_unquote(key.decode()[len(self._space) : -3]) for key in keys)
                if cursor == b"0":
                    break
        addresses = sorted(found)
        replies = yield [
            Request("list", Eval(scripts.STANDS, 6, _FIVE + self._keys(address).packed), _checked)
            for address in addresses
        ]
        standing: list[Turnstile] = []
        for address, (capacity, announces) in zip(addresses, all_of(replies), strict=True):
            kind, _, name = address.partition(":")
            if capacity:
                standing.append(Turnstile(kind, name, capacity, bool(announces)))
        return standing


def _acknowledged(request: Request[T], acks: Acks, counts: Callable[[T], bool]) -> Request[T]:
    """The same, and its replicas' acknowledgements, in one exchange.

    Without enough of them the outcome is unknown: it stands on the primary, and whether it outlives that one is open.
    So it is asked again (which finds it done, and waits anew), and given back by whoever gives up.
    """
    wait = Request(request.op, Wait(pack("WAIT", str(acks.replicas), str(int(acks.timeout_s * 1000)))), int)

    def talk() -> Generator[Sequence[Request[Any]], Sequence[Any], T]:
        outcome, heard = yield [request, wait]
        if isinstance(outcome, Exception):
            raise outcome
        if counts(outcome) and not (isinstance(heard, int) and heard >= acks.replicas):
            why = heard if isinstance(heard, Exception) else f"{heard} acknowledged it within {acks.timeout_s:g} s"
            raise OutcomeUnknown(f"this stands on the primary, but not on {acks.replicas} of its replicas: {why}")
        return outcome  # type: ignore[no-any-return]

    return Request(request.op, talk, same)


def _is_made(standing: Standing) -> bool:
    return standing.state in (State.ADMITTED, State.WAITING)


def _is_accepted(reply: CellReply) -> bool:
    return reply.accepted


# -- packing


class Keys:
    """A turnstile's five keys, packed, and how those of its tombstones begin."""

    __slots__ = ("_start", "_tombstone", "packed")

    def __init__(self, packed: bytes, tombstone: bytes) -> None:
        self.packed = packed
        self._start = _SIX + packed
        self._tombstone = tombstone

    def about(self, claim_id: str, arguments: bytes) -> bytes:
        """The rest of a script call that is about one claim: six keys, its id, and the other arguments."""
        id, tombstone = claim_id.encode(), self._tombstone
        size = len(id)
        return b"%b$%d\r\n%b%b\r\n$%d\r\n%b\r\n%b" % (
            self._start, len(tombstone) + size, tombstone, id, size, id, arguments
        )  # fmt: skip


def _quote(text: str) -> str:
    """Any text inside a hash tag, which ends at the first closing brace."""
    return text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


def _unquote(text: str) -> str:
    return text.replace("%7D", "}").replace("%7B", "{").replace("%25", "%")


def _escape_glob(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in text)


def _pack_channel(inbox: str) -> bytes:
    return bulk(f"{CHANNELS}{inbox}" if inbox else "")


def _milliseconds(seconds: float) -> bytes:
    return bulk(repr(seconds * 1000))


def _fence(fence: Fence) -> bytes:
    return bulk(fence.turnstile) + bulk(b"%d" % fence.token) + bulk(fence.claim) + bulk(b"%d" % fence.opening)


# -- parsing


def same(reply: T) -> T:
    return reply


def _nothing(reply: Any) -> None:
    return None


def _checked(reply: Any) -> Any:
    """The reply, unless a script found a layout that it does not know."""
    if type(reply) is bytes and reply[:2] == b"L ":
        raise Misuse(
            f"layout {reply[2:].decode()} is stored here and this release knows layout {LAYOUT}: "
            "let all users of this engine run the same release of holdfast"
        )
    return reply


def _truth(reply: Any) -> bool:
    return bool(_checked(reply))


def _standing(state: bytes, token: bytes, wanted: bytes, look_ms: bytes) -> Standing:
    look_in_s = NEVER_S if look_ms == b"-1" else int(look_ms) / 1000
    return Standing(_STATES[state], int(token), wanted == b"1", look_in_s)


def _entered(turnstile: Turnstile, reply: bytes) -> Standing:
    fields = reply.split(b" ")
    if len(fields) != 4:
        _checked(reply)
        rule.check_capacity(turnstile, int(fields[1]))
    return _standing(*fields)


def _renewed(ids: list[str]) -> Any:
    def parse(reply: bytes) -> dict[str, Standing]:
        fields = reply.split(b" ")
        return {id: _standing(*fields[4 * i : 4 * i + 4]) for i, id in enumerate(ids)}

    return parse


def _view(
    id: bytes, token: bytes, weight: int, admitted: int, owner: bytes, payload: bytes, age_ms: bytes, left_ms: bytes
) -> ClaimView:
    age_s, remaining_s = max(0.0, float(age_ms) / 1000), float(left_ms) / 1000
    return ClaimView(id.decode(), int(token), weight, admitted == 1, owner.decode(), payload, age_s, remaining_s)


def _cell_reply(reply: Any) -> CellReply:
    accepted, version, token, value, applied, foreign, turnstile = _checked(reply)
    done = tuple(one == 49 for one in applied)  # 49: b"1"
    return CellReply(accepted == 1, version, int(token), value, done, foreign == 1, turnstile.decode())


def _cell_snapshot(reply: Any) -> CellSnapshot:
    value, version, token, claim, entries = _checked(reply)
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return CellSnapshot(value, version, int(token), claim.decode(), {key.decode(): data for key, data in pairs})
