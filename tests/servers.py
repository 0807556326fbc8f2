"""Real servers, started and stopped by the tests themselves: loopback, a free port, a temporary folder."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing(what: str) -> NoReturn:
    """A server that is not installed: a clear skip on a user's machine, a failure in CI."""
    if "pytest" not in sys.modules:  # a bench uses these servers, too
        raise FileNotFoundError(f"{what} is not installed")
    import pytest

    message = f"{what} is not installed: make servers"
    if IN_CI:
        pytest.fail(message)
    pytest.skip(message)


def _first_ephemeral_port() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return 32768


_PORTS = list(range(10_000, max(_first_ephemeral_port(), 20_000)))
random.SystemRandom().shuffle(_PORTS)


def free_port() -> int:
    """Each answer another one, and below those that the system gives to outgoing connections.

    Such a connection could take a port between this answer and the server's start, or while the server restarts.
    """
    while _PORTS:
        port = _PORTS.pop()
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port is left")


def eventually(condition: Callable[[], object], timeout_s: float = 20.0, what: str = "") -> None:
    """Wait until ``condition()`` is true; fail after ``timeout_s``, which says nothing about how fast it should be."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, what or "the condition never came true"
        time.sleep(0.005)


class Server:
    """A server process of the test's own. It restarts on the same port; signals go to its own process only.

    An engine's class says what to run (`argv`) and how it tells that it serves (`answers`).
    """

    patience_s = 20.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def argv(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """Raises OSError as long as nobody listens."""
        raise NotImplementedError

    def start(self) -> None:
        for _ in range(5):
            self.launch()
            if self.comes_up():
                return
            self._end()
            self.move()  # somebody was quicker to take it
        raise RuntimeError(f"{type(self).__name__} did not start")

    def move(self) -> None:
        """To another port."""
        self.port = free_port()

    def launch(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.argv(), cwd=self.folder, stdout=log, stderr=log)

    def comes_up(self) -> bool:
        assert self.process is not None
        until = time.monotonic() + self.patience_s
        while self.process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                if self.answers():
                    return True
            time.sleep(0.01)
        return False

    def kill(self) -> None:
        """SIGKILL: nothing is written that was not."""
        self._end()

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        """Crash and come back with what was kept."""
        self.kill()
        self.start()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.resume()
            self.kill()


class RedisServer(Server):
    """A Redis or Valkey."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder)
        self.arguments = arguments

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def argv(self) -> list[str]:
        binary = shutil.which("redis-server") or shutil.which("valkey-server") or missing("redis-server")
        listen = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--dir", str(self.folder)]
        return [binary, *listen, *self.arguments]

    def answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(64)[:5] in (b"+PONG", b"-NOAU")

    def command(self, *words: str) -> bytes:
        """One command over a connection of its own; the raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(1 << 16)
