"""Turnstiles on ZooKeeper: each operation as a talk, which yields requests and is sent their replies.

A claim is an ephemeral sequential node, so who is first needs no counter of ours, and what a dead session held goes
with it. Requests of one session are served in the order in which they were sent: a node and the listing that shows its
place are asked for in one flush.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ...core import turnstile as rule
from ...errors import Unavailable
from ...model import Claim, ClaimView, Snapshot, Standing, State, Turnstile
from .desk import MANY, Desk, Place, Talk
from .queue import Node, Queue, claim_prefix, tomb_name, unquote, want_name
from .vigil import Vigil
from .wire import (
    CONTAINER,
    EPHEMERAL,
    SEQUENTIAL,
    Create,
    Create2,
    CreateContainer,
    Delete,
    Exists,
    GetChildren,
    GetData,
    NodeExistsError,
    NoNodeError,
    SetData,
    Transaction,
    UnimplementedError,
    steps_of,
)

TRIES = 8
"""How often an operation starts again because others changed what it had seen."""

LISTED_AT_ONCE = 500


class Turnstiles:
    """The operations of one desk."""

    def __init__(self, desk: Desk, vigil: Vigil) -> None:
        self.desk = desk
        self.vigil = vigil

    # -- enter

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Talk[Standing]:
        desk = self.desk
        for _ in range(TRIES):
            place = desk.place(turnstile, claim.id)
            if place is not None and place.leaving:  # it was refused, and whether it left is not known
                yield from self._delete(place)
                continue
            if place is None and (nowait or (turnstile.address, claim.id) in desk.doubtful):
                queue = yield from self._listing(desk.home(turnstile.address))
                if queue.buried(claim.id) is not None:
                    return Standing(State.BURIED)
                if found := queue.find(claim.id):
                    place = yield from self._adopt(turnstile, found)
                elif nowait and not (yield from self._may_try(turnstile, claim, queue)):
                    return Standing(State.BUSY)
            if place is None:
                made = yield from self._create(turnstile, claim)
                if made is None:
                    continue
                place, queue = made
            else:
                queue = yield from self._listing(place.home)
            standing = yield from self._settle(place, queue, nowait)
            if standing is not None:
                return standing
        raise Unavailable(f"{turnstile.address} changed {TRIES} times while {claim.id} entered it")

    def _may_try(self, turnstile: Turnstile, claim: Claim, queue: Queue) -> Talk[bool]:
        if len(queue):
            rule.check_capacity(turnstile, queue.capacity)
        if queue.fits(claim.weight):
            return True
        yield from self._want(self.desk.home(turnstile.address), queue)
        return False

    def _create(self, turnstile: Turnstile, claim: Claim) -> Talk[tuple[Place, Queue] | None]:
        """A node for this claim, and the listing after it; None where its home has just been removed."""
        desk, home = self.desk, self.desk.home(turnstile.address)
        acl = desk.target.acl
        desk.doubtful.add((turnstile.address, claim.id))
        node = Create2(
            f"{home}/{claim_prefix(turnstile, claim)}",
            _data(claim.owner, claim.ttl_s, claim.payload),
            acl,
            EPHEMERAL | SEQUENTIAL,
        )
        requests = [node, GetChildren(home, None)]
        if not desk.remember_home(home):
            requests.insert(0, CreateContainer(home, b"", acl, CONTAINER))
        *container, created, children = yield requests
        self._served(container)
        if isinstance(created, NoNodeError):
            desk.homes.discard(home)
            desk.doubtful.discard((turnstile.address, claim.id))
            return None
        path, stat = desk.checked(created)
        place = Place(turnstile, claim.id, claim.weight, home, path, stat.czxid)
        desk.keep(stat.ephemeralOwner, place)
        return place, Queue(desk.checked(children))

    def _served(self, container: list[Any]) -> None:
        """An old server refuses that, and what was asked after it is lost."""
        for one in container:
            if isinstance(one, UnimplementedError):
                self.desk.checked(one)

    def _settle(self, place: Place, queue: Queue, nowait: bool) -> Talk[Standing | None]:
        """Where this node stands, or what becomes of it; None to begin again."""
        claim_id = place.claim_id
        if queue.buried(claim_id) is not None:
            yield from self._delete(place)
            return Standing(State.BURIED)
        if place.name not in queue.names:  # evicted; or it is the younger of two of one id
            yield from self._delete(place)
            if found := queue.find(claim_id):
                yield from self._adopt(place.turnstile, found)
            return None
        if queue.capacity != place.turnstile.capacity:
            yield from self._delete(place)
            rule.check_capacity(place.turnstile, queue.capacity)
        standing = self.standing(place, queue)
        if nowait and not place.settled and standing.state is State.WAITING:
            yield from self._delete(place)
            yield from self._want(place.home, queue)
            return Standing(State.BUSY)
        place.settled = True
        self._sweep(place.home, queue)
        return standing

    def standing(self, place: Place, queue: Queue) -> Standing:
        if not place.admitted and not queue.is_admitted(place.name):
            if self.desk.deliver is not None:
                self.vigil.keep_watch(place, queue)
            return Standing(State.WAITING, place.token)
        place.admitted = True
        place.wanted = place.wanted or queue.is_wanted(place.name)
        return Standing(State.ADMITTED, place.token, place.wanted)

    def _adopt(self, turnstile: Turnstile, node: Node) -> Talk[Place]:
        """The node that a lost reply spoke of."""
        home = self.desk.home(turnstile.address)
        (stat,) = yield [Exists(f"{home}/{node.name}", None)]
        place = self.desk.adopted(turnstile, node, home, self.desk.checked(stat))
        if place is None:
            raise Unavailable(f"{turnstile.address} is still held by a former session of this claim")
        return place

    def _delete(self, place: Place) -> Talk[bool]:
        """True if it stood. Where the reply is lost, a second call knows that a first one was sent."""
        before, place.leaving = place.leaving, True
        (reply,) = yield [self.parting(place)]
        steps = steps_of(reply)
        gone = isinstance(steps[0], NoNodeError)
        if not gone:
            for one in steps:
                self.desk.checked(one)
        self.desk.drop(place)
        return before or not gone

    def parting(self, place: Place) -> Any:
        """The request that deletes a node.

        Where a queue is to be expected behind an admitted claim, its data is changed in the same breath. Who watches it
        is told of that alone, and knows by it that nobody was ahead who could keep him out: no listing has to say so.
        """
        delete = Delete(place.path, -1)
        if not (place.admitted and place.queued):
            return delete
        return Transaction([SetData(place.path, b"", -1), delete])

    def _want(self, home: str, queue: Queue) -> Talk[None]:
        """Let those who hold it know that somebody asked, once."""
        admitted = queue.admitted
        if admitted and not queue.is_marked(queue.node(admitted - 1)):
            mark = Create2(f"{home}/{want_name(queue.node(admitted - 1))}", b"", self.desk.target.acl, EPHEMERAL)
            (reply,) = yield [mark]
            if not isinstance(reply, (NodeExistsError, NoNodeError)):
                self.desk.checked(reply)
        self._sweep(home, queue)

    def _listing(self, home: str) -> Talk[Queue]:
        """What stands, as the leader knows it now."""
        synced, children = yield [self.desk.sync, GetChildren(home, None)]
        self.desk.checked(synced, wrote=False)
        return self._queue(children)

    def _queue(self, children: Any) -> Queue:
        return Queue() if isinstance(children, NoNodeError) else Queue(self.desk.checked(children, wrote=False))

    def _sweep(self, home: str, queue: Queue) -> None:
        if queue.strays:
            self.desk.exchange([Delete(f"{home}/{name}", -1) for name in queue.strays], lambda replies: None)

    # -- leave

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Talk[bool]:
        desk, home = self.desk, self.desk.home(turnstile.address)
        place = desk.place(turnstile, claim_id)
        left = place is not None and place.leaving  # by a request whose reply was lost
        if place is not None and not bury and (yield from self._delete(place)):
            return True
        for _ in range(TRIES):
            queue = yield from self._listing(home)
            if (stood := queue.buried(claim_id)) is not None:
                return stood
            found = queue.find(claim_id)
            left = left or found is not None
            if (yield from self._bury(home, claim_id, found, left)):
                if place is not None:
                    desk.drop(place)
                desk.doubtful.discard((turnstile.address, claim_id))
                return left
        raise Unavailable(f"{turnstile.address} changed {TRIES} times while {claim_id} left it")

    def _bury(self, home: str, claim_id: str, found: Node | None, stood: bool) -> Talk[bool]:
        """A tombstone in place of the claim, or of nothing, in one transaction; False where that is not so any more.

        It ends with our session: what a delayed copy of the enter would create belongs to that session, too.
        """
        desk = self.desk
        tomb = f"{home}/{tomb_name(claim_id, stood)}"
        steps: list[Any] = [Create(tomb, b"", desk.target.acl, EPHEMERAL)]
        if found is not None:
            steps.append(Delete(f"{home}/{found.name}", -1))
        requests = [Transaction(steps)]
        if not desk.remember_home(home):
            requests.insert(0, CreateContainer(home, b"", desk.target.acl, CONTAINER))
        *container, reply = yield requests
        self._served(container)
        outcomes = steps_of(reply)
        if any(isinstance(one, (NoNodeError, NodeExistsError)) for one in outcomes):
            desk.homes.discard(home)
            return False
        for one in outcomes:
            desk.checked(one)
        if old := desk.buried(tomb):
            desk.exchange(old, lambda replies: None)
        return True

    # -- renew

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Talk[dict[str, Standing]]:
        """The leader confirms the session (a follower's word would not do), and the nodes are there."""
        desk = self.desk
        asked: dict[str, Any] = {}
        plan: list[tuple[Turnstile, Claim, Place | None, str]] = []
        for turnstile, claim in items:
            home, place = desk.home(turnstile.address), desk.place(turnstile, claim.id)
            by_itself = place is not None and place.is_member and place.admitted
            path = place.path if place is not None and by_itself else home
            plan.append((turnstile, claim, place, path))
            if by_itself:
                asked[path] = Exists(path, None)
            elif place is not None and place.admitted and not place.wanted and desk.deliver is not None:
                asked[home] = GetChildren(home, self.vigil.watcher(turnstile))
            else:
                asked.setdefault(home, GetChildren(home, None))
        synced, *replies = yield [self.desk.sync, *asked.values()]
        desk.checked(synced, wrote=False)
        seen = dict(zip(asked, replies, strict=True))
        queues: dict[str, Queue] = {}
        heard: dict[str, Standing] = {}
        for turnstile, claim, place, path in plan:
            if place is not None and path == place.path:
                stands = desk.checked(seen[path], wrote=False) is not None
                heard[claim.id] = self._renewed(place, stands, None)
                continue
            if path not in queues:
                queues[path] = self._queue(seen[path])
            queue = queues[path]
            if place is None and (found := queue.find(claim.id)):
                (stat,) = yield [Exists(f"{path}/{found.name}", None)]
                place = desk.adopted(turnstile, found, path, desk.checked(stat, wrote=False))
            heard[claim.id] = self._renewed(place, place is not None and place.name in queue.names, queue)
        return heard

    def _renewed(self, place: Place | None, stands: bool, queue: Queue | None) -> Standing:
        if place is None or place.leaving or not stands or not self.desk.is_kept(place):
            if place is not None and not stands:
                self.desk.drop(place)
            return Standing(State.GONE)
        return Standing(State.ADMITTED, place.token, place.wanted) if queue is None else self.standing(place, queue)

    # -- what stands

    def look(self, turnstile: Turnstile) -> Talk[Snapshot]:
        desk, home = self.desk, self.desk.home(turnstile.address)
        queue = yield from self._listing(home)
        nodes = queue.nodes
        paths = [f"{home}/{node.name}" for node in nodes]
        unknown = [path for path in paths if path not in desk.contents]
        replies = (yield [GetData(path, None) for path in unknown]) if unknown else []
        if len(desk.contents) + len(unknown) > MANY:
            desk.contents.clear()
        found = {path: desk.contents[path] for path in paths if path in desk.contents}
        for path, reply in zip(unknown, replies, strict=True):
            if not isinstance(reply, NoNodeError):
                found[path] = desk.contents[path] = desk.checked(reply, wrote=False)
        admitted, now = queue.admitted, time.time()
        views = [
            _view(node, position < admitted, found[path], now)
            for position, (node, path) in enumerate(zip(nodes, paths, strict=True))
            if path in found
        ]
        return Snapshot(turnstile.kind, turnstile.name, queue.capacity, tuple(views))

    def list(self, prefix: str) -> Talk[Sequence[Turnstile]]:
        desk = self.desk
        synced, names = yield [self.desk.sync, GetChildren(f"{desk.space}/t", None)]
        desk.checked(synced, wrote=False)
        found = map(unquote, desk.checked(names, wrote=False))
        addresses = sorted(address for address in found if address.startswith(prefix))
        standing: list[Turnstile] = []
        for start in range(0, len(addresses), LISTED_AT_ONCE):
            batch = addresses[start : start + LISTED_AT_ONCE]
            replies = yield [GetChildren(desk.home(address), None) for address in batch]
            for address, reply in zip(batch, replies, strict=True):
                if len(queue := self._queue(reply)):
                    kind, _, name = address.partition(":")
                    standing.append(Turnstile(kind, name, queue.capacity, queue.node(0).announces))
        return standing


@lru_cache(maxsize=256)
def _data(owner: str, ttl_s: float, payload: bytes) -> bytes:
    return json.dumps({"owner": owner, "ttl_s": ttl_s, "payload": base64.b64encode(payload).decode()}).encode()


def _view(node: Node, admitted: bool, content: Any, now: float) -> ClaimView:
    """ZooKeeper does not say when a session would end: a claim may always stand for its ``ttl_s`` and some more."""
    data, stat = content
    said = json.loads(data)
    age_s, payload = max(0.0, now - stat.ctime / 1000), base64.b64decode(said["payload"])
    return ClaimView(node.id, stat.czxid, node.weight, admitted, said["owner"], payload, age_s, said["ttl_s"])
