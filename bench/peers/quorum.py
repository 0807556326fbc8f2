"""Five independent Redis as one lock."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quorum_servers import QuorumServers

from . import HOLDFAST, EachAnew, Engine, Peer, Turns
from .redis import connected, info, request


@contextlib.contextmanager
def _serve() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, QuorumServers(Path(folder)) as servers:
        yield servers.url


def _nodes(url: str) -> list[str]:
    return [f"redis://{one}" for one in url.partition("://")[2].partition("/")[0].split(",")]


@contextlib.contextmanager
def _floor(url: str) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(connected(node)) for node in _nodes(url)]

        def ask(words: bytes) -> None:
            for wire in wires:
                wire.sendall(words)
            for wire in wires:
                wire.recv(64)

        take, give = request("SET", "floor", "me", "NX", "PX", "15000"), request("DEL", "floor")
        yield Turns(lambda: ask(take), lambda: ask(give))


@contextlib.contextmanager
def _pottery(url: str) -> Iterator[Any]:
    import pottery
    import redis

    masters = {redis.Redis.from_url(node) for node in _nodes(url)}
    yield EachAnew(lambda: pottery.Redlock(key="pottery", masters=masters, auto_release_time=15))
    for master in masters:
        master.close()


ENGINE = Engine(
    "quorum",
    "Five Redis",
    _serve,
    (Peer("floor", _floor, use="pair", baseline=True), *HOLDFAST, Peer("pottery Redlock", _pottery)),
    "floor",
    "two bare commands to each by plain sockets, sent to all, then read from all",
    lambda url: f"Five Redis {info(_nodes(url)[0], 'redis_version')}, nothing written to disks",
)
