"""Many who wait need few connections and little of the server: of one process's tasks, of its threads, of a herd."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from etcd_server import EtcdServer
from herd import Costs, Read, etcd_says, herd, redis_says, sqlite_says
from postgres_server import PostgresServer
from proxy import TcpProxy, standing
from servers import RedisServer, Server, eventually
from zookeeper_live import LONG

import holdfast
from holdfast import aio
from holdfast.engines import resolve
from holdfast.engines.etcd import turnstile, vigil
from holdfast.engines.etcd.queue import Queue
from holdfast.engines.redis import links
from holdfast.engines.zookeeper.desk import Desk
from holdfast.engines.zookeeper.wire import GetChildren
from holdfast.model import Claim, Turnstile
from holdfast.worlds.threads import drive

pytestmark = pytest.mark.live


class Place(NamedTuple):
    """An engine, and how many connections to it one client's calls and signals may take: of tasks, of threads."""

    url: str
    server: Any
    of_tasks: int
    of_threads: int


PLACES = {"sqlite": (0, 0), "redis": (2, 65), "postgres": (2, 10), "zookeeper": (1, 1), "etcd": (1, 66)}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    engine = request.param
    url = request.getfixturevalue(f"{engine}_url")
    if engine == "zookeeper":
        url += f"?{LONG}"
    server = None if engine == "sqlite" else request.getfixturevalue(f"{engine}_session")
    return Place(url, server, *PLACES[engine])


def connections(server: Server | None) -> int:
    """From this machine to that server, as the system knows them."""
    if server is None:
        return 0
    to, established = f":{server.port:04X}", "01"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(to) and row[3] == established for row in rows)


# -- the tasks of one process


async def comes_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(50):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def wait_for_all(url: str, count: int, waiting: Callable[[], None]) -> None:
    """Tasks of one client wait for as many locks, each held by another; then all of them enter."""
    names = [f"lock{number}" for number in range(count)]
    async with aio.connect(url, patience_s=40) as other, aio.connect(url, patience_s=40) as client:
        held: list[aio.Lease] = []
        for start in range(0, count, 250):
            held += await asyncio.gather(*(other.lock(name).acquire() for name in names[start : start + 250]))
        waits = [asyncio.create_task(client.lock(name).acquire(timeout_s=50)) for name in names]
        tenures = client.session.tenures
        await comes_true(lambda: sum(tenure.token > 0 for tenure in tenures.values()) == count)
        waiting()
        for start in range(0, count, 250):
            await asyncio.gather(*(lease.release() for lease in held[start : start + 250]))
        leases = await asyncio.gather(*waits)
        assert len({lease.name for lease in leases if lease.is_held}) == count


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_tasks_that_wait_for_as_many_locks_share_one_or_two_connections(place: Place) -> None:
    before = connections(place.server)
    count = 5000 if isinstance(place.server, RedisServer) else 500

    def waiting() -> None:
        assert connections(place.server) <= before + 2 * place.of_tasks  # two clients

    asyncio.run(wait_for_all(place.url, count, waiting))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_five_thousand_tasks_wait_for_as_many_locks_on_every_engine(place: Place) -> None:
    asyncio.run(wait_for_all(place.url, 5000, lambda: None))


def test_thousands_of_claims_that_wait_are_renewed_by_a_few_requests(redis_server: RedisServer) -> None:
    count = 3000

    async def main() -> None:
        async with aio.connect(redis_server.url) as other, aio.connect(redis_server.url) as client:
            await other.lock("x", ttl_s=600).acquire()
            lock = client.lock("x", ttl_s=6)
            waits = [asyncio.create_task(lock.acquire()) for _ in range(count)]
            tenures = client.session.tenures
            await comes_true(lambda: sum(tenure.token > 0 for tenure in tenures.values()) == count)
            before, ends = redis_says(redis_server), {id: tenure.deadline for id, tenure in tenures.items()}
            await comes_true(lambda: all(tenures[id].deadline > end for id, end in ends.items()))
            assert redis_says(redis_server)["requests"] - before["requests"] <= count / 10
            for wait in waits:
                wait.cancel()

    asyncio.run(main())


# -- the threads of one process


def in_threads(count: int, work: Callable[[int], None]) -> Callable[[], None]:
    """Start them; what is returned waits until all have ended, and raises what one raised."""
    trouble: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()

    def end() -> None:
        for thread in threads:
            thread.join(50)
        assert not any(thread.is_alive() for thread in threads)
        assert trouble == []

    return end


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_five_hundred_threads_take_turns_for_a_bounded_number_of_connections(place: Place) -> None:
    """While the server is slow, which would be when each of them opened one of its own."""
    before, most, asked, inside = connections(place.server), 0, [0], [0] * 10
    with holdfast.connect(place.url, patience_s=40) as hf:
        drive(hf.session.listen())  # else all would wait for one connection: that for signals

        def work(number: int) -> None:
            asked.append(number)
            with hf.lock(f"own{number}"):
                pass
            with hf.lock(f"shared{number % 10}", timeout_s=50):
                inside[number % 10] += 1
                assert inside[number % 10] == 1
                inside[number % 10] -= 1

        with paused(place.server):
            end = in_threads(500, work)
            eventually(lambda: len(asked) > 500)
            for _ in range(100):
                most = max(most, connections(place.server))
                time.sleep(0.01)
        end()
    assert most <= before + place.of_threads


@contextlib.contextmanager
def paused(server: Server | None) -> Iterator[None]:
    if server is not None:
        server.pause()
    try:
        yield
    finally:
        if server is not None:
            server.resume()


def test_a_renewal_does_not_wait_behind_calls_that_hang(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_WIRES", 3)
    proxy = TcpProxy(redis_server.port)
    try:
        with holdfast.connect(proxy.url, patience_s=40) as hf:
            lease = hf.lock("kept", ttl_s=6).acquire()
            ready, go = threading.Barrier(4), threading.Event()

            def hang(number: int) -> None:
                with hf.lock(f"first{number}"):
                    ready.wait(20)
                go.wait(20)
                hf.lock(f"then{number}").acquire().release()

            end = in_threads(3, hang)
            ready.wait(20)
            proxy.silence(standing)
            go.set()
            left_s = [lease.remaining_s]

            def renewed() -> bool:
                left_s.append(lease.remaining_s)
                return left_s[-1] > left_s[-2]

            eventually(renewed)
            proxy.heal()
            end()
            lease.release()
    finally:
        proxy.close()


# -- a herd on one lock


def costs(url: str, read: Read, sizes: tuple[int, int], ttl_s: float | None = 60.0) -> list[tuple[Costs, Costs]]:
    """Of an arrival and of a hand-over, behind few and behind many."""
    return [asyncio.run(herd(url, size, 20, read, ttl_s)) for size in sizes]


def test_a_hand_over_takes_a_redis_as_many_commands_whoever_waits(redis_server: RedisServer) -> None:
    read = functools.partial(redis_says, redis_server)
    few, many = costs(redis_server.url, read, (10, 3000))
    assert [one["commands"] for one in many] == [one["commands"] for one in few]


def test_a_hand_over_takes_sqlite_as_many_steps_whoever_waits(tmp_path: Path) -> None:
    with sqlite_says() as read:
        few, many = costs(f"sqlite:///{tmp_path}/herd.db", read, (100, 2000))
    assert [one["steps"] for one in many] == pytest.approx([one["steps"] for one in few], rel=0.2)


def test_a_hand_over_reads_as_few_pages_of_a_postgres_whoever_waits(
    postgres_url: str, postgres_session: PostgresServer
) -> None:
    """As the plan is made, before anybody counted the rows."""

    def pages(waiters: int) -> int:
        postgres_session.empty()
        engine = resolve(postgres_url, "", None)
        link = engine.blocking_link()
        claims = [Claim(f"c{number}", 1, 60.0) for number in range(waiters)]
        link.call_many([engine.enter(Turnstile("lock", "herd", 1), claim, False) for claim in claims], 30.0)
        link.close()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            read = 0
            for _ in range(3):  # the first of a session also reads what the schema is
                ((address, id),) = connection.execute(
                    "SELECT t.address, c.id FROM holdfast.turnstile t JOIN holdfast.claim c ON c.turnstile = t.id "
                    "ORDER BY c.token LIMIT 1"
                )
                ((plan,),) = connection.execute(
                    "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT holdfast.leave(%s, %s, false, 0)", (address, id)
                )
                read = plan[0]["Plan"]["Shared Hit Blocks"]
        return read

    assert pages(3000) <= 2 * pages(10)


def test_a_hand_over_takes_a_zookeeper_one_request_whoever_waits(
    zookeeper_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the one who leaves; the listing that a newcomer needs is not asked for."""
    counted = {"requests": 0.0, "listings": 0.0}  # here, where no pings are among them

    def exchange(self: Desk, requests: Sequence[Any], done: Callable[[list[Any]], None]) -> None:
        counted["requests"] += len(requests)
        counted["listings"] += sum(type(one) is GetChildren for one in requests)
        sent(self, requests, done)

    sent = Desk.exchange
    monkeypatch.setattr(Desk, "exchange", exchange)

    def read() -> Costs:
        return dict(counted)

    for _, hand_over in costs(f"{zookeeper_url}?{LONG}", read, (10, 300), None):
        assert hand_over["listings"] <= 1 / 20  # the first, who did not wait, leaves without saying so
        assert hand_over["requests"] <= 1.1  # and a ping at times


def test_a_hand_over_lists_no_queue_of_an_etcd_whoever_waits(
    etcd_url: str, etcd_session: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = 0

    def counted(*args: Any) -> Queue:
        nonlocal listings
        listings += 1
        return turnstile.queue_of(*args)

    monkeypatch.setattr(vigil, "queue_of", counted)

    def read() -> Costs:
        return {**etcd_says(etcd_session), "listings": listings}

    few, many = (one for _, one in costs(etcd_url, read, (10, 300)))
    assert few["listings"] == many["listings"] == 0
    assert many["requests"] <= few["requests"] + 0.5
    assert many["bytes"] <= 1.5 * few["bytes"]
