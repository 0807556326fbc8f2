"""PostgreSQL: one server, its disk left out (fsync off): an advisory lock, which is in memory only, waits for none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from postgres_server import PostgresServer, forget_template

from . import HOLDFAST, Engine, Peer, Turns, served, tooz

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


@contextlib.contextmanager
def _statements(url: str) -> Iterator[Callable[[], int]]:
    """By an extension that PostgreSQL brings along, at work only meanwhile."""
    with asking(url) as ask:

        def count(which: str) -> None:
            ask(f"ALTER SYSTEM SET pg_stat_statements.track = '{which}'")
            ask("SELECT pg_reload_conf()")
            time.sleep(0.1)  # until all sessions know

        ask("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        count("top")
        ask("SELECT pg_stat_statements_reset()")

        def end() -> int:
            found = ask("SELECT sum(calls) FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_statements%'")
            count("none")
            return int(found.fetchone()[0])

        yield end


def _value(url: str, statement: str) -> Any:
    with asking(url) as ask:
        return ask(statement).fetchone()[0]


@contextlib.contextmanager
def _serve() -> Iterator[str]:
    with served(lambda folder: PostgresServer(folder, "shared_preload_libraries=pg_stat_statements")) as url:
        with asking(url) as ask:
            ask("ALTER SYSTEM SET pg_stat_statements.track = 'none'")
            ask("SELECT pg_reload_conf()")
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
    _statements,
    disturbs=True,
)
