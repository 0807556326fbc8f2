"""A minute's tour: four workers hash the Python standard library, two of them come to harm, and the books are checked.

What happens when is decided by counts of recorded files and by workers that are seen waiting with work in hand, never
by time; so it happens the same way on a fast machine and on a slow one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AcquireTimeout, HoldfastError, Unavailable, Unsupported
from ..sync import Client, connect
from .each_store import Store

PROGRAM = (sys.executable, "-m", "holdfast")
WORKERS = (1, 2, 3, 4)
KILLED, PAUSED = 2, 3
KILL_AT, PAUSE_AT = 0.20, 0.40
TTL_S = 2.0
BATCH = 16
RUNS_FREE = 3
PATIENCE_S = 60.0
"""How long any one step may take before the demo gives up, and says which."""

# A worker's command. The folder is $0, the worker's number $1. A worker that has a gate waits at it after a few
# batches, with one in hand, so that it is surely at work when it comes to harm. The others are slow until all are
# there, a second a batch, so that they cannot have finished before.
COMMAND = """
home=$0 me=$1 n=0; shift
echo >> "$home/runs.$me"
while [ -e "$home/slow.$me" ] && [ $n -lt 20 ]; do n=$((n + 1)); sleep 0.05; done
if [ $(wc -l < "$home/runs.$me") -gt %d ]; then
  while [ -e "$home/gate.$me" ]; do : > "$home/waiting.$me"; sleep 0.05; done
fi
exec "$@"
"""


class DemoFailed(HoldfastError):
    """A step of the demo did not come about. The message says which."""


@dataclass
class Report:
    """What happened: ``events`` are (seconds since the start, files recorded, what); ``wrong`` is empty if all held."""

    events: list[tuple[float, int, str]] = field(default_factory=list[tuple[float, int, str]])
    files: int = 0
    recorded: int = 0
    workers: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    checks: list[tuple[str, str, bool]] = field(default_factory=list[tuple[str, str, bool]])
    seconds: float = 0.0

    @property
    def wrong(self) -> list[str]:
        return [f"{what}: {found}" for what, found, holds in self.checks if not holds]


def run(engine: str | None, tell: Callable[[float, int, str], None], spoil: bool = False) -> Report:
    """The whole tour on ``engine`` (None: an embedded one in a temporary folder), each event told as it happens.

    ``spoil`` plants a wrong digest before the audit, to show that it is found. Raises `DemoFailed`, `Unsupported`,
    `Unavailable`.
    """
    if not hasattr(signal, "SIGSTOP") or shutil.which("sh") is None:
        raise Unsupported("the demo needs a system with SIGSTOP, to pause a process, and with a shell called sh")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-")))
        url = engine or f"sqlite:///{folder}/demo.db"
        tour = _Tour(folder, url, tell)
        stack.callback(tour.clean_up)
        return tour.run(spoil)


def library_files() -> list[bytes]:
    """Every file of the standard library that runs us, without what was installed or compiled into it."""
    found: list[bytes] = []
    for folder, folders, names in os.walk(os.fsencode(sysconfig.get_path("stdlib"))):
        folders[:] = [one for one in folders if one not in (b"site-packages", b"dist-packages", b"__pycache__")]
        found += [os.path.join(folder, name) for name in names]
    return sorted(path for path in found if os.path.isfile(path) and os.access(path, os.R_OK) and b"\n" not in path)


def digests(files: Sequence[bytes]) -> dict[str, str]:
    """The plain way: one after the other."""
    return {os.fsdecode(file): hashlib.sha256(Path(os.fsdecode(file)).read_bytes()).hexdigest() for file in files}


def audit(
    expected: dict[str, str], records: Sequence[dict[str, Any]], workers: dict[int, dict[str, Any]]
) -> list[tuple[str, str, bool]]:
    """What must hold, what was found, and whether it holds."""
    seen = Counter(str(record["item"]) for record in records)
    once = sum(1 for file in expected if seen[file] == 1)
    equal = sum(1 for record in records if str(record["out"]).lstrip("\\")[:64] == expected.get(record["item"]))
    signed = Counter(str(record["member"]).rpartition(":")[2] for record in records)
    books = all(worker["done"] == signed[str(worker["pid"])] for worker in workers.values() if "done" in worker)
    refused = workers[PAUSED].get("refused", 0)
    ended = [number for number, worker in workers.items() if worker.get("status") == "finished" and worker["code"] == 0]
    survivors = [number for number in workers if number != KILLED]
    return [
        ("every file recorded exactly once", f"{once} of {len(expected)}", once == len(expected) == len(records)),
        ("every digest as computed sequentially", f"{equal} of {len(expected)}", equal == len(expected)),
        ("what workers say they recorded is what stands", "yes" if books else "no", books),
        (f"worker {PAUSED} was refused when it woke", f"{refused} late results", refused > 0),
        ("all but the killed one ended by themselves", f"{len(ended)} of {len(survivors)}", ended == survivors),
    ]


class _Tour:
    def __init__(self, folder: Path, url: str, tell: Callable[[float, int, str], None]) -> None:
        self.folder = folder
        self.url = url
        self.namespace = f"demo-{secrets.token_hex(4)}"
        self.client: Client = connect(url, namespace=self.namespace, scope="machine", patience_s=0.5)
        self.store = Store(self.client, "demo", TTL_S)
        self.tell = tell
        self.report = Report()
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.started = time.monotonic()

    def run(self, spoil: bool) -> Report:
        self.client.ping()
        files = library_files()
        self.report.files = len(files)
        (self.folder / "files").write_bytes(b"".join(file + b"\n" for file in files))
        for number in WORKERS:
            (self.folder / f"{'gate' if number in (KILLED, PAUSED) else 'slow'}.{number}").touch()
            self.workers[number] = self._start(number)
        self._until("all four workers share the files", self._all_share)
        self.event(f"{len(WORKERS)} workers share {len(files)} files of {sysconfig.get_path('stdlib')}")
        for slow in self.folder.glob("slow.*"):
            slow.unlink()

        self._until(f"{KILL_AT:.0%} are recorded", lambda: self._reached(KILL_AT))
        self.workers[KILLED].send_signal(signal.SIGKILL)
        self.workers[KILLED].wait()
        (self.folder / f"gate.{KILLED}").unlink()
        self.event(f"worker {KILLED} is killed (SIGKILL) with {BATCH} files or fewer in hand")

        self._until(f"{PAUSE_AT:.0%} are recorded", lambda: self._reached(PAUSE_AT))
        self._pause(self.workers[PAUSED])
        (self.folder / f"gate.{PAUSED}").unlink()  # its command ends now, and nobody is awake to record that
        self.event(f"worker {PAUSED} is paused (SIGSTOP) with results in hand, past its lease of {TTL_S:g} s")

        self._until("the others have recorded all", lambda: self._count() == len(files))
        self.event(f"workers 1 and 4 have recorded the rest, those of {KILLED} and {PAUSED} included")
        self.workers[PAUSED].send_signal(signal.SIGCONT)
        self.event(f"worker {PAUSED} wakes and tries to record what it had in hand")
        self._until("all workers have ended", lambda: all(one.poll() is not None for one in self.workers.values()))
        for number, worker in self.workers.items():
            self.report.workers[number] = self._account(number, worker)
        self.event("the others have ended by themselves")
        if spoil:
            self._spoil()
            self.event("a wrong digest is planted, to see whether the audit finds it")
        expected = digests(files)
        self.event("all files are hashed once more, one after the other, to compare")
        records = list(self.store.results())
        self.report.recorded = len(records)
        self.report.checks = audit(expected, records, self.report.workers)
        self.report.seconds = time.monotonic() - self.started
        return self.report

    def event(self, what: str) -> None:
        event = (time.monotonic() - self.started, self._count(), what)
        self.report.events.append(event)
        self.tell(*event)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        hasher = ["sha256sum"] if shutil.which("sha256sum") else [sys.executable, "-m", "holdfast.fleet.demo_hash"]
        command = ["sh", "-c", COMMAND % RUNS_FREE, str(self.folder), str(number), *hasher, "{}"]
        options = ["--namespace", self.namespace, "--input", str(self.folder / "files"), "--json", "--collect"]
        options += ["--workers", "1", "--batch", str(BATCH), "--ttl", str(TTL_S)]
        with open(self.folder / f"err.{number}", "wb") as errors, open(self.folder / f"out.{number}", "wb") as out:
            return subprocess.Popen(
                [*PROGRAM, "each", "demo", *options, "--", *command],
                env={**os.environ, "HOLDFAST_URL": self.url},  # not an argument: it may hold a password
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition; raise `DemoFailed` if a worker that should live has ended, or patience has."""
        until = time.monotonic() + PATIENCE_S
        while not self._now(condition):
            failed = [number for number, one in self.workers.items() if one.poll() not in (None, 0, -signal.SIGKILL)]
            if failed:
                said = (self.folder / f"err.{failed[0]}").read_text(errors="replace").strip()
                raise DemoFailed(f"the demo waited until {what}: worker {failed[0]} ended before:\n{said}")
            if time.monotonic() > until:
                raise DemoFailed(f"the demo waited {PATIENCE_S:g} s until {what}; {self._count()} files are recorded")
            time.sleep(0.05)

    @staticmethod
    def _now(condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except Unavailable:  # a paused worker may hold up a file for a moment
            return False

    def _count(self) -> int:
        state = self.store.state()
        return 0 if state is None else self.store.tally(state).done

    def _all_share(self) -> bool:
        """All are members, all files are published, and those who will come to harm are at their gates."""
        state = self.store.state()
        return (
            state is not None
            and all((self.folder / f"waiting.{number}").exists() for number in (KILLED, PAUSED))
            and len(self.store.members(state).members()) == len(WORKERS)
            and self.store.tally(state).items == self.report.files
        )

    def _reached(self, share: float) -> bool:
        return self._count() >= share * self.report.files

    def _pause(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGSTOP it where it holds up nobody: one stopped inside a write would keep the embedded file to itself."""
        for _ in range(100):
            worker.send_signal(signal.SIGSTOP)
            try:
                self.client.lock("probe", timeout_s=1.0).acquire().release()
                return
            except (Unavailable, AcquireTimeout):
                worker.send_signal(signal.SIGCONT)
                time.sleep(0.03)
        raise DemoFailed("the worker could not be paused outside of a write")

    def _account(self, number: int, worker: subprocess.Popen[bytes]) -> dict[str, Any]:
        account: dict[str, Any] = {"pid": worker.pid, "code": worker.returncode}
        said = (self.folder / f"out.{number}").read_text()
        return account | (json.loads(said) if said else {})

    def _spoil(self) -> None:
        """Write over one record, by the only way there is: as the owner of its partition."""
        state = self.store.known()
        with self.store.members(state).join() as share:
            self._until("we own the partitions", lambda: len(share.owned) == state.partitions)
            for partition, lease in share.owned.items():
                opened = self.store.done_cell(state, partition).open(lease)
                for key, data in opened.entries().items():
                    opened.set(key, json.dumps({**json.loads(data), "out": "0" * 64}).encode())
                    return

    def clean_up(self) -> None:
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        with contextlib.suppress(HoldfastError):
            self.store.forget()
        self.client.close()
