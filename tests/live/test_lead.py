"""``holdfast lead`` as people run it: one CMD at any time, whatever dies; readiness, restarts, systemd."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import PROGRAM, Commands, is_running
from servers import RedisServer, eventually

import holdfast
from holdfast.model import ClaimView, Turnstile
from holdfast.worlds.threads import drive

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="lead needs POSIX signals")]

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="of Linux")

SERVE = "while [ -e gate ]; do sleep 0.02; done"
BOOKED = f"trap 'echo stop $HOLDFAST_TOKEN >> log; exit 0' TERM; echo start $HOLDFAST_TOKEN >> log; {SERVE}"
"""A CMD that keeps books of when it runs."""

UNHEARD = f"trap '' TERM; {SERVE}"
"""A CMD that ignores SIGTERM."""


class Fleet(Commands):
    """Several ``lead`` of one name, each with a file of what it says."""

    def lead(self, who: str, *options: str, script: str = BOOKED, **given: Any) -> subprocess.Popen[bytes]:
        with (self.folder / f"err.{who}").open("wb") as err:
            return self.start("lead", "x", *options, "--", "sh", "-c", script, stderr=err, **given)

    def said(self, who: str) -> str:
        text = (self.folder / f"err.{who}").read_text()
        assert "Traceback" not in text, text
        return text

    def until(self, who: str, line: str) -> None:
        eventually(lambda: line in self.said(who), what=f"{who} never said {line!r}")

    def log(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    def until_started(self, count: int) -> None:
        eventually(lambda: sum(line.startswith("start") for line in self.log()) == count, what=f"CMD no. {count}")

    def cmd_pid(self, who: str) -> int:
        """Of the CMD that it started last."""
        eventually(lambda: "CMD started" in self.said(who))
        return int(re.findall(r"CMD started \(pid (\d+)\)", self.said(who))[-1])

    def claims(self) -> Sequence[ClaimView]:
        """Whoever leads, then whoever stands by."""
        with holdfast.connect(self.environment["HOLDFAST_URL"]) as client:
            session = client.session
            return drive(session.ask(session.engine.look(Turnstile("election", "x", 1)))).claims

    def record(self) -> dict[str, Any]:
        with holdfast.connect(self.environment["HOLDFAST_URL"]) as client:
            found = json.loads(client.cell("election:x").read().value or b"{}")
        assert isinstance(found, dict)
        return found


@pytest.fixture
def fleet(sqlite_url: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, sqlite_url)
    yield fleet
    fleet.close()


@pytest.fixture
def on_redis(redis_server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, redis_server.url)
    yield fleet
    fleet.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of the protocol."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(tmp_path / "manager"))
        ours.settimeout(20)
        yield ours


def heard(manager: socket.socket, wanted: str) -> str:
    """The next message that has this line, or (with a * at its end) this in a line."""
    while True:
        message = manager.recv(8192).decode()
        if wanted in message.split("\n") or (wanted.endswith("*") and wanted[:-1] in message):
            return message


# -- exactly one


def test_one_runs_cmd_and_a_stop_on_purpose_hands_over_without_an_overlap(fleet: Fleet) -> None:
    first = fleet.lead("first")
    fleet.until_started(1)
    second = fleet.lead("second")
    fleet.until("second", "standing by behind ")
    assert len(fleet.log()) == 1
    first.terminate()
    assert first.wait(20) == 0
    fleet.until_started(2)
    second.terminate()
    assert second.wait(20) == 0
    events = [line.split()[0] for line in fleet.log()]
    tokens = [int(line.split()[1]) for line in fleet.log()]
    assert events == ["start", "stop", "start", "stop"]
    assert tokens[0] == tokens[1] < tokens[2] == tokens[3]
    assert fleet.said("first").splitlines()[0].startswith("holdfast: sqlite:///")
    assert len(fleet.claims()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody ends CMD")
def test_a_killed_leader_takes_a_deaf_cmd_with_it_and_the_next_leads(fleet: Fleet) -> None:
    first = fleet.lead("first", "--ttl", "600", script=UNHEARD)
    cmd = fleet.cmd_pid("first")
    second = fleet.lead("second", "--ttl", "600")
    fleet.until("second", "standing by behind ")
    first.kill()
    fleet.until_started(1)
    assert not is_running(cmd)
    assert second.poll() is None
    eventually(lambda: fleet.record()["changes"][-1][3][-1][0] == "CMD started")
    reasons = [why for _, why, _, _ in fleet.record()["changes"]]
    assert reasons == ["nobody led before", f"{socket.gethostname()}:{first.pid} went without a word"]


@pytest.mark.parametrize("script", [UNHEARD, SERVE], ids=["ignored by CMD", "ignored by what it started"])
def test_what_ignores_sigterm_is_killed_before_the_next_leads(fleet: Fleet, script: str) -> None:
    left = f"setsid sh -c \"trap '' TERM; echo \\$\\$ > left; {SERVE}\" & {script}"
    first = fleet.lead("first", "--grace", "0.2", script=left)
    eventually(lambda: (fleet.folder / "left").exists() and (fleet.folder / "left").read_text().endswith("\n"))
    cmd, started = fleet.cmd_pid("first"), int((fleet.folder / "left").read_text())
    fleet.lead("second", script=f"kill -0 {cmd} || kill -0 {started} || echo alone > alone; {SERVE}")
    fleet.until("second", "standing by behind ")
    first.terminate()
    assert first.wait(20) == 0
    assert ("killing it" in fleet.said("first")) is (script == UNHEARD)
    assert not is_running(cmd)
    if sys.platform == "linux":  # elsewhere what leaves CMD's group gets away
        eventually((fleet.folder / "alone").exists)
        assert not is_running(started)


# -- the lease


def test_an_unsure_leader_stops_cmd_before_its_lease_is_over_and_stands_by(
    on_redis: Fleet, redis_server: RedisServer
) -> None:
    script = f"trap 'touch stopped; exit 0' TERM; echo start $HOLDFAST_TOKEN >> log; {SERVE}"
    lead = on_redis.lead("first", "--ttl", "3", script=script)
    on_redis.until_started(1)
    redis_server.kill()
    on_redis.until("first", "unsure of the lease: stopping CMD")
    eventually((on_redis.folder / "stopped").exists)
    assert "lost holdfast" not in on_redis.said("first")
    redis_server.start()
    on_redis.until_started(2)
    assert lead.poll() is None


def test_a_deaf_cmd_is_killed_at_the_end_of_the_lease_however_long_its_grace(
    on_redis: Fleet, redis_server: RedisServer
) -> None:
    on_redis.lead("first", "--ttl", "2", "--grace", "600", script=UNHEARD)
    cmd = on_redis.cmd_pid("first")
    redis_server.kill()
    on_redis.until("first", "killing it")
    eventually(lambda: not is_running(cmd))


def test_keep_lets_cmd_go_on_through_an_outage_shorter_than_its_lease(
    on_redis: Fleet, redis_server: RedisServer
) -> None:
    on_redis.lead("first", "--ttl", "9", "--grace", "0.2", "--on-unsure", "keep")
    on_redis.until_started(1)
    redis_server.pause()
    on_redis.until("first", "renewal of election:x failed")
    redis_server.resume()
    eventually(lambda: on_redis.claims()[0].remaining_s > 7)  # renewed
    assert len(on_redis.log()) == 1
    assert "stopping CMD" not in on_redis.said("first")


def test_an_evicted_leader_ends_cmd_and_stands_by_again(fleet: Fleet) -> None:
    first = fleet.lead("first", "--ttl", "1")
    fleet.until_started(1)
    assert fleet.run("evict", "x", "--kind", "election").code == 0
    fleet.until_started(2)
    assert "lost the lead of x" in fleet.said("first")
    assert first.poll() is None


def test_hold_off_delays_after_a_silent_leader_and_not_after_one_that_resigned(fleet: Fleet) -> None:
    first = fleet.lead("first")
    fleet.until_started(1)
    second = fleet.lead("second", "--hold-off", "600")
    fleet.until("second", "standing by behind ")
    first.terminate()
    fleet.until_started(2)  # at once
    third = fleet.lead("third", "--hold-off", "0.3")
    fleet.until("third", "standing by behind ")
    second.kill()
    fleet.until("third", "went without a word: holding off for 0.3 s")
    fleet.until_started(3)
    third.terminate()
    assert third.wait(20) == 0


# -- failures


def test_a_failing_cmd_is_restarted_a_few_times_and_then_another_machine_has_its_turn(fleet: Fleet) -> None:
    first = fleet.lead("first", "--restarts", "2", "--sit-out", "600", script="echo fail >> fails; exit 3")
    fleet.until("first", "(restart 1 of 2 in ")
    second = fleet.lead("second")
    fleet.until("first", "sitting out for 600 s")
    fleet.until_started(1)
    assert (fleet.folder / "fails").read_text().split() == ["fail"] * 3
    assert "CMD ended with 3, 3 times in 300 s" in fleet.said("first")
    first.terminate()
    assert first.wait(20) == 0
    assert second.poll() is None


def test_after_sitting_out_it_stands_by_again(fleet: Fleet) -> None:
    fleet.lead("first", "--restarts", "0", "--sit-out", "0.1", script="echo start >> log; exit 1")
    eventually(lambda: len(fleet.log()) >= 2)


@pytest.mark.parametrize("code", [0, 7])
def test_once_ends_with_cmds_code(fleet: Fleet, code: int) -> None:
    done = fleet.run("lead", "x", "--once", "--", "sh", "-c", f"exit {code}")
    assert done.code == code
    assert len(fleet.claims()) == 0


def test_a_cmd_that_is_not_there_is_127_and_gives_the_lead_back(fleet: Fleet) -> None:
    done = fleet.run("lead", "x", "--", "no-such-command")
    assert (done.code, done.complaint) == (127, "holdfast: cannot run 'no-such-command': No such file or directory")
    assert len(fleet.claims()) == 0


@pytest.mark.parametrize(
    "options", [("--grace", "-1"), ("--restarts", "-1"), ("--ready-timeout", "0"), ("--hold-off", "nan")]
)
def test_a_policy_that_makes_no_sense_is_refused_before_anything_runs(fleet: Fleet, options: tuple[str, str]) -> None:
    done = fleet.run("lead", "x", *options, "--", "touch", "ran")
    assert done.code == 2
    assert options[0][2:].replace("-", "_") in done.complaint
    assert not (fleet.folder / "ran").exists()


# -- readiness


def test_a_shell_tells_that_it_is_ready_and_the_record_says_so(fleet: Fleet) -> None:
    script = f"while [ ! -e go ]; do sleep 0.02; done; echo READY=1 >&$HOLDFAST_READY_FD; {SERVE}"
    fleet.lead("first", "--ready-timeout", "600", script=script)
    eventually(lambda: fleet.record().get("state") == "starting")
    (fleet.folder / "go").touch()
    eventually(lambda: fleet.record()["state"] == "ready")
    steps = [what for what, _ in fleet.record()["changes"][-1][3]]
    assert steps == ["admitted", "leads", "CMD started", "CMD is ready"]


def test_a_cmd_that_is_not_ready_in_time_counts_as_failed(fleet: Fleet) -> None:
    fleet.lead("first", "--ready-timeout", "0.2", "--restarts", "0", "--sit-out", "600")
    fleet.until("first", "CMD is not ready after 0.2 s, 1 times")
    fleet.until("first", "sitting out")


def test_a_cmd_that_hangs_is_restarted_by_its_watchdog(fleet: Fleet) -> None:
    script = f"echo READY=1 >&$HOLDFAST_READY_FD; {BOOKED}"
    fleet.lead("first", "--watchdog", "0.3", script=script)
    fleet.until("first", "CMD is not heard of for 0.3 s")
    fleet.until_started(2)


# -- signals and the service manager


def test_a_reload_reaches_cmd_and_stops_nothing(fleet: Fleet) -> None:
    first = fleet.lead("first", script=f"trap 'echo HUP >> heard' HUP; echo up > up; {SERVE}")
    eventually((fleet.folder / "up").exists)
    second = fleet.lead("second")
    fleet.until("second", "standing by behind ")
    for process in (first, second):
        process.send_signal(signal.SIGHUP)
    eventually((fleet.folder / "heard").exists)
    assert (first.poll(), second.poll()) == (None, None)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_candidate_that_is_stopped_leaves_the_queue(fleet: Fleet, how: signal.Signals, code: int) -> None:
    fleet.lead("first")
    fleet.until_started(1)
    second = fleet.lead("second", "--ttl", "600")
    fleet.until("second", "standing by behind ")
    eventually(lambda: len(fleet.claims()) == 2)
    second.send_signal(how)
    assert second.wait(20) == code
    assert len(fleet.claims()) == 1


CMD_FOR_SYSTEMD = """
import os, signal, socket, time
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
def reload(*_):
    tell("RELOADING=1")
    tell("READY=1")
signal.signal(signal.SIGHUP, reload)
tell("READY=1\\nSTATUS=42 jobs")
while True:
    time.sleep(0.05)
"""


def test_systemd_hears_of_each_step_and_cmd_is_heard_as_systemd_would(fleet: Fleet, manager: socket.socket) -> None:
    environment = {**fleet.environment, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "300000"}
    lead = fleet.start("lead", "x", "--", sys.executable, "-c", CMD_FOR_SYSTEMD, env=environment)
    assert "STATUS=standing by" in heard(manager, "READY=1")
    heard(manager, "STATUS=leading, token *")
    assert "42 jobs" in heard(manager, "42 jobs*")
    heard(manager, "WATCHDOG=1")
    lead.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in heard(manager, "RELOADING=1")
    heard(manager, "READY=1")
    lead.terminate()
    heard(manager, "STOPPING=1")
    assert fleet.ended(lead).code == 0


# -- in a container


@LINUX
def test_as_process_1_of_a_container_it_reaps_orphans_and_ends_cleanly(fleet: Fleet) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make a namespace of processes")
    script = f"trap 'exit 0' TERM; sh -c 'sleep 0.2 & echo $! > orphan'; echo start >> log; {SERVE}"
    with (fleet.folder / "err.first").open("wb") as err:
        outside = subprocess.Popen(
            [*unshare, "--kill-child", *PROGRAM, "lead", "x", "--", "sh", "-c", script],
            cwd=fleet.folder, env=fleet.environment, stderr=err, start_new_session=True,
        )  # fmt: skip
    fleet.started.append(outside)
    fleet.until_started(1)
    eventually((fleet.folder / "orphan").exists)
    lead = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(outside.pid)]).split()[0])
    eventually(lambda: children_of(lead) == ["sh"], what="the orphan was not reaped")
    os.kill(lead, signal.SIGTERM)
    assert outside.wait(20) == 0
    assert "stopped by SIGTERM" in fleet.said("first")


def children_of(parent: int) -> list[str]:
    """By name; a zombie has one, too."""
    listing = subprocess.run(["ps", "-o", "comm=", "--ppid", str(parent)], check=False, capture_output=True, text=True)
    return [name.split()[0] for name in listing.stdout.splitlines()]
