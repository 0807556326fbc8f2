"""etcd: acquire and release of a free lock beside two bare requests and etcd3gw; one key and many processes."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import etcd3gw
from etcd_server import EtcdServer

import holdfast
from holdfast import aio
from holdfast.engines.etcd.members import Members
from holdfast.engines.etcd.messages import Keys, absent, delete, grant, put, txn
from holdfast.engines.etcd.pipes import Wire, dial
from holdfast.engines.etcd.replies import checked
from holdfast.engines.etcd.target import target_at

from .common import interleaved, ratio_table, serving
from .contended import holdfast_lock, run, table

KEY = b"bench/floor"


def _bare(lease: int) -> tuple[Any, Any]:
    """The floor: a key put on a lease if it is not there, and deleted."""
    key = Keys(KEY)
    return txn([absent(key)], [put(KEY, b"me", lease)]), txn([], [delete(key)])


def threads(url: str, rounds: int, per_round: int) -> str:
    wire = Wire(Members(target_at(url)), 5)
    take, give = _bare(checked(wire.exchange([grant(3600)], 5)[0]).id)

    def floor() -> None:
        checked(wire.exchange([take], 5)[0])
        checked(wire.exchange([give], 5)[0])

    hf = holdfast.connect(url)
    ours = hf.lock("bench")
    theirs = _etcd3gw(url)
    names = itertools.count()
    actions: dict[str, Callable[[], object]] = {
        "floor": floor,
        "holdfast": lambda: _pair(ours),
        "etcd3gw": lambda: _pair(theirs.lock(f"theirs{next(names)}", ttl=15)),
    }
    medians = interleaved(actions, rounds=rounds, per_round=per_round)
    hf.close()
    wire.close()
    return ratio_table("etcd, threads: acquire + release", medians, "floor")


def _pair(lock: Any) -> None:
    with lock:
        pass


async def tasks(url: str, rounds: int, per_round: int) -> str:
    wire = await dial(Members(target_at(url)), 5)
    take, give = _bare(checked((await wire.exchange([grant(3600)], 5))[0]).id)
    medians: dict[str, list[float]] = {"floor": [], "holdfast": []}
    async with aio.connect(url) as hf:
        ours = hf.lock("abench")

        async def floor() -> None:
            checked((await wire.exchange([take], 5))[0])
            checked((await wire.exchange([give], 5))[0])

        async def pair() -> None:
            async with ours:
                pass

        for _ in range(rounds + 1):
            for name, action in {"floor": floor, "holdfast": pair}.items():
                times = []
                for _ in range(per_round):
                    started = time.perf_counter()
                    await action()
                    times.append(time.perf_counter() - started)
                medians[name].append(statistics.median(times) * 1e6)
    wire.close()
    return ratio_table("etcd, asyncio: acquire + release", {k: v[1:] for k, v in medians.items()}, "floor")


def _etcd3gw(url: str) -> Any:
    where: Any = urlsplit(url)
    return etcd3gw.client(host=where.hostname, port=where.port)


class Etcd3gwLock:
    """It gives up at once, so it is asked again and again, as its own ``acquire`` would have to be."""

    def __init__(self, url: str) -> None:
        self.client = _etcd3gw(url)

    def __enter__(self) -> None:
        self.lock = self.client.lock("theirs", ttl=15)
        while not self.lock.acquire():
            time.sleep(0.1)

    def __exit__(self, *exc: object) -> None:
        self.lock.release()


def main(rounds: int = 11, per_round: int = 60, seconds: float = 5.0) -> str:
    with serving(EtcdServer) as server:
        parts = [threads(server.url, rounds, per_round), asyncio.run(tasks(server.url, rounds, per_round))]
        for inside_s in (0.0, 0.001):
            rows = {
                name: run(make, server.url, 32, inside_s, seconds)
                for name, make in {"holdfast": holdfast_lock, "etcd3gw, asked each 0.1 s": Etcd3gwLock}.items()
            }
            parts.append(table(f"etcd, one key, 32 processes, {inside_s * 1e3:.0f} ms inside", rows))
    return "\n".join(parts)


if __name__ == "__main__":
    print(main())
