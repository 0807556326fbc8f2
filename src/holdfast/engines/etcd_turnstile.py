"""Turnstiles on etcd: each operation as a talk, which yields requests and is sent their replies.

A claim is a key, its token the revision that created it. What an operation decides by is compared in the transaction
that acts on it, and the transaction that adds a claim also lists the queue: one request for one operation.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote

from ..core import turnstile as rule
from ..errors import Unavailable
from ..model import Claim, ClaimView, Snapshot, Standing, State, Turnstile
from .etcd_desk import TRIES, Desk, Lease, Place, Talk, now
from .etcd_queue import Home, Node, Queue
from .etcd_wire import (
    Ask,
    absent,
    after,
    ask,
    bytes_of,
    checked,
    delete,
    deleted,
    get,
    kvs_of,
    made_before,
    nested,
    present,
    put,
    span,
    text,
    txn,
)

LISTED_AT_ONCE = 5000
ASKED_AT_ONCE = 100


class Watcher(Protocol):
    """Who sees to it that our claims are told; see `etcd_vigil`."""

    def wait(self, place: Place, queue: Queue) -> None:
        """This one waits: tell it when it is admitted."""
        ...

    def hold(self, place: Place, queue: Queue) -> None:
        """This one is admitted: tell it when it is wanted."""
        ...


class Turnstiles:
    """The operations of one desk. ``vigil`` is there once signals flow."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.vigil: Watcher | None = None

    # -- enter

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Talk[Standing]:
        desk, home = self.desk, self.desk.home(turnstile)
        seen = 0  # the revision at which nobody was there, or at which this claim would have fitted
        for _ in range(TRIES):
            sent = now()
            lease = yield from desk.lease(claim.ttl_s)
            (reply,) = yield [_enter(home, claim, lease, seen if nowait else None)]
            if desk.refused(reply, lease):
                continue
            responses = reply["responses"]
            if reply.get("succeeded"):
                queue = _queue(responses[1:], home, reply)
                node = queue.find(claim.id)
                assert node is not None
                place = desk.keep(home, node, lease, sent)
                if reply["header"]["raft_term"] != lease.term:
                    yield from desk.extend([lease])  # a leader that was none any more may have promised it
                    if not desk.is_kept(place):
                        continue
                return self._standing(place, node, queue)
            if kvs_of(responses[2]):
                return Standing(State.BURIED)
            queue = _queue(responses, home, reply)
            if queue.nodes:
                rule.check_capacity(turnstile, queue.capacity)
            if node := queue.find(claim.id):
                adopted = yield from self._adopt(home, node, claim)
                if adopted is not None:
                    return self._standing(adopted, node, queue)
            elif nowait and not queue.fits(claim.weight):
                yield from self._want(home, queue, lease)
                return Standing(State.BUSY)
            seen = queue.revision
        raise Unavailable(f"{turnstile.address} changed {TRIES} times while {claim.id} entered it")

    def _want(self, home: Home, queue: Queue, lease: Lease) -> Talk[None]:
        """Let those who hold it know that somebody asked, once."""
        if queue.admitted and not queue.is_marked(last := queue.nodes[queue.admitted - 1]):
            (reply,) = yield [txn([], [put(home.mark, str(last.token).encode(), lease.id)], [])]
            self.desk.refused(reply, lease)

    def _adopt(self, home: Home, node: Node, claim: Claim) -> Talk[Place | None]:
        """A claim that stands, as ours from now on. None where it has gone, or between hands: see `_put_down`."""
        desk, at = self.desk, now()
        place = desk.place(home.turnstile, node.id)
        if place is not None and place.token == node.token and place.lease.id == node.lease:
            place.renewed(at)
            return place
        if own := desk.leases.get(node.lease):  # the reply to its enter was lost
            return desk.keep(home, node, own, at)
        lease = yield from desk.lease(claim.ttl_s)
        (reply,) = yield [_move(node, lease)]
        if desk.refused(reply, lease) or not reply.get("succeeded"):
            return None
        return desk.keep(home, node, lease, at)

    def _put_down(self, node: Node, claim: Claim) -> Talk[bool]:
        """A claim that belongs to nobody for now gets a lease of its own, which nobody extends."""
        lease = yield from self.desk.grant(max(1, int(-(-claim.ttl_s // 1))))
        (reply,) = yield [_move(node, lease)]
        return bool(checked(reply).get("succeeded"))

    # -- where it stands

    def _standing(self, place: Place, node: Node, queue: Queue, long: bool = False) -> Standing:
        """``long``: it has been held for some time, so that it is worth a watch to learn that it is wanted."""
        if not queue.is_admitted(node):
            if self.vigil is not None:
                self.vigil.wait(place, queue)
            return Standing(State.WAITING, place.token, look_in_s=queue.look_in_s(node))
        place.wanted = place.wanted or queue.is_wanted(node)
        if long and self.vigil is not None:
            self.vigil.hold(place, queue)
        return Standing(State.ADMITTED, place.token, place.wanted)

    # -- leave

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Talk[bool]:
        desk, home = self.desk, self.desk.home(turnstile)
        place = desk.place(turnstile, claim_id)
        tried = place is not None and place.leaving  # by a request whose reply was lost
        if place is not None and not bury:
            place.leaving = True
            (reply,) = yield [txn([], [delete({"key": text(place.key)})], [])]
            if isinstance(reply, Unavailable):
                place.leaving = tried  # surely nothing was done
            if deleted(checked(reply)["responses"][0]):
                desk.drop(place)
                return True
        left = yield from self._bury(home, claim_id, tried)
        if place is not None:
            desk.drop(place)
        return left

    def _bury(self, home: Home, claim_id: str, tried: bool) -> Talk[bool]:
        """A tombstone in place of the claim, or of nothing, in one transaction. True if it stood, then or before."""
        desk = self.desk
        capacity = home.turnstile.capacity
        tomb = {"key": text(home.tomb(claim_id))}
        for _ in range(TRIES):
            lease = yield from desk.tomb_lease()
            ours = span(home.of(claim_id, capacity))
            stood, nothing = (put(home.tomb(claim_id), value, lease.id) for value in (b"1", b"1" if tried else b"0"))
            others = get(span(home.claims), keys_only=True)
            (reply,) = yield [
                txn(
                    [absent(tomb), present(ours)],
                    [delete(ours), stood],
                    [nested([absent(tomb), absent(ours)], [nothing], [get(tomb)]), others],
                )
            ]
            if desk.refused(reply, lease):
                continue
            if reply.get("succeeded"):
                return True
            inner = reply["responses"][0]["response_txn"]
            if not inner.get("succeeded"):
                return bytes_of(kvs_of(inner["responses"][0])[0].get("value")) == b"1"
            found = _queue([reply["responses"][1]], home, reply).find(claim_id)
            if found is None:
                return tried
            capacity = found.capacity  # whoever makes it leave does not know what it came with
            (reply,) = yield [txn([], [delete(tomb)], [])]
            checked(reply)
        raise Unavailable(f"{home.turnstile.address} changed {TRIES} times while {claim_id} left it")

    # -- renew

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Talk[dict[str, Standing]]:
        """Extend the leases, then see that the claims stand.

        A leader that was cut off or paused may promise to extend a lease without knowing that it is none any more. It
        cannot confirm the listing that follows; and where another served that, the term differs.
        """
        desk = self.desk
        for turnstile, claim in items:
            if (place := desk.place(turnstile, claim.id)) and claim.inbox:
                place.renewed(now())
        for _ in range(TRIES):
            places = [desk.place(turnstile, claim.id) for turnstile, claim in items]
            leases = list({place.lease.id: place.lease for place in places if place}.values())
            if leases:
                yield from desk.extend(leases)
            homes = {turnstile: desk.home(turnstile) for turnstile, _ in items}
            ranges = [one for home in homes.values() for one in _listing(home)]
            (reply,) = yield [txn([], ranges, [], reads=True)]
            responses, term = checked(reply)["responses"], reply["header"]["raft_term"]
            if all(lease.term == term for lease in leases):
                break
        else:
            raise Unavailable("the leader of this etcd changed again and again")
        queues = {
            turnstile: _queue(responses[2 * place : 2 * place + 2], home, reply)
            for place, (turnstile, home) in enumerate(homes.items())
        }
        heard: dict[str, Standing] = {}
        for turnstile, claim in items:
            heard[claim.id] = yield from self._renewed(homes[turnstile], claim, queues[turnstile])
        return heard

    def _renewed(self, home: Home, claim: Claim, queue: Queue) -> Talk[Standing]:
        desk = self.desk
        place, node = desk.place(home.turnstile, claim.id), queue.find(claim.id)
        if node is None:
            if place is not None:
                desk.drop(place)
            return Standing(State.GONE)
        if not claim.inbox:
            if not (yield from self._put_down(node, claim)):
                return Standing(State.GONE)
            if place is not None:
                desk.drop(place)
            state = State.ADMITTED if queue.is_admitted(node) else State.WAITING
            return Standing(state, node.token, queue.is_wanted(node))
        if place is not None and place.leaving:
            return Standing(State.GONE)
        if place is None or place.key != node.key or place.lease.id != node.lease:
            place = yield from self._adopt(home, node, claim)
            if place is None:
                return Standing(State.GONE)
        return self._standing(place, node, queue, long=True)

    # -- what stands

    def look(self, turnstile: Turnstile) -> Talk[Snapshot]:
        home = self.desk.home(turnstile)
        (reply,) = yield [txn([], _listing(home, keys_only=False), [], reads=True)]
        queue = _queue(checked(reply)["responses"], home, reply)
        leases = list({node.lease for node in queue.nodes})
        left: dict[str, int] = {}
        for start in range(0, len(leases), ASKED_AT_ONCE):
            batch = leases[start : start + ASKED_AT_ONCE]
            replies = yield [ask("/v3/lease/timetolive", {"ID": id}, reads=True) for id in batch]
            left |= {id: int(checked(reply).get("TTL", 0)) for id, reply in zip(batch, replies, strict=True)}
        views = [
            _view(node, place < queue.admitted, value, left[node.lease])
            for place, (node, value) in enumerate(zip(queue.nodes, queue.values, strict=True))
            if left[node.lease] >= 0
        ]
        return Snapshot(turnstile.kind, turnstile.name, queue.capacity, tuple(views))

    def list(self, prefix: str) -> Talk[Sequence[Turnstile]]:
        base = b"%bt/" % self.desk.space
        start, end = base, after(base)
        standing: dict[str, Turnstile] = {}
        while True:
            where = {"key": text(start), "range_end": text(end)}
            page = [get(where, keys_only=True, limit=LISTED_AT_ONCE)]
            (reply,) = yield [txn([], page, [], reads=True)]
            keys = [base64.b64decode(kv["key"]) for kv in kvs_of(checked(reply)["responses"][0])]
            for key in keys:
                name, _, rest = key[len(base) :].decode().partition("/")
                address = unquote(name)
                if rest.startswith("c/") and address.startswith(prefix) and address not in standing:
                    capacity = int(rest[2:].partition("/")[0])
                    announces = rest.split("!")[-2] == "a"
                    kind, _, plain = address.partition(":")
                    standing[address] = Turnstile(kind, plain, capacity, announces)
            if len(keys) < LISTED_AT_ONCE:
                return [standing[address] for address in sorted(standing)]
            start = keys[-1] + b"\0"


# -- requests and replies


def _enter(home: Home, claim: Claim, lease: Lease, seen: int | None) -> Ask:
    """Add the claim unless it is there, was buried, or others stand with another capacity.

    With ``seen``, for a nowait, only if nobody came after that revision. Those who went meanwhile do not matter.
    """
    key, tomb, claims = home.claim(claim), {"key": text(home.tomb(claim.id))}, span(home.claims)
    if seen is None:
        own = span(home.of(claim.id))
        alike = b"%b%d/" % (home.claims, home.turnstile.capacity)
        below = {"key": text(home.claims), "range_end": text(alike)}
        above = {"key": text(after(alike)), "range_end": claims["range_end"]}
        compare = [absent(own), absent(tomb), absent(below), absent(above)]
    else:
        compare = [made_before(claims, seen + 1), absent(tomb)]
    lists = _listing(home)
    value = _value(claim.owner, claim.payload, time.time())
    return txn(compare, [put(key, value, lease.id), *lists], [*lists, get(tomb, keys_only=True)])


def _move(node: Node, lease: Lease) -> Ask:
    """To another lease; its value, and the revision that created it, stay."""
    key = text(node.key)
    same = {"key": key, "target": "CREATE", "create_revision": node.token}
    return txn([same], [{"request_put": {"key": key, "ignore_value": True, "lease": lease.id}}], [])


def _listing(home: Home, keys_only: bool = True) -> list[dict[str, Any]]:
    return [get(span(home.claims), keys_only=keys_only), get({"key": text(home.mark)})]


def listing(home: Home) -> Ask:
    return txn([], _listing(home), [], reads=True)


def listed(reply: dict[str, Any], home: Home) -> Queue:
    return _queue(reply["responses"], home, reply)


def _queue(responses: Sequence[dict[str, Any]], home: Home, reply: dict[str, Any]) -> Queue:
    marks = kvs_of(responses[1]) if len(responses) > 1 else []
    return Queue(kvs_of(responses[0]), marks, home, int(reply["header"]["revision"]))


def _value(owner: str, payload: bytes, entered_at: float) -> bytes:
    return b'{"owner":%b,"payload":"%b","entered_at":%.3f}' % (
        _json(owner), base64.b64encode(payload), entered_at,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _json(owner: str) -> bytes:
    return json.dumps(owner).encode()


def _view(node: Node, admitted: bool, value: str | None, left_s: int) -> ClaimView:
    """``left_s`` is of its lease, which is longer than the claim's own time."""
    said = json.loads(bytes_of(value))
    age_s = max(0.0, time.time() - said["entered_at"])
    payload = base64.b64decode(said["payload"])
    return ClaimView(
        node.id, node.token, node.weight, admitted, said["owner"], payload, age_s, min(node.ttl_s, float(left_s))
    )
