"""Many who wait on ZooKeeper: each is woken when it can enter, by the fewest watches, and costs no thread."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from onlooker import Onlooker
from servers import eventually
from zookeeper_live import LONG
from zookeeper_server import ZooKeeperServer

from holdfast import AcquireTimeout, aio

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
InThreads = Callable[[list[Callable[[], None]]], None]


class Inside:
    """How many are inside at a time."""

    def __init__(self) -> None:
        self.now = collections.Counter[str]()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def counted(self, what: str) -> Iterator[None]:
        with self._lock:
            self.now[what] += 1
        yield
        with self._lock:
            self.now[what] -= 1


@pytest.fixture
def look(zookeeper_url: str, onlooker: Callable[[str], Onlooker]) -> Onlooker:
    return onlooker(zookeeper_url)


@pytest.fixture
def in_threads() -> InThreads:
    """Run each in a thread of its own until all have ended, and raise what one raised."""

    def run(works: list[Callable[[], None]]) -> None:
        trouble: list[Exception] = []

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except Exception as error:
                trouble.append(error)

        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert trouble == []

    return run


@pytest.mark.parametrize(("permits", "clients"), [(2, 6), (1, 4)])
def test_no_wake_up_is_lost_with_several_permits_and_a_queue(
    zookeeper_url: str, connect: Connect, look: Onlooker, in_threads: InThreads, permits: int, clients: int
) -> None:
    """Renewals would mend it after ten seconds: so would nothing here."""
    inside = Inside()

    def work(client: Any) -> None:
        semaphore = client.semaphore("s", permits)
        for _ in range(20):
            lease = semaphore.acquire(timeout_s=8.0)
            with inside.counted("claims"):
                assert inside.now["claims"] <= permits
            lease.release()

    in_threads([functools.partial(work, connect(f"{zookeeper_url}?{LONG}")) for _ in range(clients)])
    assert look.claims("s", "semaphore") == ()


def test_readers_and_writers_wake_one_another(zookeeper_url: str, connect: Connect, in_threads: InThreads) -> None:
    inside = Inside()

    def work(client: Any, number: int) -> None:
        lock = client.rwlock("rw")
        for turn in range(12):
            writes = (turn + number) % 3 == 0
            lease = (lock.write() if writes else lock.read()).acquire(timeout_s=8.0)
            with inside.counted("writers" if writes else "readers"):
                assert inside.now["writers"] <= (0 if inside.now["readers"] else 1)
            lease.release()

    in_threads([functools.partial(work, connect(f"{zookeeper_url}?{LONG}"), number) for number in range(5)])


def test_a_waiter_that_gives_up_lets_those_behind_it_in(
    zookeeper_url: str, connect: Connect, look: Onlooker, in_threads: InThreads
) -> None:
    first, heavy, light = (connect(f"{zookeeper_url}?{LONG}") for _ in range(3))
    held = first.semaphore("x", 2).acquire()

    def give_up() -> None:
        with pytest.raises(AcquireTimeout):
            heavy.semaphore("x", 2, weight=2).acquire(timeout_s=3.0)

    def enter() -> None:
        eventually(lambda: [claim.admitted for claim in look.claims("x", "semaphore")] == [True, False])
        light.semaphore("x", 2).acquire(timeout_s=8.0).release()

    in_threads([give_up, enter])
    held.release()
    assert look.claims("x", "semaphore") == ()


# -- what is watched


def watched(server: ZooKeeperServer, url: str) -> list[int]:
    """How many sessions watch each claim that is watched at all, in the order of the claims."""
    counts: dict[str, int] = {}
    path = ""
    for line in server.word("wchp").decode().splitlines():
        if line.startswith("/"):
            path = line
        elif line and f"/{url.rpartition('/')[2]}/" in path and "/1c!" in path:
            counts[path] = counts.get(path, 0) + 1
    return [counts[path] for path in sorted(counts, key=lambda path: path.rpartition("!")[2])]


def waiting(clients: list[Any], kind: str, look: Onlooker, take: Callable[[Any], Any]) -> list[threading.Thread]:
    """Those that wait, one after the other; each releases what it got."""
    threads: list[threading.Thread] = []
    for client in clients:
        before = len(look.claims("x", kind))
        threads.append(threading.Thread(target=lambda client=client: take(client).acquire(timeout_s=30).release()))
        threads[-1].start()
        eventually(lambda before=before: len(look.claims("x", kind)) == before + 1)
    return threads


@pytest.mark.parametrize(
    ("kind", "holders", "waiters", "watches"),
    [
        ("lock", 1, 4, [1, 1, 1, 1]),  # each his predecessor: a release wakes one
        ("rwlock", 1, 3, [3]),  # readers the writer, and not one another
        ("semaphore", 2, 3, [1, 2, 2, 1]),  # as many as there are permits
    ],
)
def test_only_what_keeps_a_claim_out_is_watched(
    zookeeper_session: ZooKeeperServer,
    zookeeper_url: str,
    connect: Connect,
    look: Onlooker,
    kind: str,
    holders: int,
    waiters: int,
    watches: list[int],
) -> None:
    takes: dict[str, Callable[[Any], Any]] = {
        "lock": lambda client: client.lock("x"),
        "rwlock": lambda client: client.rwlock("x").read(),
        "semaphore": lambda client: client.semaphore("x", 2),
    }
    clients = [connect(f"{zookeeper_url}?{LONG}") for _ in range(holders + waiters)]
    first = [(client.rwlock("x").write() if kind == "rwlock" else takes[kind](client)) for client in clients[:holders]]
    held = [one.acquire() for one in first]
    threads = waiting(clients[holders:], kind, look, takes[kind])
    eventually(lambda: watched(zookeeper_session, zookeeper_url) == watches)
    for lease in held:
        lease.release()
    for thread in threads:
        thread.join(30)
    assert look.claims("x", kind) == ()
    assert watched(zookeeper_session, zookeeper_url) == []


def test_waiting_on_asyncio_takes_no_thread(zookeeper_url: str, look: Onlooker) -> None:
    async def main() -> None:
        async with aio.connect(f"{zookeeper_url}?{LONG}") as client:
            lock = client.lock("x")
            lease = await lock.acquire()
            assert await asyncio.to_thread(look.waiters, "x") == 0  # what is needed to look is there now
            before = threading.active_count()
            waits = [asyncio.create_task(lock.acquire()) for _ in range(40)]
            await asyncio.to_thread(eventually, lambda: look.waiters("x") == 40)
            assert threading.active_count() < before + 10
            await lease.release()
            for wait in waits:
                await (await wait).release()

    asyncio.run(main())
    assert look.claims("x") == ()
