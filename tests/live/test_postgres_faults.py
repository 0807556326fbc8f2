"""Real faults on a real PostgreSQL: crashes, pauses, broken networks, ended backends, failovers, read-only servers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peer import Peer
from postgres_live import LivePostgres, behind, call_of
from postgres_server import as_user, binary, new_folder
from proxy import TcpProxy, listening, standing
from redis_live import Waiter, gone, renewed
from servers import eventually

from holdfast import LeaseLost, StaleToken, Unavailable
from holdfast.model import Change

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def standing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePostgres]:
    server = LivePostgres(tmp_path_factory.mktemp("postgres"))
    yield server
    server.close()


@pytest.fixture
def server(standing_server: LivePostgres) -> Any:
    """One for all tests here; each mends what it broke."""
    standing_server.empty()
    return standing_server


@pytest.fixture
def proxy(server: LivePostgres) -> Iterator[TcpProxy]:
    proxy = TcpProxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy: TcpProxy, connect: Connect) -> Any:
    """Behind the proxy. A try has a second; what is held back for longer is asked again."""
    client = connect(behind(proxy.port), patience_s=2.0)
    client.ping()
    return client


# -- holders and waiters


def test_after_a_killed_holder_the_next_enters_when_its_lease_ends(
    server: Any, connect: Connect, peer: Callable[[], Peer]
) -> None:
    holder = peer()
    token = holder.do("acquire", "x", 1.0)
    holder.signal(signal.SIGKILL)
    lease = connect(server.url).lock("x", ttl_s=1.0).acquire(timeout_s=20)
    assert lease.token > token
    assert server.holders("x") == [lease.token]
    lease.release()


def test_a_holder_paused_past_its_lease_is_refused_by_the_cell(
    server: Any, connect: Connect, peer: Callable[[], Peer]
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
    assert server.cell("ledger").value == b"second"
    lease.release()


def test_a_killed_waiter_holds_nobody_up(server: Any, connect: Connect, peer: Callable[[], Peer]) -> None:
    client, waiter = connect(server.url), peer()
    lease = client.lock("x", ttl_s=2.0).acquire()
    waiter.order("acquire", "x", 0.5)
    eventually(lambda: server.waiters("x") == 1)
    waiter.signal(signal.SIGKILL)
    lease.release()
    client.lock("x", ttl_s=2.0).acquire(timeout_s=20).release()


# -- replies that are lost, requests that are late


def test_an_enter_whose_reply_was_lost_gives_the_lease_of_the_first_try(
    server: Any, proxy: TcpProxy, client: Any
) -> None:
    proxy.swallow_reply_to(call_of("enter"))
    lease = client.lock("x").acquire()
    assert b"1 %d " % lease.token in proxy.lost
    assert [claim.token for claim in server.claims("x")] == [lease.token]
    lease.release()
    assert server.claims("x") == ()


def test_a_waiter_whose_reply_was_lost_keeps_the_place_of_the_first_try(
    server: Any, proxy: TcpProxy, client: Any, connect: Connect
) -> None:
    holder = connect(server.url).lock("x").acquire()
    first = Waiter(server, connect(server.url), ttl_s=15.0)
    proxy.swallow_reply_to(call_of("enter"))
    waiter = Waiter(server, client, ttl_s=15.0)
    assert proxy.happened.wait(20)
    holder.release()
    first.entered().release()
    entered = waiter.entered()
    assert b"2 %d " % entered.token in proxy.lost
    entered.release()
    assert server.claims("x") == ()


def test_a_leave_whose_reply_was_lost_is_a_release_and_no_loss(
    server: Any, proxy: TcpProxy, client: Any, connect: Connect
) -> None:
    lease = client.lock("x").acquire()
    waiter = Waiter(server, connect(server.url), ttl_s=15.0)
    proxy.swallow_reply_to(call_of("leave"))
    lease.release()
    assert lease.state == "RELEASED"
    following = waiter.entered()
    assert server.holders("x") == [following.token]
    following.release()
    assert server.claims("x") == ()


def test_a_put_whose_reply_was_lost_lands_once_and_tells_what_the_first_try_did(
    server: Any, proxy: TcpProxy, client: Any
) -> None:
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    proxy.swallow_reply_to(call_of("put"))
    assert opened.put(b"one", [Change("entry", b"made", create=True)]) == (True,)
    assert proxy.lost
    assert opened.version == server.cell("ledger").version == 2
    assert opened.put(b"two", [Change("entry", b"made again", create=True)]) == (False,)
    lease.release()


def test_an_enter_that_comes_after_its_owner_gave_up_leaves_no_orphan(
    server: Any, proxy: TcpProxy, client: Any
) -> None:
    proxy.hold_back(call_of("enter"))
    with pytest.raises(Unavailable, match="did not serve enter"):
        client.lock("x").acquire(timeout_s=0.1)
    gone(server, "x")
    client.ping()
    proxy.deliver_held()
    assert server.claims("x") == ()
    client.lock("x").acquire(timeout_s=0.0).release()


# -- the network


def test_a_reset_while_holding_is_mended_without_a_word(server: Any, proxy: TcpProxy, connect: Connect) -> None:
    lease = connect(behind(proxy.port)).lock("x", ttl_s=1.5).acquire()
    for _ in range(2):
        proxy.cut()
        renewed(lease)
    assert lease.state == "HELD"
    proxy.cut()
    lease.release()
    assert server.claims("x") == ()


def test_one_dead_connection_costs_no_lease_where_a_new_one_would_do(
    server: Any, proxy: TcpProxy, connect: Connect
) -> None:
    lease = connect(behind(proxy.port)).lock("x", ttl_s=3.0).acquire()
    proxy.silence(standing)
    eventually(lambda: server.claims("x")[0].remaining_s < 1.7)
    eventually(lambda: server.claims("x")[0].remaining_s > 2.0)
    eventually(lambda: lease.state == "HELD")
    lease.release()


def test_a_silence_to_the_deadline_loses_the_lease_on_time(server: Any, proxy: TcpProxy, connect: Connect) -> None:
    lease = connect(behind(proxy.port), patience_s=1.0).lock("x", ttl_s=1.0).acquire()
    proxy.silence()
    following = Waiter(server, connect(server.url)).entered()
    assert lease.state == "LOST"
    assert following.token > lease.token
    with pytest.raises(LeaseLost):
        lease.release()
    following.release()
    proxy.heal()


def test_a_hand_over_arrives_although_the_connection_for_signals_died_in_silence(
    server: Any, proxy: TcpProxy, connect: Connect
) -> None:
    holder = connect(server.url).lock("x", ttl_s=1.0).acquire()
    waiter = Waiter(server, connect(behind(proxy.port)))
    eventually(lambda: any(wire.listens for wire in proxy.wires))
    proxy.silence(listening)
    holder.release()
    waiter.entered().release()


# -- backends


def test_ended_backends_cost_no_lease_and_no_hand_over(server: Any, connect: Connect) -> None:
    """As an administrator, a failover of a pooler or idle_session_timeout does it."""
    client = connect(server.url)
    lease = client.lock("x", ttl_s=3.0).acquire()
    waiter = Waiter(server, connect(server.url), ttl_s=3.0)
    for _ in range(2):
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'")
        eventually(lambda: client.ping() is None)
        renewed(lease)
    assert lease.state == "HELD"
    lease.release()
    waiter.entered().release()


# -- the server


def test_a_crash_forgets_no_holder_and_no_queue(server: Any, connect: Connect) -> None:
    client = connect(server.url, patience_s=20.0)
    lease = client.lock("x", ttl_s=20.0).acquire()
    waiter = Waiter(server, connect(server.url, patience_s=20.0), ttl_s=20.0)
    opened = client.cell("ledger").open(lease)
    opened.put(b"before")
    server.restart()
    assert server.holders("x") == [lease.token]
    assert (server.waiters("x"), server.cell("ledger").value) == (1, b"before")
    opened.put(b"after")
    lease.release()
    following = waiter.entered()
    assert following.token > lease.token
    following.release()


def test_a_paused_server_is_waited_for_and_the_lease_stands(server: Any, connect: Connect) -> None:
    lease = connect(server.url).lock("x", ttl_s=6.0).acquire()
    server.pause()
    eventually(lambda: lease.state == "UNSURE")
    server.resume()
    eventually(lambda: lease.state == "HELD")
    lease.release()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LivePostgres]:
    server = LivePostgres(tmp_path)
    yield server
    server.close()


def test_a_new_disk_forgets_who_holds_yet_tokens_rise_and_the_holder_is_told(
    own: LivePostgres, connect: Connect
) -> None:
    client = connect(own.url, patience_s=20.0)
    lease = client.lock("x", ttl_s=4.0).acquire()
    own.kill()
    own.new_data()
    own.start()
    following = connect(own.url, patience_s=20.0).lock("x", ttl_s=4.0).acquire(timeout_s=20)
    assert following.token > lease.token
    assert lease.wait_lost(20)
    following.release()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[LivePostgres, LivePostgres]]:
    """A primary, and a standby that has whatever was acknowledged."""
    for name in ("primary", "standby"):
        (tmp_path / name).mkdir()
    primary = LivePostgres(tmp_path / "primary", "max_wal_senders=4")
    folder = new_folder()
    subprocess.run(
        [binary("pg_basebackup"), "-D", str(folder / "data"), "-d", primary.url, "-R", "-X", "stream", "-c", "fast"],
        check=True, capture_output=True, **as_user(),
    )  # fmt: skip
    standby = LivePostgres(tmp_path / "standby", data=folder / "data")
    shutil.rmtree(folder)
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.sql("SELECT pg_reload_conf()")
    eventually(lambda: primary.sql("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))
    yield primary, standby
    primary.close()
    standby.close()


def test_a_promoted_standby_goes_on_where_the_primary_was(
    pair: tuple[LivePostgres, LivePostgres], connect: Connect
) -> None:
    """Several hosts in the URL and target_session_attrs find it."""
    primary, standby = pair
    with pytest.raises(Unavailable, match="takes no writes"):
        connect(standby.url, patience_s=0.2).lock("x").acquire()
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    client = connect(f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write", patience_s=20.0)
    lease = client.lock("x", ttl_s=30.0).acquire()
    client.cell("ledger").open(lease).put(b"before")
    primary.kill()
    standby.sql("SELECT pg_promote()")
    assert client.cell("ledger").read().value == b"before"
    assert standby.holders("x") == [lease.token]
    lease.release()
    following = client.lock("x").acquire()
    assert following.token > lease.token
    following.release()


def test_a_server_that_takes_no_writes_says_so_and_who_leaves_later_has_left(server: Any, connect: Connect) -> None:
    """As managed servers do when their disk is full."""
    client = connect(server.url, patience_s=0.5)
    lease = client.lock("x", ttl_s=30.0).acquire()
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    server.sql("SELECT pg_reload_conf()")
    try:
        with pytest.raises(Unavailable, match="default_transaction_read_only"):
            connect(server.url, patience_s=0.5).lock("y").acquire()
        lease.release()  # goes on in the background
    finally:
        server.sql("ALTER SYSTEM RESET default_transaction_read_only")
        server.sql("SELECT pg_reload_conf()")
    eventually(lambda: not server.claims("x"))


def test_a_clock_that_was_set_back_keeps_nobody_out_for_longer_than_a_lease(server: Any, connect: Connect) -> None:
    """What stands is as if it had been written by a clock that is an hour ahead."""
    client = connect(server.url)
    client.lock("x", ttl_s=1.0, renew=False).acquire().detach()
    hour = 3_600_000_000
    server.sql(
        f"UPDATE holdfast.turnstile SET next_end = next_end + {hour}, touched = touched + {hour}, last = last + {hour}"
    )
    server.sql(f"UPDATE holdfast.claim SET ends = ends + {hour}")
    started = time.monotonic()
    lease = client.lock("x", ttl_s=1.0).acquire(timeout_s=30)
    assert time.monotonic() - started < 25
    lease.release()
