"""Servers that restart, forget their scripts, run out of memory or have their clock stepped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis_live import LiveRedis, gone, renewed
from servers import eventually

from holdfast import LeaseLost, StaleToken, Unavailable
from holdfast.engines.redis import scripts
from holdfast.engines.redis.scripts import Script

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


def test_leases_go_on_through_a_restart_with_persistence(tmp_path: Path, connect: Connect) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    server = LiveRedis(folder, "--appendonly", "yes", "--appendfsync", "always")
    try:
        client = connect(server.url)
        lease = client.lock("x", ttl_s=4.0).acquire()
        opened = client.cell("ledger").open(lease)
        opened.put(b"before")
        server.restart()
        assert client.lock("x").try_acquire() is None
        renewed(lease)
        assert lease.state == "HELD"
        opened.put(b"after")
        lease.release()
        following = client.lock("x", ttl_s=4.0).acquire(timeout_s=20)
        assert following.token > lease.token
        assert server.cell("ledger").value == b"after"
        following.release()
    finally:
        server.close()


def test_a_restart_without_persistence_ends_leases_and_queues_waiters_anew(server: LiveRedis, connect: Connect) -> None:
    client = connect(server.url)
    lease = client.lock("x", ttl_s=3.0).acquire()
    lost = threading.Event()
    lease.on_lost(lost.set)
    waiters = [connect(server.url) for _ in range(3)]
    entered: list[Any] = []

    def wait(waiter: Any) -> None:
        entered.append(waiter.lock("x", ttl_s=3.0).acquire(timeout_s=20))
        entered[-1].release()

    threads = [threading.Thread(target=wait, args=(waiter,)) for waiter in waiters]
    for thread in threads:
        thread.start()
    eventually(lambda: server.waiters("x") == 3)
    server.restart()
    assert lost.wait(20)
    assert lease.state == "LOST"
    for thread in threads:
        thread.join(20)
    tokens = [one.token for one in entered]
    assert len(tokens) == 3
    assert tokens == sorted(tokens)
    assert tokens[0] > lease.token
    with pytest.raises(LeaseLost):
        lease.release()
    gone(server, "x")


def test_a_waiter_survives_a_server_that_is_away_for_a_while(server: LiveRedis, connect: Connect) -> None:
    client, other = connect(server.url), connect(server.url)
    lease = client.lock("x", ttl_s=0.6).acquire()
    entered: list[Any] = []
    thread = threading.Thread(target=lambda: entered.append(other.lock("x", ttl_s=0.6).acquire(timeout_s=20)))
    thread.start()
    eventually(lambda: server.waiters("x") == 1)
    server.kill()
    assert lease.wait_lost(20)
    server.start()
    thread.join(20)
    assert entered[0].token > lease.token
    assert entered[0].state == "HELD"
    entered[0].release()


def test_a_script_flush_in_the_middle_is_not_noticed(server: LiveRedis, connect: Connect) -> None:
    flush = server.client.script_flush
    client, other = connect(server.url), connect(server.url)
    lease = client.lock("x", ttl_s=2.0).acquire()
    flush()
    opened = client.cell("ledger").open(lease)
    flush()
    opened.put(b"one")
    flush()
    entered: list[Any] = []
    thread = threading.Thread(target=lambda: entered.append(other.lock("x", ttl_s=2.0).acquire(timeout_s=20)))
    thread.start()
    eventually(lambda: server.waiters("x") == 1)
    flush()
    renewed(lease)
    flush()
    lease.release()
    thread.join(20)
    flush()
    entered[0].release()
    assert server.claims("x") == ()
    assert server.cell("ledger").value == b"one"


def test_out_of_memory_refuses_who_comes_in_one_clear_error_and_lets_others_renew_and_leave(
    server: LiveRedis, connect: Connect
) -> None:
    client, patient = connect(server.url, patience_s=0.3), connect(server.url)
    lease = client.lock("x", ttl_s=2.0).acquire()
    entered: list[Any] = []
    thread = threading.Thread(target=lambda: entered.append(patient.lock("x", ttl_s=2.0).acquire(timeout_s=20)))
    thread.start()
    eventually(lambda: server.waiters("x") == 1)
    server.client.config_set("maxmemory", "1")
    for refused in (client.lock("new").acquire, client.lock("x").acquire):
        with pytest.raises(Unavailable, match=r"did not serve enter.*out of memory.*raise maxmemory"):
            refused()
    renewed(lease)  # and its waiter as well
    assert lease.state == "HELD"
    lease.release()
    thread.join(20)
    assert entered[0].state == "HELD"
    entered[0].release()
    server.client.config_set("maxmemory", "0")
    assert server.claims("x") == server.claims("new") == ()


@pytest.fixture
def step(server: LiveRedis, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Steps the clock that scripts see (TIME is the only clock they have) by so many seconds, from now on.

    The server's key expiry keeps the true clock: keys live longer than the leases in them in any case.
    """
    skew = "local time = call('TIME')\ntime[1] = time[1] + (call('GET', 'skew') or 0)"
    for name in ("ENTER", "LEAVE", "RENEW", "LOOK", "STANDS"):
        script: Script = getattr(scripts, name)
        text = script.by_text.split(b"\r\n", 3)[3].rsplit(b"\r\n", 1)[0].decode()
        assert "local time = call('TIME')" in text
        monkeypatch.setattr(scripts, name, Script(text.replace("local time = call('TIME')", skew)))
    return lambda seconds: server.client.set("skew", seconds)


def test_a_server_clock_stepped_back_neither_locks_for_ever_nor_lowers_tokens(
    server: LiveRedis, connect: Connect, step: Callable[[int], None]
) -> None:
    client, dead = connect(server.url), connect(server.url)
    abandoned = dead.lock("x", ttl_s=1.0, renew=False).acquire()
    kept = client.lock("kept", ttl_s=2.0).acquire()
    step(-3 * 86400)
    renewed(kept)
    assert kept.state == "HELD"
    lease = client.lock("x", ttl_s=1.0).acquire(timeout_s=20)
    assert lease.token > abandoned.token
    assert abandoned.state == "LOST"
    lease.release()
    kept.release()
    again = client.lock("kept", ttl_s=2.0).acquire()
    assert again.token > kept.token
    again.release()


def test_a_server_clock_stepped_forward_ends_leases_which_are_told_and_tokens_rise(
    server: LiveRedis, connect: Connect, step: Callable[[int], None]
) -> None:
    client, other = connect(server.url), connect(server.url)
    lease = client.lock("x", ttl_s=1.0).acquire()
    opened = client.cell("ledger").open(lease)
    step(3 * 86400)
    following = other.lock("x", ttl_s=1.0).acquire(timeout_s=20)
    assert following.token > lease.token
    assert lease.wait_lost(20)
    after = other.cell("ledger").open(following)
    with pytest.raises(StaleToken, match="we are no longer the holder"):
        opened.put(b"late")
    after.put(b"right")
    following.release()
    step(0)  # and back again: tokens do not fall with the clock
    last = other.lock("x", ttl_s=1.0).acquire(timeout_s=20)
    assert last.token > following.token
    last.release()
    assert server.claims("x") == ()
