"""Faults on three etcds that agree: who holds goes on while two of them do, and knows better when they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from etcd_server import EtcdEnsemble
from onlooker import Onlooker
from servers import eventually, free_port
from zookeeper_live import Waiter

from holdfast import LeaseLost, Unavailable
from holdfast.hooks import Event

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]


def first(ensemble: EtcdEnsemble, server: Any) -> str:
    """The URL of all, this one before the others: it is the one that is asked."""
    others = [one for one in ensemble.servers if one is not server]
    return "etcd://" + ",".join(one.address for one in (server, *others))


def test_leases_and_waiters_outlive_the_leader(etcd_ensemble: EtcdEnsemble, connect: Connect, onlooker: Look) -> None:
    leader = etcd_ensemble.leader()
    url = first(etcd_ensemble, leader)
    client, others = connect(url, patience_s=30.0), [connect(url, patience_s=30.0) for _ in range(2)]
    look = onlooker(next(etcd_ensemble.followers()).url)
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    waiters = [Waiter(look, other) for other in others]
    leader.kill()
    opened.put(b"written after the election")
    eventually(lambda: lease.state == "HELD", 30)
    lease.release()
    entered = waiters[0].entered()
    assert entered.token > lease.token
    assert others[0].cell("ledger").open(entered).value == b"written after the election"
    entered.release()
    assert waiters[1].entered().token > entered.token
    waiters[1].lease.release()
    assert look.claims("x") == ()


@pytest.mark.parametrize(("who", "face"), [("leader", "sync"), ("leader", "aio"), ("follower", "sync")])
def test_a_paused_member_costs_no_lease_and_no_turn(
    who: str, etcd_ensemble: EtcdEnsemble, connect: Connect, onlooker: Look
) -> None:
    member = etcd_ensemble.leader() if who == "leader" else next(etcd_ensemble.followers())
    url = first(etcd_ensemble, member)
    steps: list[Event] = []
    client, other = connect(url, hooks=[steps.append]), connect(url)
    lease = client.lock("x", ttl_s=9.0).acquire()
    look = onlooker(next(server for server in etcd_ensemble.servers if server is not member).url)
    waiter = Waiter(look, other, ttl_s=9.0)
    member.pause()
    renewals = len(steps)
    eventually(lambda: [step.kind for step in steps[renewals:]].count("renewed") > 1, 30)
    assert (lease.state, look.holders("x")) == ("HELD", [lease.token])
    lease.release()
    entered = waiter.entered()
    assert entered.token > lease.token
    member.resume()
    eventually(lambda: look.holders("x") == [entered.token])
    assert entered.state == "HELD"
    entered.release()
    assert look.claims("x") == ()


@pytest.mark.parametrize("face", ["sync"])
def test_a_leader_that_wakes_up_extends_no_lease_for_others_have_led_since(
    etcd_ensemble: EtcdEnsemble, connect: Connect, onlooker: Look
) -> None:
    """A client that knows only the paused one loses its lease in time; then another holds it."""
    member = etcd_ensemble.leader()
    client = connect(member.url, patience_s=1.0)
    lease = client.lock("x", ttl_s=3.0).acquire()
    member.pause()
    assert lease.wait_lost(20)
    others = "etcd://" + ",".join(server.address for server in etcd_ensemble.servers if server is not member)
    following = connect(others, patience_s=30.0).lock("x").acquire(timeout_s=40)
    member.resume()
    with pytest.raises(LeaseLost):
        lease.release()
    assert lease.state == "LOST"
    assert following.token > lease.token
    assert onlooker(others).holders("x") == [following.token]
    following.release()


def test_without_a_quorum_the_lease_ends_on_time_and_with_one_again_nothing_of_it_is_left(
    etcd_ensemble: EtcdEnsemble, connect: Connect, onlooker: Look
) -> None:
    steps: list[Event] = []
    client = connect(etcd_ensemble.url, patience_s=2.0, hooks=[steps.append])
    lease = client.lock("x", ttl_s=3.0).acquire()
    for server in etcd_ensemble.servers[:2]:
        server.kill()
    assert lease.wait_lost(20)
    assert "unsure" in [step.kind for step in steps]
    with pytest.raises(Unavailable):
        client.lock("y").acquire()
    with pytest.raises(LeaseLost):
        lease.release()
    etcd_ensemble.start()
    following = connect(etcd_ensemble.url, patience_s=30.0).lock("x").acquire(timeout_s=40)
    assert following.token > lease.token
    following.release()
    client.ping()
    eventually(lambda: not onlooker(etcd_ensemble.url).claims("x"))


@pytest.mark.parametrize("face", ["aio"])
def test_a_quorum_that_is_back_in_time_costs_no_lease(
    etcd_ensemble: EtcdEnsemble, connect: Connect, onlooker: Look
) -> None:
    client = connect(etcd_ensemble.url, patience_s=30.0)
    lease = client.lock("x").acquire()
    for server in etcd_ensemble.servers[:2]:
        server.kill()
    eventually(lambda: lease.state == "UNSURE", 30)
    etcd_ensemble.start()
    eventually(lambda: lease.state == "HELD", 30)
    assert onlooker(etcd_ensemble.url).holders("x") == [lease.token]
    lease.release()


@pytest.mark.parametrize("face", ["sync"])
def test_one_wrong_host_of_three_is_passed_over(etcd_ensemble: EtcdEnsemble, connect: Connect) -> None:
    good = ",".join(server.address for server in etcd_ensemble.servers[:2])
    client = connect(f"etcd://127.0.0.1:{free_port()},{good}")
    client.lock("x").acquire().release()
    with pytest.raises(Unavailable, match=r"no connection to etcd at 127.0.0.1:\d+.*; no connection to etcd at"):
        connect(f"etcd://127.0.0.1:{free_port()},127.0.0.1:{free_port()}", patience_s=0.5).lock("x").acquire()
