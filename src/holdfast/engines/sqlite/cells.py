"""The cell on SQLite: the fence in one row, the value and the entries in rows of their own. Inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ...model import CellReply, CellSnapshot, Change, Fence

_VALUE = ""  # the key of the value among the entries; an entry's own key is never empty
_CELL = "SELECT turnstile, token, claim, opening, version, op_id, op_applied FROM cell WHERE name = ?"
_ENTRY = "SELECT value FROM entry WHERE cell = ? AND key = ?"


def open_cell(db: sqlite3.Connection, name: str, fence: Fence) -> CellReply:
    row = db.execute(_CELL, (name,)).fetchone()
    if row is None:
        db.execute("INSERT INTO cell VALUES (?, ?, ?, ?, ?, 1, '', '')", (name, *fence))
        return CellReply(True, 1, fence.token, turnstile=fence.turnstile)
    stands, version = Fence(*row[:4]), row[4]
    if stands.turnstile != fence.turnstile:
        return CellReply(False, version, stands.token, foreign=True, turnstile=stands.turnstile)
    newer = fence.token > stands.token or (
        fence.token == stands.token and fence.claim == stands.claim and fence.opening > stands.opening
    )
    if newer:
        version += 1
        db.execute(
            "UPDATE cell SET token = ?, claim = ?, opening = ?, version = ? WHERE name = ?", (*fence[1:], version, name)
        )
    token = fence.token if newer else stands.token
    return CellReply(newer or fence == stands, version, token, _get(db, name, _VALUE), (), False, fence.turnstile)


def put(
    db: sqlite3.Connection,
    name: str,
    fence: Fence,
    version: int,
    op_id: str,
    value: bytes | None,
    changes: Sequence[Change],
) -> CellReply:
    row = db.execute(_CELL, (name,)).fetchone()
    if row is None:
        return CellReply(False)
    stands, at, last_op, last_applied = Fence(*row[:4]), row[4], row[5], row[6]
    if stands == fence and last_op == op_id:  # a resend: nothing was put since, so the version is still its own
        return CellReply(True, at, fence.token, None, tuple(one == "1" for one in last_applied), False, fence.turnstile)
    if stands != fence or at != version:
        return CellReply(False, at, stands.token, turnstile=stands.turnstile)
    if value is not None:
        _set(db, name, _VALUE, value)
    applied = tuple(_change(db, name, change) for change in changes)
    db.execute(
        "UPDATE cell SET version = ?, op_id = ?, op_applied = ? WHERE name = ?",
        (at + 1, op_id, "".join("1" if one else "0" for one in applied), name),
    )
    return CellReply(True, at + 1, fence.token, None, applied, False, fence.turnstile)


def read(db: sqlite3.Connection, name: str, keys: Sequence[str] | None) -> CellSnapshot:
    row = db.execute(_CELL, (name,)).fetchone()
    if row is None:
        return CellSnapshot()
    if keys is None:
        rows = db.execute("SELECT key, value FROM entry WHERE cell = ? AND key > ''", (name,))
        entries: dict[str, bytes] = dict(rows.fetchall())
    else:
        found = ((key, _get(db, name, key)) for key in keys if key)
        entries = {key: value for key, value in found if value is not None}
    return CellSnapshot(_get(db, name, _VALUE), row[4], row[1], row[2], entries)


def drop(db: sqlite3.Connection, name: str) -> bool:
    db.execute("DELETE FROM entry WHERE cell = ?", (name,))
    return db.execute("DELETE FROM cell WHERE name = ?", (name,)).rowcount > 0


def _change(db: sqlite3.Connection, name: str, change: Change) -> bool:
    if change.value is None:
        return db.execute("DELETE FROM entry WHERE cell = ? AND key = ?", (name, change.key)).rowcount > 0
    if change.create:
        made = db.execute("INSERT OR IGNORE INTO entry VALUES (?, ?, ?)", (name, change.key, change.value))
        return made.rowcount > 0
    _set(db, name, change.key, change.value)
    return True


def _get(db: sqlite3.Connection, name: str, key: str) -> bytes | None:
    row = db.execute(_ENTRY, (name, key)).fetchone()
    return None if row is None else row[0]


def _set(db: sqlite3.Connection, name: str, key: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", (name, key, value))
