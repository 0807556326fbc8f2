"""Running CMD: the rules of {}, what is kept of what it prints, and how it is ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import Misuse
from holdfast.fleet.each_exec import OUT_BYTES, CannotRun, Command, Outcome, Running

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the commands here are a Unix's")


def run(*argv: str, lines: list[bytes], batch: int = 1, collect: bool = True) -> Outcome:
    return Running(Command(argv, batch, collect)).run(lines, {"HOLDFAST_TOKEN": "7"})


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, "{}")


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lone_placeholder_becomes_the_items_one_argument_each() -> None:
    assert Command(("cp", "{}", "-t", "{}"), 3).arguments([b"a b", b"'"]) == [b"cp", b"a b", b"'", b"-t", b"a b", b"'"]


def test_a_placeholder_inside_an_argument_becomes_the_item() -> None:
    assert Command(("x", "--in={}", "{}.out{}")).arguments([b"\xff $"]) == [b"x", b"--in=\xff $", b"\xff $.out\xff $"]


def test_a_placeholder_inside_an_argument_needs_a_batch_of_one() -> None:
    with pytest.raises(Misuse, match=r"--in=\{\}.*one item only"):
        Command(("x", "--in={}", "{}"), 2)


def test_a_command_without_a_placeholder_is_refused() -> None:
    with pytest.raises(Misuse, match=r"needs \{\}"):
        Command(("true",))


def test_odd_items_arrive_as_they_are() -> None:
    odd = [b"a b", b"\"'`$(x)\\", "häß→🐙".encode(), b"\xff\xfe", b"-n", b"*", b"\t"]
    code = "import os, sys; print(b'|'.join(map(os.fsencode, sys.argv[1:])).hex())"
    for line in odd:
        assert run(*python(code), lines=[line]).outs == (line.hex(),)


def test_what_it_prints_is_kept_up_to_a_bound() -> None:
    assert run("printf", "{}", lines=[b"x\ny\n"]).outs == ("x\ny",)
    (out,) = run(*python("print('y' * 1_000_000)"), lines=[b"a"]).outs
    assert out == "y" * OUT_BYTES


def test_a_batch_prints_one_line_per_item() -> None:
    outcome = run("printf", "<%s>\\n", "{}", lines=[b"a", b"b c"], batch=5)
    assert outcome == Outcome(0, ("<a>", "<b c>"))


@pytest.mark.parametrize("code", ["print('only one')", "print('1\\n2\\n3')", ""])
def test_a_batch_that_prints_another_number_of_lines_has_failed(code: str) -> None:
    outcome = run(*python(code), lines=[b"a", b"b"], batch=2)
    assert outcome.code == 1
    assert "lines for 2 items" in outcome.note


def test_a_long_line_of_a_batch_is_one_line() -> None:
    outcome = run(*python("print('y' * 20_000); print('z')"), lines=[b"a", b"b"], batch=2)
    assert outcome.outs == ("y" * OUT_BYTES, "z")


def test_it_reads_nothing_and_has_the_token_in_its_environment() -> None:
    outcome = run(*python("import os, sys; print(sys.stdin.read() + os.environ['HOLDFAST_TOKEN'])"), lines=[b"a"])
    assert outcome.outs == ("7",)


def test_an_exit_code_is_its_own_and_a_signal_is_as_in_a_shell() -> None:
    assert run("sh", "-c", "exit $1", "sh", "{}", lines=[b"3"]).code == 3
    assert run("sh", "-c", "kill -9 $$", "{}", lines=[b"x"]).code == 137


def test_a_command_that_does_not_exist_is_said_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="no-such-thing: command not found") as missing:
        Command(("no-such-thing", "{}")).check()
    assert missing.value.code == 127
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(CannotRun, match="not executable") as forbidden:
        Command((str(plain), "{}")).check()
    assert forbidden.value.code == 126


def test_a_command_that_vanishes_later_ends_all(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="command not found"):
        run(str(tmp_path / "gone"), "{}", lines=[b"a"])


def test_an_item_that_is_no_command_fails_alone() -> None:
    outcome = run("{}", lines=[b"no-such-thing"])
    assert (outcome.code, outcome.note) == (127, "no-such-thing: command not found")


def test_an_item_too_long_for_an_argument_fails_alone() -> None:
    outcome = run("true", "{}", lines=[b"x" * 4_000_000])
    assert outcome.code == 126
    assert "too long" in outcome.note


def test_stopping_ends_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = "sleep 100 & echo $! $$ > $1; wait"
    running, outcomes = Running(Command(("sh", "-c", code, "sh", "{}"), collect=True)), list[Outcome]()
    thread = threading.Thread(target=lambda: outcomes.append(running.run([os.fsencode(pids)], {})))
    thread.start()
    until(lambda: pids.exists() and bool(pids.read_text().strip()))
    running.stop()
    thread.join(10)
    assert outcomes[0].stopped
    for pid in pids.read_text().split():
        until(lambda pid=pid: not _lives(int(pid)))


def test_stopping_before_the_start_runs_nothing(tmp_path: Path) -> None:
    running = Running(Command(("touch", "{}")))
    running.stop()
    assert running.run([os.fsencode(tmp_path / "made")], {}).stopped
    assert not (tmp_path / "made").exists()


def test_one_that_ended_before_it_was_stopped_has_succeeded(tmp_path: Path) -> None:
    """As after a pause: it ended while we slept, and nobody has fetched its exit code."""
    flag = tmp_path / "ended"
    # The grandchild keeps the pipe open, so that we still read when the command itself is long over.
    code = f"(while [ ! -e {flag} ]; do sleep 0.01; done) & exit 0"
    running, outcomes = Running(Command(("sh", "-c", code, "{}"), collect=True)), list[Outcome]()
    thread = threading.Thread(target=lambda: outcomes.append(running.run([b"x"], {})))
    thread.start()
    until(lambda: running._process is not None and _is_zombie(running._process.pid))
    running.stop()
    flag.touch()
    thread.join(10)
    assert (outcomes[0].stopped, outcomes[0].code) == (False, 0)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip().startswith("Z")


def test_sigkill_follows_where_sigterm_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("holdfast.fleet.each_exec.GRACE_S", 0.2)
    ready = tmp_path / "ready"
    running, outcomes = Running(Command(("sh", "-c", "trap '' TERM; touch $1; sleep 100", "sh", "{}"))), list[Outcome]()
    thread = threading.Thread(target=lambda: outcomes.append(running.run([os.fsencode(ready)], {})))
    thread.start()
    until(ready.exists)
    running.stop()
    thread.join(10)
    assert outcomes[0] == Outcome(-signal.SIGKILL, stopped=True)


def test_one_that_takes_too_long_is_ended_and_has_failed() -> None:
    began = time.monotonic()
    outcome = Running(Command(("sh", "-c", "sleep 100", "{}"), timeout_s=0.2)).run([b"x"], {})
    assert outcome == Outcome(124, note="timed out after 0.2 s")
    assert time.monotonic() < began + 30


def test_one_that_ends_in_time_is_left_alone() -> None:
    assert Running(Command(("sh", "-c", "sleep 0.1; exit 7", "{}"), timeout_s=20)).run([b"x"], {}) == Outcome(7)


@pytest.mark.parametrize("collect", [False, True])
def test_what_ignores_sigterm_is_killed_after_its_time_whoever_of_the_group_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collect: bool
) -> None:
    monkeypatch.setattr("holdfast.fleet.each_exec.GRACE_S", 1.5)
    pids = tmp_path / "pids"
    stubborn = f"(trap '' TERM; echo started >> {pids}; sleep 100; sleep 100) & echo $! >> {pids}; wait"
    outcome = Running(Command(("sh", "-c", stubborn, "{}"), collect=collect, timeout_s=0.5)).run([b"x"], {})
    assert outcome.code == 124
    child, started = sorted(pids.read_text().split())
    assert started == "started"
    until(lambda: not _lives(int(child)), 1.0)  # before the next try begins, and though it kept a pipe open


def test_one_that_was_stopped_while_it_was_being_ended_is_not_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("holdfast.fleet.each_exec.GRACE_S", 30)
    ready = tmp_path / "ready"
    ending = f"trap 'touch {ready}' TERM; while :; do sleep 0.01; done"
    running, outcomes = Running(Command(("sh", "-c", ending, "{}"), timeout_s=0.3)), list[Outcome]()
    thread = threading.Thread(target=lambda: outcomes.append(running.run([b"x"], {})))
    thread.start()
    until(ready.exists)
    running.stop()
    running.kill()
    thread.join(10)
    assert outcomes[0].stopped


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(Misuse, match="timeout"):
        Command(("true", "{}"), timeout_s=timeout_s)
