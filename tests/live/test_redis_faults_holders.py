"""Holders that die, pause, deadlock or forget what they hold."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from peer import Peer
from redis_live import LiveRedis, gone
from servers import eventually

from holdfast import LeaseLost, StaleToken

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


def test_after_a_killed_holder_the_next_enters_when_its_lease_ends(
    server: LiveRedis, connect: Connect, peer: Callable[[], Peer]
) -> None:
    holder = peer()
    token = holder.do("acquire", "x", 1.0)
    holder.signal(signal.SIGKILL)
    lease = connect(server.url).lock("x", ttl_s=1.0).acquire(timeout_s=20)
    assert lease.token > token
    assert server.holders("x") == [lease.token]
    lease.release()


def test_a_killed_waiter_holds_nobody_up(server: LiveRedis, connect: Connect, peer: Callable[[], Peer]) -> None:
    client, waiter = connect(server.url), peer()
    lease = client.lock("x", ttl_s=2.0).acquire()
    waiter.order("acquire", "x", 0.5)
    eventually(lambda: server.waiters("x") == 1)
    waiter.signal(signal.SIGKILL)
    lease.release()
    client.lock("x", ttl_s=2.0).acquire(timeout_s=20).release()


def test_a_holder_paused_past_its_lease_is_told_and_refused_and_the_next_ones_data_stands(
    server: LiveRedis, connect: Connect, peer: Callable[[], Peer]
) -> None:
    paused = peer()
    token = paused.do("acquire", "x", 0.6)
    paused.do("open", "ledger")
    paused.do("put", "first")
    paused.signal(signal.SIGSTOP)
    client = connect(server.url)
    lease = client.lock("x", ttl_s=2.0).acquire(timeout_s=20)
    opened = client.cell("ledger").open(lease)
    assert (opened.value, lease.token > token) == (b"first", True)
    paused.signal(signal.SIGCONT)
    with pytest.raises(StaleToken):
        paused.do("put", "written in the past")
    opened.put(b"second")
    assert paused.do("wait_lost", 20.0)
    assert paused.do("state") == "LOST"
    with pytest.raises(LeaseLost):
        paused.do("ensure_held")
    with pytest.raises(LeaseLost):
        paused.do("release")
    assert server.cell("ledger").value == b"second"
    assert server.holders("x") == [lease.token]
    lease.release()


def test_a_holder_that_wakes_late_knows_it_from_its_own_clock_without_asking_anyone(
    server: LiveRedis, peer: Callable[[], Peer]
) -> None:
    paused = peer()
    paused.do("acquire", "x", 0.5)
    paused.signal(signal.SIGSTOP)
    eventually(lambda: not server.claims("x"))
    server.pause()
    paused.signal(signal.SIGCONT)
    assert paused.do("state") == "LOST"
    with pytest.raises(LeaseLost):
        paused.do("ensure_held")
    server.resume()


def test_a_short_pause_costs_nothing(server: LiveRedis, peer: Callable[[], Peer]) -> None:
    paused = peer()
    token = paused.do("acquire", "x", 4.0)
    paused.signal(signal.SIGSTOP)
    eventually(lambda: server.claims("x")[0].remaining_s < 2.2)
    paused.signal(signal.SIGCONT)
    eventually(lambda: server.claims("x")[0].remaining_s > 3.0)
    assert paused.do("state") == "HELD"
    assert server.holders("x") == [token]
    paused.do("release")


def test_a_deadlocked_holder_loses_its_lease_after_max_hold_s(server: LiveRedis, connect: Connect) -> None:
    client = connect(server.url)
    lost = threading.Event()
    stuck = client.lock("x", ttl_s=30.0, max_hold_s=0.5).acquire()
    stuck.on_lost(lost.set)
    entered = client.lock("x", ttl_s=30.0).acquire(timeout_s=20)
    assert entered.token > stuck.token
    assert lost.wait(20)
    assert stuck.state == "LOST"
    with pytest.raises(LeaseLost, match="max_hold_s"):
        stuck.release()
    entered.release()


def test_a_lease_that_was_thrown_away_is_given_back_long_before_it_ends(server: LiveRedis, connect: Connect) -> None:
    client = connect(server.url)

    def forget() -> None:
        thread = threading.Thread(target=client.lock("x", ttl_s=60.0).acquire)
        thread.start()
        thread.join()

    forget()
    gc.collect()
    gone(server, "x")
