"""Faults on one ZooKeeper: sessions that are in doubt or over, replies and requests that are lost or late."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from onlooker import Onlooker
from peer import Peer
from proxy import TcpProxy, standing
from servers import eventually
from zookeeper_live import LONG, SHORT, Waiter, desk_of, expire
from zookeeper_server import ZooKeeperServer

import holdfast
from holdfast import LeaseLost, StaleToken, Unavailable, Unsupported
from holdfast.hooks import Event

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]


@pytest.fixture
def proxy(zookeeper_session: ZooKeeperServer) -> Iterator[TcpProxy]:
    """A network between clients and the server."""
    proxy = TcpProxy(zookeeper_session.port)
    yield proxy
    proxy.close()


@pytest.fixture
def through(proxy: TcpProxy, zookeeper_url: str) -> str:
    """The same tree, through the proxy."""
    return f"zookeeper://127.0.0.1:{proxy.port}/{zookeeper_url.rpartition('/')[2]}"


@pytest.fixture
def look(zookeeper_url: str, onlooker: Look) -> Onlooker:
    return onlooker(zookeeper_url)


# -- sessions


def test_a_broken_connection_is_unsure_at_once_and_held_again_with_the_same_token(
    zookeeper_server: ZooKeeperServer, connect: Connect, onlooker: Look
) -> None:
    steps: list[Event] = []
    client = connect(f"{zookeeper_server.url}?{LONG}", hooks=[steps.append])
    lease = client.lock("x").acquire()
    zookeeper_server.kill()
    eventually(lambda: lease.state == "UNSURE")  # its renewal would have been due in ten seconds
    zookeeper_server.start()
    eventually(lambda: lease.state == "HELD")
    assert onlooker(zookeeper_server.url).holders("x") == [lease.token]
    lease.release()
    assert [step.kind for step in steps if step.kind != "renewed"] == ["held", "unsure", "released"]


def test_an_expired_session_loses_its_leases_at_once_and_the_next_ones_data_stands(
    zookeeper_session: ZooKeeperServer, zookeeper_url: str, connect: Connect
) -> None:
    client, other = connect(f"{zookeeper_url}?{LONG}"), connect(f"{zookeeper_url}?{LONG}")
    lost = threading.Event()
    leases = [client.lock(name).acquire() for name in ("x", "y")]
    leases[0].on_lost(lost.set)
    opened = client.cell("ledger").open(leases[0])
    opened.put(b"first")
    expire(zookeeper_session, client)
    assert lost.wait(20)
    eventually(lambda: [lease.state for lease in leases] == ["LOST", "LOST"])
    following = other.lock("x").acquire(timeout_s=20)
    assert following.token > leases[0].token
    other.cell("ledger").open(following).put(b"second")
    with pytest.raises(StaleToken):
        opened.put(b"late")
    with pytest.raises(LeaseLost):
        leases[0].release()
    client.lock("y").acquire(timeout_s=20).release()  # in a new session
    following.release()


def test_a_waiter_whose_session_expired_queues_anew(
    zookeeper_session: ZooKeeperServer, zookeeper_url: str, connect: Connect, look: Onlooker
) -> None:
    holder, client = connect(f"{zookeeper_url}?{LONG}"), connect(f"{zookeeper_url}?{LONG}")
    lease = holder.lock("x").acquire()
    waiter = Waiter(look, client)
    (first,) = [claim.token for claim in look.claims("x") if not claim.admitted]
    expire(zookeeper_session, client)
    eventually(lambda: [claim.token > first for claim in look.claims("x") if not claim.admitted] == [True])
    lease.release()
    assert waiter.entered().token > first
    waiter.lease.release()
    assert look.claims("x") == ()


def test_after_a_killed_holder_the_next_enters_when_its_session_ends(
    zookeeper_url: str, connect: Connect, start_peer: Callable[..., Peer]
) -> None:
    holder = start_peer(f"{zookeeper_url}?{SHORT}")
    token = holder.do("acquire", "x")
    holder.signal(signal.SIGKILL)
    lease = connect(f"{zookeeper_url}?{LONG}").lock("x").acquire(timeout_s=30)
    assert lease.token > token
    lease.release()


def test_a_holder_paused_past_its_session_is_told_and_refused(
    zookeeper_url: str, connect: Connect, start_peer: Callable[..., Peer], look: Onlooker
) -> None:
    paused = start_peer(f"{zookeeper_url}?{SHORT}")
    token = paused.do("acquire", "x")
    paused.do("open", "ledger")
    paused.do("put", "first")
    paused.signal(signal.SIGSTOP)
    client = connect(f"{zookeeper_url}?{LONG}")
    lease = client.lock("x").acquire(timeout_s=30)
    opened = client.cell("ledger").open(lease)
    assert (opened.value, lease.token > token) == (b"first", True)
    opened.put(b"second")
    paused.signal(signal.SIGCONT)
    assert paused.do("state") == "LOST"  # by its own clock, before it has heard of anybody
    with pytest.raises(StaleToken):
        paused.do("put", "written in the past")
    with pytest.raises(LeaseLost):
        paused.do("release")
    assert look.cell("ledger").value == b"second"
    assert look.holders("x") == [lease.token]
    lease.release()


def test_a_killed_waiter_holds_up_those_behind_it_for_no_longer_than_its_session(
    zookeeper_url: str, connect: Connect, start_peer: Callable[..., Peer], look: Onlooker
) -> None:
    holder = connect(f"{zookeeper_url}?{LONG}").lock("x").acquire()
    killed = start_peer(f"{zookeeper_url}?{SHORT}")
    killed.order("acquire", "x")
    eventually(lambda: look.waiters("x") == 1)
    behind = Waiter(look, connect(f"{zookeeper_url}?{LONG}"))
    killed.signal(signal.SIGKILL)
    holder.release()
    assert behind.entered().token > holder.token
    behind.lease.release()


def test_what_ended_by_its_time_is_given_back_while_the_session_goes_on(
    zookeeper_url: str, connect: Connect, look: Onlooker
) -> None:
    client = connect(f"{zookeeper_url}?ttl_s=3")
    lease = client.lock("x", renew=False).acquire()
    kept = client.lock("y").acquire()
    following = connect(f"{zookeeper_url}?{LONG}").lock("x").acquire(timeout_s=30)
    assert (lease.state, kept.state) == ("LOST", "HELD")
    assert following.token > lease.token
    following.release()
    kept.release()
    assert look.claims("x") == ()


def test_a_lease_is_bound_to_its_session(zookeeper_url: str, connect: Connect) -> None:
    client = connect(f"{zookeeper_url}?ttl_s=20")
    assert client.capabilities.ttl_s == 20
    with pytest.raises(Unsupported, match="ttl_s: 20 here"):
        client.lock("x", ttl_s=15.0)
    lease = client.lock("x", ttl_s=20.0).acquire()
    assert 15 < lease.remaining_s < 20
    with pytest.raises(Unsupported, match="cannot change hands"):
        lease.detach()
    assert lease.state == "HELD"
    lease.release()


def test_a_restart_of_the_server_keeps_leases_and_waiters(
    zookeeper_server: ZooKeeperServer, connect: Connect, onlooker: Look
) -> None:
    url = f"{zookeeper_server.url}?{LONG}"
    client, other = connect(url, patience_s=30.0), connect(url, patience_s=30.0)
    lease = client.lock("x").acquire()
    look = onlooker(zookeeper_server.url)
    waiter = Waiter(look, other)
    tokens = [claim.token for claim in look.claims("x")]
    zookeeper_server.restart()
    eventually(lambda: lease.state == "HELD")
    lease.release()
    entered = waiter.entered()
    assert [lease.token, entered.token] == tokens
    entered.release()


def test_a_server_that_comes_back_without_its_data_ends_all_leases_at_once_and_serves_again(
    zookeeper_server: ZooKeeperServer, connect: Connect, onlooker: Look
) -> None:
    url = f"{zookeeper_server.url}?{LONG}"
    client, other = connect(url, patience_s=30.0), connect(url, patience_s=30.0)
    lease = client.lock("x").acquire()
    client.cell("ledger").open(lease).put(b"gone")
    waiter = Waiter(onlooker(zookeeper_server.url), other)
    zookeeper_server.kill()
    zookeeper_server.forget()
    zookeeper_server.start()
    eventually(lambda: lease.state == "LOST")  # by its time it would be in 29 seconds
    entered = waiter.entered()
    assert other.cell("ledger").open(entered).value is None
    entered.release()
    client.lock("x").acquire(timeout_s=20).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_holds_nothing_and_disturbs_nobody(zookeeper_url: str, look: Onlooker) -> None:
    client = holdfast.connect(f"{zookeeper_url}?{LONG}")
    with client.lock("x") as lease:
        waiter = Waiter(look, client)
        child = os.fork()
        if not child:
            ends = 1
            try:
                with holdfast.connect(zookeeper_url) as own:
                    ends = 0 if not lease.is_held and own.lock("x").try_acquire() is None else 2
            finally:
                os._exit(ends)
        assert os.waitpid(child, 0)[1] == 0
        assert look.holders("x") == [lease.token]
    assert waiter.entered().token > lease.token
    waiter.lease.release()
    client.close()


# -- the network


def test_a_connection_that_was_reset_is_made_again_and_costs_no_lease(
    proxy: TcpProxy, through: str, connect: Connect, look: Onlooker
) -> None:
    steps: list[Event] = []
    lease = connect(f"{through}?{LONG}", hooks=[steps.append]).lock("x").acquire()
    proxy.cut()
    eventually(lambda: [step.kind for step in steps] == ["held", "unsure", "renewed"])
    assert look.holders("x") == [lease.token]
    lease.release()


def test_one_dead_connection_costs_no_lease_where_a_new_one_would_do(
    proxy: TcpProxy, through: str, connect: Connect, look: Onlooker
) -> None:
    steps: list[Event] = []
    client = connect(f"{through}?ttl_s=4", hooks=[steps.append])
    lease = client.lock("x").acquire()
    proxy.silence(standing)
    eventually(lambda: len(proxy.wires) > 1)
    eventually(lambda: steps[-1].kind == "renewed")
    assert lease.state == "HELD"
    assert look.holders("x") == [lease.token]
    lease.release()
    assert "lost" not in [step.kind for step in steps]


def test_a_server_that_takes_a_connection_and_never_answers_on_it_costs_no_lease(
    proxy: TcpProxy, through: str, connect: Connect
) -> None:
    """As one does that is just starting."""
    lease = connect(f"{through}?ttl_s=9").lock("x").acquire()  # the server itself would hang up after ten
    proxy.silence()
    proxy.cut(lambda wire: wire is proxy.wires[0])
    eventually(lambda: lease.state == "UNSURE" and len(proxy.wires) == 2)
    proxy.silence(standing)
    eventually(lambda: lease.state == "HELD")
    lease.release()


def test_a_silence_loses_the_lease_on_time_and_before_the_next_enters(
    proxy: TcpProxy, through: str, zookeeper_url: str, connect: Connect, look: Onlooker
) -> None:
    lease = connect(f"{through}?{SHORT}", patience_s=1.0).lock("x").acquire()
    proxy.silence()
    following = Waiter(look, connect(f"{zookeeper_url}?{LONG}")).entered()
    assert lease.state == "LOST"
    assert following.token > lease.token
    with pytest.raises(LeaseLost):
        lease.release()
    following.release()
    proxy.heal()
    eventually(lambda: not look.claims("x"))


def test_a_hand_over_arrives_although_the_waiters_connection_broke(
    proxy: TcpProxy, through: str, zookeeper_url: str, connect: Connect, look: Onlooker
) -> None:
    holder = connect(f"{zookeeper_url}?{LONG}").lock("x").acquire()
    waiter = Waiter(look, connect(f"{through}?{LONG}"))
    proxy.silence(standing)  # the event comes to nobody
    holder.release()
    proxy.cut(standing)
    assert waiter.entered().token > holder.token
    waiter.lease.release()


# -- replies and requests


def test_a_created_node_whose_reply_was_lost_is_found_and_never_doubled(
    proxy: TcpProxy, through: str, connect: Connect, look: Onlooker
) -> None:
    client = connect(f"{through}?{LONG}")
    client.ping()
    proxy.swallow_reply_to(b"/1c!")
    lease = client.lock("x").acquire()
    assert proxy.happened.is_set()
    (claim,) = look.claims("x")
    assert claim.token == lease.token
    lease.release()
    assert look.claims("x") == ()


def test_a_refusal_whose_reply_was_lost_leaves_nothing(
    proxy: TcpProxy, through: str, zookeeper_url: str, connect: Connect, look: Onlooker
) -> None:
    holder = connect(f"{zookeeper_url}?{LONG}").lock("x").acquire()
    client = connect(f"{through}?{LONG}")
    client.ping()
    proxy.swallow_reply_to(b"/1w!")
    assert client.lock("x").try_acquire() is None
    assert proxy.happened.is_set()
    assert look.holders("x") == [holder.token]
    assert look.waiters("x") == 0
    holder.release()


def test_a_release_whose_reply_was_lost_is_a_release_and_no_loss(
    proxy: TcpProxy, through: str, connect: Connect, look: Onlooker
) -> None:
    client = connect(f"{through}?{LONG}")
    lease = client.lock("x").acquire()
    proxy.swallow_reply_to(b"/1c!")
    lease.release()
    assert proxy.happened.is_set()
    assert lease.state == "RELEASED"
    eventually(lambda: not look.claims("x"))


def test_a_put_whose_reply_was_lost_lands_once(proxy: TcpProxy, through: str, connect: Connect, look: Onlooker) -> None:
    client = connect(f"{through}?{LONG}")
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    opened.put(b"one")
    proxy.swallow_reply_to(b"\x00\x03two")
    opened.put(b"two")
    assert proxy.happened.is_set()
    opened.put(b"three")
    cell = look.cell("ledger")
    assert (cell.value, cell.version) == (b"three", 4)
    lease.release()


def test_an_enter_that_comes_long_after_it_was_given_up_leaves_no_orphan(
    proxy: TcpProxy, through: str, connect: Connect, look: Onlooker
) -> None:
    client = connect(f"{through}?{LONG}", patience_s=1.0)
    client.ping()
    desk = desk_of(client)
    proxy.silence()
    with pytest.raises(Unavailable):
        client.lock("x").acquire(timeout_s=1.0)
    assert not desk.places
    proxy.heal()  # all that was sent arrives, on connections old and new
    client.ping()
    eventually(lambda: not look.claims("x"))
    client.lock("x").acquire(timeout_s=20).release()
