"""Faults on three ZooKeepers that agree: who holds goes on while two of them do, and knows better when they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onlooker import Onlooker
from servers import eventually, free_port
from zookeeper_live import LONG, SHORT, Waiter, desk_of
from zookeeper_server import ZooKeeperEnsemble, ZooKeeperServer

from holdfast import LeaseLost, Unavailable
from holdfast.hooks import Event

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]


def server_of(ensemble: ZooKeeperEnsemble, client: Any) -> ZooKeeperServer:
    """The one that this client is connected to."""
    port = desk_of(client).client._connection._socket.getpeername()[1]
    return next(server for server in ensemble.servers if server.port == port)


def test_leases_and_waiters_outlive_the_leader(
    zookeeper_ensemble: ZooKeeperEnsemble, connect: Connect, onlooker: Look
) -> None:
    url = f"{zookeeper_ensemble.url}?{LONG}"
    client, others = connect(url, patience_s=30.0), [connect(url, patience_s=30.0) for _ in range(2)]
    look = onlooker(url)
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    waiters = [Waiter(look, other) for other in others]
    zookeeper_ensemble.leader().kill()
    eventually(lambda: lease.state == "HELD" and zookeeper_ensemble.leader() is not None, 30)
    opened.put(b"written after the election")
    lease.release()
    entered = waiters[0].entered()
    assert entered.token > lease.token
    assert others[0].cell("ledger").open(entered).value == b"written after the election"
    entered.release()
    assert waiters[1].entered().token > entered.token
    waiters[1].lease.release()
    assert look.claims("x") == ()


@pytest.mark.timeout(120)
def test_without_a_quorum_the_lease_ends_on_time_and_with_one_again_nothing_of_it_is_left(
    zookeeper_ensemble: ZooKeeperEnsemble, connect: Connect, onlooker: Look
) -> None:
    url = f"{zookeeper_ensemble.url}?{SHORT}"
    steps: list[Event] = []
    client = connect(url, patience_s=2.0, hooks=[steps.append])
    lease = client.lock("x").acquire()
    for server in zookeeper_ensemble.servers[:2]:
        server.kill()
    assert lease.wait_lost(20)
    assert "unsure" in [step.kind for step in steps]
    with pytest.raises(Unavailable):
        client.lock("y").acquire()
    with pytest.raises(LeaseLost):
        lease.release()
    zookeeper_ensemble.start()
    following = connect(url, patience_s=30.0).lock("x").acquire(timeout_s=40)
    assert following.token > lease.token
    following.release()
    client.ping()
    eventually(lambda: not onlooker(url).claims("x"))


def test_a_follower_that_lost_its_leader_renews_no_lease(
    zookeeper_ensemble: ZooKeeperEnsemble, connect: Connect
) -> None:
    """It goes on answering from what it knows for two seconds, and would not know if the session had ended."""
    follower, other = zookeeper_ensemble.followers()
    steps: list[Event] = []
    client = connect(f"{follower.url}?{SHORT}", patience_s=5.0, hooks=[steps.append])
    lease = client.lock("x").acquire()
    leader = zookeeper_ensemble.leader()
    eventually(lambda: steps[-1].kind == "renewed")
    other.pause()
    leader.pause()
    renewed = len(steps)
    assert lease.wait_lost(20)
    late = [step.kind for step in steps[renewed:]]
    assert late.count("renewed") <= 1  # one may have been on its way
    assert late[-1] == "lost"
    other.resume()
    leader.resume()


def test_a_client_moves_on_from_a_server_that_is_paused(
    zookeeper_ensemble: ZooKeeperEnsemble, connect: Connect, onlooker: Look
) -> None:
    url = f"{zookeeper_ensemble.url}?ttl_s=8"
    steps: list[Event] = []
    client = connect(url, hooks=[steps.append])
    lease = client.lock("x").acquire()
    paused = server_of(zookeeper_ensemble, client)
    paused.pause()
    eventually(lambda: steps[-1].kind == "renewed", 30)
    eventually(lambda: server_of(zookeeper_ensemble, client) is not paused, 30)
    assert lease.state == "HELD"
    paused.resume()
    lease.release()
    assert "lost" not in [step.kind for step in steps]


def test_hosts_that_are_not_there_are_passed_over(zookeeper_ensemble: ZooKeeperEnsemble, connect: Connect) -> None:
    server = zookeeper_ensemble.leader()
    url = f"zookeeper://127.0.0.1:{free_port()},no.such.host.invalid:2181,{server.address}"
    client = connect(url, patience_s=20.0)
    lease = client.lock("x").acquire()
    assert lease.state == "HELD"
    lease.release()


def test_a_quorum_that_is_back_in_time_costs_no_lease(
    zookeeper_ensemble: ZooKeeperEnsemble, connect: Connect, onlooker: Look
) -> None:
    url = f"{zookeeper_ensemble.url}?{LONG}"
    steps: list[Event] = []
    lease = connect(url, patience_s=30.0, hooks=[steps.append]).lock("x").acquire()
    for server in zookeeper_ensemble.servers[:2]:
        server.kill()
    eventually(lambda: lease.state == "UNSURE")
    zookeeper_ensemble.start()
    eventually(lambda: lease.state == "HELD")
    assert onlooker(url).holders("x") == [lease.token]
    lease.release()
    assert "lost" not in [step.kind for step in steps]
