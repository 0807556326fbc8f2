"""ZooKeeper: our locks, threads and asyncio, beside kazoo's Lock, which has threads only; free and contended."""

from __future__ import annotations

import asyncio
import functools
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from kazoo.client import KazooClient
from zookeeper_server import ZooKeeperServer

import holdfast
from holdfast import aio

from .common import ratio_table, serving
from .contended import holdfast_lock, run, table

KAZOO = "kazoo Lock"


def kazoo_lock(url: str) -> Any:
    client = KazooClient(url.partition("://")[2], timeout=24)
    client.start(30)
    return client.Lock("/kazoo/contended")


class AioLock:
    """The asyncio face's lock as one for a process of its own, whose loop does nothing else."""

    def __init__(self, url: str) -> None:
        self.run = asyncio.new_event_loop().run_until_complete
        self.lock = self.run(self._connect(url))

    async def _connect(self, url: str) -> aio.Lock:
        return aio.connect(url).lock("contended")

    def __enter__(self) -> None:
        self.lease = self.run(self.lock.acquire())

    def __exit__(self, *exc: object) -> None:
        self.run(self.lease.release())


def free(url: str, rounds: int, per_round: int) -> str:
    """Acquire and release of a lock that nobody else wants, in interleaved rounds of one process."""
    client = KazooClient(url.partition("://")[2], timeout=24)
    client.start(30)
    client.ensure_path("/floor")
    theirs = client.Lock("/kazoo/free")
    hf = holdfast.connect(url)
    ours = hf.lock("free")

    async def in_turns() -> dict[str, list[float]]:
        async with aio.connect(url) as ahf:
            ours_too = ahf.lock("free too")

            async def floor() -> None:
                client.delete(client.create("/floor/n", ephemeral=True, sequence=True))

            async def pair(lock: Any) -> None:
                with lock:
                    pass

            async def async_pair() -> None:
                async with ours_too:
                    pass

            actions: dict[str, Callable[[], Awaitable[None]]] = {
                "kazoo, create + delete": floor,
                KAZOO: functools.partial(pair, theirs),
                "holdfast": functools.partial(pair, ours),
                "holdfast.aio": async_pair,
            }
            medians: dict[str, list[float]] = {name: [] for name in actions}
            for _ in range(rounds + 1):
                for name, action in actions.items():
                    times = []
                    for _ in range(per_round):
                        started = time.perf_counter()
                        await action()
                        times.append(time.perf_counter() - started)
                    medians[name].append(statistics.median(times) * 1e6)
            return {name: values[1:] for name, values in medians.items()}

    found = asyncio.run(in_turns())
    hf.close()
    client.stop()
    client.close()
    return ratio_table("ZooKeeper: acquire + release", found, KAZOO)


def contended(url: str, processes: int, rounds: int, seconds: float) -> str:
    """The median of some rounds by turns, for each column."""
    locks = {KAZOO: kazoo_lock, "holdfast": holdfast_lock, "holdfast.aio": AioLock}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in locks}
    for _ in range(rounds):
        for name, make_lock in locks.items():
            found[name].append(run(make_lock, url, processes, 0.0, seconds))
    rows = {name: {key: statistics.median(row[key] for row in some) for key in some[0]} for name, some in found.items()}
    theirs = [row["hand-overs/s"] for row in found[KAZOO]]
    for name, some in found.items():
        ratios = [row["hand-overs/s"] / base for row, base in zip(some, theirs, strict=True)]
        rows[name]["× kazoo's hand-overs"] = statistics.median(ratios)
    return table(f"ZooKeeper, one key, {processes} processes, 0 ms inside", rows)


def main(rounds: int = 15, per_round: int = 100, seconds: float = 5.0) -> str:
    with serving(ZooKeeperServer) as server:
        return "\n".join([free(server.url, rounds, per_round), contended(server.url, 32, 3, seconds)])


if __name__ == "__main__":
    print(main())
