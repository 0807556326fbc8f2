"""Redis behind Sentinel: primaries that die, are replaced, and come back without knowing it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

redis = pytest.importorskip("redis")

from onlooker import Onlooker  # noqa: E402
from redis.asyncio.sentinel import Sentinel as AsyncSentinel  # noqa: E402
from redis.sentinel import Sentinel  # noqa: E402
from redis_deployments import SERVICE, SentinelDeployment  # noqa: E402
from redis_live import Waiter, gone, renewed  # noqa: E402
from servers import RedisServer, eventually, free_port  # noqa: E402

import holdfast  # noqa: E402
from holdfast import LeaseLost, Misuse, OutcomeUnknown, Unavailable, aio  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.timeout(90)]

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[SentinelDeployment]:
    """One of the test's own, to be harmed, whose sentinels are quick to act."""
    folder = tmp_path / "deployment"
    folder.mkdir()
    with SentinelDeployment(folder, down_after_ms=1000) as deployment:
        yield deployment


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[SentinelDeployment]:
    """One of the test's own, whose sentinels act when they are told to."""
    folder = tmp_path / "patient"
    folder.mkdir()
    with SentinelDeployment(folder) as deployment:
        yield deployment


def fail_over(deployment: SentinelDeployment, before: RedisServer) -> None:
    deployment.ask(deployment.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
    deployment.fails_over(before)


def cut_off(deployment: SentinelDeployment) -> None:
    """From now on the replica hears nothing of what its primary does."""
    deployment.ask(deployment.replica, "CONFIG", "SET", "masterauth", "not-the-password")
    deployment.ask(deployment.primary, "CLIENT", "KILL", "TYPE", "replica")
    eventually(lambda: deployment.ask(deployment.primary, "ROLE")[2] == [])


# -- failover


def test_a_failover_in_the_middle_of_a_wait_keeps_holder_queue_and_cell(
    deployment: SentinelDeployment, connect: Connect, onlooker: Look
) -> None:
    look = onlooker(deployment.url)
    holder = connect(deployment.url)
    lease = holder.lock("x", ttl_s=30).acquire()
    opened = holder.cell("ledger").open(lease)
    opened.put(b"before")
    waiters = [Waiter(look, connect(deployment.url), ttl_s=6, timeout_s=60) for _ in range(2)]
    eventually(deployment.has_caught_up)
    old = deployment.primary
    old.kill()
    deployment.fails_over(old)
    opened.put(b"after")
    assert look.holders("x") == [lease.token]
    lease.release()
    tokens = [lease.token]
    while waiters:
        eventually(lambda: any(waiter.lease for waiter in waiters), 40)
        (waiter,) = [waiter for waiter in waiters if waiter.lease]
        tokens.append(waiter.entered().token)
        assert look.holders("x") == tokens[-1:]
        waiter.lease.release()
        waiters.remove(waiter)
    assert tokens == sorted(tokens)
    assert look.cell("ledger").value == b"after"


def test_a_holder_is_unsure_while_there_is_no_primary_and_held_again_by_the_next(
    patient: SentinelDeployment, connect: Connect
) -> None:
    lease = connect(patient.url).lock("x", ttl_s=12).acquire()
    eventually(patient.has_caught_up)
    old = patient.primary
    old.kill()
    eventually(lambda: lease.state == "UNSURE")
    fail_over(patient, old)
    eventually(lambda: lease.state == "HELD")
    renewed(lease)
    lease.release()


def test_a_claim_that_did_not_reach_the_next_primary_is_told_lost_and_its_cell_refuses_it(
    patient: SentinelDeployment, connect: Connect
) -> None:
    client, other = connect(patient.url), connect(patient.url)
    kept = client.lock("kept", ttl_s=12).acquire()
    kept_cell = client.cell("kept").open(kept)
    eventually(patient.has_caught_up)
    cut_off(patient)
    lease = client.lock("x", ttl_s=12).acquire()
    stale = client.cell("ledger").open(lease)
    old = patient.primary
    old.kill()
    fail_over(patient, old)
    following = other.lock("x", ttl_s=12).acquire()
    assert following.token > lease.token
    opened = other.cell("ledger").open(following)
    assert lease.wait_lost(20)
    with pytest.raises(LeaseLost):
        lease.release()
    with pytest.raises((LeaseLost, holdfast.StaleToken)):
        stale.put(b"late")
    opened.put(b"new")
    kept_cell.put(b"still ours")
    following.release()
    kept.release()


def test_a_planned_failover_under_contention_lets_nobody_in_twice(
    patient: SentinelDeployment, connect: Connect
) -> None:
    turns: list[int] = []
    over = threading.Event()
    troubles: list[Exception] = []

    def work(client: Any) -> None:
        lock = client.lock("x", ttl_s=20)
        try:
            while not over.is_set():
                lease = lock.acquire(timeout_s=40)
                turns.append(lease.token)
                lease.release()
        except Exception as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=work, args=(connect(patient.url),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(turns) > 10)
    fail_over(patient, patient.primary)
    before = len(turns)
    eventually(lambda: len(turns) > before + 10, 40)
    over.set()
    for thread in threads:
        thread.join(60)
    assert troubles == []
    assert turns == sorted(set(turns))


def test_a_primary_that_comes_back_from_a_pause_gets_no_call_of_ours(
    deployment: SentinelDeployment, connect: Connect, onlooker: Look
) -> None:
    idle, holder, other = connect(deployment.url), connect(deployment.url), connect(deployment.url)
    idle.lock("y").acquire().release()  # connected, and then silent all the while
    lease = holder.lock("x", ttl_s=1.5).acquire()
    eventually(deployment.has_caught_up)
    old = deployment.primary
    old.pause()
    assert lease.wait_lost(20)
    deployment.fails_over(old)
    following = other.lock("x", ttl_s=30).acquire(timeout_s=40)
    assert following.token > lease.token
    old.resume()
    assert deployment.ask(old, "ROLE")[0] == b"master"  # it has not been told yet
    assert idle.lock("x").try_acquire() is None
    assert holder.lock("x").try_acquire() is None
    eventually(lambda: deployment.ask(old, "ROLE")[0] == b"slave", 40)
    assert onlooker(deployment.url).holders("x") == [following.token]
    following.release()


def test_a_demoted_primary_is_left_and_the_next_one_found(patient: SentinelDeployment, connect: Connect) -> None:
    client = connect(patient.url)
    lease = client.lock("x", ttl_s=30).acquire()
    eventually(patient.has_caught_up)
    fail_over(patient, patient.primary)
    lease.release()
    client.lock("x").acquire(timeout_s=20).release()


# -- replicas' acknowledgements


def test_without_its_replica_nothing_is_held_that_asked_for_one(
    patient: SentinelDeployment, connect: Connect, onlooker: Look
) -> None:
    look = onlooker(patient.url)
    client = connect(f"{patient.url}?wait_replicas=1&wait_timeout_s=0.2", patience_s=3)
    lease = client.lock("x", ttl_s=30).acquire()
    opened = client.cell("ledger").open(lease)
    opened.put(b"both have it")
    replica = patient.replica
    replica.pause()
    with pytest.raises(Unavailable, match="replicas"):
        client.lock("y").acquire(timeout_s=20)
    with pytest.raises((Unavailable, OutcomeUnknown), match="replicas"):
        opened.put(b"one has it")
    gone(look, "y")
    assert look.cell("ledger").value == b"one has it"  # unknown is not undone
    replica.resume()
    eventually(patient.has_caught_up)
    opened.put(b"both have it again")
    client.lock("y").acquire(timeout_s=20).release()
    lease.release()


def test_who_did_not_ask_for_replicas_is_not_held_up_by_theirs(patient: SentinelDeployment, connect: Connect) -> None:
    patient.replica.pause()
    connect(patient.url).lock("x").acquire(timeout_s=5).release()


# -- sentinels


def test_one_of_three_sentinels_dead_and_another_host_wrong_are_passed_over(
    patient: SentinelDeployment, connect: Connect
) -> None:
    patient.sentinels[0].kill()
    wrong = patient.url.replace(f"127.0.0.1:{patient.sentinels[1].port}", f"no-such-host.invalid:{free_port()}")
    connect(wrong).lock("x").acquire().release()


def test_a_sentinel_that_is_silent_costs_a_share_of_the_time(patient: SentinelDeployment, connect: Connect) -> None:
    patient.sentinels[0].pause()
    connect(patient.url).lock("x").acquire().release()


def test_leases_outlive_all_sentinels_and_who_comes_new_is_told(patient: SentinelDeployment, connect: Connect) -> None:
    lease = connect(patient.url).lock("x", ttl_s=4).acquire()
    for sentinel in patient.sentinels:
        sentinel.kill()
    for _ in range(2):
        renewed(lease)
    assert lease.state == "HELD"
    with pytest.raises(Unavailable, match="no Sentinel leads to a primary"):
        connect(patient.url, patience_s=1).lock("y").acquire()
    lease.release()


def test_an_unknown_service_and_a_server_that_is_no_sentinel_are_told_as_that(
    sentinel_session: SentinelDeployment, connect: Connect
) -> None:
    with pytest.raises(Misuse, match="no service 'other' is known"):
        connect(sentinel_session.url.replace(SERVICE, "other")).lock("x").acquire()
    with pytest.raises(Misuse, match="is no Sentinel"):
        connect(f"redis+sentinel://127.0.0.1:{sentinel_session.primary.port}/{SERVICE}").lock("x").acquire()


def test_the_password_of_the_primary_is_no_hindrance_at_sentinels_without_one(tmp_path: Path, connect: Connect) -> None:
    with SentinelDeployment(tmp_path, "s3cret") as deployment:
        connect(deployment.url).lock("x").acquire().release()
        with pytest.raises(Misuse, match="refused the user or password") as refused:
            connect(deployment.url.replace("s3cret", "wr0ng")).lock("x").acquire()
        assert "wr0ng" not in str(refused.value)
        for sentinel in deployment.sentinels:
            deployment.ask(sentinel, "ACL", "SETUSER", "default", "resetpass", ">another")
        connect(f"{deployment.url}?sentinel_password=another").lock("x").acquire().release()
        with pytest.raises(Misuse, match="refused the user or password"):
            connect(deployment.url, patience_s=2).lock("x").acquire()


# -- clients of the user's own


def test_the_users_own_sentinel_clients_are_taken(
    sentinel_url: str, sentinel_session: SentinelDeployment, onlooker: Look
) -> None:
    hosts = [("127.0.0.1", sentinel.port) for sentinel in sentinel_session.sentinels]
    own = Sentinel(hosts, socket_timeout=5)
    with holdfast.connect(own.master_for(SERVICE)) as client, client.lock("x") as lease:
        assert onlooker(sentinel_url).holders("x") == [lease.token]
    with pytest.raises(Misuse, match="master_for"):
        holdfast.connect(own.slave_for(SERVICE)).lock("x").acquire()


def test_the_users_own_asyncio_sentinel_client_is_taken(
    sentinel_url: str, sentinel_session: SentinelDeployment, onlooker: Look
) -> None:
    import asyncio

    look = onlooker(sentinel_url)

    async def main() -> None:
        hosts = [("127.0.0.1", sentinel.port) for sentinel in sentinel_session.sentinels]
        own = AsyncSentinel(hosts, socket_timeout=5)
        async with aio.connect(own.master_for(SERVICE)) as client, client.lock("x") as lease:
            assert await asyncio.to_thread(look.holders, "x") == [lease.token]

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_finds_the_primary_for_itself(sentinel_url: str, onlooker: Look) -> None:
    look = onlooker(sentinel_url)
    with holdfast.connect(sentinel_url) as client, client.lock("x", ttl_s=30) as lease:
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
