"""The protocol of sd_notify, both ways: what CMD tells us, and what we tell the service manager.

A message is lines of KEY=VALUE. From programs made for systemd it comes as a datagram; a shell writes it to a file
descriptor: ``echo READY=1 >&$HOLDFAST_READY_FD``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator

MESSAGE_BYTES = 8192
AT_ONCE = 64
"""So many messages are read in a row, so that a CMD that tells too much holds up nothing."""

OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What the service manager gave us, and CMD must not take for its own."""


class Inbox:
    """Where CMD tells how it fares. ``environment`` and ``inherits`` are for CMD.

    Made before there are many open files: to some shells a descriptor has one digit.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._half = b""
        self._socket: socket.socket | None = None
        self._folder = ""
        self.environment = {"HOLDFAST_READY_FD": str(self._writer)}
        with contextlib.suppress(OSError):  # no place for it, as in a read-only container: the descriptor remains
            self._folder = tempfile.mkdtemp(prefix="holdfast-")
            path = os.path.join(self._folder, "notify")
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.bind(path)
            self.environment["NOTIFY_SOCKET"] = path

    @property
    def inherits(self) -> tuple[int, ...]:
        return (self._writer,)

    @property
    def files(self) -> list[int]:
        """What to wait on for news."""
        return [self._reader] if self._socket is None else [self._reader, self._socket.fileno()]

    def read(self) -> list[tuple[str, str]]:
        """What came, in order for each of the two ways."""
        return [_assignment(line) for message in self._messages() for line in message.split(b"\n") if b"=" in line]

    def _messages(self) -> Iterator[bytes]:
        with contextlib.suppress(OSError):  # nothing more at the moment
            for _ in range(AT_ONCE if self._socket is not None else 0):
                assert self._socket is not None
                yield self._socket.recv(MESSAGE_BYTES)
        with contextlib.suppress(OSError):
            data = self._half + os.read(self._reader, MESSAGE_BYTES)
            whole, _, half = data.rpartition(b"\n")
            self._half = half[-MESSAGE_BYTES:]
            yield whole

    def clear(self) -> None:
        """Forget what an earlier CMD told."""
        for _ in range(AT_ONCE):
            if not any(True for _ in self._messages()):
                break
        self._half = b""

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
        if self._socket is not None:
            self._socket.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _assignment(line: bytes) -> tuple[str, str]:
    key, _, value = line.decode(errors="replace").partition("=")
    return key.strip(), value.strip()


class Manager:
    """The service manager that started us; nobody hears where there is none."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # of Linux, without a file
            self._address = "\0" + self._address[1:]

    def tell(self, *assignments: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(assignments).encode(), self._address)

    def status(self, text: str) -> None:
        self.tell(f"STATUS={text}")

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    @property
    def watchdog_s(self) -> float | None:
        """Within which it wants to hear WATCHDOG=1 from us; None where it does not."""
        if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return None
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None

    @contextlib.contextmanager
    def pinged_while(self, is_well: Callable[[], bool]) -> Generator[None]:
        """Tell it that we live, as often as it wants to hear it, whenever ``is_well`` says so."""
        every_s = self.watchdog_s
        done = threading.Event()
        if every_s is not None:
            threading.Thread(target=self._ping, args=(every_s / 3, is_well, done), daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _ping(self, every_s: float, is_well: Callable[[], bool], done: threading.Event) -> None:
        while not done.wait(every_s):
            if is_well():
                self.tell("WATCHDOG=1")
