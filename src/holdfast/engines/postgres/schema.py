"""What stands in the database: our schema, made on first use, and the statements that call its functions."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

VERSION = 1
"""Of the schema. A newer one is refused; an older one will be brought up by the release that raises this."""

OLDEST_SERVER = 12
"""Of PostgreSQL, by its major version."""

BOOL, BYTEA, INT8, TEXT = 16, 17, 20, 25
BYTEAS, INT8S, TEXTS = 1001, 1016, 1009
BINARY = (BYTEA, BYTEAS, INT8S, TEXTS)
"""What is sent in the server's own form: nothing to escape."""


class Statement:
    """One function call. ``rows``: it gives rows, in binary; else one text. ``sql``: it is no function of ours."""

    __slots__ = ("form", "formats", "name", "rows", "sql", "types")

    def __init__(self, name: str, types: tuple[int, ...], rows: bool = False, sql: str = "") -> None:
        self.name = name
        self.types = types
        self.formats = tuple(int(one in BINARY) for one in types)
        self.rows = rows
        self.form = int(rows)
        self.sql = sql

    def text(self, schema: str) -> bytes:
        if self.sql:
            return self.sql.encode()
        marks = ",".join(f"${number}" for number in range(1, len(self.types) + 1))
        return f'SELECT {"* FROM " if self.rows else ""}"{schema}".{self.name}({marks})'.encode()


ENTER = Statement("enter", (BYTEA, BYTEA, BOOL, INT8, INT8, INT8, TEXT, TEXT, BOOL, BYTEA, BYTEA))
LEAVE = Statement("leave", (BYTEA, BYTEA, BOOL, INT8))
RENEW = Statement("renew", (BYTEAS, BYTEAS, INT8S, TEXTS))
LOOK = Statement("look", (BYTEA,), rows=True)
LIST = Statement("list", (BYTEA, BYTEA), rows=True)
OPEN = Statement("open", (BYTEA, BYTEA, INT8, BYTEA, INT8), rows=True)
PUT = Statement(
    "put", (BYTEA, BYTEA, INT8, BYTEA, INT8, INT8, BYTEA, BYTEA, TEXTS, BYTEAS, BYTEAS), rows=True
)  # fmt: skip
READ = Statement("read", (BYTEA, BOOL, BYTEAS), rows=True)
DROP = Statement("drop", (BYTEA,))
PING = Statement("now_us", ())
NOTIFY = Statement("notify", (TEXT, TEXT), sql="SELECT pg_catalog.pg_notify($1, $2)")
PREPARED = (ENTER, LEAVE, RENEW, OPEN, PUT)


def array(element: int, values: Sequence[bytes]) -> bytes:
    """A one-dimensional array in the server's own form."""
    if not values:
        return struct.pack("!iii", 0, 0, element)
    parts = [struct.pack("!iiiii", 1, 0, element, len(values), 1)]
    for value in values:
        parts += (struct.pack("!i", len(value)), value)
    return b"".join(parts)


def int8s(values: Sequence[int]) -> bytes:
    return array(INT8, [struct.pack("!q", value) for value in values])


class Row(NamedTuple):
    """Reads one row of a binary result."""

    result: Any
    number: int

    def data(self, column: int) -> bytes | None:
        value: bytes | None = self.result.get_value(self.number, column)
        return value

    def octets(self, column: int) -> bytes:
        return self.data(column) or b""

    def number_at(self, column: int) -> int:
        return int.from_bytes(self.octets(column), signed=True)

    def truth(self, column: int) -> bool:
        return self.octets(column) == b"\x01"


def rows_of(result: Any) -> list[Row]:
    return [Row(result, number) for number in range(result.ntuples)]


def script(schema: str) -> bytes:
    """Makes everything, for the one who holds the lock."""
    texts = [
        resources.files(__name__.rpartition(".")[0]).joinpath(name).read_text("utf-8")
        for name in ("turnstile.sql", "cell.sql")
    ]
    quoted = f'"{schema}"'
    meta = f"CREATE TABLE {quoted}.meta (version integer NOT NULL);\nINSERT INTO {quoted}.meta VALUES ({VERSION});"
    return "\n".join([*texts, meta]).replace("@schema@", quoted).encode()


LOCK_KEY = 0x686F6C6466617374  # 'holdfast': whoever makes a schema holds this, as a lock of the transaction
