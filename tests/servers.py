"""Real servers, started and stopped by the tests themselves: loopback, a free port, a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing(what: str) -> None:
    """A server that is not installed: a clear skip on a user's machine, a failure in CI."""
    message = f"{what} is not installed: make servers"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "") -> None:
    """Wait until ``condition()`` is true; fail after ``timeout_s``, which says nothing about how fast it should be."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, what or "the condition never came true"
        time.sleep(0.005)


class RedisServer:
    """A Redis or Valkey of one's own. Restarts on the same port; signals go to its own process only."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        binary = shutil.which("redis-server") or shutil.which("valkey-server")
        if binary is None:
            missing("redis-server or valkey-server")
            return
        for _ in range(5):
            command = [binary, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(self.folder)]
            self.process = subprocess.Popen([*command, *self.arguments], stdout=subprocess.DEVNULL)
            if self._comes_up():
                return
            self.port = free_port()  # somebody was quicker to take it
        raise RuntimeError("redis-server did not start")

    def _comes_up(self) -> bool:
        assert self.process is not None
        until = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < until:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64)[:5] in (b"+PONG", b"-NOAU"):
                        return True
            except OSError:
                pass
            time.sleep(0.01)
        return False

    def kill(self) -> None:
        """SIGKILL: nothing is written that was not."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Crash and come back with what its persistence kept."""
        self.kill()
        self.start()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """One command over a connection of its own; the raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(1 << 16)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.resume()
            self.kill()
