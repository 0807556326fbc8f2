"""The embedded engine under its users' misfortunes: killed, paused, in the middle of writing, deadlocked, forgetful."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from onlooker import Onlooker
from peer import Peer
from servers import eventually

from holdfast import LeaseLost, StaleToken, Unavailable

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
StartPeer = Callable[..., Peer]


@pytest.fixture
def view(onlooker: Callable[[str], Onlooker], sqlite_url: str) -> Onlooker:
    return onlooker(sqlite_url)


@pytest.fixture
def folder(sqlite_url: str) -> Path:
    return Path(sqlite_url.removeprefix("sqlite://")).parent


def waiter(pool: ThreadPoolExecutor, view: Onlooker, client: Any, ttl_s: float = 60.0) -> Future[tuple[Any, float]]:
    """Somebody who waits for ``x`` already: its lease, and when it got it."""

    def wait() -> tuple[Any, float]:
        lease = client.lock("x", ttl_s=ttl_s).acquire(timeout_s=25)
        return lease, time.monotonic()

    before = view.waiters("x")
    future = pool.submit(wait)
    eventually(lambda: view.waiters("x") > before)
    return future


def stopped(peer: Peer) -> None:
    """Wait until it is."""
    eventually(lambda: os.waitpid(peer.process.pid, os.WUNTRACED | os.WNOHANG)[0], what="it was never stopped")


def paused_between_transactions(peer: Peer, url: str) -> None:
    """Stop it, yet not while it writes: it would hold up everybody, which is another test."""
    while True:
        peer.signal(signal.SIGSTOP)
        stopped(peer)
        witness = sqlite3.connect(url.removeprefix("sqlite://"), timeout=0.5)
        with contextlib.closing(witness), contextlib.suppress(sqlite3.OperationalError):
            witness.execute("BEGIN IMMEDIATE")
            return
        peer.signal(signal.SIGCONT)


# -- killed


def test_the_next_is_in_at_once_after_the_holder_was_killed(
    sqlite_url: str, view: Onlooker, connect: Connect, start_peer: StartPeer, record_property: Callable[..., None]
) -> None:
    client = connect(sqlite_url)
    took_ms: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            holder = start_peer(sqlite_url)
            token = holder.do("acquire", "x", 60.0)
            next_one = waiter(pool, view, client)
            killed_at = time.monotonic()
            holder.signal(signal.SIGKILL)
            lease, entered_at = next_one.result()  # its time is over long before the dead one's lease
            assert lease.token > token
            assert view.holders("x") == [lease.token]
            lease.release()
            took_ms.append((entered_at - killed_at) * 1000)
    record_property("killed_to_entered_ms", round(median(took_ms), 1))
    print(f"killed to entered: median {median(took_ms):.1f} ms, most {max(took_ms):.1f} ms")


def test_a_killed_waiter_is_passed_over(
    sqlite_url: str, view: Onlooker, connect: Connect, start_peer: StartPeer
) -> None:
    client, dead = connect(sqlite_url), start_peer(sqlite_url)
    lease = client.lock("x", ttl_s=60.0).acquire()
    dead.order("acquire", "x", 60.0)
    eventually(lambda: view.waiters("x") == 1)
    dead.signal(signal.SIGKILL)
    dead.process.wait()
    with ThreadPoolExecutor(1) as pool:
        last = waiter(pool, view, client)
        lease.release()
        last.result()[0].release()


def test_a_transaction_whose_process_was_killed_never_was(
    sqlite_url: str, view: Onlooker, connect: Connect, start_peer: StartPeer
) -> None:
    writer = start_peer(sqlite_url)
    writer.do("acquire", "x", 60.0)
    writer.do("open", "ledger")
    writer.do("put", "whole")
    with ThreadPoolExecutor(1) as pool:
        next_one = waiter(pool, view, connect(sqlite_url))
        writer.order("signal_inside", signal.SIGKILL)
        lease, _ = next_one.result()
    assert view.claims("half") == ()
    assert view.cell("ledger").value == b"whole"
    lease.release()


@pytest.mark.parametrize("left", ["as it was", "without its index", "with half a frame at its end"])
def test_what_killed_writers_had_committed_is_recovered_from_the_log(
    sqlite_url: str, folder: Path, connect: Connect, start_peer: StartPeer, left: str
) -> None:
    writer = start_peer(sqlite_url)
    token = writer.do("acquire", "x", 600.0)
    writer.do("open", "ledger")
    writer.do("put", "all of it")
    writer.signal(signal.SIGKILL)
    writer.process.wait()
    log = folder / "holdfast.db-wal"
    assert b"all of it" in log.read_bytes()
    assert b"all of it" not in (folder / "holdfast.db").read_bytes()
    if left == "without its index":
        (folder / "holdfast.db-shm").unlink()
    if left == "with half a frame at its end":
        with log.open("ab") as end:
            end.write(log.read_bytes()[32 : 32 + 2000])
    client = connect(sqlite_url)
    lease = client.lock("x").acquire(timeout_s=20)
    assert lease.token > token
    opened = client.cell("ledger").open(lease)
    assert opened.value == b"all of it"
    opened.put(b"and more")
    lease.release()


# -- paused


def test_a_holder_paused_past_its_lease_is_told_and_refused_and_the_next_ones_data_stands(
    sqlite_url: str, view: Onlooker, connect: Connect, start_peer: StartPeer
) -> None:
    paused, client = start_peer(sqlite_url), connect(sqlite_url)
    token = paused.do("acquire", "x", 1.5)
    paused.do("open", "ledger")
    paused.do("put", "first")
    paused.signal(signal.SIGSTOP)
    lease = client.lock("x", ttl_s=60.0).acquire(timeout_s=20)
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
    assert view.cell("ledger").value == b"second"
    assert view.holders("x") == [lease.token]
    lease.release()


def test_a_paused_holder_keeps_its_lock_until_its_lease_ends(
    sqlite_url: str, view: Onlooker, start_peer: StartPeer
) -> None:
    paused = start_peer(sqlite_url)
    token = paused.do("acquire", "x", 30.0)
    paused.signal(signal.SIGSTOP)
    stopped(paused)
    assert view.holders("x") == [token]  # each look would bury a dead one
    paused.signal(signal.SIGCONT)
    paused.do("release")


def test_a_waiter_that_is_paused_when_its_turn_comes_costs_its_lease_and_no_more(
    sqlite_url: str, view: Onlooker, connect: Connect, start_peer: StartPeer
) -> None:
    client, paused = connect(sqlite_url), start_peer(sqlite_url)
    lease = client.lock("x", ttl_s=60.0).acquire()
    paused.order("acquire", "x", 0.8)
    eventually(lambda: view.waiters("x") == 1)
    with ThreadPoolExecutor(1) as pool:
        last = waiter(pool, view, client)
        paused_between_transactions(paused, sqlite_url)
        lease.release()
        entered, _ = last.result()
        entered.release()
    paused.signal(signal.SIGCONT)
    assert paused.answer() > entered.token  # it queued up once more


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
def test_a_process_stopped_inside_a_transaction_holds_others_up_until_it_goes_on_or_dies(
    sqlite_url: str, view: Onlooker, connect: Connect, start_peer: StartPeer, end: signal.Signals
) -> None:
    client, culprit = connect(sqlite_url, patience_s=0.6), start_peer(sqlite_url)
    lease = client.lock("held", ttl_s=1.2).acquire()
    culprit.do("acquire", "theirs", 60.0)
    culprit.order("signal_inside", signal.SIGSTOP)
    stopped(culprit)
    with pytest.raises(Unavailable, match="busy"):
        client.lock("x").try_acquire()
    assert lease.wait_lost(20.0)  # nobody could renew it
    culprit.signal(end)
    if end == signal.SIGCONT:
        culprit.answer()
        assert len(view.claims("half")) == len(view.claims("theirs")) == 1
        culprit.do("release")
    eventually(lambda: not view.claims("theirs"))
    client.lock("x").acquire(timeout_s=20).release()


# -- deadlocked and forgotten


def test_a_deadlocked_holder_loses_its_lease_after_max_hold_s(sqlite_url: str, connect: Connect) -> None:
    client = connect(sqlite_url)
    lost = threading.Event()
    stuck = client.lock("x", ttl_s=60.0, max_hold_s=0.5).acquire()
    stuck.on_lost(lost.set)
    entered = client.lock("x", ttl_s=60.0).acquire(timeout_s=20)
    assert entered.token > stuck.token
    assert lost.wait(20)
    assert stuck.state == "LOST"
    with pytest.raises(LeaseLost, match="max_hold_s"):
        stuck.release()
    entered.release()


def test_a_lease_that_was_thrown_away_is_given_back_long_before_it_ends(
    sqlite_url: str, view: Onlooker, connect: Connect
) -> None:
    client = connect(sqlite_url)
    thread = threading.Thread(target=client.lock("x", ttl_s=60.0).acquire)
    thread.start()
    thread.join()
    del thread
    gc.collect()
    eventually(lambda: not view.claims("x"))
