"""Opening the file: where it may stand, that it is ours, and its layout."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
from pathlib import Path

from ...contract import LAYOUT
from ...errors import Misuse, Unsupported
from . import clock

APPLICATION_ID = 0x486F6C64  # "Hold"

NETWORK = frozenset(
    {"9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "gfs", "gfs2", "glusterfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs3", "nfs4", "ocfs2", "orangefs", "osxfs", "pnfs", "prl_fs", "sharefs", "smb2"}
    | {"smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "webdav"}
)
"""File systems that other machines (or the host of this virtual one) may write to: locks do not hold there."""

# Names are in the rows, not in numbered tables of their own: one write less on the quiet path, where a turnstile comes
# and goes with its only claim. Whoever is admitted is a prefix of the token order (core.turnstile), so two tokens
# per turnstile say who is admitted and who is wanted, and no claim's row changes when its state does.
SCHEMA = """
CREATE TABLE meta (boot TEXT NOT NULL, last_token INTEGER NOT NULL);
CREATE TABLE turnstile (
    address TEXT PRIMARY KEY,
    capacity INTEGER NOT NULL,
    announces INTEGER NOT NULL,
    load INTEGER NOT NULL,       -- the weight of the admitted
    frontier INTEGER NOT NULL,   -- the last token that is admitted
    wanted INTEGER NOT NULL      -- up to this token, others asked for what is held
) WITHOUT ROWID;
CREATE TABLE claim (
    turnstile TEXT NOT NULL,
    token INTEGER NOT NULL,
    id TEXT NOT NULL,
    weight INTEGER NOT NULL,
    since REAL NOT NULL,
    ends REAL NOT NULL,
    inbox TEXT NOT NULL,
    owner TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (turnstile, token)
) WITHOUT ROWID;
CREATE UNIQUE INDEX claim_id ON claim (turnstile, id);
CREATE INDEX claim_ends ON claim (turnstile, ends);
CREATE TABLE tombstone (
    turnstile TEXT NOT NULL, id TEXT NOT NULL, until REAL NOT NULL, was_there INTEGER NOT NULL,
    PRIMARY KEY (turnstile, id)
) WITHOUT ROWID;
CREATE INDEX tombstone_until ON tombstone (until);
CREATE TABLE watch (turnstile TEXT NOT NULL, inbox TEXT NOT NULL, PRIMARY KEY (turnstile, inbox)) WITHOUT ROWID;
CREATE TABLE cell (
    name TEXT PRIMARY KEY,
    turnstile TEXT NOT NULL,
    token INTEGER NOT NULL,
    claim TEXT NOT NULL,
    opening INTEGER NOT NULL,
    version INTEGER NOT NULL,
    op_id TEXT NOT NULL,         -- of the last accepted put
    op_applied TEXT NOT NULL     -- what it answered: 0 or 1 for each change
) WITHOUT ROWID;
CREATE TABLE entry (             -- the entry without a key is the cell's value
    cell TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (cell, key)
) WITHOUT ROWID;
"""


def live_folder(path: Path) -> Path:
    """Where the processes that use this file keep their sockets and liveness files."""
    return path.with_name(path.name + "-live")


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to our file, made if there is none. Raises `Misuse`, `Unsupported`, sqlite3.Error."""
    refuse_network(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir():
            raise Misuse(f"{path} is a folder; sqlite:// takes the path of a file")
        if path.exists() and not path.is_file():
            raise Misuse(f"{path} is a device or the like; sqlite:// takes the path of a file")
        if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise Misuse(f"{path} cannot be written by this user: name another file (sqlite:///path)")
    except OSError as error:
        raise Misuse(f"{path} cannot be made: {error.strerror}; name another file (sqlite:///path)") from error
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        if _pragma(connection, "application_id") != APPLICATION_ID:
            _refuse_foreign(connection, path)
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise Unsupported(f"{path} is where SQLite can keep no write-ahead log: use a local disk")
        if _pragma(connection, "application_id") != APPLICATION_ID:
            _create(connection)
        layout = _pragma(connection, "user_version")
        if layout != LAYOUT:
            raise Misuse(f"{path} has layout {layout}, this holdfast knows {LAYOUT}: use one release for all")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")  # see `store`: checkpoints have a thread
        connection.execute("PRAGMA journal_size_limit = 8388608")
        _make_live_folder(path)
        _forget_other_boots(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """Before anything is changed: only a file that nobody has written to may become ours."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (tables or _pragma(connection, "user_version")) and _pragma(connection, "application_id") != APPLICATION_ID:
        raise Misuse(f"{path} is a SQLite file of another program: name a file of holdfast's own")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _pragma(connection, "application_id") != APPLICATION_ID:  # nobody was faster
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES (?, 0)", (clock.boot_id(),))
            connection.execute(f"PRAGMA user_version = {LAYOUT}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _forget_other_boots(connection: sqlite3.Connection) -> None:
    """After a reboot nobody of before lives, and the ends of their leases mean nothing."""
    boot = clock.boot_id()
    if connection.execute("SELECT boot FROM meta").fetchone()[0] == boot:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT boot FROM meta").fetchone()[0] != boot:
            for table in ("claim", "turnstile", "tombstone", "watch"):
                connection.execute(f"DELETE FROM {table}")
            connection.execute("UPDATE meta SET boot = ?", (boot,))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def file_mode(path: Path) -> int:
    """Who may use the file may use what stands beside it: the mode for sockets and liveness files."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return 0o600 | (0o060 if mode & 0o020 else 0) | (0o006 if mode & 0o002 else 0)


def _make_live_folder(path: Path) -> None:
    folder = live_folder(path)
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        mode = file_mode(path)
        folder.chmod(mode | (mode & 0o444) >> 2)


def refuse_network(path: Path) -> None:
    """Raise `Unsupported` where the file would stand on a network file system."""
    kind = ""
    if sys.platform == "linux":
        try:
            kind = file_system(os.path.realpath(path), Path("/proc/self/mountinfo").read_text())
        except OSError:  # no /proc: nothing can be said
            return
    elif sys.platform == "darwin":
        import subprocess

        mounts = subprocess.run(["/sbin/mount"], capture_output=True, text=True, check=False).stdout
        kind = _longest(os.path.realpath(path), re.findall(r" on (.+) \(([^,)]+)", mounts))
    elif str(path).startswith("\\\\"):
        kind = "smbfs"
    if kind in NETWORK or (kind.startswith("fuse.") and kind != "fuse.fuse-overlayfs"):
        raise Unsupported(f"{path} is on {kind}, which others may write to: locks do not hold there; use a local disk")


def file_system(path: str, mountinfo: str) -> str:
    """The type of the file system of ``path``, by the text of /proc/self/mountinfo."""
    mounts: list[tuple[str, str]] = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        mounts.append((point, fields[fields.index("-", 6) + 1]))
    return _longest(path, mounts)


def _longest(path: str, mounts: list[tuple[str, str]]) -> str:
    found = [(len(point), order, kind) for order, (point, kind) in enumerate(mounts)
             if path == point or path.startswith(point.rstrip("/") + "/")]  # fmt: skip
    return max(found, default=(0, 0, ""))[2]
