"""Running CMD: which arguments it gets, what it answers, and ending it with everything that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from ..errors import HoldfastError, Misuse

OUT_BYTES = 4096
"""How much of what CMD prints for one item is kept."""

GRACE_S = 5.0
"""How long CMD may take to end after SIGTERM before it gets SIGKILL."""

TIMED_OUT = 124
"""The exit code of a run that took too long, as timeout(1) has it."""


class CannotRun(HoldfastError):
    """CMD cannot be started at all. ``code`` is what a shell would exit with: 127 not found, 126 not executable."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Command:
    """CMD with its ``{}``: an argument that is exactly ``{}`` becomes the items, one argument each.

    Inside a longer argument ``{}`` needs a ``batch`` of 1. There is no shell, so spaces and quotes in items are safe.
    ``collect`` keeps what CMD prints instead of passing it through; with a batch that is one line per item, in order.
    A run that takes longer than ``timeout_s`` is ended, and has failed.
    """

    argv: tuple[str, ...]
    batch: int = 1
    collect: bool = False
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if not any("{}" in argument for argument in self.argv):
            raise Misuse("CMD needs {} where the items go, as in: holdfast each JOB -- gzip {}")
        if self.batch < 1:
            raise Misuse(f"a batch has 1 item or more, not {self.batch}")
        if self.timeout_s is not None and not 0 < self.timeout_s <= threading.TIMEOUT_MAX:
            raise Misuse(f"timeout is above 0 seconds and finite, not {self.timeout_s!r}")
        inside = next((argument for argument in self.argv if "{}" in argument and argument != "{}"), None)
        if self.batch > 1 and inside is not None:
            raise Misuse(f"with a batch, {{}} stands alone: {inside!r} can hold one item only (leave --batch out)")

    def arguments(self, lines: Sequence[bytes]) -> list[bytes]:
        """The whole command line for these items."""
        whole: list[bytes] = []
        for argument in self.argv:
            if argument == "{}":
                whole.extend(lines)
            else:
                whole.append(os.fsencode(argument).replace(b"{}", lines[0]))
        return whole

    def check(self) -> None:
        """Raise `CannotRun` where CMD surely does not exist; one whose name is an item is seen when it is run."""
        name = self.argv[0]
        if "{}" not in name and shutil.which(name) is None:
            there = os.path.exists(name) if os.path.dirname(name) else False
            raise CannotRun(*((f"{name}: not executable", 126) if there else (f"{name}: command not found", 127)))


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``outs`` is what to keep for each item; ``stopped`` means that we ended it ourselves."""

    code: int
    outs: tuple[str, ...] = ()
    stopped: bool = False
    note: str = ""


class Running:
    """One run of CMD, which another thread may stop at any moment, also before it started."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._timed_out = False
        self._ending: threading.Thread | None = None

    def run(self, lines: Sequence[bytes], environment: Mapping[str, str]) -> Outcome:
        """Start it, wait for its end. Raises `CannotRun`."""
        arguments = self._command.arguments(lines)
        with self._lock:
            if self._stopped:
                return Outcome(0, stopped=True)
            try:
                process = self._process = self._start(arguments, environment)
            except OSError as error:
                return self._not_started(arguments[0], error)
        with self._watched():
            texts, note = self._read(process.stdout, len(lines)) if process.stdout is not None else ([], "")
            code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if self._ending is not None:
            self._ending.join()
        if self._stopped:
            return Outcome(code, stopped=True)
        if self._timed_out:
            return Outcome(TIMED_OUT, note=f"timed out after {self._command.timeout_s:g} s")
        if note and code == 0:
            return Outcome(1, note=note)
        return Outcome(code if code >= 0 else 128 - code, tuple(texts))

    @contextlib.contextmanager
    def _watched(self) -> Generator[None]:
        """End it if it takes too long."""
        if self._command.timeout_s is None:
            yield
            return
        timer = threading.Timer(self._command.timeout_s, self._time_out)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _time_out(self) -> None:
        with self._lock:
            self._timed_out = self._end()

    def stop(self) -> None:
        """End it and what it started: SIGTERM, and SIGKILL after `GRACE_S`. One that has ended by itself stays so."""
        with self._lock:
            self._stopped = self._stopped or self._process is None or self._ending is not None or self._end()

    def _end(self) -> bool:
        """Begin to; False where it has ended by itself."""
        process = self._process
        if process is None or _is_over(process):
            return False
        self._ending = self._ending or threading.Thread(target=_end_group, args=(process,), daemon=True)
        if not self._ending.ident:
            self._ending.start()
        return True

    def kill(self) -> None:
        """End it at once, after `stop`."""
        with self._lock:
            if self._process is not None and not _is_over(self._process):
                self._stopped = True
                _send(self._process, getattr(signal, "SIGKILL", signal.SIGTERM))

    def _start(self, arguments: list[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        given = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE if self._command.collect else None,
            "env": {**os.environ, **environment},
        }
        if os.name == "nt":
            return subprocess.Popen([os.fsdecode(argument) for argument in arguments], **given)  # type: ignore[call-overload,no-any-return]
        # A process group of its own: what CMD starts ends with it, and Ctrl-C reaches us alone, who end it in order.
        return subprocess.Popen(arguments, process_group=0, **given)  # type: ignore[call-overload,no-any-return]

    def _not_started(self, name: bytes, error: OSError) -> Outcome:
        shown = os.fsdecode(name)
        fixed = "{}" not in self._command.argv[0]
        if isinstance(error, FileNotFoundError):
            code, note = 127, f"{shown}: command not found"
        else:
            code, note = 126, f"{shown}: {error.strerror}"
        if fixed and isinstance(error, (FileNotFoundError, PermissionError)):
            raise CannotRun(note, code)
        return Outcome(code, note=note)  # it is this item's fault: a name that is no command, an argument too long

    def _read(self, stream: IO[bytes], count: int) -> tuple[list[str], str]:
        """All that it prints, kept within bounds; the second is what is wrong with it."""
        if self._command.batch == 1:
            text = stream.read(OUT_BYTES)
            while stream.read(1 << 16):
                pass
            return [_text(text)], ""
        kept: list[str] = []
        printed = 0
        fresh = True
        while piece := stream.readline(OUT_BYTES):
            if fresh:
                printed += 1
                if printed <= count:
                    kept.append(_text(piece))
            fresh = piece.endswith(b"\n")
        if printed != count:
            return [], f"it printed {printed} lines for {count} items; collecting from a batch takes one each, in order"
        return kept, ""


def _text(piece: bytes) -> str:
    return piece.removesuffix(b"\n").decode(errors="surrogateescape")


def _is_over(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, also where nobody has fetched its exit code yet (and without fetching it)."""
    if process.returncode is not None:
        return True
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + GRACE_S
    going = _send(process, signal.SIGTERM)
    while going and time.monotonic() < until:
        time.sleep(0.02)
        going = _send(process, 0)
    if going:
        _send(process, getattr(signal, "SIGKILL", signal.SIGTERM))


def _send(process: subprocess.Popen[bytes], signum: int) -> bool:
    """To all that it started; False where nobody is left."""
    try:
        if os.name == "nt":
            if signum:
                process.terminate()
            return process.poll() is None
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        return False
    except PermissionError:  # some are left that became another user's (Windows: it is ending)
        return os.name != "nt"
    return True
