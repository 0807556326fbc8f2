"""What one process knows of its ZooKeeper session: whether it lives, and which claims hang on it.

Used by both kinds of link, from any thread; replies, events and changes of state come on kazoo's connection thread.
"""

from __future__ import annotations

import functools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from ... import model
from ...contract import TOMBSTONE_S, Deliver
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Signal, Turnstile
from .kazoo import abandon, kick, new_client
from .queue import Node, node_name
from .target import Target, ttl_within
from .wire import (
    Create2,
    Delete,
    Exists,
    NodeExistsError,
    NoNodeError,
    Sync,
    checked,
    exceptions,
    refused,
    send,
    states,
)

T = TypeVar("T")
Talk = Generator[Sequence[Any], list[Any], T]
"""An operation: it yields requests to be sent in one flush, is sent their replies, and returns its outcome."""

log = logging.getLogger("holdfast.zookeeper")

CLOSE_S = 2.0
"""How long closing waits for the server to confirm that the session is over; else it ends by its timeout."""

MANY = 4096
"""How many homes and contents are remembered."""


class Place:
    """A claim that our session made."""

    __slots__ = ("admitted", "claim_id", "heir_of", "home", "leaving", "looking", "path", "queued", "settled", "token",
                 "turnstile", "wanted", "watched", "weight")  # fmt: skip

    def __init__(self, turnstile: Turnstile, claim_id: str, weight: int, home: str, path: str, token: int) -> None:
        self.turnstile = turnstile
        self.claim_id = claim_id
        self.weight = weight
        self.home = home
        self.path = path
        self.token = token
        self.settled = False  # an enter was answered: it stays
        self.admitted = False
        self.queued = False  # it had to wait, so others may be behind it
        self.wanted = False
        self.leaving = False  # its deletion was sent, and not confirmed
        self.looking = False  # a listing is under way that will say where it stands
        self.watched: set[str] = set()
        self.heir_of = ""  # the claim just ahead, where its place is enough for us

    @property
    def name(self) -> str:
        return self.path[len(self.home) + 1 :]

    @property
    def is_member(self) -> bool:
        """Of a group: nobody ever waits for it."""
        return self.turnstile.announces and not self.weight


class Desk:
    """One KazooClient, made on first use, and made anew where it came to its end."""

    def __init__(self, target: Target, namespace: str) -> None:
        self.target = target
        self.root = f"{target.chroot}/holdfast"
        self.sync = Sync(target.chroot or "/")
        self.space = f"{self.root}/n:{node_name(namespace) if namespace else ''}"
        self.start()

    def start(self) -> None:
        """As after a fork: nothing is connected, nothing is ours."""
        self.inbox = secrets.token_hex(8)
        self.lock = threading.RLock()
        self.ready = threading.Event()
        self.trouble: HoldfastError | None = None  # why it is not ready and will not be by itself
        self.closed = False
        self.client: Any = None
        self.session = 0  # its id; it is another one after it was lost
        self.places: dict[str, dict[str, Place]] = {}  # by address and claim id
        self.doubtful: set[tuple[str, str]] = set()  # claims of which a node may stand that we know nothing of
        self.homes: set[str] = set()  # nodes that were there lately
        self.contents: dict[str, Any] = {}  # of claims' nodes, which never change
        self.deliver: Deliver | None = None
        self.events: Callable[[], None] = lambda: None  # called once it is ready, and again after each break
        self._tombs: deque[tuple[float, str]] = deque()
        self._greeting = False
        self._waiting: list[Callable[[], None]] = []
        self._asked_at = 0.0  # when it was first asked since it was last heard
        self._heard_at = 0.0

    # -- paths

    def home(self, address: str) -> str:
        return f"{self.space}/t/{node_name(address)}"

    def cell(self, name: str) -> str:
        return f"{self.space}/c/{node_name(name)}"

    # -- the connection

    def connect(self, then: Callable[[], None]) -> None:
        """Call ``then`` once we are `ready` or in `trouble`, perhaps never; `forget_waiter` takes it back."""
        with self.lock:
            if self.closed:
                raise Misuse("this client is closed")
            self._waiting.append(then)
            client = self.client
            if client is None or not client.handler.thread.is_alive():
                self.trouble = None
                self.client = client = new_client(self.target)
                client.add_listener(functools.partial(self._changed, client))
                client.start_async()
            elif client.connected and not self._greeting and not self.ready.is_set():
                self._greet()
            if self.ready.is_set():
                self._answer()

    def forget_waiter(self, then: Callable[[], None]) -> None:
        with self.lock:
            if then in self._waiting:
                self._waiting.remove(then)

    def _answer(self, trouble: HoldfastError | None = None) -> None:
        with self.lock:
            self._greeting = False
            if isinstance(trouble, ConnectionError):  # it is made again by itself
                return
            self.trouble = trouble
            waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

    def _changed(self, client: Any, state: Any) -> None:
        """kazoo's state changed: leases are in doubt, or over, or the session is there (again)."""
        if client is not self.client:
            return
        if state == states.KazooState.CONNECTED:
            self.session = client.client_id[0]
            self._greet()
        elif state == states.KazooState.SUSPENDED:
            self.ready.clear()
            for place in self.all_places():
                self.tell(Signal(model.UNSURE, place.claim_id))
        else:
            self.ready.clear()
            with self.lock:
                self.session = 0
                lost = self.all_places()
                self.places.clear()
                self.doubtful.clear()
                self._tombs.clear()
                self.homes.clear()  # the server may have lost its data
                self.contents.clear()
            for place in lost:
                self.tell(Signal(model.GONE, place.claim_id))
            if client.client_state == states.KeeperState.AUTH_FAILED:
                self._answer(refused(exceptions.AuthFailedError(), self.target, False))

    def _greet(self) -> None:
        """See that the session is long enough and our part of the tree is there."""
        self._greeting = True
        client = self.client
        granted_s: float = client._connection.granted_s
        asked_s = self.target.session_timeout_s
        if granted_s < asked_s - 0.001:
            self._answer(Misuse(
                f"ZooKeeper at {self.target.where} grants sessions of {granted_s:g} s at most, and ttl_s="
                f"{self.target.ttl_s:g} takes {asked_s:g}: connect with ?ttl_s={ttl_within(granted_s):g} or less, or "
                "raise its maxSessionTimeout"
            ))  # fmt: skip
            return
        self.exchange([Exists(f"{self.space}/c", None)], self._found)

    def _found(self, replies: list[Any]) -> None:
        if isinstance(replies[0], Exception):
            self._answer(refused(replies[0], self.target, False))
        elif replies[0] is not None:
            self._served()
        else:
            paths = (self.root, self.space, f"{self.space}/t", f"{self.space}/c")
            self.exchange([Create2(path, b"", self.target.acl, 0) for path in paths], self._made)

    def _made(self, replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, NoNodeError) and self.target.chroot:
                self._answer(Misuse(
                    f"the chroot {self.target.chroot} does not exist on ZooKeeper at {self.target.hosts}: create it "
                    "there first, or leave it out of the URL"
                ))  # fmt: skip
                return
            if isinstance(reply, Exception) and not isinstance(reply, NodeExistsError):
                self._answer(refused(reply, self.target, False))
                return
        self._served()

    def _served(self) -> None:
        self.ready.set()
        self._answer()
        self.events()

    # -- requests

    def exchange(self, requests: Sequence[Any], done: Callable[[list[Any]], None]) -> None:
        """Send them together, in this order; ``done`` gets all replies at once, later and on another thread."""

        def heard(replies: list[Any]) -> None:
            self._heard_at = time.monotonic()
            done(replies)

        if self._asked_at <= self._heard_at:
            self._asked_at = time.monotonic()
        send(self.client, requests, heard)

    def checked(self, reply: Any, wrote: bool = True) -> Any:
        return checked(reply, self.target, wrote)

    def late(self) -> None:
        """An answer did not come in time: if nothing came at all for long, try another server, or a new connection."""
        client = self.client
        silent = self._heard_at < self._asked_at <= time.monotonic() - self.target.silence_s
        if silent and client is not None and client.connected:  # else a connection is being made already
            self._asked_at = time.monotonic()
            kick(client)

    def not_ready(self, waited_s: float) -> HoldfastError:
        error = self.client.handler.last_error if self.client is not None else ""
        return self.trouble or Unavailable(
            f"no session with ZooKeeper at {self.target.where} (tried for {waited_s:.1f} s): {error or 'no answer'}"
        )

    def tell(self, signal: Signal) -> None:
        if self.deliver is not None:
            self.deliver(signal)

    # -- claims

    def place(self, turnstile: Turnstile, claim_id: str) -> Place | None:
        return self.places.get(turnstile.address, {}).get(claim_id)

    def all_places(self) -> list[Place]:
        with self.lock:
            return [place for places in self.places.values() for place in places.values()]

    def keep(self, session: int, place: Place) -> None:
        """Know this claim as ours from now on; refused where the session that made it is over."""
        with self.lock:
            if session != self.session:
                raise Unavailable("the session with ZooKeeper ended in the middle of this; a new one is made")
            self.places.setdefault(place.turnstile.address, {})[place.claim_id] = place
            self.doubtful.discard((place.turnstile.address, place.claim_id))

    def drop(self, place: Place) -> None:
        with self.lock:
            address = place.turnstile.address
            places = self.places.get(address, {})
            if places.get(place.claim_id) is place:
                del places[place.claim_id]
                if not places:
                    del self.places[address]

    def is_kept(self, place: Place) -> bool:
        return self.place(place.turnstile, place.claim_id) is place

    def adopted(self, turnstile: Turnstile, node: Node, home: str, stat: Any) -> Place | None:
        """The claim of a node that was found, if our session owns it."""
        if stat is None or stat.ephemeralOwner != self.session:
            return None
        place = Place(turnstile, node.id, node.weight, home, f"{home}/{node.name}", stat.czxid)
        self.keep(stat.ephemeralOwner, place)
        return place

    def remember_home(self, home: str) -> bool:
        """True if it was seen before."""
        if home in self.homes:
            return True
        if len(self.homes) >= MANY:
            self.homes.clear()
        self.homes.add(home)
        return False

    def buried(self, path: str) -> list[Any]:
        """Note a tombstone of ours; requests that remove those whose time is over. All of them end with the session."""
        now = time.monotonic()
        self._tombs.append((now, path))
        old: list[Any] = []
        while self._tombs[0][0] < now - TOMBSTONE_S:
            old.append(Delete(self._tombs.popleft()[1], -1))
        return old

    # -- ends

    def close(self) -> None:
        """End the session, and with it all that hangs on it."""
        with self.lock:
            self.closed = True
            client, self.client = self.client, None
        lives = self.ready.is_set()
        self.ready.clear()
        self._answer(Misuse("this client is closed"))
        if client is None:
            return
        ending = threading.Thread(target=_end, args=(client,), name="holdfast-zookeeper-close", daemon=True)
        ending.start()
        ending.join(CLOSE_S if lives else 0.1)
        if ending.is_alive():
            kick(client)

    def abandon(self) -> None:
        """In a forked child: close its copies of the sockets, which says nothing to the server, and start afresh."""
        if self.client is not None:
            abandon(self.client)
        self.start()


def _end(client: Any) -> None:
    try:
        client.stop()
        client.close()
    except Exception as error:
        log.info("the session with ZooKeeper ends by its timeout: %s", error)
