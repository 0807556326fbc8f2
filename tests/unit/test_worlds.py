"""The two worlds: what the protocols lean on, with real interrupts and cancellations."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from holdfast.engines.memory import MemoryEngine
from holdfast.model import Signal
from holdfast.worlds.tasks import Tasks
from holdfast.worlds.threads import ThreadMailbox, Threads, drive


@pytest.fixture
def threads() -> Threads:
    return Threads(MemoryEngine().blocking_link())


def tasks() -> Tasks:
    return Tasks(MemoryEngine().async_link())


async def suspends() -> None:
    await asyncio.sleep(0)


def test_a_protocol_that_awaits_something_foreign_fails_loudly() -> None:
    with pytest.raises(RuntimeError, match=r"suspends.* awaited something that is not of the blocking world"):
        drive(suspends())


INTERRUPTED = """
import gc, signal, sys, threading, time
from holdfast.engines.memory import MemoryEngine
from holdfast.worlds.threads import ThreadMailbox, Threads, drive

gc.disable()  # gh-106883
world, main, sent, done = Threads(MemoryEngine().blocking_link()), threading.main_thread(), [], threading.Event()

async def cleanup():
    for number in range(2):
        while sys._current_frames()[main.ident].f_code.co_name != "shield":
            time.sleep(0.001)
        time.sleep(0.05)  # by now it waits
        sent.append(signal.pthread_kill(main.ident, signal.SIGINT))
    time.sleep(0.05)
    done.set()

try:
    drive(world.shield(cleanup(), 30.0))
except KeyboardInterrupt:
    print("interrupts:", len(sent), "finished:", done.is_set())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a thread")
def test_no_interrupt_stops_a_shielded_clean_up_in_threads() -> None:
    """In a process of its own, for real interrupts."""
    command = [sys.executable, "-c", INTERRUPTED]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert (ran.stdout, ran.stderr) == ("interrupts: 2 finished: True\n", "")


def test_no_cancellation_stops_a_shielded_clean_up_in_tasks() -> None:
    async def main() -> None:
        world, done = tasks(), asyncio.Event()
        shielding = asyncio.current_task()
        assert shielding is not None

        async def cleanup() -> None:
            for _ in range(2):
                assert shielding is not None
                shielding.cancel()
                await world.sleep(0.02)
            done.set()

        with pytest.raises(asyncio.CancelledError):
            await world.shield(cleanup(), 30.0)
        assert done.is_set(), "the cancellation is raised after it"
        assert [shielding.uncancel() for _ in range(2)] == [1, 0]

    asyncio.run(main())


def test_a_shield_ends_at_its_deadline_and_its_clean_up_goes_on(threads: Threads) -> None:
    may_end, done = threading.Event(), threading.Event()

    async def cleanup() -> None:
        may_end.wait(30)
        done.set()

    drive(threads.shield(cleanup(), 0.01))
    assert not done.is_set()
    may_end.set()
    assert done.wait(30)

    async def main() -> None:
        world = tasks()
        may_end, done = asyncio.Event(), asyncio.Event()

        async def cleanup() -> None:
            await may_end.wait()
            done.set()

        await world.shield(cleanup(), 0.01)
        assert not done.is_set()
        may_end.set()
        await asyncio.wait_for(done.wait(), 30)

    asyncio.run(main())


def test_a_wait_ends_with_the_signal_or_at_its_deadline(threads: Threads) -> None:
    mailbox = threads.mailbox()
    assert drive(threads.wait_signal(mailbox, threads.now() - 1)) is None
    started = time.monotonic()
    assert drive(threads.wait_signal(mailbox, threads.now() + 0.02)) is None
    assert time.monotonic() - started >= 0.019


class Wire:
    """A link's `Reading`, whose sleep is what the test makes it."""

    def __init__(self, sleep: Callable[[], object]) -> None:
        self.reader: object = None
        self.sleep = sleep
        self.rang = threading.Event()
        self.interrupt = self.rang.set

    def begin(self, reader: object) -> bool:
        if self.reader is not None:
            return False
        self.reader = reader
        return True

    def end(self, reader: object) -> None:
        if self.reader is reader:
            self.reader = None

    def wait(self, timeout_s: float) -> None:
        self.sleep()


def test_a_thread_that_waits_reads_until_its_signal_is_there_and_no_longer() -> None:
    mailbox = ThreadMailbox()
    others = iter(range(3))
    wire = Wire(lambda: next(others, None) is None and mailbox.post(Signal("admitted", "x")))
    assert mailbox.read(wire, 30.0) == Signal("admitted", "x")
    assert next(others, None) is None
    assert wire.reader is None
    assert ThreadMailbox().read(Wire(lambda: time.sleep(0.001)), 0.02) is None


def test_whoever_posts_to_a_thread_that_reads_ends_its_sleep() -> None:
    mailbox = ThreadMailbox()
    wire = Wire(lambda: wire.rang.wait(30))
    threading.Timer(0.02, mailbox.post, [Signal("gone", "x")]).start()
    assert mailbox.read(wire, None) == Signal("gone", "x")
    wire.rang.clear()
    mailbox.post(Signal("admitted", "x"))
    assert not wire.rang.is_set(), "nobody sleeps there any more"


def test_an_interrupted_reader_leaves_the_reading_to_others() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    mailbox, wire = ThreadMailbox(), Wire(interrupted)
    with pytest.raises(KeyboardInterrupt):
        mailbox.read(wire, 30.0)
    assert wire.reader is None
    mailbox.post(Signal("admitted", "x"))
    assert not wire.rang.is_set()


def test_where_another_reads_a_thread_waits_for_its_mailbox_alone() -> None:
    mailbox, wire = ThreadMailbox(), Wire(lambda: pytest.fail("it read"))
    wire.begin("another")
    threading.Timer(0.02, mailbox.post, [Signal("admitted", "x")]).start()
    assert mailbox.read(wire, 30.0) == Signal("admitted", "x")
    assert wire.reader == "another"


def test_a_signal_that_another_thread_posts_wakes_a_task() -> None:
    async def main() -> None:
        world = tasks()
        mailbox = world.mailbox()
        threading.Timer(0.02, mailbox.post, [Signal("admitted", "x")]).start()
        assert await world.wait_signal(mailbox, world.now() + 30) == Signal("admitted", "x")
        assert await world.wait_signal(mailbox, world.now()) is None

    asyncio.run(main())
