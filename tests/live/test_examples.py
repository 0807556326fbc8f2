"""The examples, run as a user runs them: what each promises comes true, on the embedded engine and on Redis."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
FEW = ("--kills", "3")  # a machine that is slow, and starts processes slowly, has to come to an end, too

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


def run(url: str, example: str, *arguments: str) -> str:
    """What it printed. It fails by itself where what it promises did not come true."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{example}.py"), *arguments],
        env={**os.environ, "HOLDFAST_URL": url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, text
    return int(found[1])


def test_a_flash_sale_never_oversells_and_loses_no_order_though_workers_are_killed(url: str) -> None:
    told = run(url, "flash_sale", "--orders", "5000", "--stock", "4500", "--at-once", "2", "--kill-every", "0.7", *FEW)
    assert "5000 orders answered" in told
    assert "4500 of 4500 sold" in told
    assert number(r"(\d+) were killed", told) > 0


def test_a_rate_limit_holds_in_any_window_though_workers_are_killed_and_start_anew(url: str) -> None:
    told = run(url, "rate_limiter", "--kill-every", "0.7", *FEW)
    assert number(r"(\d+) calls", told) >= 30
    assert number(r"(\d+) were killed", told) > 0
    assert 1 < number(r"at once: (\d+) at most", told) <= 3
    assert 3 < number(r"starts in 0.5 s: (\d+) at most", told) <= 6


def test_a_value_that_many_miss_is_computed_by_one_and_by_the_next_where_that_one_dies(url: str) -> None:
    told = run(url, "cache_filled_once")
    assert "32 asked" in told
    assert "1 value seen" in told


def test_a_scheduler_skips_no_run_and_doubles_none_though_its_leaders_are_killed(url: str) -> None:
    told = run(url, "leader_only_scheduler", *FEW)
    assert number(r"(\d+) runs", told) == 25
    assert number(r"by (\d+) leaders", told) > 1
    assert "0 skipped, 0 doubled" in told


def test_every_record_of_a_log_counts_once_though_its_consumers_are_killed(url: str) -> None:
    told = run(url, "partitioned_consumer", *FEW)
    assert "6000 records of 12 partitions" in told
    assert number(r"(\d+) were killed", told) > 0
    assert number(r"(\d+) times a partition got an owner", told) > 12
    assert "12 of 12 sums" in told
