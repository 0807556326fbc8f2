"""Nodes of a quorum that die, pause, fall silent, lose their memory or are full, and networks that break."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from onlooker import Onlooker
from proxy import TcpProxy, listening
from quorum_servers import SYNCED, QuorumServers, url_of
from servers import RedisServer, eventually

from holdfast import Unavailable

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]


def quorum_in(folder: Path, *arguments: str) -> QuorumServers:
    folder.mkdir()
    return QuorumServers(folder, *arguments)


@pytest.fixture
def quorum(tmp_path: Path) -> Iterator[QuorumServers]:
    """Five that sync each write."""
    with quorum_in(tmp_path / "quorum", *SYNCED) as servers:
        yield servers


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[QuorumServers]:
    """Five that keep nothing over a restart."""
    with quorum_in(tmp_path / "quorum", "--appendonly", "no") as servers:
        yield servers


@pytest.fixture
def proxies(quorum: QuorumServers) -> Iterator[list[TcpProxy]]:
    """A network between clients and each node."""
    proxies = [TcpProxy(server.port) for server in quorum.servers]
    yield proxies
    for proxy in proxies:
        proxy.close()


def through(proxies: list[TcpProxy]) -> str:
    return url_of([proxy.port for proxy in proxies])


def claims_on(server: RedisServer) -> bool:
    """Whether somebody holds something on this node."""
    return b":h\r\n" in server.command("KEYS", "holdfast:quorum:*:h")


def each(client: Any, name: str = "x") -> int:
    """Take it and give it back."""
    lease = client.lock(name).acquire(timeout_s=20)
    lease.release()
    return int(lease.token)


# -- nodes that are gone


def test_a_minority_of_dead_nodes_stops_nobody(quorum: QuorumServers, connect: Connect) -> None:
    client = connect(quorum.url)
    lease = client.lock("kept", ttl_s=2.0).acquire()
    tokens = [each(client)]
    opened = client.cell("ledger").open(lease)
    for server in quorum.servers[:2]:
        server.kill()
    tokens += [each(client) for _ in range(3)]
    opened.put(b"with two dead")
    tokens.append(each(connect(quorum.url)))  # who comes now finds the three
    assert tokens == sorted(set(tokens))
    assert client.cell("ledger").read().value == b"with two dead"
    lease.ensure_held()
    lease.release()


def test_without_a_majority_all_is_refused_and_with_it_back_all_goes_on(
    quorum: QuorumServers, connect: Connect
) -> None:
    client = connect(quorum.url, patience_s=1.0)
    lease = client.lock("kept", ttl_s=30.0).acquire()
    client.cell("ledger").open(lease).put(b"before")
    for server in quorum.servers[:3]:
        server.kill()
    with pytest.raises(Unavailable, match="majority"):
        client.lock("x").acquire(timeout_s=5)
    with pytest.raises(Unavailable, match="majority"):
        client.cell("ledger").read()
    for server in quorum.servers[:3]:
        server.start()
    assert each(client) > 0
    assert client.cell("ledger").read().value == b"before"
    assert not client.lock("kept").try_acquire()  # they have not forgotten it
    client.cell("ledger").open(lease).put(b"after")
    lease.release()


def test_a_lease_goes_on_over_a_restart_of_nodes_that_sync(quorum: QuorumServers, connect: Connect) -> None:
    client = connect(quorum.url)
    lease = client.lock("x", ttl_s=3.0).acquire()
    for server in quorum.servers:  # one after another, all of them
        server.restart()
    last_s = lease.remaining_s
    eventually(lambda: lease.remaining_s > last_s, 10)
    assert lease.state == "HELD"
    lease.release()


# -- nodes that lost their memory


def test_a_majority_that_restarted_empty_inside_a_lease_lets_nobody_in_before_its_end(
    forgetful: QuorumServers, connect: Connect
) -> None:
    holder, other = connect(forgetful.url), connect(forgetful.url, patience_s=30.0)
    lease = holder.lock("x", ttl_s=4.0, renew=False).acquire()
    for server in forgetful.servers[:2]:
        server.restart()
    eventually(lambda: not other.lock("x", ttl_s=4.0).try_acquire())  # the other three know
    forgetful.servers[2].restart()  # now three of five have forgotten it
    second = other.lock("x", ttl_s=4.0).acquire(timeout_s=30)
    assert lease.remaining_s <= 0
    assert second.token > lease.token
    second.release()


def test_a_node_that_lost_its_memory_counts_again_after_the_longest_lease(
    forgetful: QuorumServers, connect: Connect
) -> None:
    client = connect(forgetful.url, patience_s=1.5)
    tokens = []
    for _ in range(3):
        lease = client.lock("a", ttl_s=6.0).acquire()  # the longest that there ever was
        tokens.append(lease.token)
        lease.release()
    for server in forgetful.servers[:2]:
        server.restart()
    client.lock("a", ttl_s=1.0).acquire().release()  # three of five will do
    forgetful.servers[4].pause()
    with pytest.raises(Unavailable, match="sit out"):  # and two will not
        client.lock("a", ttl_s=1.0).acquire(timeout_s=3)
    forgetful.servers[4].resume()  # without it, nobody knows the highest token for sure

    def all_count() -> bool:
        client.lock("b", ttl_s=1.0).acquire(timeout_s=3).release()
        return all(b"run" in server.command("HKEYS", "holdfast:quorum:node") for server in forgetful.servers)

    eventually(all_count)
    for server in forgetful.servers[3:]:
        server.kill()
    lease = client.lock("a", ttl_s=1.0).acquire(timeout_s=10)
    assert [*tokens, lease.token] == sorted({*tokens, lease.token})
    lease.release()


# -- nodes that do not answer


def test_a_paused_node_slows_nobody_down_and_keeps_nothing(quorum: QuorumServers, connect: Connect) -> None:
    client = connect(quorum.url)
    each(client)
    quorum.servers[0].pause()
    started = time.monotonic()
    tokens = [each(client) for _ in range(200)]
    assert time.monotonic() - started < 20  # no call has waited for it
    assert tokens == sorted(set(tokens))
    quorum.servers[0].resume()
    eventually(lambda: not claims_on(quorum.servers[0]), 10)
    assert each(client) > tokens[-1]


def test_a_holder_and_a_waiter_outlive_a_silent_minority(
    quorum: QuorumServers, proxies: list[TcpProxy], connect: Connect, onlooker: Look
) -> None:
    look = onlooker(quorum.url)
    client = connect(through(proxies))
    lease = client.lock("x", ttl_s=3.0).acquire()
    eventually(lambda: all(map(claims_on, quorum.servers)))  # one that was slow at first is won by a renewal
    waiter = Waiting(connect(through(proxies)))
    eventually(lambda: look.waiters("x") == 1)
    for proxy in proxies[:2]:
        proxy.silence()
    before_s = lease.remaining_s
    eventually(lambda: lease.remaining_s > before_s)
    lease.ensure_held()
    lease.release()
    assert waiter.entered().token > lease.token


def test_a_silent_majority_ends_a_lease_at_its_time(proxies: list[TcpProxy], connect: Connect) -> None:
    client = connect(through(proxies), patience_s=1.0)
    lease = client.lock("x", ttl_s=1.5).acquire()
    for proxy in proxies[:3]:
        proxy.silence()
    eventually(lambda: lease.state == "UNSURE")
    assert lease.wait_lost(20)
    for proxy in proxies[:3]:
        proxy.heal()
    assert each(client) > lease.token


# -- requests and replies that are lost


def test_an_enter_whose_replies_were_lost_is_neither_lost_nor_doubled(
    quorum: QuorumServers, proxies: list[TcpProxy], connect: Connect, onlooker: Look
) -> None:
    look = onlooker(quorum.url)
    client = connect(through(proxies))
    each(client)
    for proxy in proxies[:3]:
        proxy.swallow_reply_to(b"EVALSHA")
    lease = client.lock("x").acquire(timeout_s=20)
    assert look.holders("x") == [lease.token]
    lease.release()
    eventually(lambda: not any(map(claims_on, quorum.servers)))


def test_a_leave_whose_replies_were_lost_has_let_go(
    quorum: QuorumServers, proxies: list[TcpProxy], connect: Connect
) -> None:
    client = connect(through(proxies))
    lease = client.lock("x").acquire()
    for proxy in proxies[:3]:
        proxy.swallow_reply_to(b"EVALSHA")
    lease.release()
    eventually(lambda: not any(map(claims_on, quorum.servers)))


def test_a_put_whose_replies_were_lost_lands_once(proxies: list[TcpProxy], connect: Connect) -> None:
    client = connect(through(proxies))
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    opened.put(b"first")
    for proxy in proxies[:3]:
        proxy.swallow_reply_to(b"EVALSHA")
    opened.set("once", b"value", create=True)
    opened.put(b"second")
    lease.release()
    found = client.cell("ledger").read()
    assert (found.value, dict(found.entries)) == (b"second", {"once": b"value"})


def test_connections_that_are_reset_are_made_anew(proxies: list[TcpProxy], connect: Connect) -> None:
    client = connect(through(proxies))
    lease = client.lock("x", ttl_s=2.0).acquire()
    for _ in range(3):
        for proxy in proxies:
            proxy.cut()
        assert each(client, "y") > 0
    before_s = lease.remaining_s
    eventually(lambda: lease.remaining_s > before_s)
    lease.release()


def test_a_node_that_missed_writes_of_a_cell_is_given_the_newest_before_it_counts(
    quorum: QuorumServers, proxies: list[TcpProxy], connect: Connect
) -> None:
    client = connect(through(proxies))
    lease = client.lock("x", ttl_s=2.0).acquire()
    opened = client.cell("ledger").open(lease)
    opened.put(b"all have this")
    for proxy in proxies[:2]:
        proxy.silence()
    opened.put(b"three have this")
    opened.set("entry", b"three")
    lease.release()
    for server in quorum.servers[3:]:  # one that has it, and the two that missed it, are left
        server.kill()
    other = connect(quorum.url)
    lease = other.lock("x").acquire(timeout_s=30)
    opened = other.cell("ledger").open(lease)
    assert opened.value == b"three have this"
    assert dict(other.cell("ledger").read().entries) == {"entry": b"three"}
    opened.put(b"after")
    assert other.cell("ledger").read().value == b"after"
    lease.release()


# -- signals


class Waiting:
    """Someone who waits for the lock ``x`` in a thread."""

    def __init__(self, client: Any) -> None:
        self.lease: Any = None
        self._lock = client.lock("x", ttl_s=3.0)
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        self.lease = self._lock.acquire(timeout_s=30)

    def entered(self) -> Any:
        self._thread.join(40)
        return self.lease


def test_a_waiter_whose_signals_are_lost_finds_out_by_looking(
    quorum: QuorumServers, proxies: list[TcpProxy], connect: Connect
) -> None:
    lease = connect(quorum.url).lock("x").acquire()
    waiter = Waiting(connect(through(proxies)))
    eventually(lambda: all(any(wire.listens for wire in proxy.wires) for proxy in proxies))
    for proxy in proxies:
        proxy.silence(listening)
    lease.release()
    assert waiter.entered().token > lease.token


# -- servers that are full


def test_full_nodes_take_no_new_claims_and_let_go_of_old_ones(quorum: QuorumServers, connect: Connect) -> None:
    client = connect(quorum.url, patience_s=1.0)
    lease = client.lock("x", ttl_s=2.0).acquire()
    for server in quorum.servers[:3]:
        server.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Unavailable, match="out of memory"):
        client.lock("y").acquire(timeout_s=3)
    before_s = lease.remaining_s
    eventually(lambda: lease.remaining_s > before_s)
    lease.release()
    eventually(lambda: not any(map(claims_on, quorum.servers[:3])))
    for server in quorum.servers[:3]:
        server.command("CONFIG", "SET", "maxmemory", "0")
    assert each(client) > lease.token
