"""ZooKeeper: one server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from zookeeper_server import ZooKeeperServer

from . import HOLDFAST, Engine, Peer, Turns, difference, java, served, tooz
from .redis import connected


@contextlib.contextmanager
def _of_client(lock: Callable[[Any], Any], url: str) -> Iterator[Any]:
    from kazoo.client import KazooClient

    client = KazooClient(url.partition("://")[2], timeout=24)
    client.start(30)
    yield lock(client)
    client.stop()
    client.close()


def _floor(client: Any) -> Any:
    client.ensure_path("/floor")
    made: list[str] = []
    return Turns(
        lambda: made.append(client.create("/floor/n", ephemeral=True, sequence=True)),
        lambda: client.delete(made.pop()),
    )


def _word(url: str, word: bytes) -> bytes:
    with connected(url) as wire:
        wire.sendall(word)
        return b"".join(iter(lambda: wire.recv(1 << 16), b""))


def _packets(url: str) -> int:
    found = re.search(rb"zk_packets_received\s+(\d+)", _word(url, b"mntr"))
    assert found
    return int(found[1])


ENGINE = Engine(
    "zookeeper",
    "ZooKeeper",
    lambda: served(ZooKeeperServer),
    (
        Peer("floor", lambda url: _of_client(_floor, url), use="pair", baseline=True),
        *HOLDFAST,
        Peer("kazoo Lock", lambda url: _of_client(lambda client: client.Lock("/kazoo/bench"), url), fair=True),
        Peer("tooz", lambda url: tooz(url.replace("zookeeper://", "kazoo://")), fair=True),
        Peer(f"Curator InterProcessMutex, {java.JVMS} JVMs", java.command("InterProcessMutex"), "java", fair=True),
    ),
    "floor",
    "kazoo's create of an ephemeral, numbered node, and its delete",
    lambda url: f"ZooKeeper {_word(url, b'srvr').split(b'-')[0].rpartition(b' ')[2].decode()}",
    lambda url: difference(lambda: _packets(url)),
)
