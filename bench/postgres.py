"""PostgreSQL: ours beside a session advisory lock through psycopg, on the same server in interleaved rounds.

The advisory lock writes nothing, so it waits for no disk; ours survives a crash, so entering does. Both figures are
taken: with the disk, and without (fsync off, or synchronous_commit = off), which leaves the engine's own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
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
    client = holdfast.connect(url)
    ours, theirs = client.lock("bench"), AdvisoryLock(url)
    actions: dict[str, Callable[[], object]] = {"advisory lock": lambda: _pair(theirs), "holdfast": lambda: _pair(ours)}
    medians = interleaved(actions, rounds=rounds, per_round=per_round)
    client.close()
    theirs.connection.close()
    return ratio_table(title, medians, "advisory lock")


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
        parts += [hand_overs(server.url, 32, inside_s, seconds, runs) for inside_s in (0.0, 0.001)]
    with serving(with_disk) as server:
        parts.append(pairs(server.url, "PostgreSQL, threads: acquire + release, with the disk", rounds, per_round))
        late = f"{server.url}?options=-csynchronous_commit%3Doff"
        parts.append(pairs(late, "The same, with synchronous_commit = off in the URL", rounds, per_round))
    forget_template()
    return "\n".join(parts)


if __name__ == "__main__":
    print(main())
