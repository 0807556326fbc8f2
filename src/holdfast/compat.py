"""`ConsistentHash` and `DistributedLock`: the names and the ways that tutorials taught, on what stands here."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any

from .core import lease as leases
from .core import recipe as recipes
from .core.recipe import Recipe
from .core.session import Session
from .core.tenure import Tenure
from .engines import resolve
from .placement import HashRing
from .sync import Client
from .worlds.threads import drive


class ConsistentHash:
    """Keys to nodes. ``replicas`` is how many points of the circle each node has; see `HashRing` for more."""

    def __init__(self, nodes: Iterable[str] = (), replicas: int = 160) -> None:
        self._ring = HashRing(nodes, points=replicas)

    def add_node(self, node: str) -> None:
        """Only keys that the new node takes over move. Raises `Misuse` if it is there already."""
        self._ring.add_node(node)

    def remove_node(self, node: str) -> None:
        """Only this node's keys move. Raises `Misuse` if it is not there."""
        self._ring.remove_node(node)

    def get_node(self, key: str | bytes) -> str | None:
        """The node that ``key`` lives on; None while there is no node."""
        return self._ring.get_node(key) if len(self._ring) else None


class DistributedLock:
    """A lock that does not wait and is not renewed: it ends ``timeout`` seconds after it was taken, or by `release`.

    ``redis_client`` may be whatever `holdfast.connect` takes. As with the class that tutorials show, any thread may
    release it through this object, and throwing the object away releases nothing: the rest is in
    `holdfast.connect(…).lock`.
    """

    def __init__(self, lock_key: str, redis_client: Any) -> None:
        self._client = _client_of(redis_client)
        self._name = lock_key
        self._taken: tuple[Session, Tenure] | None = None
        self._recipe(60)  # a bad name is refused here, not later

    def acquire(self, timeout: float = 60) -> bool:
        """Take it for ``timeout`` seconds if it is free; False if it is taken, by this object as well.

        Raises `Unavailable`, and `Misuse` for a timeout that the engine cannot keep.
        """
        session = self._client.session
        tenure = leases.new_tenure(session, self._recipe(timeout))
        if not drive(leases.try_acquire(session, tenure)):
            return False
        session.detach(tenure)  # nothing here keeps or ends it but its time and release()
        self._taken = session, tenure
        return True

    def release(self) -> bool:
        """Give it back: True only if it was ours until now. Raises `Unavailable`; it then ends by its time."""
        taken, self._taken = self._taken, None
        if taken is None:
            return False
        session, tenure = taken
        if session is not self._client.session:
            return False  # this process is a fork of the one that took it
        request = session.engine.leave(tenure.turnstile, tenure.claim.id, tenure.unknown)
        return drive(session.ask(request, asker=tenure))

    def _recipe(self, ttl_s: float) -> Recipe:
        return recipes.mutex(self._client.capabilities, self._name, {"ttl_s": ttl_s, "renew": False})


class _SharedClient(Client):
    """Closed once no lock uses it: tutorials' locks have no ``close``."""

    def __del__(self) -> None:
        self.close()


_clients: weakref.WeakValueDictionary[str | int, _SharedClient] = weakref.WeakValueDictionary()
_latest: _SharedClient | None = None  # stays connected while programs make a lock object for each use
_making = threading.RLock()


def _client_of(target: Any) -> Client:
    """One client for one URL or Redis client. It keeps its target alive, so an id means the same object meanwhile."""
    global _latest  # noqa: PLW0603
    key = target if isinstance(target, str) else id(target)
    with _making:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = _SharedClient(resolve(target, "", None))
        _latest = client
    return client
