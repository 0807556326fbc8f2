"""``holdfast each`` as people run it: several processes on a real engine, some of which die."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from engines import ON_SESSIONS

import holdfast
from holdfast.fleet.demo import PROGRAM
from holdfast.fleet.each_store import Store, Tally

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="the commands here are a Unix's")]

ODD = [b"plain", b"two words", b" edges ", b"quote's", b'"double"', b"$(touch x) `y` $HOME;&|*?", b"\\back\\slash",
       "häß→🐙".encode(), b"\xff\xfe bad", b"-n", b"--", b"tab\there", b"plain", b"plain"]  # fmt: skip

HASH = """
import hashlib, os, sys
for name in sys.argv[1:]:
    print(hashlib.md5(os.fsencode(name)).hexdigest())
"""


class Jobs:
    """Runs the command on one engine, each run in a process of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, lines: Sequence[bytes] = (), job: str = "job") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*PROGRAM, "each", job, "--engine", self.url, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder,
        )  # fmt: skip
        self.started.append(process)
        assert process.stdin is not None
        process.stdin.write(b"".join(line + b"\n" for line in lines))
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, *arguments: str, lines: Sequence[bytes] = (), job: str = "job") -> tuple[int, str, str]:
        return ended(self.start(*arguments, lines=lines, job=job))

    def results(self) -> list[dict[str, Any]]:
        code, out, _ = self.run("--results")
        assert code == 0
        return [json.loads(line) for line in out.splitlines()]

    def done(self) -> int:
        """How many completions are recorded, by an outside look."""
        tally = self.tally()
        return 0 if tally is None else tally.done

    def items(self) -> int:
        """How many items are published."""
        tally = self.tally()
        return 0 if tally is None else tally.items

    def tally(self) -> Tally | None:
        with holdfast.connect(self.url) as client:
            store = Store(client, "job")
            state = store.state()
            return None if state is None else store.tally(state)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=40)
    return process.returncode, out.decode(errors="surrogateescape"), err.decode(errors="surrogateescape")


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def numbered(count: int) -> list[bytes]:
    return [b"item %d" % number for number in range(count)]


@pytest.fixture
def jobs(url: str, tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(url, tmp_path)
    yield jobs
    jobs.close()


HASHING = ("--collect", "--", sys.executable, "-c", HASH, "{}")


def logging(then: str = "") -> tuple[str, ...]:
    return ("--", "sh", "-c", f'echo "$1" >> log; {then}', "sh", "{}")


def logging_all() -> tuple[str, ...]:
    return ("--", "sh", "-c", 'printf "%s\\n" "$@" >> log', "sh", "{}")


# -- on any engine


def test_several_processes_run_odd_items_once_each(jobs: Jobs) -> None:
    lines = [*ODD, *numbered(60)]
    runs = [jobs.start("--batch", "5", "--json", *HASHING, lines=lines) for _ in range(3)]
    summaries = [json.loads(out) for code, out, err in map(ended, runs) if code == 0]
    assert sum(one["done"] for one in summaries) == len(lines)
    records = jobs.results()
    items = [os.fsencode(one["item"]) for one in records]
    assert Counter(items) == Counter(lines)
    assert {one["occurrence"] for one in records if one["item"] == "plain"} == {1, 2, 3}
    assert all(one["out"] == hashlib.md5(item).hexdigest() for item, one in zip(items, records, strict=True))


@pytest.mark.parametrize("seed", range(2))
def test_members_killed_at_random_counts_lose_and_double_nothing(jobs: Jobs, seed: int) -> None:
    chance = random.Random(seed)
    lines = numbered(400)
    options = ("--workers", "2", "--batch", "3", "--ttl", "1", *HASHING)
    runs = [jobs.start(*options, lines=lines) for _ in range(3)]
    for count in sorted(chance.sample(range(20, 250), 3)):
        until(lambda count=count: jobs.done() >= count)
        victim = chance.choice([one for one in runs if one.poll() is None])
        victim.kill()
        victim.wait()
        runs.append(jobs.start(*options))
    assert [ended(one)[0] for one in runs if one.returncode != -signal.SIGKILL] == [0, 0, 0]
    records = jobs.results()
    assert sorted(one["item"] for one in records) == sorted(line.decode() for line in lines)
    assert all(one["out"] == hashlib.md5(one["item"].encode()).hexdigest() for one in records)


@pytest.mark.parametrize("engine", ["sqlite", "redis", "sentinel", "cluster", "zookeeper", "etcd", "postgres"])
def test_after_the_loss_of_everything_but_the_engine_one_more_machine_and_no_input_finish_the_job(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = request.getfixturevalue(f"{engine}_url") + ("?ttl_s=2" if engine in ON_SESSIONS else "")
    options = ("--ttl", "2", "--partitions", "200", "--workers", "2", "--json")
    with contextlib.closing(Jobs(url, tmp_path)) as jobs:
        lost = [jobs.start(*options, *logging("sleep 0.02"), lines=numbered(500)) for _ in range(2)]
        until(lambda: jobs.done() > 30 and jobs.items() == 500)
        for one in lost:
            one.kill()
        for one in lost:
            one.wait()
        done = jobs.done()
        found = [jobs.start(*options, "--batch", "9", *logging_all()) for _ in range(3)]
        summaries = [json.loads(out) for code, out, _ in map(ended, found) if code == 0]
        assert [one["items"] for one in summaries] == [500] * 3
        assert sum(one["done"] for one in summaries) == 500 - done
        assert Counter(one["item"] for one in jobs.results()) == Counter(line.decode() for line in numbered(500))
        ran = Counter((jobs.folder / "log").read_text().split("\n")[:-1])
        assert len(ran) == 500
        assert sum(ran.values()) - 500 <= 2 * 2  # what was in flight, and nothing else


def test_thousands_of_partitions_are_run_through(jobs: Jobs) -> None:
    options = ("--partitions", "3000", "--batch", "9", "--json")
    runs = [jobs.start(*options, *logging_all(), lines=numbered(1000)) for _ in range(2)]
    summaries = [json.loads(out) for code, out, _ in map(ended, runs) if code == 0]
    assert sum(one["done"] for one in summaries) == 1000
    assert sorted((jobs.folder / "log").read_bytes().splitlines()) == sorted(numbered(1000))


def test_a_member_that_was_stopped_past_its_lease_is_refused_and_goes_on(jobs: Jobs) -> None:
    gate = jobs.folder / "gate"
    gate.touch()
    waits = logging("while [ -e gate ]; do sleep 0.02; done")
    paused = jobs.start("--ttl", "1", "--workers", "1", "--partitions", "1", "--json", *waits, lines=[b"x"])
    until((jobs.folder / "log").exists)
    _stop_outside_of_writes(paused, jobs.url)
    gate.unlink()
    assert jobs.run("--ttl", "1", *logging())[0] == 0
    paused.send_signal(signal.SIGCONT)
    code, out, _ = ended(paused)
    summary = json.loads(out)
    assert (code, summary["status"], summary["refused"], summary["done_by_others"]) == (0, "finished", 1, 1)
    assert len(jobs.results()) == 1


def _stop_outside_of_writes(process: subprocess.Popen[bytes], url: str) -> None:
    """SIGSTOP it, but not inside a SQLite transaction, where nobody else could write."""
    with holdfast.connect(url, patience_s=0.3) as client:
        for _ in range(50):
            process.send_signal(signal.SIGSTOP)
            try:
                client.lock("probe", timeout_s=1).acquire().release()
                return
            except (holdfast.Unavailable, holdfast.AcquireTimeout):
                process.send_signal(signal.SIGCONT)
                time.sleep(0.02)
    pytest.fail("could not be stopped outside of a write")


def test_a_finished_job_run_again_is_quick_and_says_so(jobs: Jobs) -> None:
    assert jobs.run(*logging(), lines=numbered(20))[0] == 0
    code, _, err = jobs.run(*logging(), lines=numbered(20))
    assert code == 0
    assert "finished before" in err
    assert jobs.run(*logging(), lines=numbered(22))[0] == 0
    assert Counter((jobs.folder / "log").read_text().split("\n")[:-1]).most_common(1)[0][1] == 1


def test_again_runs_it_afresh(jobs: Jobs) -> None:
    for options in [(), ("--again",)]:
        assert jobs.run(*options, *logging(), lines=numbered(5))[0] == 0
    assert Counter((jobs.folder / "log").read_text().split("\n")[:-1]) == Counter({f"item {n}": 2 for n in range(5)})


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_in_order_and_hands_over_at_once(jobs: Jobs, how: signal.Signals, code: int) -> None:
    ending = 'trap "echo $$ >> ended; exit 1" TERM; test -e second || { touch first; while :; do sleep 0.02; done; }'
    first = jobs.start("--ttl", "30", "--workers", "1", "--partitions", "1", *logging(ending), lines=numbered(3))
    until((jobs.folder / "first").exists)
    second = jobs.start("--ttl", "30", "--partitions", "1", *logging())
    (jobs.folder / "second").touch()
    first.send_signal(how)
    assert ended(first)[0] == code
    assert (jobs.folder / "ended").exists()
    assert ended(second)[0] == 0  # long before the lease of 30 s would have ended
    assert len(jobs.results()) == 3


# -- what people get wrong


def test_a_failing_command_stops_the_job_and_later_runs_try_again(jobs: Jobs) -> None:
    bad = logging('test "$1" != "item 7"')
    code, _, err = jobs.run("--retry", "1", "--workers", "1", *bad, lines=numbered(20))
    assert code == 1
    assert "'item 7' failed with exit code 1 after 2 tries" in err
    assert jobs.run(*logging())[0] == 0
    assert len(jobs.results()) == 20


def test_dead_letters_are_listed_and_tried_again_when_asked_for(jobs: Jobs) -> None:
    slow = logging('case "$1" in "item 7") exit 3;; "item 9") sleep 60;; esac')
    options = ("--retry", "1", "--timeout", "0.5", "--keep-going", "--json")
    code, out, err = jobs.run(*options, *slow, lines=numbered(20))
    summary = json.loads(out)
    assert (code, summary["done"], summary["dead"]) == (1, 18, 2)
    assert summary["items_per_s"] > 0
    code, out, err = jobs.run("--dead")
    dead = {one["item"]: one for one in map(json.loads, out.splitlines())}
    assert code == 0
    assert {item: (one["code"], one["attempts"]) for item, one in dead.items()} == {
        "item 7": (3, 2),
        "item 9": (124, 2),
    }
    assert dead["item 9"]["note"] == "timed out after 0.5 s"
    code, _, err = jobs.run(*logging())
    assert (code, "finished before" in err, "failed: 'item 7', exit code 3" in err) == (1, True, True)
    assert "--retry-dead" in err
    assert jobs.run("--retry-dead", *logging())[0] == 0
    assert jobs.run("--dead")[:2] == (0, "")
    assert len(jobs.results()) == 20


def test_a_command_that_does_not_exist_is_one_clear_line(jobs: Jobs) -> None:
    code, out, err = jobs.run("--", "no-such-command", "{}", lines=numbered(3))
    assert (code, out) == (127, "")
    assert err.splitlines()[-1] == "holdfast: no-such-command: command not found"
    assert jobs.done() == 0


@pytest.mark.parametrize(
    ("arguments", "lines", "says"),
    [
        (("--", "true"), [b"x"], "needs {}"),
        ((), [b"x"], "needs {}"),
        (("--batch", "2", "--", "cp", "{}.x"), [b"x"], "one item only"),
        (("--", "true", "{}"), [b"a\0b"], "NUL"),
        (("--results", "--json"), [], "one of them"),
        (("--dead", "--results"), [], "one of them"),
        (("--timeout", "0", "--", "true", "{}"), [b"x"], "timeout"),
        (("--again", "--retry-dead", "--", "true", "{}"), [b"x"], "not both"),
        (("--ttl", "0", "--", "true", "{}"), [b"x"], "ttl"),
        (("--input", "missing", "--", "true", "{}"), [], "missing"),
        (("--workers", "0", "--", "true", "{}"), [], "workers"),
    ],
)
def test_a_wrong_call_is_one_clear_error(jobs: Jobs, arguments: tuple[str, ...], lines: list[bytes], says: str) -> None:
    code, out, err = jobs.run(*arguments, lines=lines)
    assert code not in (0, 1)
    assert says in err
    assert "Traceback" not in err
    assert out == ""


def test_other_partitions_are_refused(jobs: Jobs) -> None:
    assert jobs.run("--partitions", "8", *logging(), lines=[b"x"])[0] == 0
    code, _, err = jobs.run("--partitions", "9", *logging(), lines=[b"x"])
    assert code not in (0, 1)
    assert "has 8 partitions" in err


def test_results_of_an_unknown_job_are_refused(jobs: Jobs) -> None:
    for what in ("--results", "--dead"):
        code, _, err = jobs.run(what)
        assert code not in (0, 1)
        assert "no job 'job'" in err


def test_no_input_is_nothing_to_do(jobs: Jobs) -> None:
    code, out, err = jobs.run("--", "true", "{}")
    assert (code, out) == (0, "")
    assert "nothing to do" in err


def test_what_the_command_prints_passes_through(jobs: Jobs) -> None:
    code, out, _ = jobs.run("--", "printf", "<%s>\\n", "{}", lines=ODD)
    assert code == 0
    assert sorted(os.fsencode(out).splitlines()) == sorted(b"<%s>" % line for line in ODD)


def test_items_come_from_a_file_and_results_with_the_run(jobs: Jobs) -> None:
    (jobs.folder / "list").write_bytes(b"a\n\nb\r\n")
    code, out, _ = jobs.run("--input", "list", "--results", "--", "printf", "<%s>", "{}")
    assert code == 0
    results = [json.loads(line) for line in out.splitlines()]
    assert sorted((one["item"], one["out"]) for one in results) == [("a", "<a>"), ("b", "<b>")]


def test_a_hundred_thousand_items_in_reasonable_time(jobs: Jobs) -> None:
    code, out, _ = jobs.run("--batch", "2000", "--json", "--", "true", "{}", lines=numbered(100_000))
    assert (code, json.loads(out)["done"]) == (0, 100_000)


def test_a_terminal_is_no_input(jobs: Jobs) -> None:
    """Someone who types the command to join in need not press Ctrl-D."""
    import pty

    ours, theirs = pty.openpty()
    said = bytearray()

    def listen() -> None:
        try:
            while piece := os.read(ours, 4096):
                said.extend(piece)
        except OSError:
            pass  # the other end is closed

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    jobs.run("--", "true", "{}", lines=numbered(3))
    process = subprocess.Popen([*PROGRAM, "each", "job", "--engine", jobs.url, "--", "true", "{}"],
                               stdin=theirs, stdout=theirs, stderr=theirs)  # fmt: skip
    assert process.wait(20) == 0
    os.close(theirs)
    reader.join(5)
    os.close(ours)
    assert b"finished before" in bytes(said)
