"""etcd: one server."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from etcd_server import EtcdServer

from . import HOLDFAST, EachAnew, Engine, Peer, Turns, difference, served, tooz

POLL_S = 0.1


@contextlib.contextmanager
def _floor(url: str) -> Iterator[Any]:
    """By the wire of ours, which is the leanest at hand."""
    from holdfast.engines.etcd.members import Members
    from holdfast.engines.etcd.messages import Keys, absent, delete, grant, put, txn
    from holdfast.engines.etcd.pipes import Wire
    from holdfast.engines.etcd.replies import checked
    from holdfast.engines.etcd.target import target_at

    wire = Wire(Members(target_at(url)), 5)
    lease, key = checked(wire.exchange([grant(3600)], 5)[0]).id, b"bench/floor"
    take, give = txn([absent(Keys(key))], [put(key, b"me", lease)]), txn([], [delete(Keys(key))])
    yield Turns(lambda: checked(wire.exchange([take], 5)[0]), lambda: checked(wire.exchange([give], 5)[0]))
    wire.close()


@contextlib.contextmanager
def _etcd3gw(url: str) -> Iterator[Any]:
    import etcd3gw

    where: Any = urlsplit(url)
    client = etcd3gw.client(host=where.hostname, port=where.port)
    yield EachAnew(lambda: _Asked(client.lock("etcd3gw", ttl=15)))
    client.session.close()


class _Asked:
    """etcd3gw's lock gives up at once: it is asked again and again, as its users have to."""

    def __init__(self, lock: Any) -> None:
        self._ask, self.release = lock.acquire, lock.release

    def acquire(self) -> None:
        while not self._ask():
            time.sleep(POLL_S)


def _page(url: str, path: str) -> str:
    with urllib.request.urlopen(f"{url.replace('etcd://', 'http://')}/{path}") as reply:
        return str(reply.read().decode())


def _messages(url: str) -> int:
    """What the server read from clients; its JSON gateway, which etcd3gw and tooz use, is one of them."""
    found = re.findall(r"^grpc_server_msg_received_total\{.*\} (\S+)$", _page(url, "metrics"), re.MULTILINE)
    return int(sum(map(float, found)))


ENGINE = Engine(
    "etcd",
    "etcd",
    lambda: served(EtcdServer),
    (
        Peer("floor", _floor, use="pair", baseline=True),
        *HOLDFAST,
        Peer("etcd3gw, 0.1 s", _etcd3gw),
        Peer("tooz", lambda url: tooz(url.replace("etcd://", "etcd3+http://"))),
    ),
    "floor",
    "two bare transactions over one connection: a key put on a lease if it is not there, and deleted",
    lambda url: f"etcd {json.loads(_page(url, 'version'))['etcdserver']}, nothing forced to the disk",
    lambda url: difference(lambda: _messages(url)),
)
