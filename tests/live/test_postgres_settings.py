"""Whatever a role, a database or a server has set: one holder at a time, and nothing of it needs to be known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from postgres_server import PgBouncer, PostgresServer

import holdfast
from holdfast.errors import Unavailable

pytestmark = pytest.mark.live

LEVELS = ("read uncommitted", "read committed", "repeatable read", "serializable")
ODD = (
    "search_path = evil, pg_catalog",
    "search_path = ''",
    "client_encoding = 'LATIN1'",
    "standard_conforming_strings = off",
    "bytea_output = 'escape'",
    "timezone = 'Asia/Kathmandu'",
    "datestyle = 'German'",
    "extra_float_digits = 0",
    "intervalstyle = 'sql_standard'",
    "row_security = off",
    "synchronous_commit = off",
    "idle_in_transaction_session_timeout = 100",
    "idle_session_timeout = 300",
    "lock_timeout = 200",
    "statement_timeout = 200",
    "default_transaction_deferrable = on",
    "plan_cache_mode = 'force_custom_plan'",
    "jit_above_cost = 0",
)


@pytest.fixture
def role(postgres_session: PostgresServer, postgres_url: str) -> Iterator[Callable[[str], None]]:
    """Sets something for the role that the tests log in as."""
    names: list[str] = []

    def role(setting: str) -> None:
        names.append(setting.partition(" ")[0])
        postgres_session.sql(f"ALTER ROLE postgres SET {setting}")

    yield role
    for name in names:
        postgres_session.sql(f"ALTER ROLE postgres RESET {name}")


@pytest.fixture(scope="module")
def pooler(tmp_path_factory: pytest.TempPathFactory, postgres_session: PostgresServer) -> Iterator[PgBouncer]:
    """One of our own: its sessions keep what was set when they began."""
    with PgBouncer(tmp_path_factory.mktemp("pooler"), postgres_session) as pooler:
        yield pooler


@pytest.fixture(params=["direct", "pooled"])
def url(request: pytest.FixtureRequest, postgres_url: str, role: object) -> Any:
    """Where to connect once the role is set."""
    if request.param == "direct":
        return lambda: postgres_url
    pooler: PgBouncer = request.getfixturevalue("pooler")

    def fresh() -> str:
        pooler.restart()
        return pooler.url

    return fresh


def crowd(url: str, threads: int = 6, turns: int = 15) -> tuple[int, list[int]]:
    """How many were inside at most, and the tokens in the order of entering."""
    inside = most = 0
    tokens: list[int] = []
    troubles: list[BaseException] = []

    def work() -> None:
        nonlocal inside, most
        try:
            client = holdfast.connect(url)
            for _ in range(turns):
                with client.lock("crowd") as lease:
                    inside += 1
                    most = max(most, inside)
                    tokens.append(lease.token)
                    inside -= 1
            client.close()
        except BaseException as trouble:
            troubles.append(trouble)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert not troubles
    return most, tokens


@pytest.mark.parametrize("level", LEVELS)
def test_one_holder_at_a_time_whatever_isolation_the_role_defaults_to(
    level: str, role: Callable[[str], None], url: Callable[[], str]
) -> None:
    role(f"default_transaction_isolation = '{level}'")
    most, tokens = crowd(url())
    assert most == 1
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 6 * 15


def test_our_functions_refuse_to_run_on_a_snapshot_that_is_older_than_their_lock(
    postgres_session: PostgresServer, postgres_url: str
) -> None:
    """Who calls them by hand is not served wrongly either."""
    import psycopg

    client = holdfast.connect(postgres_url)
    client.lock("x").acquire().release()
    client.close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SET default_transaction_isolation = 'repeatable read'")
        for call in ("leave('a', 'b', false, 1)", "renew('{a}', '{b}', '{1}', '{c}')", "look('a')"):
            with pytest.raises(psycopg.Error, match="READ COMMITTED"):
                connection.execute(f"SELECT holdfast.{call}")


@pytest.mark.parametrize("setting", ODD)
def test_odd_settings_change_nothing(setting: str, role: Callable[[str], None], postgres_url: str) -> None:
    role(setting)
    client, other = holdfast.connect(postgres_url), holdfast.connect(postgres_url)
    name = "'; -- \\ \x00 \u65e5"
    with client.lock(name) as lease:
        opened = client.cell(name).open(lease)
        opened.put(b"\\x00\x00'")
        assert other.lock(name).try_acquire() is None
    with other.lock(name) as lease:
        assert other.cell(name).open(lease).value == b"\\x00\x00'"
    client.close()
    other.close()


def test_a_hostile_function_on_the_search_path_is_never_called(
    postgres_session: PostgresServer, role: Callable[[str], None], url: Callable[[], str]
) -> None:
    postgres_session.sql("CREATE SCHEMA evil")
    try:
        postgres_session.sql(
            "CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'called'; END $$"
        )
        role("search_path = evil, pg_catalog")
        client = holdfast.connect(url())
        with client.lock("x"):
            assert client.lock("x").try_acquire() is None
        client.close()
    finally:
        postgres_session.sql("DROP SCHEMA evil CASCADE")


def test_a_role_that_is_read_only_by_default_is_told_what_to_set(
    role: Callable[[str], None], url: Callable[[], str]
) -> None:
    role("default_transaction_read_only = on")
    client = holdfast.connect(url(), patience_s=0.3)
    with pytest.raises(Unavailable, match="default_transaction_read_only = off"):
        client.lock("x").acquire()
    client.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_any_encoding_of_the_database_keeps_any_name(encoding: str, postgres_session: PostgresServer) -> None:
    database = f"in_{encoding.lower()}"
    postgres_session.sql(f"CREATE DATABASE {database} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    url = f"postgresql://postgres@127.0.0.1:{postgres_session.port}/{database}"
    client, other = holdfast.connect(url), holdfast.connect(url)
    name = "\u65e5\u672c\u00e4\x00"
    with client.lock(name) as lease:
        client.cell(name).open(lease).put(b"\xff\x00")
        assert other.lock(name).try_acquire() is None
    assert other.cell(name).read().value == b"\xff\x00"
    client.close()
    other.close()
