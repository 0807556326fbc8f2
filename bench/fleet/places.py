"""The engines on which a fleet is measured, each with a server of its own and the length of leases there."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from etcd_server import EtcdServer
from postgres_server import PostgresServer
from servers import RedisServer, Server
from zookeeper_server import ZooKeeperServer

from ..common import serving


class Place(NamedTuple):
    title: str
    server: Callable[[Path], Server] | None
    ttl_s: float
    stands_s: Callable[[float], float] = lambda ttl_s: ttl_s
    """How long the claim of a dead process stands at most, for a lease of so long, by how the engine keeps it."""
    note: str = ""

    @contextlib.contextmanager
    def serve(self) -> Iterator[tuple[str, Server | None]]:
        if self.server is None:
            with tempfile.TemporaryDirectory() as folder:
                yield f"sqlite:///{folder}/fleet.db", None
        else:
            with serving(self.server) as server:
                yield server.url, server  # type: ignore[attr-defined]


def url_of(url: str, ttl_s: float) -> str:
    """ZooKeeper's leases are as long as its session."""
    return f"{url}?ttl_s={ttl_s:g}" if url.startswith("zookeeper") else url


KEEPS = ("--appendonly", "yes", "--appendfsync", "always")
"""So that a Redis which is killed loses nothing."""

PLACES = {
    "redis": Place("Redis", lambda folder: RedisServer(folder, *KEEPS), 1.0),
    "zookeeper": Place(
        "ZooKeeper", ZooKeeperServer, 1.0, lambda ttl_s: 1.5 * ttl_s + 2.0,
        "a lease stands on a session that is half as long again and 1.5 s, and ends at the server's next tick of 0.5 s",
    ),
    "etcd": Place(
        "etcd", EtcdServer, 2.0, lambda ttl_s: float(-(-1.25 * ttl_s // 1)) + 0.5,
        "2 s is the shortest; etcd's own lease is a quarter longer, in whole seconds, and ended within another 0.5 s",
    ),
    "postgres": Place("PostgreSQL", functools.partial(PostgresServer), 1.0),
    "sqlite": Place("SQLite", None, 1.0, note="the death of a process is noticed at once"),
}  # fmt: skip
