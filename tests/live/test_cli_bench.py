"""``holdfast bench`` as people run it: figures that make sense, a picture, and no process left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from commands import Commands, is_running
from servers import eventually

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="the commands here are a Unix's")]

SHORT = ("--waiters", "2", "--seconds", "0.3")


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, None)
    yield commands
    commands.close()


def children(pid: int) -> list[int]:
    """Those that run; of the workers and of what multiprocessing keeps beside them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_the_figures_of_each_way_of_waiting_are_its_own(on: Commands, url: str) -> None:
    done = on.run("bench", "waiting", "--engine", url, "--waiters", "3", "--seconds", "0.6", "--json",
                  "--strategies", "Spin,Queue,Adaptive", "--chart", "x.svg")  # fmt: skip
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["engine"], report["seconds"], report["inside_ms"]) == (url.partition(":")[0], 0.6, 1.0)
    rows: dict[tuple[str, int], dict[str, Any]] = {(row["strategy"], row["waiters"]): row for row in report["rows"]}
    assert list(rows) == [(strategy, 3) for strategy in ("Spin", "Queue", "Adaptive")]
    spin, queue, adaptive = (rows[strategy, 3] for strategy in ("Spin", "Queue", "Adaptive"))
    assert queue["jain"] > 0.9, "first come, first served"
    assert 1.5 < queue["calls_per_handover"] < 3, "an enter and a leave"
    assert queue["calls_per_handover"] < adaptive["calls_per_handover"] < spin["calls_per_handover"]
    assert queue["waiting_calls_per_s"] == adaptive["waiting_calls_per_s"] == 0
    assert spin["waiting_calls_per_s"] > 100
    assert spin["waiting_cpu_share"] > 3 * queue["waiting_cpu_share"]
    for row in rows.values():
        assert 0 < row["wait_p50_s"] <= row["wait_p99_s"] <= row["wait_max_s"]
        assert row["acquisitions_per_s"] >= row["handovers_per_s"]
        assert row["cpu_per_handover_s"] > 0
    assert queue["handovers_per_s"] > 0
    ElementTree.parse(on.folder / "x.svg")
    assert done.err.splitlines()[-1] == "holdfast: drawn: x.svg"


def test_the_table_has_a_row_for_each_and_says_where_it_was_measured(on: Commands) -> None:
    done = on.run("bench", "waiting", *SHORT, "--waiters", "2,1", "--strategies", "queue,backoff", "--inside-ms", "0")
    assert done.code == 0, done.err
    assert done.err == "holdfast: an embedded engine in a temporary folder (machine)\n"
    lines = done.out.splitlines()
    assert [line.split()[:-9] for line in lines[2:7]] == [["1", "Queue"], ["Backoff"], [], ["2", "Queue"], ["Backoff"]]
    assert max(map(len, lines[:7])) <= 80
    assert "sqlite" in lines[-1]
    assert "0 ms inside" in lines[-1]


def test_nothing_stays_in_the_temporary_folder(on: Commands) -> None:
    on.environment["TMPDIR"] = str(on.folder)
    before = sorted(on.folder.iterdir())
    assert on.run("bench", "waiting", *SHORT, "--strategies", "Queue", "--rounds", "2").code == 0
    assert sorted(on.folder.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_an_interrupt_leaves_no_process_behind(on: Commands, signum: signal.Signals, url: str) -> None:
    process = on.start("bench", "waiting", "--engine", url, "--waiters", "3", "--seconds", "300")
    eventually(lambda: len(children(process.pid)) >= 4, what="the workers did not start")
    found = children(process.pid)
    process.send_signal(signum)
    done = on.ended(process)
    assert done.code == (-9 if signum == signal.SIGKILL else 128 + signum)
    assert done.out == ""
    assert "Traceback" not in done.err or signum == signal.SIGKILL, done.err
    eventually(lambda: not any(map(is_running, found)), timeout_s=30, what="a worker stayed")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_at_a_terminal_reaches_all_and_is_told_by_none(on: Commands) -> None:
    process = on.start("bench", "waiting", "--waiters", "3", "--seconds", "300")
    eventually(lambda: len(children(process.pid)) >= 4, what="the workers did not start")
    found = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    done = on.ended(process)
    assert (done.code, done.out) == (130, "")
    assert done.err.strip() == "holdfast: an embedded engine in a temporary folder (machine)"
    eventually(lambda: not any(map(is_running, found)), what="a process stayed")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--waiters", "0"), 2, "1 to 256"),
        (("--waiters", "1,999"), 2, "1 to 256"),
        (("--waiters", "many"), 2, "'many' are not whole numbers"),
        (("--waiters", ""), 2, "not whole numbers"),
        (("--strategies", "hope"), 2, "'hope' is none of Spin, Poll, Backoff, Adaptive, Queue"),
        (("--seconds", "0"), 2, "--seconds"),
        (("--seconds", "nan"), 2, "--seconds"),
        (("--rounds", "0"), 2, "--rounds"),
        (("--inside-ms", "-1"), 2, "--inside-ms"),
        (("--inside-ms", "nan"), 2, "--inside-ms"),
        (("--engine", "memory://"), 2, "reaches one process"),
        (("--engine", "redsi://x"), 2, "no engine is called 'redsi'"),
        (("--engine", "sqlite:///dev/null"), 2, "takes the path of a file"),
        (("--chart", "no/such/folder.svg"), 1, "no/such/folder.svg: No such file or directory"),
    ],
)
def test_a_wrong_call_is_one_clear_line(on: Commands, options: tuple[str, ...], code: int, says: str) -> None:
    done = on.run("bench", "waiting", *options)
    assert (done.code, done.out) == (code, "")
    assert says in done.complaint
    assert done.err.count("\n") <= 2
