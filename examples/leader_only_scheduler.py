"""A scheduler on several machines, of which one runs the jobs; when it is killed, the next goes on where it was.

No run is skipped and none is recorded twice. Why: what was run, and the mark that says how far, are written by one put
into a cell that is opened under the leader's token. So a new leader reads the last mark, and whatever an old one still
wants to write, it is refused. (A job whose leader dies in the middle begins again, with the same number: what it does
elsewhere should be keyed by that number.)

    python examples/leader_only_scheduler.py                                # on the embedded engine; or on yours:
    python examples/leader_only_scheduler.py --engine redis://localhost --runs 100 --kill-every 2
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from pathlib import Path

import harness

import holdfast
from holdfast.sync import Client, Election


def election(hf: Client, name: str) -> Election:
    return hf.election(name, ttl_s=hf.capabilities.ttl_s or max(0.5, hf.capabilities.min_ttl_s))


def scheduler(url: str | None, name: str, interval_s: float, runs: int, folder: Path) -> None:
    """Wait to lead; then run every job that is due, until there have been so many."""
    me = str(os.getpid())
    with holdfast.connect(url) as hf, election(hf, name).campaign(me.encode()) as leadership:
        marks = hf.cell(f"{name}/marks").open(leadership)  # nothing of earlier leaders lands from here on
        start, done = map(int, (marks.value or b"%d 0" % (time.time() / interval_s)).split())
        while done < runs:
            due_in_s = (start + done + 1) * interval_s - time.time()  # less than none where the last leader died
            if leadership.wait_lost(max(0.0, due_in_s)):
                raise SystemExit("we lead no more")
            late_s = time.time() - (start + done + 1) * interval_s
            job(done + 1, folder)
            done += 1
            marks.put(b"%d %d" % (start, done), [holdfast.Change(f"{done} by {me}", b"%.3f" % late_s)])


def job(number: int, folder: Path) -> None:
    with (folder / "begun").open("a") as notes:
        notes.write(f"{number}\n")
    time.sleep(0.03)


def main() -> bool:
    given = harness.options(__doc__, schedulers=3, runs=25, interval=0.1, kill_every=0.7, kills=1000)
    name = f"scheduler-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as text, holdfast.connect(given.engine) as hf:
        folder, leaders, began = Path(text), election(hf, name), time.monotonic()

        def the_leader(pids: dict[int, int]) -> int | None:
            leader = leaders.leader()
            return next((number for number, pid in pids.items() if leader and leader.payload == b"%d" % pid), None)

        kills = harness.through_kills(
            scheduler,
            lambda number, start: (given.engine, name, given.interval, given.runs, folder),
            given.schedulers,
            given.kill_every,
            given.kills,
            the_leader,
        )
        seconds, begun = time.monotonic() - began, len((folder / "begun").read_text().split())
        entries = hf.cell(f"{name}/marks").read().entries
        hf.cell(f"{name}/marks").drop()
    runs, led = [int(key.split()[0]) for key in entries], {key.split()[-1] for key in entries}
    skipped, doubled = given.runs - len(set(runs)), len(runs) - len(set(runs))
    print(f"{len(runs)} runs every {given.interval:g} s by {len(led)} leaders, of whom {kills} were killed")
    print(f"{seconds:.1f} s in all; the latest run began {max(map(float, entries.values())):.2f} s late")
    print(
        f"{skipped} skipped, {doubled} doubled; {begun - len(runs)} begun again after their leader was killed in them"
    )
    return bool(skipped == doubled == 0)


if __name__ == "__main__":
    raise SystemExit(not main())
