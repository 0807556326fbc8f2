"""The two classes that tutorials teach, used as tutorials use them."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from servers import eventually

import holdfast
from holdfast import ConsistentHash, DistributedLock, Misuse, Unavailable, Unsupported

# -- ConsistentHash

SERVERS = ["server1", "server2", "server3"]
KEYS = [f"user_{number}" for number in range(10_000)]


def test_every_key_has_a_node_and_always_the_same() -> None:
    ring = ConsistentHash(SERVERS, replicas=100)
    owners = [ring.get_node(key) for key in KEYS]
    assert owners == [ConsistentHash(reversed(SERVERS), 100).get_node(key) for key in KEYS]
    counts = Counter(owners)
    assert set(counts) == set(SERVERS)
    assert min(counts.values()) > len(KEYS) / 3 / 2
    assert ring.get_node(b"user_1") == ring.get_node("user_1")


def test_adding_a_node_moves_keys_to_it_only_and_removing_it_moves_them_back() -> None:
    ring = ConsistentHash(SERVERS)
    before = {key: ring.get_node(key) for key in KEYS}
    ring.add_node("server4")
    moved = {key: ring.get_node(key) for key in KEYS if ring.get_node(key) != before[key]}
    assert set(moved.values()) == {"server4"}
    assert len(KEYS) / 8 < len(moved) < len(KEYS) / 2
    ring.remove_node("server4")
    assert {key: ring.get_node(key) for key in KEYS} == before


def test_removing_a_node_moves_its_keys_only() -> None:
    ring = ConsistentHash(SERVERS)
    before = {key: ring.get_node(key) for key in KEYS}
    ring.remove_node("server2")
    assert all(ring.get_node(key) == owner for key, owner in before.items() if owner != "server2")
    assert {ring.get_node(key) for key in KEYS} == {"server1", "server3"}


def test_an_empty_ring_has_no_node() -> None:
    ring = ConsistentHash()
    assert ring.get_node("user_1") is None
    ring.add_node("server1")
    assert ring.get_node("user_1") == "server1"
    ring.remove_node("server1")
    assert ring.get_node("user_1") is None


def test_what_makes_no_sense_is_misuse_and_changes_nothing() -> None:
    ring = ConsistentHash(SERVERS)
    with pytest.raises(Misuse, match="server1"):
        ring.add_node("server1")
    with pytest.raises(Misuse, match="server9"):
        ring.remove_node("server9")
    for replicas in (0, -1, 1.5):
        with pytest.raises(Misuse):
            ConsistentHash(SERVERS, replicas=replicas)  # type: ignore[arg-type]
    assert {ring.get_node(key) for key in KEYS} == set(SERVERS)


def test_readers_in_other_threads_see_the_ring_before_a_change_or_after_it() -> None:
    ring = ConsistentHash(SERVERS)
    stop = threading.Event()

    def read() -> set[str | None]:
        seen: set[str | None] = set()
        while not stop.is_set():
            seen.update(ring.get_node(key) for key in KEYS[:50])
        return seen

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read) for _ in range(2)]
        for _ in range(30):
            ring.add_node("server4")
            ring.remove_node("server4")
        stop.set()
        assert all(one.result() <= {*SERVERS, "server4"} for one in reading)


# -- DistributedLock


@pytest.fixture(params=["url", "client", "sqlite"])
def target(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What a lock may be made with: a Redis client, as in the tutorials, or a URL."""
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "redis_url")
    if request.param != "client":
        yield url
        return
    client = pytest.importorskip("redis").Redis.from_url(url)
    yield client
    client.close()


def test_it_is_taken_and_given_back_once(target: Any) -> None:
    lock = DistributedLock("resource", target)
    assert lock.acquire() is True
    assert lock.acquire() is False
    assert lock.release() is True
    assert lock.release() is False
    assert lock.acquire(timeout=10) is True
    assert lock.release() is True


def test_another_object_neither_gets_it_nor_releases_it(target: Any) -> None:
    ours, theirs = DistributedLock("resource", target), DistributedLock("resource", target)
    assert ours.acquire()
    started = time.monotonic()
    assert theirs.acquire(timeout=60) is False
    assert time.monotonic() - started < 30  # it does not wait for those 60 seconds
    assert theirs.release() is False
    assert theirs.acquire() is False
    assert ours.release() is True
    assert theirs.acquire() is True
    assert theirs.release() is True


def test_it_ends_after_its_timeout_and_is_then_no_longer_ours(target: Any) -> None:
    ours, theirs = DistributedLock("resource", target), DistributedLock("resource", target)
    assert ours.acquire(timeout=0.3)
    eventually(theirs.acquire)
    assert ours.release() is False
    assert DistributedLock("resource", target).acquire() is False
    assert theirs.release() is True


def test_it_is_not_renewed(target: Any) -> None:
    lock = DistributedLock("resource", target)
    assert lock.acquire(timeout=0.3)
    eventually(lambda: lock.acquire(timeout=30))
    assert lock.release() is True


def test_one_of_many_threads_gets_it_and_any_may_release_it(target: Any) -> None:
    lock = DistributedLock("resource", target)
    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(lambda _: lock.acquire(), range(8))) == [False] * 7 + [True]
        assert sorted(threads.map(lambda _: lock.release(), range(8))) == [False] * 7 + [True]


def test_threads_with_locks_of_their_own_count_right(target: Any) -> None:
    """The tutorials' example: each makes its lock, tries until it has it, and adds one."""
    total = 0

    def add(_: int) -> None:
        nonlocal total
        lock = DistributedLock("counter", target)
        while not lock.acquire(timeout=30):
            time.sleep(0.001)
        try:
            seen = total
            time.sleep(0.001)
            total = seen + 1
        finally:
            assert lock.release()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(40)))
    assert total == 40


def test_an_object_thrown_away_releases_nothing(target: Any) -> None:
    assert DistributedLock("resource", target).acquire(timeout=30)
    gc.collect()
    assert DistributedLock("resource", target).acquire() is False


def test_it_is_the_same_lock_as_the_rest_of_holdfast_takes(target: Any) -> None:
    lock = DistributedLock("resource", target)
    assert lock.acquire()
    with holdfast.connect(target) as hf:
        assert hf.lock("resource").try_acquire() is None
        assert lock.release()
        with hf.lock("resource"):
            assert lock.acquire() is False


def test_locks_of_one_target_share_their_connections(redis_server: Any) -> None:
    def connections() -> int:
        return redis_server.command("CLIENT", "LIST").count(b" addr=")

    for number in range(20):
        lock = DistributedLock(f"resource{number}", redis_server.url)
        assert lock.acquire()
        assert lock.release()
        assert connections() <= 3  # with the one that asks, and the one before it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_holds_nothing_and_releases_nothing(sqlite_url: str) -> None:
    lock = DistributedLock("resource", sqlite_url)
    assert lock.acquire(timeout=60)
    child = os.fork()
    if child == 0:
        wrong = 1
        try:
            wrong = 2 * lock.release() + 4 * lock.acquire()
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lock.release() is True


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "60", None])
def test_a_timeout_that_is_none_is_misuse_and_takes_nothing(sqlite_url: str, timeout: Any) -> None:
    lock = DistributedLock("resource", sqlite_url)
    with pytest.raises(Misuse, match="ttl_s"):
        lock.acquire(timeout=timeout)
    assert DistributedLock("resource", sqlite_url).acquire() is True


@pytest.mark.parametrize("name", ["", "x" * 513, b"x", None], ids=ascii)
def test_a_name_that_is_none_is_refused_when_the_lock_is_made(sqlite_url: str, name: Any) -> None:
    with pytest.raises(Misuse, match="name"):
        DistributedLock(name, sqlite_url)


def test_a_target_that_is_none_is_refused_when_the_lock_is_made() -> None:
    for target, error in ((7, Misuse), ("redsi://localhost", Misuse), ("localhost", Misuse)):
        with pytest.raises(error, match=r"URL|redsi"):
            DistributedLock("resource", target)


def test_an_asyncio_client_is_told_where_to_go(redis_url: str) -> None:
    redis = pytest.importorskip("redis")
    with pytest.raises((Misuse, Unsupported), match=r"holdfast\.aio"):
        DistributedLock("resource", redis.asyncio.Redis.from_url(redis_url)).acquire()


def test_without_its_server_it_raises_and_says_so(redis_server: Any) -> None:
    lock = DistributedLock("resource", redis_server.url)
    assert lock.acquire(timeout=30)
    redis_server.kill()
    with pytest.raises(Unavailable, match=r"tried \d+ times"):
        lock.release()
