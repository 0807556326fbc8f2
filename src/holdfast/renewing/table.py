"""What a program tells its helper and what the helper answers: lines in memory that both see.

A line is a checked text: its checksum, its length, its bytes. One side writes it, the other reads it, and neither
waits: who meets a line in the middle of being written sees that the sum is wrong. So a helper that hangs holds up no
program, a helper that is started again finds all that is held, and what a program missed while it could not run it
reads in one step when it can.
"""

from __future__ import annotations

import fcntl
import marshal
import mmap
import os
import struct
import tempfile
import zlib
from typing import NamedTuple

from ..model import Claim, Turnstile

LINES = 1 << 15
"""Leases of one client that a helper looks after. What no line was written to takes no memory."""

LINE_BYTES = 1024
TEXT_BYTES = 960
"""Of a line, for the program's text; the helper's answer is in the rest."""

TABLE_FD = 3
"""The helper's descriptor of it; the program's is another, and none of those that a spawned process gets anew."""

TRIES = 3

_FRAME = struct.Struct("<II")  # checksum, length
_ANSWER = struct.Struct("<Qd")


class Head(NamedTuple):
    """The first line. ``beat``: when the program last ran; ``lines``: how many to read; ``look_s``: how often."""

    beat: float
    lines: int
    look_s: float


class Kept(NamedTuple):
    """One lease. ``number``: never used twice; ``deadline``: when it is over if nobody renews it; ``until``: when to
    stop renewing it."""

    number: int
    deadline: float
    until: float
    turnstile: Turnstile
    claim: Claim


class Table:
    """The memory, from both sides. ``fd`` is what to hand over."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, (1 + LINES) * LINE_BYTES)

    @classmethod
    def make(cls) -> Table:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("holdfast")
        else:
            with tempfile.TemporaryFile() as file:  # it has no name
                fd = os.dup(file.fileno())
        os.ftruncate(fd, (1 + LINES) * LINE_BYTES)
        table = cls(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, TABLE_FD + 1))
        os.close(fd)
        return table

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with this object."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    # -- the program's side

    def write_head(self, head: Head) -> None:
        self._write(0, marshal.dumps(tuple(head)))

    def write(self, line: int, kept: Kept) -> None:
        turnstile, claim = kept.turnstile, kept.claim
        fields = (kept.number, kept.deadline, kept.until, turnstile.kind, turnstile.name, turnstile.capacity,
                  turnstile.announces, claim.id, claim.weight, claim.ttl_s, claim.inbox)  # fmt: skip
        text = marshal.dumps(fields)
        assert len(text) <= TEXT_BYTES - _FRAME.size, "names have MAX_NAME_BYTES at most"
        self._write(_at(line), text)

    def erase(self, line: int) -> None:
        self._write(_at(line), b"")

    def answer(self, line: int, number: int) -> float:
        """The deadline by what the helper renewed; 0 where it renewed nothing."""
        answered, deadline = self._answered(line)
        return deadline if answered == number else 0.0

    # -- the helper's side

    def head(self) -> Head | None:
        """None where there is none yet, or none that can be read now."""
        text = self._read(0, TEXT_BYTES)
        return Head(*marshal.loads(text)) if text else None

    def read(self, line: int) -> Kept | None:
        """With the later deadline, where an answer stands. None for an empty line, or one that is being written."""
        text = self._read(_at(line), TEXT_BYTES)
        if not text:
            return None
        number, deadline, until, kind, name, capacity, announces, id, weight, ttl_s, inbox = marshal.loads(text)
        turnstile, claim = Turnstile(kind, name, capacity, announces), Claim(id, weight, ttl_s, inbox)
        return Kept(number, max(deadline, self.answer(line, number)), until, turnstile, claim)

    def write_answer(self, line: int, number: int, deadline: float) -> None:
        self._write(_at(line) + TEXT_BYTES, _ANSWER.pack(number, deadline))

    # -- last words, of a helper that could not go on

    def write_last_words(self, words: str) -> None:
        self._write(LINE_BYTES // 2, words.encode(errors="replace")[: LINE_BYTES // 2 - _FRAME.size])

    def last_words(self) -> str:
        return (self._read(LINE_BYTES // 2, LINE_BYTES // 2) or b"").decode(errors="replace")

    # -- checked texts

    def _answered(self, line: int) -> tuple[int, float]:
        text = self._read(_at(line) + TEXT_BYTES, LINE_BYTES - TEXT_BYTES)
        number, deadline = _ANSWER.unpack(text) if text else (0, 0.0)
        return number, deadline

    def _write(self, at: int, text: bytes) -> None:
        self._memory[at : at + _FRAME.size + len(text)] = _FRAME.pack(zlib.crc32(text), len(text)) + text

    def _read(self, at: int, most: int) -> bytes | None:
        for _ in range(TRIES):
            checksum, size = _FRAME.unpack_from(self._memory, at)
            if size <= most:
                text = self._memory[at + _FRAME.size : at + _FRAME.size + size]
                if zlib.crc32(text) == checksum:
                    return text
        return None


def _at(line: int) -> int:
    return (1 + line) * LINE_BYTES
