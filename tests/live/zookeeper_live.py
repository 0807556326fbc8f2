"""What live tests on ZooKeeper share."""

from __future__ import annotations

import threading
from typing import Any

from kazoo.client import KazooClient
from onlooker import Onlooker
from servers import eventually
from zookeeper_server import ZooKeeperServer

SHORT = "session_timeout_s=4"
"""Sessions of four seconds, for leases of 1.7: what expires is gone within five."""

LONG = "session_timeout_s=45"
"""Leases of 29 seconds: nothing is renewed, or expires, while a test lasts."""


def desk_of(client: Any) -> Any:
    """The inside of a client's link, of either face."""
    return client.session.world.link.desk


def expire(server: ZooKeeperServer, client: Any) -> None:
    """End a client's session at the server, as if it had not been heard for too long."""
    double = KazooClient(server.address, client_id=desk_of(client).client.client_id)
    double.start(20)
    double.stop()
    double.close()


class Waiter:
    """Someone who waits for the lock ``x`` in a thread."""

    def __init__(self, onlooker: Onlooker, client: Any, **options: Any) -> None:
        self.lease: Any = None
        self.trouble: Exception | None = None
        self._lock = client.lock("x", **options)
        self._thread = threading.Thread(target=self._wait)
        before = onlooker.waiters("x")
        self._thread.start()
        eventually(lambda: onlooker.waiters("x") == before + 1)

    def _wait(self) -> None:
        try:
            self.lease = self._lock.acquire(timeout_s=30)
        except Exception as trouble:
            self.trouble = trouble

    def entered(self) -> Any:
        self._thread.join(40)
        if self.trouble is not None:
            raise self.trouble
        return self.lease
