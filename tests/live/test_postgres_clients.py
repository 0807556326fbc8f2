"""How people come to a PostgreSQL: pools, functions that connect, poolers; and claims that end with a connection."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from onlooker import Onlooker
from peer import Peer
from postgres_server import PgBouncer, PostgresServer
from proxy import TcpProxy, listening
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from servers import eventually

import holdfast
from holdfast import aio
from holdfast.engines.postgres.engine import Postgres
from holdfast.errors import LeaseLost, Misuse, Unsupported

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


def works(target: Any) -> None:
    client, other = holdfast.connect(target), holdfast.connect(target)
    with client.lock("x") as lease:
        assert other.lock("x").try_acquire() is None
        client.cell("c").open(lease).put(b"v")
    with other.lock("x", timeout_s=10):
        pass
    client.close()
    other.close()


def works_on_asyncio(target: Any) -> None:
    async def main() -> None:
        async with aio.connect(target) as client, aio.connect(target) as other:
            async with client.lock("x"):
                waits = asyncio.create_task(other.lock("x").acquire(timeout_s=20))
                await asyncio.sleep(0.05)
            await (await waits).release()

    asyncio.run(main())


# -- what they bring


def test_a_pool_gives_its_settings_and_keeps_its_connections(postgres_url: str) -> None:
    for conninfo, kwargs in ((postgres_url, None), ("dbname=postgres user=postgres", _parts(postgres_url))):
        pool = ConnectionPool(conninfo, kwargs=kwargs, min_size=1, max_size=1, open=True)
        with pool, pool.connection():  # all it has
            works(pool)
            works_on_asyncio(pool)


def _parts(url: str) -> dict[str, Any]:
    parts = conninfo_to_dict(url)
    return {"host": parts["host"], "port": parts["port"], "autocommit": False, "prepare_threshold": None}


def test_an_asyncio_pool_that_was_never_opened_will_do(postgres_url: str) -> None:
    pool = AsyncConnectionPool(postgres_url, open=False)
    works_on_asyncio(pool)
    works(pool)


def test_a_function_that_connects_is_called_for_each_connection(postgres_url: str) -> None:
    made: list[Any] = []

    def make() -> psycopg.Connection[Any]:
        made.append(psycopg.connect(postgres_url))  # not even autocommit
        return made[-1]

    works(make)
    works_on_asyncio(make)
    assert len(made) >= 4
    assert all(one.closed for one in made)


def test_a_coroutine_that_connects_serves_asyncio_and_signals_come_by_listen_url(postgres_url: str) -> None:
    async def make() -> Any:
        return await psycopg.AsyncConnection.connect(postgres_url)

    works_on_asyncio(Postgres(make, listen_url=postgres_url))
    client = holdfast.connect(make)
    with pytest.raises(Misuse, match=r"aio\.connect"):
        client.lock("x").acquire()
    client.close()


def test_a_transaction_of_the_users_is_never_joined(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as mine:
        with pytest.raises(Misuse, match="connections of its own"):
            holdfast.connect(mine)
        mine.execute("CREATE TEMPORARY TABLE t (n integer)")
        client = holdfast.connect(lambda: mine)
        with pytest.raises(Misuse, match="never joins your transactions"):
            client.lock("x").acquire()
        client.close()
        assert mine.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_what_is_no_connection_is_misuse(postgres_url: str) -> None:
    client = holdfast.connect(object)
    with pytest.raises(Misuse, match="returned object"):
        client.lock("x").acquire()
    client.close()


# -- poolers


@pytest.fixture
def pooler(pgbouncer_session: PgBouncer, pgbouncer_url: str) -> PgBouncer:
    return pgbouncer_session


def test_a_pooler_in_transaction_mode_hands_over_by_signals_that_come_past_it(pooler: PgBouncer) -> None:
    client = holdfast.connect(pooler.url)
    works(pooler.url)
    works_on_asyncio(pooler.url)
    client.ping()
    assert client.capabilities.signals
    client.close()


def test_a_pooler_with_no_way_past_it_is_seen_and_those_who_wait_look_often(pooler: PgBouncer) -> None:
    works(pooler.bare_url)
    works_on_asyncio(pooler.bare_url)
    client, other = holdfast.connect(pooler.bare_url), holdfast.connect(pooler.bare_url)
    with client.group("g").join(b"here"):
        assert len(other.group("g").members()) == 1
    assert not client.capabilities.signals
    client.close()
    other.close()


def test_a_poolers_sessions_are_left_as_they_were(pooler: PgBouncer) -> None:
    works(pooler.url)
    with psycopg.connect(pooler.bare_url, autocommit=True, prepare_threshold=None) as anybody:
        assert anybody.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        for name, value in (("search_path", '"$user", public'), ("synchronous_commit", "on")):
            assert anybody.execute(f"SELECT current_setting('{name}')".encode()).fetchone() == (value,)


def test_more_threads_than_connections_take_turns(pooler: PgBouncer) -> None:
    """The pooler here has three connections to the server."""
    client = holdfast.connect(pooler.url, patience_s=20.0)
    import threading

    def work(number: int) -> None:
        for turn in range(5):
            with client.lock(f"own {number} {turn}"), client.lock("shared"):
                done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(done) == 16 * 5
    client.close()


def test_a_pooler_in_statement_mode_is_refused(postgres_session: PostgresServer, tmp_path: Path) -> None:
    with PgBouncer(tmp_path, postgres_session, "statement") as pooler:
        client = holdfast.connect(pooler.bare_url)
        with pytest.raises(Unsupported, match="statement mode"):
            client.lock("x").acquire()
        client.close()


def test_a_listen_url_that_leads_elsewhere_is_misuse(pooler: PgBouncer) -> None:
    elsewhere = f"postgresql://postgres@127.0.0.1:{pooler.server.port}/template1"
    holder = holdfast.connect(pooler.url)
    client = holdfast.connect(Postgres(pooler.bare_url, listen_url=elsewhere), patience_s=2.0)
    with holder.lock("x"), pytest.raises(Misuse, match="same database"):
        client.lock("x").acquire(timeout_s=10)
    holder.close()
    client.close()
    pooler.server.sql("DROP SCHEMA holdfast CASCADE", database="template1")


# -- claims that end with their client's connection


@pytest.fixture
def tied(postgres_url: str) -> str:
    return f"{postgres_url}?ends_with_connection=true"


@pytest.fixture
def onlooks(postgres_url: str) -> Iterator[Onlooker]:
    onlooker = Onlooker(postgres_url)
    yield onlooker
    onlooker.close()


def test_a_killed_holders_claim_ends_at_once_where_that_was_asked_for(
    tied: str, connect: Connect, start_peer: Callable[..., Peer]
) -> None:
    holder = start_peer(tied)
    token = holder.do("acquire", "x", 60.0)
    client = connect(tied)
    assert client.lock("x").try_acquire() is None
    holder.signal(signal.SIGKILL)
    lease = client.lock("x", ttl_s=60.0).acquire(timeout_s=20)
    assert lease.token > token
    lease.release()


def test_elsewhere_a_killed_holders_claim_stands_to_its_end(
    tied: str, postgres_url: str, connect: Connect, start_peer: Callable[..., Peer]
) -> None:
    holder = start_peer(postgres_url)
    holder.do("acquire", "x", 60.0)
    holder.signal(signal.SIGKILL)
    holder.process.wait()
    assert connect(tied).lock("x").try_acquire() is None


def test_the_trade_off_a_broken_connection_ends_the_claim_of_one_who_lives_and_he_is_told(
    postgres_url: str, postgres_session: PostgresServer, connect: Connect, onlooks: Onlooker
) -> None:
    proxy = TcpProxy(postgres_session.port)
    try:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?ends_with_connection=true"
        client = connect(url, patience_s=20.0)
        lease = client.lock("x", ttl_s=60.0).acquire()
        eventually(lambda: any(wire.listens for wire in proxy.wires))
        proxy.silence(listening)
        postgres_session.sql("SELECT pg_terminate_backend(pid) FROM holdfast.client")
        eventually(lambda: onlooks.claims("x") == ())
        proxy.heal()
        assert lease.wait_lost(30)
        with pytest.raises(LeaseLost):
            lease.release()
        client.lock("x").acquire(timeout_s=20).release()
    finally:
        proxy.close()


def test_a_waiter_that_died_is_passed_over_at_once_as_well(
    tied: str, connect: Connect, start_peer: Callable[..., Peer], onlooks: Onlooker
) -> None:
    client, waiter = connect(tied), start_peer(tied)
    lease = client.lock("x", ttl_s=60.0).acquire()
    waiter.order("acquire", "x", 60.0)
    eventually(lambda: onlooks.waiters("x") == 1)
    waiter.signal(signal.SIGKILL)
    eventually(lambda: onlooks.waiters("x") == 0)
    lease.release()


def test_a_lease_that_hangs_on_a_connection_cannot_change_hands(tied: str, connect: Connect) -> None:
    lease = connect(tied).lock("x").acquire()
    with pytest.raises(Unsupported, match="cannot change hands"):
        lease.detach()
    assert lease.state == "HELD"
    lease.release()


def test_behind_a_pooler_a_claim_cannot_hang_on_a_connection_unless_one_leads_past_it(pooler: PgBouncer) -> None:
    client = holdfast.connect(f"{pooler.bare_url}?ends_with_connection=true")
    with pytest.raises(Unsupported, match="listen_url"):
        client.lock("x").acquire()
    client.close()
    works(f"{pooler.url}&ends_with_connection=true")
