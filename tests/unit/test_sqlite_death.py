"""A claim lives as long as a process that may act on it, and not a moment longer."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.contract import Request
from holdfast.engines.sqlite.engine import SqliteEngine
from holdfast.engines.sqlite.file import live_folder
from holdfast.engines.sqlite.lifeline import Lifeline, Pulses
from holdfast.errors import Misuse
from holdfast.model import CHANGED, NUDGE, Claim, Signal, State, Turnstile

LOCK = Turnstile("lock", "x", 1)
GROUP = Turnstile("group", "g", 1 << 30, announces=True)
SOURCE = str(Path(__file__).parents[2] / "src")

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from holdfast.engines.sqlite.engine import SqliteEngine
from holdfast.model import Claim, Turnstile
engine = SqliteEngine(Path(sys.argv[1]))
link = engine.blocking_link()
lock, group = Turnstile("lock", "x", 1), Turnstile("group", "g", 1 << 30, announces=True)
link.call(engine.enter(lock, Claim("lock", 1, 600.0, link.inbox), False), 5.0)
link.call(engine.enter(group, Claim("group", 0, 600.0, link.inbox), False), 5.0)
if sys.argv[2:] == ["lifeline"]:
    child = subprocess.Popen(["sleep", "600"], pass_fds=[link.lifeline])
    print(child.pid, flush=True)
elif sys.argv[2:] == ["plain"]:
    child = subprocess.Popen(["sleep", "600"], close_fds=False)
    print(child.pid, flush=True)
elif sys.argv[2:] == ["fork"]:
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(child, flush=True)
else:
    print(0, flush=True)
time.sleep(600)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "holdfast.db"


@pytest.fixture
def engine(path: Path) -> SqliteEngine:
    return SqliteEngine(path)


@contextlib.contextmanager
def holder(path: Path, how: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds the lock and is in the group; and its child, where it has one."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", HOLDER, str(path), *([how] if how else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process, child
    finally:
        process.kill()
        process.wait()
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.stdout.close()


def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """Wait for it; gives how long that took, in seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + within_s
        time.sleep(0.002)
    return time.monotonic() - started


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_a_dead_holder_is_not_waited_for(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    with holder(path) as (process, _):
        assert link.call(engine.enter(LOCK, Claim("mine", 1, 600.0, link.inbox), True), 5.0).state is State.BUSY
        kill(process)
        assert link.call(engine.enter(LOCK, Claim("mine", 1, 600.0, link.inbox), True), 5.0).state is State.ADMITTED
    link.close()


def test_a_life_line_that_was_looked_at_before_is_judged_by_what_stands_now(tmp_path: Path) -> None:
    life, pulses = Lifeline(tmp_path, "a", 0o600), Pulses(tmp_path)
    assert pulses.is_alive("a")
    (tmp_path / "a.alive").unlink()  # by hand
    anew = Lifeline(tmp_path, "a", 0o600)
    life.close(remove=False)
    assert pulses.is_alive("a"), "it hangs on its new file"
    anew.close(remove=False)
    assert not pulses.is_alive("a")
    assert not Pulses(tmp_path).is_alive("a")


def test_a_waiter_is_told_within_a_blink_that_the_holder_died(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    heard: queue.SimpleQueue[Signal] = queue.SimpleQueue()
    with holder(path) as (process, _):
        claim = Claim("mine", 1, 600.0, link.inbox)
        assert link.call(engine.enter(LOCK, claim, False), 5.0).state is State.WAITING
        assert link.listen(heard.put, lambda: None)
        kill(process)
        killed = time.monotonic()
        assert heard.get(timeout=5.0) == Signal(NUDGE, "mine")
        assert time.monotonic() - killed < 0.5  # 20 ms, and patience with a busy machine
        (request,) = engine.renew([(LOCK, claim)])
        assert link.call(request, 5.0)["mine"].state is State.ADMITTED
    link.close()


def test_a_watcher_of_a_group_is_told_that_a_member_died(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    heard: queue.SimpleQueue[Signal] = queue.SimpleQueue()
    link.listen(heard.put, lambda: None)
    link.watch(GROUP)
    with holder(path) as (process, _):
        assert heard.get(timeout=5.0) == Signal(CHANGED, GROUP.address)
        assert len(link.call(engine.look(GROUP), 5.0).claims) == 1
        kill(process)
        assert heard.get(timeout=5.0) == Signal(CHANGED, GROUP.address)
        assert link.call(engine.look(GROUP), 5.0).claims == ()
    link.close()


def test_no_turn_is_handed_to_a_waiter_that_died(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    assert link.call(engine.enter(LOCK, Claim("first", 1, 600.0, link.inbox), False), 5.0).state is State.ADMITTED
    with holder(path) as (process, _):
        link.call(engine.enter(LOCK, Claim("last", 1, 600.0, link.inbox), False), 5.0)
        kill(process)
        link.call(engine.leave(LOCK, "first", False), 5.0)
        assert [claim.id for claim in link.call(engine.look(LOCK), 5.0).admitted] == ["last"]
    link.close()


def test_a_child_that_was_handed_the_life_line_keeps_the_claim(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    with holder(path, "lifeline") as (process, child):
        kill(process)
        assert link.call(engine.look(LOCK), 5.0).admitted != ()
        os.kill(child, signal.SIGKILL)
        eventually(lambda: link.call(engine.look(LOCK), 5.0).admitted == ())
    link.close()


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_a_child_that_was_not_handed_it_keeps_nothing(path: Path, engine: SqliteEngine, how: str) -> None:
    link = engine.blocking_link()
    with holder(path, how) as (process, child):
        kill(process)
        eventually(lambda: link.call(engine.look(LOCK), 5.0).admitted == ())
        os.kill(child, 0)  # and it still lives
    link.close()


def test_a_detached_claim_outlives_its_process(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    with holder(path) as (process, _):
        (request,) = engine.renew([(LOCK, Claim("lock", 1, 600.0, ""))])
        link.call(request, 5.0)
        kill(process)
        assert link.call(engine.look(LOCK), 5.0).admitted != ()
    link.close()


def test_leases_alone_decide_where_somebody_removed_the_life_lines(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    with holder(path):
        for file in live_folder(path).glob("*.alive"):
            file.unlink()
        assert link.call(engine.enter(LOCK, Claim("mine", 1, 600.0, link.inbox), True), 5.0).state is State.BUSY
    link.close()


def test_what_the_dead_left_is_cleaned_by_the_next_who_comes(path: Path, engine: SqliteEngine) -> None:
    with holder(path) as (process, _):
        kill(process)
    assert len(list(live_folder(path).iterdir())) == 1
    link = engine.blocking_link()
    assert link.call(engine.list(""), 5.0) == []
    link.close()
    assert list(live_folder(path).iterdir()) == []


def test_a_stopped_process_is_not_a_dead_one(path: Path, engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    with holder(path) as (process, _):
        process.send_signal(signal.SIGSTOP)
        assert link.call(engine.enter(LOCK, Claim("mine", 1, 600.0, link.inbox), True), 5.0).state is State.BUSY
    link.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork_both_processes_have_connections_of_their_own(engine: SqliteEngine) -> None:
    link = engine.blocking_link()
    assert link.call(engine.enter(LOCK, Claim("parent", 1, 600.0, link.inbox), False), 5.0).state is State.ADMITTED
    child = os.fork()
    if child == 0:
        try:
            own = engine.blocking_link()
            busy = own.call(engine.enter(LOCK, Claim("child", 1, 600.0, own.inbox), True), 5.0).state is State.BUSY
            own.close()
            os._exit(7 if busy else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert [claim.id for claim in link.call(engine.look(LOCK), 5.0).admitted] == ["parent"]
    assert link.call(engine.leave(LOCK, "parent", False), 5.0)
    link.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_was_forked_in_the_middle_of_a_transaction_keeps_off_the_file(engine: SqliteEngine) -> None:
    """SQLite's books about who has locked what were copied as they stood, so it would believe in a lock it has not."""
    link = engine.blocking_link()

    def fork(desk: Any) -> int:
        child = os.fork()
        if child == 0:
            try:
                SqliteEngine(engine.path, "another").blocking_link().call(engine.ping(), 5.0)
            except Misuse as told:
                os._exit(7 if "forked in the middle" in str(told) else 1)
            finally:
                os._exit(2)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert link.call(Request("fork", fork, lambda reply: reply), 5.0) == 7
    assert link.call(engine.enter(LOCK, Claim("parent", 1, 600.0, link.inbox), False), 5.0).state is State.ADMITTED
    child = os.fork()  # outside of calls it may be used again
    if child == 0:
        try:
            engine.blocking_link().call(engine.ping(), 5.0)
            os._exit(7)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    link.close()
