"""Connections that break, loudly or in silence, while a lock is held and while it is waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from proxy import TcpProxy, listening, standing
from redis_live import LiveRedis, Waiter, gone, renewed
from servers import eventually

from holdfast import LeaseLost, Unavailable, aio
from holdfast.hooks import Event

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


def test_a_reset_while_holding_is_mended_without_a_word(server: LiveRedis, proxy: TcpProxy, connect: Connect) -> None:
    lease = connect(proxy.url).lock("x", ttl_s=1.0).acquire()
    for _ in range(3):
        proxy.cut()
        renewed(lease)
    assert lease.state == "HELD"
    proxy.cut()
    lease.release()
    assert server.claims("x") == ()


def test_a_silence_while_holding_is_unsure_and_then_held_again_if_it_heals_in_time(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    steps: list[Event] = []
    lease = connect(proxy.url, hooks=[steps.append]).lock("x", ttl_s=3.0).acquire()
    proxy.silence()
    eventually(lambda: lease.state == "UNSURE")
    lease.ensure_held()
    assert lease.remaining_s > 0.2
    proxy.heal()
    eventually(lambda: lease.state == "HELD")
    assert server.holders("x") == [lease.token]
    lease.release()
    kinds = [step.kind for step in steps if step.kind != "renewed"]
    assert kinds == ["held", "unsure", "released"]


def test_one_dead_connection_costs_no_lease_where_a_new_one_would_do(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    lease = connect(proxy.url).lock("x", ttl_s=3.0).acquire()
    proxy.silence(standing)
    eventually(lambda: server.claims("x")[0].remaining_s < 1.5)
    eventually(lambda: server.claims("x")[0].remaining_s > 2.0)
    eventually(lambda: lease.state == "HELD")
    lease.release()
    assert server.claims("x") == ()


def test_a_silence_to_the_deadline_loses_the_lease_on_time_and_before_the_next_enters(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    told = threading.Event()
    lease = connect(proxy.url, patience_s=1.0).lock("x", ttl_s=1.0).acquire()
    lease.on_lost(told.set)
    proxy.silence()
    following = Waiter(server, connect(server.url)).entered()
    assert lease.state == "LOST"  # by its own clock: who is to be told may be told a little later
    assert told.wait(20)
    assert following.token > lease.token
    with pytest.raises(LeaseLost):
        lease.release()
    following.release()
    proxy.heal()
    eventually(lambda: not server.claims("x"))


def test_the_body_of_async_with_is_cancelled_when_the_lease_is_lost_to_silence(
    server: LiveRedis, proxy: TcpProxy
) -> None:
    reached: list[str] = []

    async def body(client: Any) -> None:
        async with client.lock("x", ttl_s=0.6):
            proxy.silence()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                reached.append("cancelled")
                raise

    async def main() -> None:
        async with aio.connect(proxy.url, patience_s=0.5) as client:
            with pytest.raises(LeaseLost):
                await body(client)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            proxy.heal()

    asyncio.run(main())
    assert reached == ["cancelled"]
    gone(server, "x")


def test_a_hand_over_arrives_although_the_connection_for_signals_died_in_silence(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    holder = connect(server.url).lock("x", ttl_s=1.0).acquire()
    waiter = Waiter(server, connect(proxy.url))
    eventually(lambda: any(wire.listens for wire in proxy.wires))
    proxy.silence(listening)
    holder.release()
    assert waiter.entered().token > holder.token
    waiter.lease.release()
    assert server.claims("x") == ()


@pytest.mark.parametrize("which", ["signals", "everything"])
def test_a_hand_over_arrives_at_once_after_connections_were_reset_while_waiting(
    server: LiveRedis, proxy: TcpProxy, connect: Connect, which: str
) -> None:
    holder = connect(server.url).lock("x", ttl_s=90.0).acquire()
    waiter = Waiter(server, connect(proxy.url), ttl_s=90.0)  # its own renewal would come after 30 s
    eventually(lambda: any(wire.listens for wire in proxy.wires))
    eventually(lambda: server.client.pubsub_channels("holdfast:*"))
    if which == "signals":
        proxy.cut(listening)
    else:
        proxy.cut()
    holder.release()
    assert waiter.entered().token > holder.token
    waiter.lease.release()
    assert server.claims("x") == ()


def test_a_hand_over_signalled_while_disconnected_is_found_on_coming_back(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    holder = connect(server.url).lock("x", ttl_s=90.0).acquire()
    waiter = Waiter(server, connect(proxy.url), ttl_s=90.0)
    eventually(lambda: server.client.pubsub_channels("holdfast:*"))
    proxy.silence()  # the next connection does not come through either
    proxy.cut()
    holder.release()
    eventually(lambda: server.holders("x") != [])
    proxy.heal()
    assert waiter.entered().token > holder.token
    waiter.lease.release()


def test_a_waiter_cut_off_past_its_lease_queues_again_and_gets_its_turn(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    holder = connect(server.url).lock("x", ttl_s=1.0).acquire()
    waiter = Waiter(server, connect(proxy.url), ttl_s=0.5)
    proxy.silence()
    eventually(lambda: server.waiters("x") == 0)
    proxy.heal()
    eventually(lambda: server.waiters("x") == 1)
    holder.release()
    assert waiter.entered().token > holder.token
    waiter.lease.release()
    assert server.claims("x") == ()


def test_an_acquire_into_silence_fails_after_its_patience_and_leaves_nothing(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    client = connect(proxy.url, patience_s=0.5)
    client.lock("x", ttl_s=1.0).acquire().release()
    proxy.silence()
    with pytest.raises(Unavailable, match=r"did not serve enter"):
        client.lock("x", ttl_s=30.0).acquire()
    proxy.heal()  # and with that the enter of then is delivered, long after
    gone(server, "x")


def test_connections_that_died_in_silence_while_idle_cost_no_acquire(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    client = connect(proxy.url, patience_s=4.0)
    at_once = threading.Barrier(8)

    def come_and_go(name: str) -> None:
        lease = client.lock(name, ttl_s=60.0).acquire()
        at_once.wait(20)
        lease.release()

    threads = [threading.Thread(target=come_and_go, args=(f"{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.silence(standing)  # as when a NAT between forgets them
    lease = client.lock("x", ttl_s=60.0).acquire()
    assert server.holders("x") == [lease.token]
    lease.release()
    assert server.claims("x") == ()


def test_a_waiter_whose_connection_for_signals_died_on_being_made_makes_another(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    holder = connect(server.url).lock("x", ttl_s=90.0).acquire()
    proxy.hold_back(b"SUBSCRIBE")
    waiter = Waiter(server, connect(proxy.url, patience_s=2.0), ttl_s=90.0)
    assert proxy.happened.wait(20)
    eventually(lambda: server.client.pubsub_channels("holdfast:*"))
    holder.release()
    assert waiter.entered().token > holder.token
    waiter.lease.release()
    assert server.claims("x") == ()


def test_a_waiter_without_a_timeout_fails_cleanly_when_an_outage_outlasts_its_lease_and_its_patience(
    server: LiveRedis, proxy: TcpProxy, connect: Connect
) -> None:
    holder = connect(server.url).lock("x", ttl_s=3.0).acquire()
    lock = connect(proxy.url, patience_s=0.5).lock("x", ttl_s=1.0)
    caught: list[Exception] = []

    def wait() -> None:
        try:
            lock.acquire()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: server.waiters("x") == 1)
    eventually(lambda: any(wire.listens for wire in proxy.wires))
    proxy.silence()
    thread.join(20)
    assert [type(error) for error in caught] == [Unavailable]
    proxy.heal()  # and with that all that was on its way is delivered
    eventually(lambda: server.waiters("x") == 0)
    assert server.holders("x") == [holder.token]
    holder.release()
    lock.acquire(timeout_s=20).release()
    assert server.claims("x") == ()
