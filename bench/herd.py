"""A herd on one lock: what an arrival and a hand-over cost the server where n wait, by the server's own measure.

Prints a table for each engine; the names of engines as arguments choose some.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping

from etcd_server import EtcdServer
from herd import (
    WITH_STATEMENTS,
    Costs,
    Read,
    etcd_says,
    herd,
    postgres_says,
    redis_says,
    sqlite_says,
    zookeeper_says,
)
from postgres_server import PostgresServer
from servers import RedisServer
from zookeeper_server import ZooKeeperServer

from .common import machine, serving

SAMPLE = 200
"""Arrivals, and then hand-overs, at each size."""

Placed = contextlib.AbstractContextManager[tuple[str, Read]]


@contextlib.contextmanager
def _redis() -> Iterator[tuple[str, Read]]:
    with serving(RedisServer) as server:
        yield server.url, functools.partial(redis_says, server)


@contextlib.contextmanager
def _sqlite() -> Iterator[tuple[str, Read]]:
    with tempfile.TemporaryDirectory() as folder, sqlite_says() as read:
        yield f"sqlite:///{folder}/herd.db", read


@contextlib.contextmanager
def _postgres() -> Iterator[tuple[str, Read]]:
    with serving(lambda folder: PostgresServer(folder, WITH_STATEMENTS)) as server:
        yield server.url, functools.partial(postgres_says, server)


@contextlib.contextmanager
def _zookeeper() -> Iterator[tuple[str, Read]]:
    with serving(ZooKeeperServer) as server:
        yield f"{server.new_url()}?session_timeout_s=60", functools.partial(zookeeper_says, server)


@contextlib.contextmanager
def _etcd() -> Iterator[tuple[str, Read]]:
    with serving(EtcdServer) as server:
        yield server.url, functools.partial(etcd_says, server)


FAR = (10, 100, 1_000, 10_000)
NEAR = (10, 100, 1_000, 3_000)
"""Where an arrival reads the queue, so that ten thousand take some minutes to gather."""

ENGINES: Mapping[str, tuple[Callable[[], Placed], tuple[int, ...], float | None]] = {
    "redis": (_redis, FAR, 120.0),
    "sqlite": (_sqlite, FAR, 120.0),
    "postgres": (_postgres, FAR, 120.0),
    "zookeeper": (_zookeeper, NEAR, None),
    "etcd": (_etcd, NEAR, 120.0),
}


def table(name: str, rows: Mapping[int, tuple[Costs, Costs]]) -> str:
    """A row for each n: what a hand-over costs, × what it costs where ten wait; then the same of an arrival."""
    least = rows[min(rows)]
    columns = list(least[1])
    head = [f"{what}: {column}" for what in ("hand-over", "arrival") for column in columns]
    lines = [f"### {name}", "", "| n | " + " | ".join(head) + " |", "| ---: |" + " ---: |" * len(head)]
    for n, (arrival, hand_over) in rows.items():
        cells = [
            f"{costs[column]:.1f} (× {costs[column] / (base[column] or 1):.1f})"
            for costs, base in ((hand_over, least[1]), (arrival, least[0]))
            for column in columns
        ]
        lines.append(f"| {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(*names: str) -> str:
    parts = []
    for name in names or ENGINES:
        placed, sizes, ttl_s = ENGINES[name]
        rows = {}
        for n in sizes:
            with placed() as (url, read):
                rows[n] = asyncio.run(herd(url, n, SAMPLE, read, ttl_s))
        parts.append(table(name, rows))
    return "\n".join(parts)


if __name__ == "__main__":
    print(machine() + "\n\n" + main(*sys.argv[1:]))
