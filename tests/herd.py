"""A herd of tasks on one lock, and what servers say of the work they had with it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etcd_server import EtcdServer
from postgres_server import PostgresServer
from servers import RedisServer
from zookeeper_server import ZooKeeperServer

from holdfast import aio

Costs = Mapping[str, float]
Read = Callable[[], Costs]
"""What was spent until now, by name."""

AT_ONCE = 100
"""As many join together while the herd gathers."""


class Herd:
    """Tasks of one client that wait for one lock."""

    def __init__(self, client: aio.Client, ttl_s: float | None) -> None:
        self.client = client
        self.lock = client.lock("herd") if ttl_s is None else client.lock("herd", ttl_s=ttl_s)
        self.tasks: list[asyncio.Task[None]] = []
        self.entered = 0
        self.stop_at = 0
        self.stopped = asyncio.Event()

    async def grow(self, count: int) -> None:
        """So many more; returns once all of them stand in the queue."""
        self.tasks += [asyncio.create_task(self._wait()) for _ in range(count)]
        while sum(tenure.token > 0 for tenure in self.client.session.tenures.values()) < len(self.tasks) + 1:
            await asyncio.sleep(0.005)
            for task in self.tasks[-count:]:
                if task.done():
                    task.result()

    async def _wait(self) -> None:
        lease = await self.lock.acquire()
        self.entered += 1
        if self.entered < self.stop_at:
            await lease.release()
        else:
            self.stopped.set()

    async def hand_over(self, first: aio.Lease, count: int) -> None:
        """From one to the next, so often."""
        self.stop_at = count
        await first.release()
        await self.stopped.wait()

    async def scatter(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def herd(url: str, size: int, sample: int, read: Read, ttl_s: float | None = 60.0) -> tuple[Costs, Costs]:
    """What one more arrival, and one hand-over, costs where ``size`` wait: the mean of ``sample``."""
    async with aio.connect(url, patience_s=30) as client:
        await client.session.listen()  # so that nobody looks again because signals flow only now
        herd = Herd(client, ttl_s)
        first = await herd.lock.acquire()
        for start in range(0, size, AT_ONCE):
            await herd.grow(min(AT_ONCE, size - start))
        before = read()
        await herd.grow(sample)
        between = read()
        await herd.hand_over(first, sample)
        after = read()
        await herd.scatter()
    return _each(before, between, sample), _each(between, after, sample)


def _each(before: Costs, after: Costs, sample: int) -> Costs:
    return {name: (after[name] - before[name]) / sample for name in after}


# -- what servers say


def redis_says(server: RedisServer) -> Costs:
    """``commands``: those of the scripts, in which all the work is."""
    said = server.command("INFO", "commandstats").decode()
    stats = {
        name: (int(calls), float(us)) for name, calls, us in re.findall(r"cmdstat_(\S+):calls=(\d+),usec=(\d+)", said)
    }
    scripts = [stats[name] for name in ("evalsha", "eval") if name in stats]
    ours = sum(calls for name, (calls, _) in stats.items() if name not in ("evalsha", "eval", "info"))
    return {"requests": sum(calls for calls, _ in scripts), "commands": ours, "µs": sum(us for _, us in scripts)}


@contextlib.contextmanager
def sqlite_says() -> Iterator[Read]:
    """Counts the steps of SQLite's virtual machine, for files opened in this time."""
    from holdfast.engines.sqlite import store

    inside: Any = store
    steps, open_file = [0], inside.open_file

    def step() -> None:
        steps[0] += 1

    def counted(path: Path) -> Any:
        connection = open_file(path)
        connection.set_progress_handler(step, 1)
        return connection

    inside.open_file = counted
    try:
        yield lambda: {"steps": steps[0]}
    finally:
        inside.open_file = open_file


WITH_STATEMENTS = "shared_preload_libraries=pg_stat_statements"


def postgres_says(server: PostgresServer) -> Costs:
    """Of a server that was started `WITH_STATEMENTS`. ``pages``: those it looked at."""
    server.sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    ((calls, pages, ms),) = server.sql(
        "SELECT coalesce(sum(calls), 0), coalesce(sum(shared_blks_hit + shared_blks_read), 0), "
        "coalesce(sum(total_exec_time), 0) FROM pg_stat_statements WHERE query ~ '^PREPARE holdfast|holdfast_'"
    )
    return {"requests": float(calls), "pages": float(pages), "µs": float(ms) * 1e3}


def zookeeper_says(server: ZooKeeperServer) -> Costs:
    said = dict(line.split("\t") for line in server.word("mntr").decode().splitlines() if "\t" in line)
    return {"requests": float(said["zk_packets_received"]), **cpu(server.process.pid if server.process else 0)}


def etcd_says(server: EtcdServer) -> Costs:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    connection.request("GET", "/metrics")
    said = connection.getresponse().read().decode()
    connection.close()

    def total(name: str) -> float:
        return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", said, re.MULTILINE)))

    return {
        "requests": total("grpc_server_msg_received_total"),
        "bytes": total("etcd_network_client_grpc_sent_bytes_total"),
        **cpu(server.process.pid if server.process else 0),
    }


def cpu(pid: int) -> Costs:
    """What that process has used, in steps of a clock tick (10 ms)."""
    spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {"CPU µs": sum(map(int, spent)) * 1e6 / os.sysconf("SC_CLK_TCK")}
