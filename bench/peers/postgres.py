"""PostgreSQL: one server, its disk left out (fsync off): an advisory lock, which is in memory only, waits for none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from postgres_server import PostgresServer, forget_template

from . import HOLDFAST, Engine, Peer, Turns, difference, served, tooz

KEY = 4242


@contextlib.contextmanager
def asking(url: str) -> Iterator[Callable[..., Any]]:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        yield connection.execute


@contextlib.contextmanager
def advisory(url: str) -> Iterator[Any]:
    """What people write with psycopg: a session's lock, held as long as its connection."""
    with asking(url) as ask:
        yield Turns(
            lambda: ask("SELECT pg_advisory_lock(%s)", (KEY,)), lambda: ask("SELECT pg_advisory_unlock(%s)", (KEY,))
        )


@contextlib.contextmanager
def _floor(url: str) -> Iterator[Any]:
    with asking(url) as ask:
        ask("CREATE TABLE IF NOT EXISTS bench (name text PRIMARY KEY, holder int) WITH (fillfactor = 50)")
        ask("INSERT INTO bench VALUES ('x', 0) ON CONFLICT DO NOTHING")
        update = "UPDATE bench SET holder = %s WHERE name = 'x'"
        yield Turns(lambda: ask(update, (1,)), lambda: ask(update, (0,)))


def _transactions(url: str) -> int:
    """Sessions tell theirs within a second, so that few are missing."""
    counted = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
    return int(_value(url, counted))


def _value(url: str, statement: str) -> Any:
    with asking(url) as ask:
        return ask(statement).fetchone()[0]


@contextlib.contextmanager
def _serve() -> Iterator[str]:
    with served(PostgresServer) as url:
        yield url
    forget_template()


ENGINE = Engine(
    "postgres",
    "PostgreSQL",
    _serve,
    (
        Peer("floor", _floor, use="pair", baseline=True),
        *HOLDFAST,
        Peer("advisory lock", advisory, fair=True),
        Peer("tooz", tooz, fair=True),
    ),
    "floor",
    "two bare `UPDATE`s of one row by psycopg: the least that a lock costs which outlives its connection",
    lambda url: (
        f"PostgreSQL {_value(url, 'SHOW server_version').split()[0]}, nothing forced to the disk (`fsync = off`)"
    ),
    lambda url: difference(lambda: _transactions(url)),
)
