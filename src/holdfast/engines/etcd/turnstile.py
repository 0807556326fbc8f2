"""Turnstiles on etcd: each operation as a talk, which yields requests and is sent their replies.

A claim is a key, its token the revision that created it. What an operation decides by is compared in the transaction
that acts on it, and the transaction that adds a claim also lists the queue: one request for one operation.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from ...core import turnstile as rule
from ...errors import Unavailable
from ...model import Claim, Standing, State, Turnstile
from .desk import TRIES, Desk, Lease, Place, Talk, now
from .messages import Ask, Keys, absent, delete, get, holds, made_at, made_before, move, put, txn
from .queue import Home, Node, Queue
from .replies import Done, Kv, checked


class Watcher(Protocol):
    """Who sees to it that our claims are told; see `vigil`."""

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
        known, name = desk.place(turnstile, claim.id), (turnstile.address, claim.id)
        doubtful = name in desk.sent  # it may have been done before, or be done yet
        slot = known.slot if known else desk.sent.get(name, -1)
        taken: set[int] = set()
        seen = 0  # the revision at which nobody was there, or at which this claim would have fitted
        for _ in range(TRIES):
            sent = now()
            lease = yield from desk.lease(claim.ttl_s)
            slot = desk.sent[name] = home.slot(taken) if slot < 0 else slot
            key = home.claim(slot, claim)
            (reply,) = yield [_enter(home, key, claim, lease, seen if nowait else None)]
            if desk.refused(reply, lease):
                continue
            if reply.succeeded:
                queue = queue_of(reply.responses[1:], home, reply)
                node = queue.at(key)
                assert node is not None
                place = desk.keep(home, claim.id, node, lease, sent)
                if reply.term != lease.term:
                    yield from desk.extend([lease])  # a leader that was none any more may have promised it
                    if not desk.is_kept(place):
                        continue
                if queue.more and not queue.blockers(node):  # those that were seen leave it room: see all
                    (reply,) = yield [listing(home)]
                    queue = queue_of(checked(reply).responses, home, reply)
                    node = queue.at(key, place.token)
                    if node is None:  # evicted
                        desk.drop(place)
                        continue
                return self._standing(place, node, queue)
            *_, tomb, own = reply.responses
            queue = queue_of(reply.responses, home, reply)
            node = queue.at(key)
            if node is not None and json.loads(own.kvs[0].value)["id"] == claim.id and not tomb.kvs:
                adopted = yield from self._adopt(home, node, claim)
                if adopted is not None:
                    return self._standing(adopted, node, queue)
                continue
            del desk.sent[name]
            home.give_back(slot, was_ours=node is None)
            if doubtful and not tomb.kvs:  # what was sent before may come yet: see to it that it is refused
                yield from self._bury(home, claim.id, tried=False)
            if tomb.kvs:
                return Standing(State.BURIED)
            if queue.nodes:
                rule.check_capacity(turnstile, queue.capacity)
            if nowait and not queue.fits(claim.weight):
                yield from self._want(home, queue, lease)
                return Standing(State.BUSY)
            if doubtful:
                return Standing(State.BURIED)
            slot, taken, seen = -1, queue.slots, queue.revision
        raise Unavailable(f"{turnstile.address} changed {TRIES} times while {claim.id} entered it")

    def _want(self, home: Home, queue: Queue, lease: Lease) -> Talk[None]:
        """Let those who hold it know that somebody asked, once."""
        if queue.admitted and not queue.is_marked(last := queue.nodes[queue.admitted - 1]):
            (reply,) = yield [txn([], [put(home.mark, b"%d" % last.token, lease.id)])]
            self.desk.refused(reply, lease)

    def _adopt(self, home: Home, node: Node, claim: Claim) -> Talk[Place | None]:
        """A claim that stands, as ours from now on; None where it has just gone."""
        desk, at = self.desk, now()
        place = desk.place(home.turnstile, claim.id)
        if place is not None and place.token == node.token and place.lease.id == node.lease:
            place.renewed(at)
            desk.sent.pop((home.turnstile.address, claim.id), None)  # all that was sent of it has been heard of
            return place
        lease = desk.leases.get(node.lease)  # the reply to its enter was lost
        if lease is None:
            lease = yield from desk.lease(claim.ttl_s)
            (reply,) = yield [_move(node, lease)]
            if desk.refused(reply, lease) or not reply.succeeded:
                return None
        if place is not None:
            desk.drop(place)
        return desk.keep(home, claim.id, node, lease, at)

    def _put_down(self, node: Node, claim: Claim) -> Talk[bool]:
        """A claim that belongs to nobody for now gets a lease of its own, which nobody extends."""
        lease = yield from self.desk.grant(max(1, math.ceil(claim.ttl_s)))
        (reply,) = yield [_move(node, lease)]
        return bool(checked(reply).succeeded)

    # -- where it stands

    def _standing(self, place: Place, node: Node, queue: Queue, long: bool = False) -> Standing:
        """``long``: it has been held for some time, so that it is worth a watch to learn that it is wanted."""
        if not queue.is_admitted(node):
            place.queued = True
            if self.vigil is not None:
                self.vigil.wait(place, queue)
            return Standing(State.WAITING, place.token, look_in_s=queue.look_in_s(node))
        place.admitted = True
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
            key = Keys(place.key)
            says = [put(home.left.key, b"%d" % place.token, place.lease.id)] if place.admitted and place.queued else []
            (reply,) = yield [txn([made_at(key, place.token)], [*says, delete(key)])]
            if isinstance(reply, Unavailable):
                place.leaving = tried  # surely nothing was done
            if not desk.refused(reply, place.lease) and checked(reply).succeeded:
                desk.drop(place)
                return True
        left = yield from self._bury(home, claim_id, tried)
        if place is not None:
            desk.drop(place)
        return left

    def _bury(self, home: Home, claim_id: str, tried: bool) -> Talk[bool]:
        """A tombstone in place of the claim, or of nothing, in one transaction. True if it stood, then or before."""
        desk, tomb = self.desk, home.tomb(claim_id)
        for _ in range(TRIES):
            (reply,) = yield [txn([], [get(home.claims), get(tomb)], reads=True)]
            claims, tombs = checked(reply).responses
            if tombs.kvs:
                break
            node = queue_of([claims], home, reply).called(claim_id)
            lease = yield from desk.tomb_lease()
            if node is not None:
                compare, steps = made_at(Keys(node.key), node.token), [delete(Keys(node.key))]
            else:
                compare, steps = made_before(home.claims, reply.revision + 1), []
            stood = node is not None or tried
            (reply,) = yield [txn([compare, absent(tomb)], [*steps, put(tomb.key, b"%d" % stood, lease.id)])]
            if desk.refused(reply, lease) or not reply.succeeded:
                continue
            if (slot := desk.sent.pop((home.turnstile.address, claim_id), -1)) >= 0:
                home.give_back(slot)
            return stood
        else:
            raise Unavailable(f"{home.turnstile.address} changed {TRIES} times while {claim_id} left it")
        return bool(tombs.kvs[0].value == b"1")

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
            wanted = [self._wanted(turnstile, claim) for turnstile, claim in items]
            shown = dict(wanted)
            (reply,) = yield [txn([], [one for operations in shown.values() for one in operations], reads=True)]
            responses = iter(checked(reply).responses)
            if all(lease.term == reply.term for lease in leases):
                break
        else:
            raise Unavailable("the leader of this etcd changed again and again")
        found = {name: [next(responses) for _ in operations] for name, operations in shown.items()}
        heard: dict[str, Standing] = {}
        for (turnstile, claim), (name, _) in zip(items, wanted, strict=True):
            home = desk.home(turnstile)
            heard[claim.id] = yield from self._renewed(home, claim, queue_of(found[name], home, reply))
        return heard

    def _wanted(self, turnstile: Turnstile, claim: Claim) -> tuple[tuple[bytes, bool], list[bytes]]:
        """What to read for a claim, and a name for it: the queue, with all that is said there where ours is unknown.

        Of a group no more than its own key, so that members do not all read of all.
        """
        home, place = self.desk.home(turnstile), self.desk.place(turnstile, claim.id)
        if place is None:
            return (home.base, True), [get(home.claims), home.listing[1]]
        if turnstile.announces and not claim.weight:
            return (place.key, False), [get(Keys(place.key), keys_only=True)]
        return (home.base, False), home.listing

    def _renewed(self, home: Home, claim: Claim, queue: Queue) -> Talk[Standing]:
        desk = self.desk
        place = desk.place(home.turnstile, claim.id)
        node = queue.at(place.key, place.token) if place is not None else queue.called(claim.id)
        if node is None or (place is not None and place.leaving):
            if place is not None and node is None:
                desk.drop(place)
            return Standing(State.GONE)
        if not claim.inbox:
            if not (yield from self._put_down(node, claim)):
                return Standing(State.GONE)
            if place is not None:
                desk.drop(place)
            state = State.ADMITTED if queue.is_admitted(node) else State.WAITING
            return Standing(state, node.token, queue.is_wanted(node))
        if place is None or place.lease.id != node.lease:
            place = yield from self._adopt(home, node, claim)
            if place is None:
                return Standing(State.GONE)
        return self._standing(place, node, queue, long=True)


# -- requests and replies


def _enter(home: Home, key: bytes, claim: Claim, lease: Lease, seen: int | None) -> Ask:
    """Add the claim unless its slot is taken, it was buried, or others stand with another capacity.

    With ``seen``, for a nowait, only if nobody came after that revision. Those who went meanwhile do not matter.
    """
    own, tomb = Keys(key), home.tomb(claim.id)
    others = home.no_others if seen is None else [made_before(home.claims, seen + 1)]
    value = b'{"id":%b,"owner":%b,"payload":"%b","entered_at":%.3f}' % (
        _json(claim.id), _json(claim.owner), base64.b64encode(claim.payload), time.time(),
    )  # fmt: skip
    return txn(
        [absent(own), absent(tomb), *others],
        [put(key, value, lease.id), home.last],
        [*home.listing, get(tomb, keys_only=True), get(own)],
    )


@lru_cache(maxsize=256)
def _json(text: str) -> bytes:
    return json.dumps(text).encode()


def _move(node: Node, lease: Lease) -> Ask:
    """To another lease; its value, and the revision that created it, stay."""
    return txn([made_at(Keys(node.key), node.token)], [move(node.key, lease.id)])


def listing(home: Home, token: int = 0) -> Ask:
    """The queue; with a token up to that claim, which is all that its turn depends on."""
    if token:
        return txn([], [get(home.claims, keys_only=True, made_by=token)], reads=True)
    return txn([], home.listing, reads=True)


def inherited(place: Place, left: int) -> Ask:
    """Whether the one just ahead, of that token, left as one that was admitted; if not, the queue up to this claim."""
    was_admitted = [holds(place.home.left, b"%d" % left), made_at(Keys(place.key), place.token)]
    return txn(was_admitted, [], [get(place.home.claims, keys_only=True, made_by=place.token)], reads=True)


def queue_of(responses: Sequence[Any], home: Home, reply: Done) -> Queue:
    claims = responses[0]
    marks: Sequence[Kv] = responses[1].kvs if len(responses) > 1 else ()
    return Queue(claims.kvs, marks, home, reply.revision, more=claims.more)
