"""One member's input, on disk: however long it is, little of it is in memory.

SQLite keeps it in an unnamed temporary file, which goes with the process (its folder: SQLITE_TMPDIR, TMPDIR).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import HoldfastError
from .each_items import Item, bounds, identity, lines_of

CACHE_KIB = 16_000


class Print(NamedTuple):
    """How many items, and what their identities come to: the same for the same items in any order."""

    items: int = 0
    digest: int = 0

    def plus(self, ids: Iterable[bytes]) -> Print:
        items, digest = self
        for one in ids:
            items += 1
            digest ^= int.from_bytes(one, "big")
        return Print(items, digest)


class Input:
    """The items of some lines. Raises `Misuse` for a line that cannot be one, `HoldfastError` where the disk is full.

    For one thread at a time.
    """

    def __init__(self, source: Iterable[bytes] = ()) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", f"cache_size = -{CACHE_KIB}"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.execute("CREATE TABLE item (id BLOB PRIMARY KEY, occurrence INTEGER, line BLOB) WITHOUT ROWID")
        self._db.execute("CREATE TABLE repeated (line BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        self._db.execute("CREATE TEMP TABLE there (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._prints: list[Print] = []
        try:
            self._read(source)
        except sqlite3.Error as error:
            raise HoldfastError(f"the input cannot be kept in a temporary file: {error}") from error

    def _read(self, source: Iterable[bytes]) -> None:
        execute = self._db.execute
        add = "INSERT OR IGNORE INTO item VALUES (?, ?, ?)"
        again = "INSERT INTO repeated VALUES (?, 2) ON CONFLICT (line) DO UPDATE SET times = times + 1"
        execute("BEGIN")
        for line in lines_of(source):
            if not execute(add, (identity(line, 1), 1, line)).rowcount:
                execute(again, (line,))
                (times,) = execute("SELECT times FROM repeated WHERE line = ?", (line,)).fetchone()
                execute(add, (identity(line, times), times, line))
        execute("COMMIT")

    def __bool__(self) -> bool:
        return self._db.execute("SELECT 1 FROM item LIMIT 1").fetchone() is not None

    def prints(self, partitions: int) -> list[Print]:
        """Of each partition."""
        if len(self._prints) != partitions:
            self._prints = [Print().plus(self._ids(partition, partitions)) for partition in range(partitions)]
        return self._prints

    def _ids(self, partition: int, partitions: int) -> Iterator[bytes]:
        rows = self._db.execute("SELECT id FROM item WHERE id BETWEEN ? AND ?", bounds(partition, partitions))
        return (row[0] for row in rows)

    def but(self, there: Iterable[bytes], partition: int, partitions: int) -> Iterator[Item]:
        """A partition's items whose identities are not ``there``."""
        self._db.execute("DELETE FROM there")
        self._db.executemany("INSERT OR IGNORE INTO there VALUES (?)", ((one,) for one in there))
        rows = self._db.execute(
            "SELECT id, line, occurrence FROM item WHERE id BETWEEN ? AND ? AND id NOT IN (SELECT id FROM there)",
            bounds(partition, partitions),
        )
        return (Item(id.hex(), line, occurrence) for id, line, occurrence in rows)

    def close(self) -> None:
        self._db.close()
