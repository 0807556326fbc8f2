"""The command as people run it: each call a process of its own, in a folder and on an engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from servers import eventually

import holdfast
from holdfast.model import Turnstile
from holdfast.worlds.threads import drive

PROGRAM = (sys.executable, "-m", "holdfast")


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What it said at its end. There is no traceback, and a line or two is all."""
        assert "Traceback" not in self.err, self.err
        return self.err.splitlines()[-1]


class Commands:
    """Starts ``holdfast …``; ends at `close` what still runs. CMDs that loop do so while the file ``gate`` is there."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder
        self.environment = {**os.environ}
        self.environment.pop("HOLDFAST_URL", None)
        if url is not None:
            self.environment["HOLDFAST_URL"] = url
        self.started: list[subprocess.Popen[bytes]] = []
        self.gate = folder / "gate"
        self.gate.touch()

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """In a session of its own: without a terminal, also where a developer's terminal runs the tests."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        given: dict[str, Any] = {
            "cwd": self.folder,
            "env": self.environment,
            "start_new_session": True,
            **streams,
            **options,
        }
        process: Any = subprocess.Popen([*PROGRAM, *arguments], **given)
        self.started.append(process)
        return process

    def run(self, *arguments: str, lines: str | bytes = b"", **options: Any) -> Ended:
        if lines:
            options["stdin"] = subprocess.PIPE
        process = self.start(*arguments, **options)
        data = lines.encode() if isinstance(lines, str) else lines
        return self.ended(process, data or None)

    def ended(self, process: subprocess.Popen[bytes], data: bytes | None = None) -> Ended:
        out, err = process.communicate(data, timeout=40)
        return Ended(process.returncode, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace"))

    def overview(self, *arguments: str) -> dict[str, list[dict[str, Any]]]:
        """All that ``status`` says."""
        done = self.run("status", "--json", *arguments)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert isinstance(found, dict)
        return found

    def status(self, *arguments: str) -> list[dict[str, Any]]:
        """The locks and semaphores that stand."""
        return self.overview(*arguments)["locks"]

    def waiting(self, name: str) -> int:
        """How many wait for that lock, by an outside look."""
        with holdfast.connect(self.environment["HOLDFAST_URL"]) as client:
            session = client.session
            return len(drive(session.ask(session.engine.look(Turnstile("lock", name, 1)))).waiting)

    def holding(self, name: str, *options: str, script: str = ":", **started: Any) -> subprocess.Popen[bytes]:
        """A ``run`` whose CMD is there: it first does ``script`` (a trap, say), then loops at the gate."""
        loop = f"{script}; echo $$ > ready.{name}; while [ -e gate ]; do sleep 0.02; done"
        process = self.start("run", name, *options, "--", "sh", "-c", loop, **started)
        ready = self.folder / f"ready.{name}"
        eventually(lambda: ready.exists() and ready.read_text().endswith("\n"), what=f"CMD of {name} did not start")
        return process

    def cmd_of(self, name: str) -> int:
        """The process id of the CMD that `holding` started."""
        return int((self.folder / f"ready.{name}").read_text())

    def open_gate(self) -> None:
        self.gate.unlink(missing_ok=True)

    def close(self) -> None:
        self.open_gate()
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def is_running(pid: int) -> bool:
    """Whether it still does anything: a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        if sys.platform == "linux":
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state not in ("Z", "X")
