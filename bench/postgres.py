"""PostgreSQL: ours beside a session advisory lock through psycopg, on the same server in interleaved rounds.

The advisory lock writes nothing, so it waits for no disk; ours survives a crash, so entering does. Both figures are
taken: with the disk, and without (fsync off, or synchronous_commit = off), which leaves the engine's own.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from postgres_server import PostgresServer, forget_template

import holdfast

from .common import interleaved, ratio_table, serving
from .contended import holdfast_lock, run, table

KEY = 4242


class AdvisoryLock:
    """What people write with psycopg: a session's lock, held as long as its connection."""

    def __init__(self, url: str) -> None:
        self.connection: Any = psycopg.connect(url, autocommit=True)

    def __enter__(self) -> None:
        self.connection.execute("SELECT pg_advisory_lock(%s)", (KEY,))

    def __exit__(self, *exc: object) -> None:
        self.connection.execute("SELECT pg_advisory_unlock(%s)", (KEY,))


def pairs(url: str, title: str, rounds: int, per_round: int) -> str:
    """Two bare UPDATEs of one row are the least that a lock costs which outlives its connection."""
    client = holdfast.connect(url)
    ours, theirs = client.lock("bench"), AdvisoryLock(url)
    table: Any = psycopg.connect(url, autocommit=True)
    table.execute("CREATE TABLE IF NOT EXISTS bench (name text PRIMARY KEY, holder int) WITH (fillfactor = 50)")
    table.execute("INSERT INTO bench VALUES ('x', 0) ON CONFLICT DO NOTHING")

    def floor() -> None:
        for holder in (1, 0):
            table.execute("UPDATE bench SET holder = %s WHERE name = 'x'", (holder,))

    actions: dict[str, Callable[[], object]] = {
        "advisory lock": lambda: _pair(theirs),
        "two bare UPDATEs": floor,
        "holdfast": lambda: _pair(ours),
    }
    medians = interleaved(actions, rounds=rounds, per_round=per_round)
    client.close()
    theirs.connection.close()
    table.close()
    return ratio_table(title, medians, "advisory lock")


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """All on one core from here on: where client and server sleep on two, waking each other up is most of a call, or
    none of it, from one round to the next."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _pair(lock: Any) -> None:
    with lock:
        pass


def hand_overs(url: str, processes: int, inside_s: float, seconds: float, rounds: int) -> str:
    """The median of each figure over interleaved runs."""
    kinds: dict[str, Callable[[str], Any]] = {"holdfast": holdfast_lock, "advisory lock": AdvisoryLock}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, make_lock in kinds.items():
            taken[name].append(run(make_lock, url, processes, inside_s, seconds))
    rows = {
        name: {column: statistics.median(run[column] for run in runs) for column in runs[0]}
        for name, runs in taken.items()
    }
    ratio = rows["advisory lock"]["hand-overs/s"] / rows["holdfast"]["hand-overs/s"]
    title = f"PostgreSQL, one key, {processes} processes, {inside_s * 1e3:.0f} ms inside"
    return table(title, rows) + f"\nThe advisory lock hands over {ratio:.2f} times as often.\n"


def main(rounds: int = 15, per_round: int = 200, seconds: float = 4.0, runs: int = 3) -> str:
    def with_disk(folder: Path) -> PostgresServer:
        return PostgresServer(folder, fsync=True)

    parts: list[str] = []
    with serving(PostgresServer) as server:
        parts.append(pairs(server.url, "PostgreSQL, threads: acquire + release, the disk left out", rounds, per_round))
        with one_core(), serving(PostgresServer) as pinned:
            parts.append(pairs(pinned.url, "The same, client and server on one core", rounds, per_round))
        parts += [hand_overs(server.url, 32, inside_s, seconds, runs) for inside_s in (0.0, 0.001)]
    with serving(with_disk) as server:
        parts.append(pairs(server.url, "PostgreSQL, threads: acquire + release, with the disk", rounds, per_round))
        late = f"{server.url}?options=-csynchronous_commit%3Doff"
        parts.append(pairs(late, "The same, with synchronous_commit = off in the URL", rounds, per_round))
    forget_template()
    return "\n".join(parts)


if __name__ == "__main__":
    print(main())
