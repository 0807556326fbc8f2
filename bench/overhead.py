"""What holdfast's Python adds to the two script calls of a pair: ours beside the same bytes sent by hand.

By hand means: the engine's own requests for one lock, taken apart once at the claim's id, so that a pair is two joins,
two sends, two reads and the least parsing. Both run over a stub that answers at once, where nothing but Python is left,
and over a server: there the difference in client CPU says more than that in wall time, which follows how the kernel
wakes two processes on few cores. There the same scripts are also called through redis-py, as a program would.

``python -m bench.overhead profile threads`` (or ``asyncio``) says where it goes.
"""

from __future__ import annotations

import asyncio
import cProfile
import itertools
import pstats
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis
import redis.asyncio
from servers import RedisServer

from holdfast import aio, sync
from holdfast.engines.redis.engine import RedisEngine
from holdfast.engines.redis.scripts import ENTER, LEAVE, Script
from holdfast.model import Claim, Turnstile
from holdfast.worlds.threads import drive

from .common import serving
from .stub import LEFT, StubEngine, StubSocket, StubTransport

LOCK = Turnstile("lock", "bench", 1)
ID = "0123456789abcdef.00000000"


class Packed:
    """The bytes of a pair's requests, but for the claim's id."""

    def __init__(self, namespace: str) -> None:
        engine = RedisEngine("redis://localhost", namespace)
        claim = Claim(ID, 1, 15.0, ID[:16], "by hand")
        self.enter = engine.enter(LOCK, claim, False).body.by_sha().split(ID.encode())
        self.leave = engine.leave(LOCK, ID, False).body.by_sha().split(ID.encode())
        self._numbers = itertools.count()

    def new_id(self) -> bytes:
        return b"0123456789abcdef.%08x" % next(self._numbers)


class ByHand:
    """A pair over a plain socket."""

    def __init__(self, sock: Any, packed: Packed) -> None:
        self._sock, self._packed = sock, packed

    def pair(self) -> None:
        packed, sock = self._packed, self._sock
        id = packed.new_id()
        sock.sendall(id.join(packed.enter))
        state, token, _, _ = sock.recv(4096).split(b"\r\n")[1].split(b" ")
        if state != b"1" or int(token) < 1:
            raise RuntimeError(f"not admitted: {state!r}")
        sock.sendall(id.join(packed.leave))
        if sock.recv(4096) != LEFT:
            raise RuntimeError("it was gone")


class AsyncByHand(asyncio.Protocol):
    """A pair over one transport of the event loop."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        self._loop = asyncio.get_running_loop()
        self.transport: Any = None
        self._reply: asyncio.Future[bytes] = self._loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._reply.set_result(data)

    async def _ask(self, payload: bytes) -> bytes:
        self._reply = self._loop.create_future()
        self.transport.write(payload)
        return await self._reply

    async def pair(self) -> None:
        packed = self._packed
        id = packed.new_id()
        state, token, _, _ = (await self._ask(id.join(packed.enter))).split(b"\r\n")[1].split(b" ")
        if state != b"1" or int(token) < 1:
            raise RuntimeError(f"not admitted: {state!r}")
        if await self._ask(id.join(packed.leave)) != LEFT:
            raise RuntimeError("it was gone")


class ByRedisPy:
    """The same scripts through the client library."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._enter, self._leave = (client.register_script(_text(script)) for script in (ENTER, LEAVE))
        self._keys = [f"overhead:{{bench}}:{suffix}" for suffix in "hawet"]
        self._numbers = itertools.count()

    def _call(self) -> tuple[Any, Any]:
        id = f"me.{next(self._numbers):x}"
        keys = [*self._keys, f"overhead:{{bench}}:x:{id}"]
        entered = self._enter(keys=keys, args=[id, 0, 1, 15000, 1, 0, "", "by hand", ""])
        return entered, lambda: self._leave(keys=keys, args=[id, 0, 900000])

    def pair(self) -> None:
        entered, leave = self._call()
        if entered[:2] != b"1 " or leave() != 1:
            raise RuntimeError(f"not admitted: {entered!r}")


class AsyncByRedisPy(ByRedisPy):
    async def pair(self) -> None:  # type: ignore[override]
        asked, leave = self._call()
        entered = await asked
        if entered[:2] != b"1 " or await leave() != 1:
            raise RuntimeError(f"not admitted: {entered!r}")


def _text(script: Script) -> str:
    return script.by_text.split(b"\r\n", 3)[3][:-2].decode()


# -- measuring


class Costs(NamedTuple):
    """Microseconds per pair, one mean per round."""

    wall: list[float]
    cpu: list[float]


Round = Callable[[int], Awaitable[None]]
"""So many pairs."""


async def measure(ours: Round, by_hand: Round, rounds: int, pairs: int) -> tuple[Costs, Costs]:
    """Both in turns; the first round of each is not counted."""
    costs = Costs([], []), Costs([], [])
    for number in range(rounds + 1):
        for run, cost in zip((ours, by_hand), costs, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            await run(pairs)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                cost.wall.append(wall / pairs * 1e6)
                cost.cpu.append(cpu / pairs * 1e6)
    return costs


def rows(what: str, costs: tuple[Costs, Costs]) -> list[str]:
    ours, by_hand = costs
    table = []
    for clock in Costs._fields:
        mine, theirs = getattr(ours, clock), getattr(by_hand, clock)
        added = sorted(one - other for one, other in zip(mine, theirs, strict=True))
        tenth = len(added) // 10
        table.append(
            f"| {what} | {clock} | {statistics.median(theirs):.1f} | {statistics.median(mine):.1f} | "
            f"**{statistics.median(added):.1f}** | {added[tenth]:.1f} … {added[-1 - tenth]:.1f} |"
        )
    return table


def times(pair: Callable[[], None]) -> Round:
    async def run(pairs: int) -> None:
        for _ in range(pairs):
            pair()

    return run


def async_times(pair: Callable[[], Awaitable[None]]) -> Round:
    async def run(pairs: int) -> None:
        for _ in range(pairs):
            await pair()

    return run


def blocking(client: sync.Client, by_hand: Any, rounds: int, pairs: int) -> tuple[Costs, Costs]:
    with client:
        lock = client.lock(LOCK.name)

        def pair() -> None:
            with lock:
                pass

        return drive(measure(times(pair), times(by_hand.pair), rounds, pairs))


async def on_a_loop(client: aio.Client, by_hand: Any, rounds: int, pairs: int) -> tuple[Costs, Costs]:
    async with client:
        lock = client.lock(LOCK.name)

        async def pair() -> None:
            async with lock:
                pass

        return await measure(async_times(pair), async_times(by_hand.pair), rounds, pairs)


async def on_a_loop_over(url: str, rounds: int, pairs: int) -> tuple[tuple[Costs, Costs], tuple[Costs, Costs]]:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    transport, by_hand = await loop.create_connection(lambda: AsyncByHand(Packed("")), parts.hostname, parts.port)
    costs = await on_a_loop(aio.connect(url), by_hand, rounds, pairs)
    transport.close()
    async with redis.asyncio.Redis.from_url(url) as client:
        return costs, await on_a_loop(aio.connect(url), AsyncByRedisPy(client), rounds, pairs)


async def on_a_loop_over_a_stub(rounds: int, pairs: int) -> tuple[Costs, Costs]:
    by_hand, transport = AsyncByHand(Packed("")), StubTransport()
    by_hand.transport = transport
    transport.set_protocol(by_hand)
    return await on_a_loop(aio.Client(StubEngine()), by_hand, rounds, pairs)


def over(url: str, rounds: int, pairs: int) -> tuple[tuple[Costs, Costs], tuple[Costs, Costs]]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 6379)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        costs = blocking(sync.connect(url), ByHand(sock, Packed("")), rounds, pairs)
    with redis.Redis.from_url(url) as client:
        return costs, blocking(sync.connect(url), ByRedisPy(client), rounds, pairs)


def over_a_stub(rounds: int, pairs: int) -> tuple[Costs, Costs]:
    return blocking(sync.Client(StubEngine()), ByHand(StubSocket(), Packed("")), rounds, pairs)


def main(rounds: int = 600, pairs: int = 20) -> str:
    lines = [
        "### What holdfast adds to the two calls of a pair, in µs",
        "",
        "| | clock | by hand | holdfast | added | its middle 80 % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        *rows("threads, stub", over_a_stub(rounds, pairs)),
        *rows("asyncio, stub", asyncio.run(on_a_loop_over_a_stub(rounds, pairs))),
    ]
    with serving(RedisServer) as server:
        plain, library = over(server.url, rounds, pairs)
        async_plain, async_library = asyncio.run(on_a_loop_over(server.url, rounds, pairs))
    lines += rows("threads, Redis", plain) + rows("asyncio, Redis", async_plain)
    lines += rows("threads, Redis; by hand: redis-py", library)
    lines += rows("asyncio, Redis; by hand: redis.asyncio", async_library)
    return "\n".join(lines) + "\n"


def profile(face: str) -> None:
    """Where it goes, over the stub."""
    with cProfile.Profile() as recorder:
        if face == "threads":
            over_a_stub(20, 500)
        else:
            asyncio.run(on_a_loop_over_a_stub(20, 500))
    pstats.Stats(recorder).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    if sys.argv[1:2] == ["profile"]:
        profile(sys.argv[2])
    else:
        print(main())
