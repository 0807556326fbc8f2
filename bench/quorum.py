"""Acquire and release of a free lock on five independent Redis: ours, pottery's Redlock, and a floor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis
from quorum_servers import QuorumServers

import holdfast
from holdfast import aio

from .common import interleaved, ratio_table

FIVE = 5


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))


class Floor:
    """What no client of five servers can do without: two bare commands to each, sent to all, then read from all."""

    def __init__(self, servers: QuorumServers) -> None:
        self.sockets = [socket.create_connection(("127.0.0.1", server.port)) for server in servers.servers]
        for one in self.sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.take = _command(b"SET", b"floor", b"me", b"NX", b"PX", b"15000")
        self.give = _command(b"DEL", b"floor")

    def __call__(self) -> None:
        for request in (self.take, self.give):
            for one in self.sockets:
                one.sendall(request)
            for one in self.sockets:
                one.recv(64)

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def _pair(lock: object) -> None:
    with lock:  # type: ignore[attr-defined]
        pass


def threads(servers: QuorumServers, rounds: int, per_round: int) -> str:
    hf, floor = holdfast.connect(servers.url), Floor(servers)
    ours = hf.lock("bench")
    actions: dict[str, Callable[[], object]] = {"floor": floor, "holdfast": lambda: _pair(ours)}
    clients = {redis.Redis(port=server.port) for server in servers.servers}
    with contextlib.suppress(ImportError):
        import pottery

        actions["pottery"] = lambda: _pair(pottery.Redlock(key="pottery", masters=clients, auto_release_time=15))
    medians = interleaved(actions, rounds=rounds, per_round=per_round)
    hf.close()
    floor.close()
    for client in clients:
        client.close()
    table = ratio_table("Five Redis, threads: acquire + release", medians, "floor")
    if "pottery" in medians:
        ratios = [a / b for a, b in zip(medians["holdfast"], medians["pottery"], strict=True)]
        table += f"\nholdfast / pottery: {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})\n"
    return table


async def tasks(servers: QuorumServers, rounds: int, per_round: int) -> str:
    floor = Floor(servers)
    medians: dict[str, list[float]] = {"floor": [], "holdfast": []}
    async with aio.connect(servers.url) as hf:
        lock = hf.lock("abench")
        for _ in range(rounds + 1):
            for name in medians:
                times = []
                for _ in range(per_round):
                    started = time.perf_counter()
                    if name == "floor":
                        floor()
                    else:
                        async with lock:
                            pass
                    times.append(time.perf_counter() - started)
                medians[name].append(statistics.median(times) * 1e6)
    floor.close()
    return ratio_table("Five Redis, asyncio: acquire + release", {k: v[1:] for k, v in medians.items()}, "floor")


def main(rounds: int = 9, per_round: int = 60) -> str:
    with tempfile.TemporaryDirectory() as folder, QuorumServers(Path(folder)) as servers:
        return threads(servers, rounds, per_round) + "\n" + asyncio.run(tasks(servers, rounds, per_round))


if __name__ == "__main__":
    print(main())
