"""Waiting on the embedded engine costs next to nothing, and a waiting thread reads its own hand-over."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from onlooker import Onlooker
from peer import Peer
from servers import eventually

import holdfast
from holdfast.model import Signal
from holdfast.worlds.threads import drive

pytestmark = pytest.mark.live

WATCHED_S = 5.0


def cpu_s(pid: int) -> float:
    """The processor time that a process has used."""
    return time.clock_gettime((~pid << 3) | 2)  # the id of its clock, as clock_getcpuclockid makes it


@pytest.mark.skipif(sys.platform != "linux", reason="reads the CPU clock of another process")
def test_a_process_that_waits_uses_next_to_no_processor(
    sqlite_url: str,
    onlooker: Callable[[str], Onlooker],
    connect: Callable[..., Any],
    start_peer: Callable[..., Peer],
    record_property: Callable[..., None],
) -> None:
    lease = connect(sqlite_url).lock("x", ttl_s=60.0).acquire()
    view, waiter = onlooker(sqlite_url), start_peer(sqlite_url)
    waiter.order("acquire", "x", 60.0)
    eventually(lambda: view.waiters("x") == 1)
    time.sleep(0.5)  # it listens by now
    used_s = -cpu_s(waiter.process.pid)
    time.sleep(WATCHED_S)
    used_s += cpu_s(waiter.process.pid)
    record_property("percent_of_a_core", round(100 * used_s / WATCHED_S, 2))
    assert used_s < 0.02 * WATCHED_S, "1 % is what we say; twice that on a machine whose caches others use"
    lease.release()
    assert waiter.answer() > lease.token


def hand_over(holder: holdfast.Client, client: holdfast.Client, pool: ThreadPoolExecutor) -> None:
    """From ``holder`` to a thread of ``client``, long before any renewal would find out."""
    held = holder.lock("x", ttl_s=120.0).acquire()
    waiting = pool.submit(lambda: client.lock("x", ttl_s=120.0).acquire().release())
    eventually(lambda: client.session.tenures and any(not t.admitted for t in client.session.tenures.values()))
    eventually(lambda: client.session.listening)
    time.sleep(0.03)  # the thread of the signals has noticed by now that somebody reads
    held.release()
    waiting.result(20)


def test_a_waiting_thread_reads_its_signal_itself(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    with holdfast.connect(sqlite_url) as holder, holdfast.connect(sqlite_url) as client:
        deliver = client.session.deliver

        def noting(signal: Signal) -> None:
            heard.append(threading.current_thread().name)
            deliver(signal)

        monkeypatch.setattr(client.session, "deliver", noting)
        with ThreadPoolExecutor(1, "waits") as pool:
            for _ in range(10):  # on a busy machine the other may be quicker now and then
                hand_over(holder, client, pool)
    assert "waits_0" in heard


def test_each_of_many_waiting_threads_is_told_whoever_reads(sqlite_url: str) -> None:
    with holdfast.connect(sqlite_url) as holder, holdfast.connect(sqlite_url) as client:
        held = [holder.lock(f"x{n}", ttl_s=120.0).acquire() for n in range(8)]
        entered: list[int] = []

        def take(number: int) -> None:
            with client.lock(f"x{number}", ttl_s=120.0):
                entered.append(number)

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(take, number) for number in range(8)]
            eventually(lambda: len(client.session.tenures) == 8 and client.session.listening)
            for number in (0, 5, 3, 7, 1, 6, 2, 4):
                held[number].release()
                waiting[number].result(20)
        assert entered == [0, 5, 3, 7, 1, 6, 2, 4]


def test_a_reader_is_told_by_a_thread_of_its_own_process(sqlite_url: str) -> None:
    with holdfast.connect(sqlite_url) as client, ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            hand_over(client, client, pool)


def test_a_reader_that_is_interrupted_just_before_it_sleeps_does_not_sleep(sqlite_url: str) -> None:
    with holdfast.connect(sqlite_url) as client:
        drive(client.session.listen())
        listener: Any = client.session.world.link.reading  # type: ignore[attr-defined]
        reader = object()
        assert listener.begin(reader)
        listener.interrupt()
        started = time.monotonic()
        listener.wait(50.0)
        assert time.monotonic() - started < 20
        listener.end(reader)


def test_a_reader_is_told_though_the_thread_that_read_before_took_its_wake_up(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holdfast.connect(sqlite_url) as client:
        drive(client.session.listen())
        listener: Any = client.session.world.link.reading  # type: ignore[attr-defined]
        reader, take_all, taken = object(), listener._take_all, threading.Event()

        def reader_comes(receiver: Any) -> None:
            if not taken.is_set():
                assert listener.begin(reader)
                listener.interrupt()
            take_all(receiver)
            taken.set()

        monkeypatch.setattr(listener, "_take_all", reader_comes)
        listener.interrupt()
        assert taken.wait(20)
        started = time.monotonic()
        listener.wait(50.0)
        assert time.monotonic() - started < 20
        listener.end(reader)
