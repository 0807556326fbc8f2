"""A transaction of another process holds nobody up for longer than they asked; interrupts break nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from holdfast.contract import Request
from holdfast.engines.sqlite.engine import SqliteEngine
from holdfast.errors import Misuse, OutcomeUnknown, Unavailable
from holdfast.model import Claim, State, Turnstile

LOCK = Turnstile("lock", "x", 1)

INTRUDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("in", flush=True)
time.sleep(600)
"""


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path / "holdfast.db")


@pytest.fixture
def intruder(engine: SqliteEngine) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that is stopped in the middle of a transaction."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", INTRUDER, str(engine.path)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGSTOP)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_stopped_writer_makes_calls_unavailable_in_time(engine: SqliteEngine, intruder: Callable[[], Any]) -> None:
    link = engine.blocking_link()
    link.call(engine.ping(), 5.0)
    stopped = intruder()
    started = time.monotonic()
    with pytest.raises(Unavailable):
        link.call(engine.enter(LOCK, Claim("c", 1, 60.0, link.inbox), False), 0.2)
    assert 0.15 < time.monotonic() - started < 2.0
    stopped.kill()
    stopped.wait()
    assert link.call(engine.enter(LOCK, Claim("c", 1, 60.0, link.inbox), False), 5.0).state is State.ADMITTED
    link.close()


def test_a_stopped_writer_does_not_hold_up_an_event_loop(engine: SqliteEngine, intruder: Callable[[], Any]) -> None:
    async def main() -> None:
        link = engine.async_link()
        await link.call(engine.ping(), 5.0)
        stopped = intruder()
        calls = [
            asyncio.create_task(link.call(engine.enter(LOCK, Claim(f"c{n}", 1, 60.0, link.inbox), False), 5.0))
            for n in range(3)
        ]
        slowest = 0.0
        for _ in range(20):
            before = time.monotonic()
            await asyncio.sleep(0.005)
            slowest = max(slowest, time.monotonic() - before)
        assert slowest < 0.1
        assert not any(call.done() for call in calls)
        stopped.kill()
        stopped.wait()
        states = [(await call).state for call in calls]
        assert sorted(states) == [State.ADMITTED, State.WAITING, State.WAITING]
        await link.close()

    asyncio.run(main())


def test_threads_share_one_link(engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    counts = Turnstile("semaphore", "s", 100)
    tokens: list[int] = []

    def work(who: int) -> None:
        for n in range(50):
            claim = Claim(f"{who}.{n}", 1, 60.0, link.inbox)
            tokens.append(link.call(engine.enter(counts, claim, False), 30.0).token)
            link.call(engine.leave(counts, claim.id, False), 30.0)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(tokens)) == 300
    assert link.call(engine.look(counts), 5.0).claims == ()
    link.close()


def test_an_interrupt_at_any_line_leaves_the_link_and_the_file_usable(engine: SqliteEngine) -> None:
    """The n-th line that a call runs raises, for every n, as Ctrl-C would there."""
    link, other = engine.blocking_link(), engine.blocking_link()
    other.call(engine.ping(), 5.0)
    link.call(engine.ping(), 5.0)
    lines = interrupted = 0
    done = False
    while not done:
        lines += 1
        left = lines

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal left
            if "sqlite" not in Path(frame.f_code.co_filename).parts:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        claim = Claim(f"c{lines}", 1, 60.0, link.inbox)
        sys.settrace(trace)
        try:
            link.call(engine.enter(LOCK, claim, False), 5.0)
            link.call(engine.leave(LOCK, claim.id, False), 5.0)
            done = True
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        other.call(engine.ping(), 0.0)  # nothing is left locked behind
        link.call(engine.leave(LOCK, claim.id, True), 5.0)
        assert link.call(engine.look(LOCK), 5.0).claims == ()
    assert interrupted > 60
    link.close()
    other.close()


def test_an_error_within_a_transaction_undoes_it(engine: SqliteEngine) -> None:
    link = engine.blocking_link()

    def half(desk: Any) -> None:
        desk.enter(LOCK, Claim("half", 1, 60.0, link.inbox), False)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        link.call(Request("half", half, lambda reply: reply), 5.0)
    assert link.call(engine.look(LOCK), 5.0).claims == ()
    link.close()


def test_a_call_from_within_a_call_of_the_same_thread_is_refused(engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    nested = Request("nested", lambda desk: link.call(engine.ping(), 5.0), lambda reply: reply)
    with pytest.raises(Unavailable, match="signal handler"):
        link.call(nested, 5.0)
    link.call(engine.ping(), 5.0)
    link.close()


@pytest.mark.parametrize(
    ("code", "committing", "error"),
    [
        (sqlite3.SQLITE_FULL, False, Unavailable),
        (sqlite3.SQLITE_IOERR, True, OutcomeUnknown),
        (sqlite3.SQLITE_CORRUPT, True, Misuse),
        (sqlite3.SQLITE_READONLY, False, Misuse),
    ],
)
def test_what_the_disk_says_becomes_the_right_error(
    engine: SqliteEngine, code: int, committing: bool, error: type[Exception]
) -> None:
    link = engine.blocking_link()
    link.call(engine.ping(), 5.0)
    store = link._core._store
    trouble = sqlite3.OperationalError("the disk")
    trouble.sqlite_errorcode = code
    connection = store._connection
    assert connection is not None
    real: sqlite3.Connection = connection

    class Failing:
        in_transaction = property(lambda self: real.in_transaction)
        close = real.close

        def execute(self, sql: str, *args: Any) -> Any:
            if sql == "COMMIT" or (not committing and sql.startswith("SELECT")):
                raise trouble
            return real.execute(sql, *args)

    store._connection = Failing()  # type: ignore[assignment]
    with pytest.raises(error):
        link.call(engine.enter(LOCK, Claim("c", 1, 60.0, link.inbox), False), 5.0)
    store._connection = real
    assert link.call(engine.look(LOCK), 5.0).claims == ()
    link.close()


def test_operations_stay_quick_among_thousands_of_claims(engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    wide = Turnstile("group", "g", 1 << 30)
    ping = engine.ping()

    def fill(desk: Any) -> None:
        for n in range(4000):
            desk.enter(LOCK, Claim(f"w{n}", 1, 600.0, "", "", b""), False)
            desk.enter(wide, Claim(f"m{n}", 0, 600.0, "", "", b""), False)

    link.call(Request("fill", fill, lambda reply: reply), 60.0)

    def best_s(call: Callable[[], object]) -> float:
        took: list[float] = []
        for _ in range(20):
            before = time.perf_counter()
            call()
            took.append(time.perf_counter() - before)
        return min(took)

    def pass_through(turnstile: Turnstile) -> None:
        claim = Claim(os.urandom(6).hex(), 1, 600.0, link.inbox)
        link.call(engine.enter(turnstile, claim, False), 5.0)
        (request,) = engine.renew([(turnstile, claim)])
        link.call(request, 5.0)
        link.call(engine.leave(turnstile, claim.id, False), 5.0)

    link.call(ping, 5.0)
    assert best_s(lambda: pass_through(LOCK)) < 0.002
    assert best_s(lambda: pass_through(wide)) < 0.002
    link.close()
