"""A Redis cluster: slots that move, primaries that die, and what goes on meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from binascii import crc_hqx
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

redis = pytest.importorskip("redis")

from onlooker import Onlooker  # noqa: E402
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster  # noqa: E402
from redis.cluster import RedisCluster as BlockingRedisCluster  # noqa: E402
from redis_deployments import ClusterNode, RedisCluster, ask, info  # noqa: E402
from redis_live import Waiter, renewed  # noqa: E402
from servers import RedisServer, eventually, free_port  # noqa: E402

import holdfast  # noqa: E402
from holdfast import Misuse, OutcomeUnknown, Unavailable, Unsupported, aio  # noqa: E402
from holdfast.engines import resolve  # noqa: E402
from holdfast.model import Claim, Signal, Turnstile  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.timeout(90)]

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """One of the test's own, to be harmed, which is quick to fail over."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    with RedisCluster(folder, timeout_ms=2000) as cluster:
        yield cluster


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[RedisCluster]:
    """Three primaries without replicas, who go on serving what they can."""
    folder = tmp_path / "bare"
    folder.mkdir()
    arguments = ("--cluster-require-full-coverage", "no")
    with RedisCluster(folder, *arguments, replicas=False, timeout_ms=2000) as cluster:
        yield cluster


def slot_of(tag: str) -> int:
    return crc_hqx(tag.encode(), 0) % 16384


def lock_slot(name: str) -> int:
    return slot_of(f":lock:{name}")


def name_on(cluster: RedisCluster, node: ClusterNode, stem: str = "n") -> str:
    """A lock's name that this node serves."""
    return next(name for n in range(1000) if cluster.owner(lock_slot(name := f"{stem}{n}")) is node)


def has_caught_up(node: ClusterNode) -> bool:
    """Its replica has taken in all that it has."""
    said = info(node.port, "INFO REPLICATION")
    return f"offset={said['master_repl_offset']}," in said.get("slave0", "")


def ports(url: str) -> list[int]:
    return [int(host.rpartition(":")[2]) for host in url.partition("://")[2].split(",")]


class Move:
    """A slot on its way from its node to the next primary, step by step."""

    def __init__(self, cluster: RedisCluster, slot: int) -> None:
        self.slot = slot
        self.old = cluster.owner(slot)
        self.new = next(node for node in cluster.nodes[:3] if node is not self.old)
        self.nodes = cluster.nodes
        self.new.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.old.id)
        self.old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.new.id)

    def keys(self) -> None:
        """Hand the keys over that there are."""
        while keys := self.old.ask("CLUSTER", "GETKEYSINSLOT", self.slot, 100):
            self.old.ask("MIGRATE", "127.0.0.1", self.new.port, "", 0, 5000, "KEYS", *keys)

    def end(self) -> None:
        self.keys()
        for node in (self.new, self.old):
            node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self.new.id)


# -- slots that move


def test_a_slot_that_moves_again_and_again_lets_nobody_in_twice(
    cluster_url: str, cluster_session: RedisCluster, connect: Connect
) -> None:
    turns: list[int] = []
    inside: list[int] = []
    over = threading.Event()
    troubles: list[object] = []

    def work(client: Any, number: int) -> None:
        lock = client.lock("x", ttl_s=20)
        try:
            while not over.is_set():
                with_lease = lock.acquire(timeout_s=40)
                inside.append(number)
                if inside != [number]:
                    troubles.append(list(inside))
                turns.append(with_lease.token)
                inside.remove(number)
                with_lease.release()
        except Exception as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=work, args=(connect(cluster_url), n)) for n in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        before = len(turns)
        eventually(lambda before=before: len(turns) > before + 5, 40)
        Move(cluster_session, lock_slot("x")).end()
    over.set()
    for thread in threads:
        thread.join(60)
    assert troubles == []
    assert turns == sorted(set(turns))


def test_a_lease_and_its_waiter_outlive_a_slot_that_is_half_moved_for_a_while(
    cluster_url: str, cluster_session: RedisCluster, connect: Connect, onlooker: Look
) -> None:
    look = onlooker(cluster_url)
    lease = connect(cluster_url).lock("x", ttl_s=20).acquire()
    waiter = Waiter(look, connect(cluster_url), ttl_s=20, timeout_s=40)
    move = Move(cluster_session, lock_slot("x"))
    move.keys()  # from here on its keys are asked for at the new node, the slot is still the old one's
    assert look.holders("x") == [lease.token]
    with pytest.raises(Unavailable, match="is being moved"):  # a key that does not exist may be at either
        connect(cluster_url, patience_s=0.5).lock("x").try_acquire()
    move.end()
    lease.release()
    assert waiter.entered().token > lease.token
    waiter.lease.release()


def test_watchers_hear_of_changes_after_the_slot_has_moved(cluster_url: str, cluster_session: RedisCluster) -> None:
    engine = resolve(cluster_url, "", None)
    link, signals, numbers = engine.blocking_link(), list[Signal](), itertools.count()
    group = Turnstile("group", "workers", 1 << 30, announces=True)
    link.listen(signals.append, lambda: None)
    link.watch(group)
    Move(cluster_session, slot_of(":group:workers")).end()

    def hears() -> bool:  # a change while it connects anew is made up for by looking again
        link.call(engine.enter(group, Claim(f"m{next(numbers)}", 0, 30.0), False), 5.0)
        return bool(signals)

    eventually(hears)
    link.close()


def test_announcements_stay_within_their_shard_and_inboxes_reach_every_node(cluster_url: str) -> None:
    engine = resolve(cluster_url, "", None)
    link = engine.blocking_link()
    link.listen(lambda signal: None, lambda: None)
    group = Turnstile("group", "workers", 1 << 30, announces=True)
    link.watch(group)
    (node,) = [port for port in ports(cluster_url) if ask(port, "PUBSUB", "SHARDCHANNELS")]
    assert ask(node, "PUBSUB", "SHARDCHANNELS") == [engine.changed_channel(group)]  # type: ignore[attr-defined]
    link.close()


# -- nodes that die


def test_a_primary_that_dies_in_the_middle_of_a_wait_is_replaced_and_the_queue_goes_on(
    cluster: RedisCluster, connect: Connect, onlooker: Look
) -> None:
    look = onlooker(cluster.url)
    holder = connect(cluster.url)
    lease = holder.lock("x", ttl_s=40).acquire()
    opened = holder.cell("x").open(lease)
    opened.put(b"before")
    waiter = Waiter(look, connect(cluster.url), ttl_s=9, timeout_s=60)
    old = cluster.owner(lock_slot("x"))
    eventually(lambda: has_caught_up(old))
    old.kill()
    renewed(lease)  # on the next primary
    assert look.holders("x") == [lease.token]
    lease.release()
    assert waiter.entered().token > lease.token
    waiter.lease.release()


def test_without_a_replica_a_dead_primarys_names_are_unavailable_and_the_others_go_on(
    bare: RedisCluster, connect: Connect
) -> None:
    dead, alive = bare.nodes[0], bare.nodes[1]
    lost, kept = name_on(bare, dead), name_on(bare, alive)
    client = connect(bare.url, patience_s=2)
    lease = client.lock(kept, ttl_s=3).acquire()
    gone = client.lock(lost, ttl_s=3).acquire()
    dead.kill()
    with pytest.raises(Unavailable, match=rf"slot {lock_slot(lost)} of the cluster is not served"):
        client.lock(lost).acquire(timeout_s=20)
    assert gone.wait_lost(20)  # by its time
    renewed(lease)
    renewed(lease)
    assert lease.state == "HELD"
    lease.release()


def test_a_silent_primary_holds_up_no_others_leases(bare: RedisCluster, connect: Connect) -> None:
    silent, alive = bare.nodes[0], bare.nodes[1]
    client = connect(bare.url)
    leases = [client.lock(name_on(bare, node), ttl_s=4).acquire() for node in (silent, alive)]
    silent.pause()
    assert leases[0].wait_lost(30)
    assert leases[1].state == "HELD"
    renewed(leases[1])
    leases[1].release()
    silent.resume()


# -- who is asked, and how


def test_every_node_is_listed_and_any_seed_will_do(
    cluster_url: str, cluster_session: RedisCluster, connect: Connect
) -> None:
    names = sorted(name_on(cluster_session, node, "l") for node in cluster_session.nodes[:3])
    client = connect(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{cluster_session.nodes[4].port}")
    leases = [client.lock(name).acquire() for name in names]
    engine = resolve(cluster_url, "", None)
    link = engine.blocking_link()
    assert [turnstile.name for turnstile in link.call(engine.list("lock:l"), 5.0)] == names
    link.close()
    for lease in leases:
        lease.release()


def test_a_plain_url_at_a_node_and_a_cluster_url_at_a_plain_server_say_what_to_write(
    cluster_url: str, cluster_session: RedisCluster, redis_session: RedisServer, connect: Connect
) -> None:
    node = cluster_session.nodes[0]
    elsewhere = name_on(cluster_session, cluster_session.nodes[1])
    with pytest.raises(Unsupported, match=r"redis\+cluster://"):
        connect(f"redis://127.0.0.1:{node.port}").lock(elsewhere).acquire()
    with pytest.raises(Misuse, match=f"redis://127.0.0.1:{redis_session.port}"):
        connect(f"redis+cluster://127.0.0.1:{redis_session.port}").lock("x").acquire()
    with pytest.raises(Unavailable, match="no node of the cluster answers"):
        connect(f"redis+cluster://127.0.0.1:{free_port()}", patience_s=0.5).lock("x").acquire()


def test_a_wrong_password_is_misuse(cluster_url: str, connect: Connect) -> None:
    with pytest.raises(Misuse, match="refused the user or password") as refused:
        connect(cluster_url.replace("://", "://nobody:wr0ng@")).lock("x").acquire()
    assert "wr0ng" not in str(refused.value)


def test_without_its_replica_nothing_is_held_that_asked_for_one(cluster: RedisCluster, connect: Connect) -> None:
    client = connect(f"{cluster.url}?wait_replicas=1&wait_timeout_s=0.2", patience_s=2)
    client.lock("x").acquire().release()
    number = cluster.nodes.index(cluster.owner(lock_slot("x")))
    cluster.nodes[number + 3].pause()
    with pytest.raises((Unavailable, OutcomeUnknown), match="replicas"):
        client.lock("x").acquire(timeout_s=20)
    cluster.nodes[number + 3].resume()
    client.lock("x").acquire(timeout_s=20).release()


# -- clients of the user's own


def test_the_users_own_cluster_client_is_taken(cluster_url: str, cluster_session: RedisCluster, onlooker: Look) -> None:
    own = BlockingRedisCluster(host="127.0.0.1", port=cluster_session.nodes[0].port)
    with holdfast.connect(own) as client, client.lock("x") as lease:
        assert onlooker(cluster_url).holders("x") == [lease.token]
    own.close()


def test_the_users_own_asyncio_cluster_client_is_taken(
    cluster_url: str, cluster_session: RedisCluster, onlooker: Look
) -> None:
    look = onlooker(cluster_url)

    async def main() -> None:
        own = AsyncRedisCluster(host="127.0.0.1", port=cluster_session.nodes[0].port)
        async with aio.connect(own) as client, client.lock("x") as lease:
            assert await asyncio.to_thread(look.holders, "x") == [lease.token]
        await own.aclose()

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_connections_of_its_own(cluster_url: str, onlooker: Look) -> None:
    look = onlooker(cluster_url)
    with holdfast.connect(cluster_url) as client, client.lock("x", ttl_s=30) as lease:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with client.lock("y"):
                    code = 0 if client.lock("x").try_acquire() is None else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert look.holders("x") == [lease.token]
