"""Acquire and release of a free lock, one process: ours, the peers and the floor, in interleaved rounds."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis
import redis.asyncio
from servers import RedisServer

import holdfast
from holdfast import aio

from .common import interleaved, ratio_table, serving

RELEASE = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end return 0"


def redis_threads(url: str, rounds: int, per_round: int) -> str:
    client = redis.Redis.from_url(url)
    release = client.register_script(RELEASE)

    def floor() -> None:
        client.set("floor", "me", nx=True, px=15000)
        release(keys=["floor"], args=["me"])

    hf = holdfast.connect(url)
    ours = hf.lock("bench")
    actions: dict[str, Callable[[], object]] = {"floor": floor, "holdfast": lambda: _pair(ours)}
    theirs = client.lock("redis-py", timeout=15)
    actions["redis-py Lock"] = lambda: _pair(theirs)
    with contextlib.suppress(ImportError):
        import redis_lock

        actions["python-redis-lock"] = lambda: _pair(redis_lock.Lock(client, "prl", expire=15))
    with contextlib.suppress(ImportError):
        import pottery

        actions["pottery"] = lambda: _pair(pottery.Redlock(key="pottery", masters={client}, auto_release_time=15))
    medians = interleaved(actions, rounds=rounds, per_round=per_round)
    hf.close()
    return ratio_table("Redis, threads: acquire + release", medians, "floor")


def _pair(lock: object) -> None:
    with lock:  # type: ignore[attr-defined]
        pass


async def redis_tasks(url: str, rounds: int, per_round: int) -> str:
    client = redis.asyncio.Redis.from_url(url)
    release = client.register_script(RELEASE)
    medians: dict[str, list[float]] = {"floor": [], "holdfast": [], "redis.asyncio Lock": []}
    async with aio.connect(url) as hf:
        ours, theirs = hf.lock("abench"), client.lock("aredis-py", timeout=15)

        async def floor() -> None:
            await client.set("afloor", "me", nx=True, px=15000)
            await release(keys=["afloor"], args=["me"])

        async def pair(lock: object) -> None:
            async with lock:  # type: ignore[attr-defined]
                pass

        actions = {"floor": floor, "holdfast": lambda: pair(ours), "redis.asyncio Lock": lambda: pair(theirs)}
        for _ in range(rounds + 1):
            for name, action in actions.items():
                times = []
                for _ in range(per_round):
                    started = time.perf_counter()
                    await action()
                    times.append(time.perf_counter() - started)
                medians[name].append(sorted(times)[len(times) // 2] * 1e6)
    await client.aclose()
    return ratio_table("Redis, asyncio: acquire + release", {k: v[1:] for k, v in medians.items()}, "floor")


def embedded(rounds: int, per_round: int) -> str:
    import filelock
    import portalocker

    with tempfile.TemporaryDirectory() as folder:
        hf = holdfast.connect(f"sqlite:///{Path(folder) / 'hf.db'}")
        ours, theirs = hf.lock("bench"), filelock.FileLock(Path(folder) / "theirs.lock")
        other = Path(folder) / "other.lock"
        actions: dict[str, Callable[[], object]] = {
            "filelock": lambda: _pair(theirs),
            "holdfast": lambda: _pair(ours),
            "portalocker": lambda: _pair(portalocker.Lock(other)),
        }
        medians = interleaved(actions, rounds=rounds, per_round=per_round)
        hf.close()
    return ratio_table("One machine (SQLite): acquire + release", medians, "filelock")


def main(rounds: int = 15, per_round: int = 200) -> str:
    with serving(RedisServer) as server:
        parts = [
            redis_threads(server.url, rounds, per_round),
            asyncio.run(redis_tasks(server.url, rounds, per_round)),
        ]
    return "\n".join([*parts, embedded(rounds, per_round)])


if __name__ == "__main__":
    print(main())
