"""``holdfast demo`` from beginning to end, and that its audit can fail."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from holdfast.fleet import demo

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.name == "nt", reason="the demo pauses a process with SIGSTOP"),
    pytest.mark.timeout(120),
]


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run([*demo.PROGRAM, "demo", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=100, check=False, env={**os.environ, **environment})  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_it_holds_on_every_engine(url: str) -> None:
    code, out, err = run("--engine", url, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["files"] > 500
    assert report["wrong"] == []
    assert report["workers"]["3"]["refused"] > 0
    assert len(report["checks"]) == 5
    counts = [count for _, count, _ in report["events"]]
    assert report["files"] * demo.KILL_AT <= counts[1] < counts[-1] == report["files"]
    assert report["seconds"] < 60


def test_it_tells_a_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code, out, _ = run(TMPDIR=str(tmp_path))
    assert code == 0
    assert out.index("is killed") < out.index("is paused") < out.index("wakes") < out.index("All of it held")
    assert list(tmp_path.iterdir()) == []


def test_its_audit_finds_a_record_that_was_spoiled() -> None:
    code, out, _ = run("--spoil")
    assert code == 1
    assert "BROKEN" in out
    assert "The audit failed" in out


# -- the audit itself


def books() -> tuple[dict[str, str], list[dict[str, Any]], dict[int, dict[str, Any]]]:
    expected = {f"/lib/{n}": f"{n:064x}" for n in range(4)}
    records = [{"item": file, "out": f"{digest}  {file}", "member": f"host:{n % 2}"}
               for n, (file, digest) in enumerate(expected.items())]  # fmt: skip
    well = {"status": "finished", "code": 0, "refused": 0}
    workers = {
        1: {"pid": 0, "done": 2, **well},
        2: {"pid": 1, "code": -9},
        3: {"pid": 3, "done": 0, **well, "refused": 5},
        4: {"pid": 4, "done": 0, **well},
    }
    return expected, records, workers


def broken(checks: list[tuple[str, str, bool]]) -> list[int]:
    return [number for number, (_, _, holds) in enumerate(checks) if not holds]


def test_the_audit_passes_when_all_is_well() -> None:
    assert broken(demo.audit(*books())) == []


def test_the_audit_finds_a_file_that_is_missing_or_there_twice() -> None:
    expected, records, workers = books()
    assert 0 in broken(demo.audit(expected, records[:-1], workers))
    assert 0 in broken(demo.audit(expected, [*records, records[0]], workers))


def test_the_audit_finds_a_wrong_digest() -> None:
    expected, records, workers = books()
    records[1]["out"] = "0" * 64
    assert broken(demo.audit(expected, records, workers)) == [1]


def test_the_audit_finds_workers_whose_word_does_not_stand() -> None:
    expected, records, workers = books()
    workers[4]["done"] = 1
    assert broken(demo.audit(expected, records, workers)) == [2]


def test_the_audit_finds_that_nobody_was_refused_or_somebody_did_not_end() -> None:
    expected, records, workers = books()
    workers[3]["refused"] = 0
    workers[4] = {"pid": 4, "code": 1}
    assert broken(demo.audit(expected, records, workers)) == [3, 4]
