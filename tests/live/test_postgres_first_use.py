"""The schema: made by whoever comes first, of many at once by one, and refused where it cannot be ours."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from postgres_server import PostgresServer

import holdfast
from holdfast.engines.postgres import wire
from holdfast.errors import Misuse, Unavailable, Unsupported

pytestmark = pytest.mark.live


@pytest.fixture
def database(postgres_session: PostgresServer) -> Iterator[str]:
    """The URL of a new database, where nothing stands; strangers may not create schemas in it."""
    postgres_session.sql("CREATE DATABASE fresh")
    yield f"postgresql://postgres@127.0.0.1:{postgres_session.port}/fresh"
    postgres_session.sql("DROP DATABASE fresh WITH (FORCE)")


@pytest.fixture
def run(postgres_session: PostgresServer) -> Callable[[str], Any]:
    return lambda text: postgres_session.sql(text, database="fresh")


@pytest.fixture
def stranger(postgres_session: PostgresServer, database: str) -> Iterator[str]:
    """The same database, for a role without rights."""
    postgres_session.sql("CREATE ROLE stranger LOGIN")
    yield database.replace("postgres@", "stranger@")
    postgres_session.sql("DROP OWNED BY stranger CASCADE", database="fresh")
    postgres_session.sql("DROP ROLE stranger")


def take(url: str, patience_s: float = 20.0) -> None:
    client = holdfast.connect(url, patience_s=patience_s)
    try:
        client.lock("x").acquire().release()
    finally:
        client.close()


def come(url: str, gate: Any, results: Any) -> None:
    gate.wait()
    try:
        client = holdfast.connect(url, patience_s=20.0)
        results.put(client.lock("x").acquire().token)
        client.close()
    except BaseException as trouble:
        results.put(repr(trouble))
        raise


def test_of_many_that_come_first_at_once_one_makes_it_and_all_are_served(database: str) -> None:
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=come, args=(database, gate, results)) for _ in range(8)]
    for one in processes:
        one.start()
    tokens = [results.get(timeout=50) for _ in processes]
    for one in processes:
        one.join()
    assert all(isinstance(token, int) for token in tokens), tokens
    assert len(set(tokens)) == 8


def test_a_schema_that_is_taken_away_is_made_again(database: str, run: Callable[[str], Any]) -> None:
    client = holdfast.connect(database)
    token = client.lock("x").acquire().token
    run("DROP SCHEMA holdfast CASCADE")
    with client.lock("y") as lease:
        assert lease.token > token
    client.close()


def test_another_schema_is_another_engine(database: str, run: Callable[[str], Any]) -> None:
    ours, theirs = holdfast.connect(f"{database}?schema=ours"), holdfast.connect(f"{database}?schema=Theirs")
    with ours.lock("x"), theirs.lock("x"):
        assert run("SELECT count(*) FROM pg_namespace WHERE nspname IN ('ours', 'Theirs')") == [(2,)]
    ours.close()
    theirs.close()


def test_a_schema_of_a_newer_release_is_refused(database: str, run: Callable[[str], Any]) -> None:
    take(database)
    run("UPDATE holdfast.meta SET version = 7")
    with pytest.raises(Unsupported, match=r"version 7.*newer release.*upgrade"):
        take(database)


def test_a_role_that_may_not_create_is_told_what_to_run_and_that_is_enough(
    database: str, stranger: str, run: Callable[[str], Any]
) -> None:
    with pytest.raises(Misuse, match="AUTHORIZATION") as told:
        take(stranger)
    command = 'CREATE SCHEMA "holdfast" AUTHORIZATION "stranger"'
    assert command in str(told.value)
    run(command)
    take(stranger)
    run("DROP SCHEMA holdfast CASCADE")
    run('GRANT CREATE ON DATABASE "fresh" TO "stranger"')
    take(stranger)


def test_a_role_that_may_not_use_the_schema_is_told_what_to_grant_and_that_is_enough(
    database: str, stranger: str, run: Callable[[str], Any]
) -> None:
    take(database)
    with pytest.raises(Misuse, match="GRANT USAGE ON SCHEMA") as told:
        take(stranger)
    _, _, commands = str(told.value).partition("may run: ")
    for command in commands.split("; "):
        run(command)
    take(stranger)


def test_a_server_too_old_is_refused_and_told_which_is_needed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "OLDEST_SERVER", 99)
    with pytest.raises(Unsupported, match="PostgreSQL 99 or newer"):
        take(database)


def test_a_database_or_role_that_is_not_there_is_misuse(database: str) -> None:
    with pytest.raises(Misuse, match="no such database"):
        take(f"{database}_nowhere")
    with pytest.raises(Misuse, match="refused the user or password"):
        take(database.replace("postgres@", "nobody:s3cret@"))


def test_one_host_of_three_that_is_wrong_is_passed_over(database: str, postgres_session: PostgresServer) -> None:
    port = postgres_session.port
    take(f"postgresql://postgres@127.0.0.1:1,127.0.0.1:{port},127.0.0.1:2/fresh")
    with pytest.raises(Unavailable, match="no connection to PostgreSQL at"):
        take("postgresql://postgres@127.0.0.1:1,127.0.0.1:2/fresh", 0.5)
