"""Redis: one server. PostgreSQL's advisory lock is a guest, being the quickest fair peer of all engines."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from servers import RedisServer

from . import HOLDFAST, EachAnew, Engine, Peer, Turns, java, served, tooz
from .postgres import advisory

RELEASE = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end return 0"


@contextlib.contextmanager
def _of_client(lock: Callable[[Any], Any], url: str) -> Iterator[Any]:
    import redis

    with redis.Redis.from_url(url) as client:
        yield lock(client)


def _floor(client: Any) -> Any:
    release = client.register_script(RELEASE)
    return Turns(lambda: client.set("floor", "me", nx=True, px=15000), lambda: release(keys=["floor"], args=["me"]))


def _redis_py(sleep_s: float, client: Any) -> Any:
    return client.lock("redis-py", timeout=15, sleep=sleep_s)


@contextlib.asynccontextmanager
async def _redis_asyncio(url: str) -> AsyncIterator[Any]:
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(url) as client:
        yield client.lock("redis.asyncio", timeout=15)


def _python_redis_lock(renewed: bool, client: Any) -> Any:
    import redis_lock

    return EachAnew(lambda: redis_lock.Lock(client, f"prl{renewed}", expire=15, auto_renewal=renewed))


def _pottery(client: Any) -> Any:
    import pottery

    return EachAnew(lambda: pottery.Redlock(key="pottery", masters={client}, auto_release_time=15))


def _sherlock(client: Any) -> Any:
    import sherlock

    return sherlock.RedisLock("sherlock", client=client, expire=15, timeout=60)


@contextlib.contextmanager
def _by_hand(url: str) -> Iterator[Any]:
    with connected(url) as wire:

        def ask(words: bytes) -> bytes:
            wire.sendall(words)
            return wire.recv(64)

        sha = ask(request("SCRIPT", "LOAD", RELEASE)).split()[1].decode()
        take, give = request("SET", "hand", "me", "NX", "PX", "15000"), request("EVALSHA", sha, "1", "hand", "me")
        yield Turns(lambda: ask(take), lambda: ask(give))


def connected(url: str) -> socket.socket:
    where = urlsplit(url)
    wire = socket.create_connection((where.hostname or "", where.port or 0))
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def request(*words: str) -> bytes:
    return b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)])


def info(url: str, field: str) -> str:
    with connected(url) as wire:
        wire.sendall(request("INFO"))
        text = wire.recv(1 << 16).decode()
    return next(line.partition(":")[2] for line in text.split("\r\n") if line.startswith(f"{field}:"))


@contextlib.contextmanager
def monitored(url: str) -> Iterator[Callable[[], int]]:
    """By MONITOR, where the commands that scripts make are marked 'lua': those are left out."""
    count = 0
    with connected(url) as wire:
        wire.sendall(b"MONITOR\r\n")
        wire.recv(64)

        def read() -> None:
            nonlocal count
            rest = b""
            while chunk := wire.recv(1 << 16):
                *lines, rest = (rest + chunk).split(b"\r\n")
                count += sum(b" lua]" not in line for line in lines)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()

        def end() -> int:
            time.sleep(0.1)  # what was sent is on its way
            wire.shutdown(socket.SHUT_RDWR)
            reader.join()
            return count

        yield end


def _lock(make: Callable[..., Any], *arguments: Any) -> Callable[[str], Any]:
    return functools.partial(_of_client, functools.partial(make, *arguments))


ENGINE = Engine(
    "redis",
    "Redis",
    lambda: served(RedisServer),
    (
        Peer("floor", _lock(_floor), use="pair", baseline=True),
        Peer("the same by hand", _by_hand, use="pair", baseline=True),
        *HOLDFAST,
        Peer("redis-py, 0.1 s", _lock(_redis_py, 0.1)),
        Peer("redis-py, 1 ms", _lock(_redis_py, 0.001), use="contended"),
        Peer("redis.asyncio, 0.1 s", _redis_asyncio, "asyncio"),
        Peer("python-redis-lock", _lock(_python_redis_lock, False), fair=True),
        Peer("python-redis-lock, renewed", _lock(_python_redis_lock, True)),
        Peer("pottery Redlock", _lock(_pottery)),
        Peer("sherlock", _lock(_sherlock)),
        Peer("tooz", tooz),
        Peer(f"Redisson Lock, {java.JVMS} JVMs", java.command("Lock"), "java"),
        Peer(f"Redisson FairLock, {java.JVMS} JVMs", java.command("FairLock"), "java", fair=True),
        Peer("PostgreSQL advisory lock", advisory, fair=True, use="contended", at="postgres"),
    ),
    "floor",
    "`SET NX PX` and a script that deletes its owner's key, by redis-py; *the same by hand* is over a plain socket",
    lambda url: f"Redis {info(url, 'redis_version')}",
    monitored,
    disturbs=True,
)
