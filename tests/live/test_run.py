"""``holdfast run`` on real engines: the lock around CMD, the signals to it, and what becomes of both when one dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Commands, is_running
from servers import RedisServer, eventually

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="run needs POSIX signals")]


@pytest.fixture
def on(url: str, tmp_path: Path) -> Iterator[Commands]:
    """Commands on any engine."""
    commands = Commands(tmp_path, url)
    yield commands
    commands.close()


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, sqlite_url)
    yield commands
    commands.close()


@pytest.fixture
def on_redis(redis_url: str, tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, redis_url)
    yield commands
    commands.close()


# -- the lock


def test_cmd_finds_its_token_and_name_and_its_exit_code_is_ours(on: Commands) -> None:
    tokens: list[int] = []
    for code in (0, 7):
        done = on.run("run", "a b", "--", "sh", "-c", f'echo "$HOLDFAST_TOKEN $HOLDFAST_NAME"; exit {code}')
        token, _, name = done.out.strip().partition(" ")
        assert (done.code, name) == (code, "a b")
        tokens.append(int(token))
    assert 0 < tokens[0] < tokens[1]


def test_those_who_wait_are_served_one_at_a_time_in_the_order_they_came(on: Commands) -> None:
    first = on.holding("x")
    cmd = 'mkdir inside && echo "$0" >> order && sleep 0.05 && rmdir inside'
    others = []
    for number in range(3):
        others.append(on.start("run", "x", "--", "sh", "-c", cmd, str(number)))
        eventually(lambda number=number: on.waiting("x") == number + 1)
    on.open_gate()
    assert [on.ended(process).code for process in [first, *others]] == [0, 0, 0, 0]
    assert (on.folder / "order").read_text().split() == ["0", "1", "2"]


@pytest.mark.parametrize("timeout", ["0", "0.2"])
def test_what_is_not_acquired_in_time_is_75_and_leaves_no_claim(on: Commands, timeout: str) -> None:
    holder = on.holding("x")
    done = on.run("run", "x", "--timeout", timeout, "--", "touch", "ran")
    assert (done.code, done.out) == (75, "")
    assert "lock:x" in done.complaint
    assert not (on.folder / "ran").exists()
    assert on.waiting("x") == 0
    on.open_gate()
    assert on.ended(holder).code == 0
    assert on.run("run", "x", "--timeout", "0", "--", "true").code == 0


@pytest.mark.parametrize(("cmd", "code"), [("no-such-command", 127), ("./data", 126), (".", 126)])
def test_a_cmd_that_cannot_be_run_gives_the_lock_back(on_sqlite: Commands, cmd: str, code: int) -> None:
    (on_sqlite.folder / "data").write_text("not a program")
    done = on_sqlite.run("run", "x", "--", cmd)
    assert done.code == code
    assert done.complaint.startswith(f"holdfast: cannot run {cmd!r}: ")
    assert on_sqlite.status() == []


# -- signals


def test_signals_reach_cmd_and_its_answer_counts(on: Commands) -> None:
    traps = "; ".join(f"trap 'echo {name} >> heard' {name}" for name in ("INT", "USR1", "HUP"))
    run = on.holding("x", script=f"{traps}; trap 'echo TERM >> heard; exit 3' TERM")
    heard = on.folder / "heard"
    for how in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        run.send_signal(how)
        eventually(lambda how=how: heard.exists() and how.name[3:] in heard.read_text().split())
    assert run.poll() is None
    run.terminate()
    assert on.ended(run).code == 3
    assert heard.read_text().split() == ["INT", "USR1", "HUP", "TERM"]
    assert on.status() == []


def test_a_cmd_that_dies_by_a_signal_is_128_and_its_number(on_sqlite: Commands) -> None:
    run = on_sqlite.holding("x")
    run.terminate()
    assert on_sqlite.ended(run).code == 128 + signal.SIGTERM
    assert on_sqlite.run("run", "x", "--", "sh", "-c", "kill -KILL $$").code == 128 + signal.SIGKILL


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda how: how.name)
def test_a_signal_while_waiting_leaves_no_claim(on: Commands, how: signal.Signals) -> None:
    holder = on.holding("x")
    waiter = on.start("run", "x", "--ttl", "60", "--", "touch", "ran")
    eventually(lambda: on.waiting("x") == 1)
    waiter.send_signal(how)
    done = on.ended(waiter)
    assert done.code == 128 + how
    assert "Traceback" not in done.err
    assert on.waiting("x") == 0
    assert not (on.folder / "ran").exists()
    assert holder.poll() is None


def test_a_signal_that_is_ignored_stays_ignored_for_run_and_cmd(on_sqlite: Commands) -> None:
    """As under nohup."""
    holder = on_sqlite.holding("x")
    waiter = on_sqlite.start("run", "x", "--", "sh", "-c", "kill -HUP $$; echo went on",
                             preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # fmt: skip
    eventually(lambda: on_sqlite.waiting("x") == 1)
    waiter.send_signal(signal.SIGHUP)
    on_sqlite.open_gate()
    assert on_sqlite.ended(holder).code == 0
    assert on_sqlite.ended(waiter)[:2] == (0, "went on\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals like this")
def test_ctrl_c_at_a_terminal_reaches_cmd_once(on_sqlite: Commands) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    try:
        run = on_sqlite.holding(
            "x",
            script="trap 'echo INT >> heard' INT",
            stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.write(ours, b"\x03")
        heard = on_sqlite.folder / "heard"
        eventually(heard.exists)
        on_sqlite.open_gate()
        assert run.wait(20) == 0
        assert heard.read_text() == "INT\n"
    finally:
        os.close(ours)
        os.close(theirs)


# -- the lease is lost


def test_an_evicted_cmd_gets_sigterm_and_the_next_is_admitted(on: Commands) -> None:
    run = on.holding("x", "--ttl", "1", script="trap 'echo TERM > heard; exit 0' TERM")
    waiter = on.start("run", "x", "--", "echo", "mine")
    eventually(lambda: on.waiting("x") == 1)
    assert on.run("evict", "x").code == 0
    assert on.ended(waiter).out == "mine\n"
    done = on.ended(run)
    assert done.code == 76
    assert "lock:x" in done.complaint
    assert (on.folder / "heard").read_text() == "TERM\n"


def test_what_ignores_sigterm_is_killed_after_the_grace_time_with_all_that_it_started(on_sqlite: Commands) -> None:
    ignoring = "trap '' TERM; { while [ -e gate ]; do sleep 0.02; done; } & echo $! > started"
    run = on_sqlite.holding("x", "--ttl", "1", "--grace", "0.3", script=ignoring)
    assert on_sqlite.run("evict", "x").code == 0
    assert on_sqlite.ended(run).code == 76
    started = int((on_sqlite.folder / "started").read_text())
    eventually(lambda: not is_running(on_sqlite.cmd_of("x")) and not is_running(started))
    assert on_sqlite.gate.exists()  # it did not end by itself


def test_what_cmd_started_is_ended_though_cmd_itself_went_at_once(on_sqlite: Commands) -> None:
    """A shell dies of SIGTERM and leaves what it runs."""
    run = on_sqlite.holding("x", "--ttl", "1", "--grace", "30",
                            script="sh -c 'while [ -e gate ]; do sleep 0.02; done' & echo $! > started")  # fmt: skip
    assert on_sqlite.run("evict", "x").code == 0
    assert on_sqlite.ended(run).code == 76
    assert not is_running(int((on_sqlite.folder / "started").read_text()))


def test_without_its_engine_cmd_is_stopped_when_the_lease_is_over(redis_server: RedisServer, tmp_path: Path) -> None:
    commands = Commands(tmp_path, redis_server.url)
    try:
        run = commands.holding("x", "--ttl", "1", script="trap 'echo TERM > heard; exit 0' TERM")
        redis_server.kill()
        done = commands.ended(run)
        assert done.code == 76
        assert "lock:x" in done.complaint
        assert (tmp_path / "heard").read_text() == "TERM\n"
    finally:
        commands.close()


# -- run itself is killed


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells CMD")
def test_when_run_is_killed_cmd_gets_sigterm(on: Commands) -> None:
    run = on.holding("x", "--ttl", "1", script="trap 'echo TERM > heard; exit 0' TERM")
    run.kill()
    eventually((on.folder / "heard").exists)
    assert on.run("run", "x", "--", "true").code == 0


def test_when_run_is_killed_an_embedded_lock_lasts_as_long_as_cmd(on_sqlite: Commands) -> None:
    run = on_sqlite.holding("x", "--ttl", "600", script="trap '' TERM")
    run.kill()
    run.wait()
    assert on_sqlite.run("run", "x", "--timeout", "0", "--", "true").code == 75
    waiter = on_sqlite.start("run", "x", "--", "true")
    eventually(lambda: on_sqlite.waiting("x") == 1)
    on_sqlite.open_gate()
    assert on_sqlite.ended(waiter).code == 0  # long before the lease of 600 s would have ended


def test_when_run_is_killed_a_lock_on_redis_lasts_as_long_as_its_lease(on_redis: Commands) -> None:
    run = on_redis.holding("x", "--ttl", "2", script="trap '' TERM")
    cmd = on_redis.cmd_of("x")
    run.kill()
    run.wait()
    assert on_redis.run("run", "x", "--timeout", "0", "--", "true").code == 75
    assert on_redis.run("run", "x", "--", "true").code == 0
    assert is_running(cmd)  # nobody is left to stop it: this is what HOLDFAST_TOKEN is for
