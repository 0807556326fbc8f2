"""Faults on one etcd: holders that die or pause, replies and requests that are lost or late, connections, restarts."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from etcd_server import EtcdServer
from onlooker import Onlooker
from peer import Peer
from proxy import TcpProxy, listening
from servers import eventually
from zookeeper_live import Waiter

import holdfast
from holdfast import LeaseLost, StaleToken, Unavailable
from holdfast.hooks import Event
from holdfast.model import State, Turnstile
from holdfast.worlds.threads import drive

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]

TTL_S = 2.0
"""The shortest; its lease lasts three seconds, and half a second more until etcd ends it."""

CLAIM = b"!15.0!"
"""In requests that add a claim of the default length, or give it back, and in no other."""


@pytest.fixture
def proxy(etcd_session: EtcdServer) -> Iterator[TcpProxy]:
    """A network between clients and the server."""
    proxy = TcpProxy(etcd_session.port)
    yield proxy
    proxy.close()


@pytest.fixture
def through(proxy: TcpProxy, etcd_url: str) -> str:
    return f"etcd://127.0.0.1:{proxy.port}"


@pytest.fixture
def look(etcd_url: str, onlooker: Look) -> Onlooker:
    return onlooker(etcd_url)


# -- holders and waiters that die or pause


def test_after_a_killed_holder_the_next_enters_when_its_lease_ends(
    etcd_url: str, connect: Connect, start_peer: Callable[..., Peer]
) -> None:
    holder = start_peer(etcd_url)
    token = holder.do("acquire", "x", TTL_S)
    holder.signal(signal.SIGKILL)
    lease = connect(etcd_url).lock("x", ttl_s=TTL_S).acquire(timeout_s=30)
    assert lease.token > token
    lease.release()


def test_a_holder_paused_past_its_lease_is_told_and_refused_and_the_next_ones_data_stands(
    etcd_url: str, connect: Connect, start_peer: Callable[..., Peer], look: Onlooker
) -> None:
    paused = start_peer(etcd_url)
    token = paused.do("acquire", "x", TTL_S)
    paused.do("open", "ledger")
    paused.do("put", "first")
    paused.signal(signal.SIGSTOP)
    client = connect(etcd_url)
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


def test_a_killed_waiter_holds_up_those_behind_it_for_no_longer_than_its_lease(
    etcd_url: str, connect: Connect, start_peer: Callable[..., Peer], look: Onlooker
) -> None:
    holder = connect(etcd_url).lock("x").acquire()
    victim = start_peer(etcd_url)
    victim.order("acquire", "x", TTL_S)
    eventually(lambda: look.waiters("x") == 1)
    behind = Waiter(look, connect(etcd_url))
    victim.signal(signal.SIGKILL)
    holder.release()
    assert behind.entered().token > holder.token
    behind.lease.release()
    assert look.claims("x") == ()


def test_a_lease_that_nobody_renews_ends_though_others_of_its_client_go_on(etcd_url: str, connect: Connect) -> None:
    """They hang on one lease of etcd's."""
    client = connect(etcd_url)
    kept = client.lock("x", ttl_s=TTL_S).acquire()
    client.lock("y", ttl_s=TTL_S, renew=False).acquire()
    connect(etcd_url).lock("y", ttl_s=TTL_S).acquire(timeout_s=30).release()
    assert kept.state == "HELD"
    kept.release()


def test_many_claims_enter_and_leave_in_few_exchanges_on_one_lease(etcd_url: str, connect: Connect, face: str) -> None:
    client = connect(etcd_url)
    session, run = client.session, drive if face == "sync" else client._loop.run
    asked: list[int] = []
    exchange = session.world.link._calls.exchange

    def counted(requests: Any, *rest: Any, **options: Any) -> Any:
        asked.append(len(requests))
        return exchange(requests, *rest, **options)

    session.world.link._calls.exchange = counted
    turnstiles = [Turnstile("partition", f"p/{number}", 1) for number in range(300)]
    claims = [session.new_tenure(turnstile, 1, 15.0).claim for turnstile in turnstiles]
    enters = [session.engine.enter(*pair, False) for pair in zip(turnstiles, claims, strict=True)]
    standings = run(session.world.call_many(enters, 20.0))
    assert [standing.state for standing in standings] == [State.ADMITTED] * 300
    assert sum(asked) == 301  # one lease for all, and each claim once
    assert len(asked) <= 6
    leaves = [
        session.engine.leave(turnstile, claim.id, False) for turnstile, claim in zip(turnstiles, claims, strict=True)
    ]
    assert run(session.world.call_many(leaves, 20.0)) == [True] * 300
    assert len(asked) <= 11


def test_a_detached_lease_outlives_its_client_and_a_forgotten_one_ends(
    etcd_url: str, look: Onlooker, connect: Connect
) -> None:
    first = holdfast.connect(etcd_url)
    kept = first.lock("x", ttl_s=TTL_S).acquire()
    text = kept.detach()
    first.lock("y", ttl_s=TTL_S).acquire().detach()
    first.close()
    taken = connect(etcd_url).attach(text)
    assert taken.token == kept.token
    eventually(lambda: look.claims("y") == ())
    assert (taken.state, look.holders("x")) == ("HELD", [taken.token])
    taken.release()
    assert look.claims("x") == ()


def test_a_forked_child_holds_nothing_and_disturbs_nobody(etcd_url: str, look: Onlooker) -> None:
    client = holdfast.connect(etcd_url)
    with client.lock("x") as lease:
        waiter = Waiter(look, client)
        child = os.fork()
        if not child:
            ends = 1
            try:
                with holdfast.connect(etcd_url) as own:
                    ends = 0 if not lease.is_held and own.lock("x").try_acquire() is None else 2
            finally:
                os._exit(ends)
        assert os.waitpid(child, 0)[1] == 0
        assert look.holders("x") == [lease.token]
    assert waiter.entered().token > lease.token
    waiter.lease.release()
    client.close()


# -- replies that are lost, requests that come late


def test_a_lost_reply_to_enter_leaves_one_claim(
    through: str, proxy: TcpProxy, connect: Connect, look: Onlooker
) -> None:
    client = connect(through)
    client.ping()
    proxy.swallow_reply_to(CLAIM)
    lease = client.lock("x").acquire()
    assert proxy.happened.is_set()
    assert look.holders("x") == [lease.token]
    lease.release()
    assert look.claims("x") == ()


def test_a_lost_reply_to_leave_is_no_lost_lease(
    through: str, proxy: TcpProxy, connect: Connect, look: Onlooker
) -> None:
    lease = connect(through).lock("x").acquire()
    proxy.swallow_reply_to(CLAIM)
    lease.release()
    assert proxy.happened.is_set()
    assert lease.state == "RELEASED"
    assert look.claims("x") == ()


def test_a_lost_reply_to_put_lands_once(through: str, proxy: TcpProxy, connect: Connect, look: Onlooker) -> None:
    client = connect(through)
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    before = look.cell("ledger").version
    proxy.swallow_reply_to(b"precious")
    opened.put(b"precious")
    assert proxy.happened.is_set()
    opened.put(b"more")
    lease.release()
    assert (look.cell("ledger").value, look.cell("ledger").version) == (b"more", before + 2)


@pytest.mark.parametrize("late", ["while it is held", "after it was released"])
def test_a_copy_of_an_enter_that_arrives_late_leaves_no_second_claim(
    late: str, through: str, proxy: TcpProxy, connect: Connect, look: Onlooker
) -> None:
    client = connect(through, patience_s=2.0)
    client.ping()
    proxy.hold_back(CLAIM)
    lease = client.lock("x").acquire()  # by a second copy, over another connection
    if late == "after it was released":
        lease.release()
    proxy.deliver_held()
    for _ in range(30):
        assert look.holders("x") == ([] if late == "after it was released" else [lease.token])
    lease.release()
    assert look.claims("x") == ()


# -- connections


def test_a_reset_while_holding_is_mended_without_a_word(
    through: str, proxy: TcpProxy, connect: Connect, look: Onlooker
) -> None:
    steps: list[Event] = []
    lease = connect(through, hooks=[steps.append]).lock("x", ttl_s=TTL_S).acquire()
    for _ in range(2):
        proxy.cut()
        renewals = len(steps)
        eventually(lambda renewals=renewals: "renewed" in [step.kind for step in steps[renewals:]])
    assert lease.state == "HELD"
    proxy.cut()
    lease.release()
    assert look.claims("x") == ()


def test_a_silence_to_the_deadline_loses_the_lease_on_time_and_before_the_next_enters(
    through: str, etcd_url: str, proxy: TcpProxy, connect: Connect, look: Onlooker
) -> None:
    told = threading.Event()
    lease = connect(through, patience_s=1.0).lock("x", ttl_s=TTL_S).acquire()
    lease.on_lost(told.set)
    proxy.silence()
    following = Waiter(look, connect(etcd_url)).entered()
    assert lease.state == "LOST"
    assert told.wait(20)
    assert following.token > lease.token
    with pytest.raises(LeaseLost):
        lease.release()
    following.release()
    proxy.heal()
    eventually(lambda: not look.claims("x"))


def test_a_hand_over_arrives_although_the_connection_for_signals_died_in_silence(
    through: str, etcd_url: str, proxy: TcpProxy, connect: Connect, look: Onlooker
) -> None:
    holder = connect(etcd_url).lock("x").acquire()
    waiter = Waiter(look, connect(through), ttl_s=TTL_S)
    eventually(lambda: any(wire.listens for wire in proxy.wires))
    proxy.silence(listening)
    holder.release()
    assert waiter.entered().token > holder.token
    waiter.lease.release()
    assert look.claims("x") == ()


@pytest.mark.parametrize("beyond", [False, True])
def test_no_wake_up_is_lost_to_a_break_though_history_was_compacted_meanwhile(
    beyond: bool,
    through: str,
    etcd_session: EtcdServer,
    etcd_url: str,
    proxy: TcpProxy,
    connect: Connect,
    look: Onlooker,
) -> None:
    holder = connect(etcd_url).lock("x", ttl_s=200.0).acquire()
    waiter = Waiter(look, connect(through), ttl_s=200.0)  # it does not look of itself while this test lasts
    eventually(lambda: any(wire.listens for wire in proxy.wires))
    proxy.silence()
    holder.release()
    if beyond:
        etcd_session.ask("kv/put", {"key": "bW9yZQ=="})
    revision = int(etcd_session.status()["header"]["revision"])
    assert "header" in etcd_session.ask("kv/compaction", {"revision": revision})
    proxy.cut()
    proxy.heal()
    assert waiter.entered().token > holder.token
    waiter.lease.release()


# -- the server


def test_leases_outlive_a_restart_and_waiters_get_their_turn(
    etcd_server: EtcdServer, connect: Connect, onlooker: Look
) -> None:
    client, other = connect(etcd_server.url), connect(etcd_server.url)
    lease = client.lock("x").acquire()
    look = onlooker(etcd_server.url)
    waiter = Waiter(look, other)
    etcd_server.restart()
    client.ping()
    assert (lease.state, look.holders("x")) == ("HELD", [lease.token])
    lease.release()
    assert waiter.entered().token > lease.token
    waiter.lease.release()


def test_a_server_that_lost_its_data_knows_no_lease_and_holders_are_told(
    etcd_server: EtcdServer, connect: Connect
) -> None:
    client = connect(etcd_server.url)
    lease = client.lock("x", ttl_s=TTL_S).acquire()
    etcd_server.kill()
    shutil.rmtree(etcd_server.folder / "data")
    etcd_server.start()
    assert lease.wait_lost(20)
    with pytest.raises(LeaseLost):
        lease.release()
    connect(etcd_server.url).lock("x").acquire(timeout_s=20).release()
    client.lock("x").acquire(timeout_s=20).release()


def test_a_revoked_lease_is_lost_with_all_that_hung_on_it_and_the_next_enters_at_once(
    etcd_session: EtcdServer, etcd_url: str, connect: Connect, look: Onlooker
) -> None:
    client = connect(etcd_url)
    leases = [client.lock(name, ttl_s=TTL_S).acquire() for name in ("x", "y")]
    waiter = Waiter(look, connect(etcd_url))
    for one in etcd_session.ask("lease/leases")["leases"]:
        attached = etcd_session.ask("lease/timetolive", {"ID": one["ID"], "keys": True})
        if len(attached.get("keys", [])) == 2:
            etcd_session.ask("lease/revoke", {"ID": one["ID"]})
    assert waiter.entered().token > leases[0].token
    assert [lease.wait_lost(20) for lease in leases] == [True, True]
    waiter.lease.release()
    client.lock("y", ttl_s=TTL_S).acquire(timeout_s=20).release()


def test_a_full_server_takes_no_new_claims_while_leaving_and_renewing_work(
    etcd_server: EtcdServer, connect: Connect, onlooker: Look
) -> None:
    steps: list[Event] = []
    client = connect(etcd_server.url, patience_s=2.0, hooks=[steps.append])
    leases = [client.lock(name, ttl_s=TTL_S).acquire() for name in ("x", "y")]
    member = etcd_server.status()["header"]["member_id"]
    etcd_server.ask("maintenance/alarm", {"action": "ACTIVATE", "memberID": member, "alarm": "NOSPACE"})
    with pytest.raises(Unavailable, match="full and takes no new claims"):
        client.lock("z", ttl_s=TTL_S).acquire(timeout_s=1)
    leases[0].release()
    assert onlooker(etcd_server.url).claims("x") == ()
    renewals = len(steps)
    eventually(lambda: "renewed" in [step.kind for step in steps[renewals:]])
    assert leases[1].state == "HELD"
    etcd_server.ask("maintenance/alarm", {"action": "DEACTIVATE", "memberID": member, "alarm": "NOSPACE"})
    leases[1].release()
    client.lock("z", ttl_s=TTL_S).acquire(timeout_s=20).release()


@pytest.mark.parametrize("face", ["sync"])
def test_a_lock_that_is_taken_again_and_again_leaves_no_trail_of_dead_keys(
    etcd_session: EtcdServer, etcd_url: str, connect: Connect
) -> None:
    """etcd visits those at each listing, until its history is compacted."""
    lock = connect(etcd_url).lock("x")
    used: set[bytes] = set()
    for _ in range(20):
        lease = lock.acquire()
        used.update(etcd_session.keys())
        lease.release()
    assert len(used) == 1
    assert etcd_session.keys() == []
