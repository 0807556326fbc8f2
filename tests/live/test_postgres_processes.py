"""Interrupts, cancellations, forks and threads in the middle of calls; passwords and TLS."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import PostgresServer, as_user
from servers import eventually

import holdfast
from holdfast import aio
from holdfast.errors import LeaseLost, Misuse
from holdfast.model import Claim, Turnstile

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="signals and forks of a Unix")]


@pytest.fixture
def row_lock(postgres_session: PostgresServer, postgres_url: str) -> Iterator[Any]:
    """Somebody who keeps the row of lock ``x``, so that calls on it hang in the server."""
    client = holdfast.connect(postgres_url)
    client.lock("x").acquire().release()
    client.close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("SELECT 1 FROM holdfast.turnstile FOR UPDATE")
        yield connection


def waits_in_server(server: PostgresServer) -> bool:
    return bool(server.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


def test_an_interrupt_in_the_middle_of_a_call_leaves_the_link_usable(
    postgres_session: PostgresServer, row_lock: Any, postgres_url: str
) -> None:
    client = holdfast.connect(postgres_url)
    client.lock("y").acquire().release()

    def interrupt() -> None:
        eventually(lambda: waits_in_server(postgres_session))
        signal.pthread_kill(main.ident or 0, signal.SIGINT)
        time.sleep(0.1)
        row_lock.rollback()

    main = threading.main_thread()
    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        client.lock("x").acquire(timeout_s=20)
    helper.join()
    with client.lock("x", timeout_s=20):
        pass
    client.close()


def test_a_cancelled_call_takes_no_other_along(
    postgres_session: PostgresServer, row_lock: Any, postgres_url: str
) -> None:
    async def main() -> None:
        async with aio.connect(postgres_url) as client:
            await client.ping()
            stuck = asyncio.create_task(client.lock("x").acquire())
            await asyncio.to_thread(eventually, lambda: waits_in_server(postgres_session))
            behind = asyncio.create_task(client.lock("y").acquire())  # on the same connection
            await asyncio.sleep(0.01)
            stuck.cancel()
            await asyncio.sleep(0.05)
            row_lock.rollback()
            await asyncio.wait({stuck})
            await (await behind).release()
            await (await client.lock("x").acquire(timeout_s=10)).release()

    asyncio.run(main())


def test_a_forked_child_holds_nothing_and_its_end_disturbs_nobody(postgres_url: str) -> None:
    client = holdfast.connect(postgres_url)
    other = holdfast.connect(postgres_url)
    lease = client.lock("x", ttl_s=30.0).acquire()
    waiter = threading.Thread(target=lambda: other.lock("x").acquire(timeout_s=30).release())
    waiter.start()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        verdict = b"held"
        try:
            lease.ensure_held()
        except LeaseLost:
            with client.lock("y"):  # a link of its own
                verdict = b"works" if client.lock("x").try_acquire() is None else b"took"
        finally:
            os.write(writer, verdict)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"works"
    os.close(reader)
    os.close(writer)
    lease.ensure_held()
    client.ping()
    lease.release()
    waiter.join(30)
    assert not waiter.is_alive()
    client.close()
    other.close()


def test_many_requests_at_once_are_answered_each_by_its_own(postgres_url: str) -> None:
    engine = holdfast.engines.engine_for(postgres_url)
    link = engine.blocking_link()
    payload = b"x" * 300_000
    places = [Turnstile("lock", f"n{number}", 1) for number in range(60)]
    requests = [engine.enter(one, Claim(f"c{one.name}", 1, 30.0, payload=payload), False) for one in places]
    replies = link.call_many(requests, 30.0)
    assert all(reply.token for reply in replies), replies  # type: ignore[union-attr]
    looks: list[Any] = link.call_many([engine.look(one) for one in places], 30.0)
    assert [look.claims[0].id for look in looks] == [f"c{one.name}" for one in places]
    assert all(look.claims[0].payload == payload for look in looks)
    link.close()


# -- who may come in


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[PostgresServer]:
    """TLS and a password or nothing."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    server = PostgresServer(tmp_path)
    server.start()
    server.sql("CREATE ROLE careful LOGIN PASSWORD 's3/cr:et@'")
    server.sql("GRANT CREATE ON DATABASE postgres TO careful")
    server.kill()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout",
         str(server.data / "server.key"), "-out", str(server.data / "server.crt")],
        check=True, capture_output=True, **as_user(),
    )  # fmt: skip
    (server.data / "server.key").chmod(0o600)
    shutil.copy(server.data / "server.crt", tmp_path / "ca.crt")
    (server.data / "pg_hba.conf").write_text(
        "hostssl all careful 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 trust\n"
    )
    server.settings = (*server.settings, "ssl=on")
    server.start()
    yield server
    server.__exit__(None, None, None)


def test_passwords_and_tls_go_by_the_url_and_secrets_stay_out_of_errors(
    guarded: PostgresServer, tmp_path: Path
) -> None:
    place = f"127.0.0.1:{guarded.port}/postgres"
    good = f"postgresql://careful:s3%2Fcr%3Aet%40@{place}?sslmode=verify-ca&sslrootcert={tmp_path / 'ca.crt'}"
    with holdfast.connect(good) as client, client.lock("x"):
        pass

    async def main() -> None:
        async with aio.connect(good) as client, client.lock("x"):
            assert await client.lock("x").try_acquire() is None

    asyncio.run(main())
    for url in (
        f"postgresql://careful:wr0ng@{place}?sslmode=require",
        f"postgresql://careful@{place}?sslmode=require",
        f"postgresql://careful:wr0ng@{place}?sslmode=disable",
        f"postgresql://careful:wr0ng@{place}?sslmode=wr0ngly",
        f"postgresql://careful:wr0ng@{place}?sslmode=verify-ca&sslrootcert=/nowhere.crt",
    ):
        with holdfast.connect(url, patience_s=0.5) as client, pytest.raises(Misuse) as told:
            client.lock("x").acquire()
        assert "wr0ng@" not in str(told.value)
        assert ":wr0ng" not in str(told.value)
