"""The embedded engine: a SQLite file, for the processes of one machine. Nothing to set up.

A claim dies with its process at once, by the kernel's word; a release wakes the next waiter by a datagram. The other
files of this name hold one idea each: the file, transactions, turnstiles, cells, life lines, signals, the vigil, links.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ...contract import Capabilities, Request
from ...errors import Misuse
from ...model import CellReply, CellSnapshot, Change, Claim, Fence, Snapshot, Standing, Turnstile
from . import cells, clock
from .core import Core, transaction
from .link import AsyncSqliteLink, Large, SqliteLink
from .turnstile import Desk

T = TypeVar("T")

CAPABILITIES = Capabilities(
    engine="sqlite",
    scope="machine",
    fair=True,
    weighted=True,
    signals=True,
    cells=True,
    groups=True,
    survives_restart=True,
    token_survives_failover=True,
    token_source="a counter in the file, or the machine's time in µs",
    min_ttl_s=0.01,
    max_value_bytes=64 << 20,
)

RENEW_BATCH = 64
LARGE_BYTES = 1 << 18


def default_path() -> Path:
    """``holdfast/holdfast.db`` in the user's state folder."""
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            named = os.environ.get("XDG_STATE_HOME", "")
            base = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"
    except RuntimeError:
        raise Misuse("this user has no home folder for the embedded engine's file: name one, sqlite:///path") from None
    return base / "holdfast" / "holdfast.db"


class SqliteEngine:
    """Turnstiles and cells in the file at ``path``, made at the first use. ``namespace`` keeps applications apart."""

    capabilities = CAPABILITIES

    def __init__(self, path: Path | str, namespace: str = "") -> None:
        self.path = Path(os.path.abspath(path))
        self.namespace = namespace
        self.prefix = f"{len(namespace)}:{namespace}:"
        self.clock: Callable[[], float] = clock.now
        self.tokens_us: Callable[[], float] = _wall_us

    @classmethod
    def from_url(cls, url: str, namespace: str = "") -> SqliteEngine:
        """``sqlite:///absolute/path``, or ``sqlite://`` for `default_path`. Raises `Misuse`."""
        rest = url.removeprefix("sqlite://")
        if rest == "":
            return cls(default_path(), namespace)
        if rest == "/:memory:":
            raise Misuse("for an engine in memory connect to memory://")
        if not rest.startswith("/") or rest.endswith("/") or "?" in rest:
            raise Misuse(
                f"{url!r}: sqlite:// takes the absolute path of a file and no options, sqlite:///path/to/file.db"
            )
        if "%" in rest:
            from urllib.parse import unquote

            rest = unquote(rest)
        if "\0" in rest:
            raise Misuse(f"{url!r}: no path holds a NUL byte")
        return cls(rest[1:] if sys.platform == "win32" else rest, namespace)

    @property
    def identity(self) -> str:
        return f"sqlite:{clock.boot_id()}:{os.path.realpath(self.path)}:{self.prefix}"

    def blocking_link(self) -> SqliteLink:
        return SqliteLink(self._core())

    def async_link(self) -> AsyncSqliteLink:
        return AsyncSqliteLink(self._core())

    def _core(self) -> Core:
        return Core(self.path, self.prefix, self.clock, self.tokens_us)

    def ping(self) -> Request[None]:
        return transaction("ping", lambda desk: None)

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Request[Standing]:
        return transaction("enter", lambda desk: desk.enter(turnstile, claim, nowait))

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Request[bool]:
        return transaction("leave", lambda desk: desk.leave(turnstile, claim_id, bury))

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Request[dict[str, Standing]]]:
        for start in range(0, len(items), RENEW_BATCH):
            yield _renew(items[start : start + RENEW_BATCH])

    def look(self, turnstile: Turnstile) -> Request[Snapshot]:
        return transaction("look", lambda desk: desk.look(turnstile))

    def list(self, prefix: str) -> Request[list[Turnstile]]:
        return transaction("list", Large(lambda desk: desk.list(prefix)))

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        return transaction("open", self._cell(cells.open_cell, cell, fence))

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        size = len(value or b"") + sum(len(change.value or b"") + 256 for change in changes)
        body = self._cell(cells.put, cell, fence, version, op_id, value, changes)
        return transaction("put", Large(body) if size > LARGE_BYTES else body)

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        body = self._cell(cells.read, cell, keys)
        return transaction("read", Large(body) if keys is None or len(keys) > 64 else body)

    def drop(self, cell: str) -> Request[bool]:
        return transaction("drop", Large(self._cell(cells.drop, cell)))

    def _cell(self, operation: Callable[..., T], cell: str, *args: Any) -> Callable[[Desk], T]:
        name = self.prefix + cell
        return lambda desk: operation(desk.db, name, *args)


def _renew(items: Sequence[tuple[Turnstile, Claim]]) -> Request[dict[str, Standing]]:
    return transaction("renew", lambda desk: desk.renew(items))


def _wall_us() -> float:
    return time.time() * 1e6
