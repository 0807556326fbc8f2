"""Who may do what on an etcd, over TLS as well; addresses and servers that do not work are said in one line."""

from __future__ import annotations

import logging
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_server import EtcdServer
from onlooker import Onlooker
from servers import RedisServer
from zookeeper_live import Waiter

from holdfast import Misuse, Unavailable, Unsupported, aio, connect
from holdfast.engines import engine_for
from holdfast.engines.etcd.hpack import literal
from holdfast.model import Change

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
Look = Callable[[str], Onlooker]


@pytest.fixture
def connect_to(connect: Connect) -> Connect:
    """Clients of both faces that do not wait for long."""
    return lambda url, **options: connect(url, **{"patience_s": 5.0, **options})


# -- logins


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """A server that wants a login, and lets ann do what she wants under ``holdfast/``."""
    with EtcdServer(tmp_path_factory.mktemp("guarded")) as server:
        server.require_login("ann", "s3cret/1")
        yield server


def with_user(server: EtcdServer, user: str) -> str:
    return server.url.replace("://", f"://{user}@")


def test_a_user_with_a_password_has_all_of_it(guarded: EtcdServer, connect_to: Connect, onlooker: Look) -> None:
    url = with_user(guarded, "ann:s3cret%2F1")
    client, other = connect_to(url), connect_to(url)
    lease = client.lock("x").acquire()
    client.cell("ledger").open(lease).put(b"mine")
    waiter = Waiter(onlooker(url), other)
    lease.release()
    assert waiter.entered().token > lease.token
    waiter.lease.release()
    assert other.cell("ledger").read().value == b"mine"


@pytest.mark.parametrize(
    ("user", "says"),
    [("", "wants a login"), ("ann:wrong", "refused the password of user ann"), ("bob:other", "refused the password")],
)
def test_a_refused_login_is_told_at_once_and_not_repeated(
    user: str, says: str, guarded: EtcdServer, connect_to: Connect
) -> None:
    url = with_user(guarded, user) if user else guarded.url
    with pytest.raises(Misuse, match=says) as refused:
        connect_to(url).lock("x").acquire()
    assert not {"wrong", "other"} & set(str(refused.value).split())


def test_what_a_role_does_not_allow_is_told_with_what_it_needs(guarded: EtcdServer, connect_to: Connect) -> None:
    guarded.login("root", "s3cret/1")
    guarded.ask("auth/user/add", {"name": "guest", "password": "guest"})
    with pytest.raises(Misuse, match="its role needs readwrite on all keys that start with 'holdfast/'"):
        connect_to(with_user(guarded, "guest:guest")).lock("x").acquire()


def test_a_login_that_ended_is_renewed_while_leases_and_waiters_go_on(
    etcd_server: EtcdServer, connect_to: Connect, onlooker: Look
) -> None:
    """A restart forgets all logins."""
    etcd_server.require_login("ann", "pw")
    url = with_user(etcd_server, "ann:pw")
    client, other = connect_to(url), connect_to(url)
    lease = client.lock("x").acquire()
    waiter = Waiter(onlooker(url), other)
    etcd_server.login("root", "pw")
    etcd_server.kill()
    etcd_server.token = ""
    etcd_server.launch()
    lease.release()
    assert waiter.entered().token > lease.token
    waiter.lease.release()


def test_a_login_where_none_is_wanted_is_misuse(etcd_url: str, connect_to: Connect) -> None:
    with pytest.raises(Misuse, match="has authentication off"):
        connect_to(etcd_url.replace("://", "://ann:pw@")).lock("x").acquire()


def test_no_password_is_logged_shown_or_told(
    guarded: EtcdServer, connect_to: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = with_user(guarded, "ann:s3cret%2F1")
    client = connect_to(url)
    client.lock("x").acquire().release()
    engine = engine_for(url)
    for text in (caplog.text, repr(engine), engine.identity, repr(client), repr(engine._target)):  # type: ignore[attr-defined]
        assert "s3cret" not in text


# -- TLS


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EtcdServer, Path]]:
    """A server that speaks TLS only, and its certificate."""
    folder = tmp_path_factory.mktemp("secure")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*make.split(), *names], cwd=folder, check=True, capture_output=True)
    server = EtcdServer(folder)
    server.use_tls(str(folder / "cert.pem"), str(folder / "cert.pem"), str(folder / "key.pem"))
    with server:
        yield server, folder / "cert.pem"


def test_locks_waiters_and_cells_work_over_tls(
    secure: tuple[EtcdServer, Path], connect_to: Connect, onlooker: Look
) -> None:
    server, certificate = secure
    url = f"{server.url}?ca={certificate}"
    client, other = connect_to(url), connect_to(url)
    lease = client.lock("x").acquire()
    client.cell("ledger").open(lease).put(b"x" * 500_000)
    waiter = Waiter(onlooker(url), other)
    lease.release()
    assert waiter.entered().token > lease.token
    waiter.lease.release()
    assert other.cell("ledger").read().value == b"x" * 500_000
    connect_to(f"{server.url}?verify=no").lock("x").acquire().release()


def test_a_certificate_that_is_not_trusted_and_a_port_without_tls_are_told(
    secure: tuple[EtcdServer, Path], etcd_url: str, connect_to: Connect
) -> None:
    server, certificate = secure
    with pytest.raises(Unavailable, match=r"is not trusted: .*; give ca="):
        connect_to(server.url, patience_s=0.5).lock("x").acquire()
    with pytest.raises(Unavailable, match=r"no TLS with etcd|no connection to etcd"):
        connect_to(f"{etcd_url.replace('etcd', 'etcds')}?ca={certificate}", patience_s=0.5).lock("x").acquire()
    with pytest.raises((Unavailable, Unsupported), match=r"TLS|did not answer"):
        connect_to(f"etcd://{server.address}", patience_s=0.5).lock("x").acquire()


# -- servers that are none, or too old


def test_what_is_no_etcd_is_told_and_passed_over_where_another_is(
    redis_session: RedisServer, etcd_session: EtcdServer, connect_to: Connect
) -> None:
    with pytest.raises(Unsupported, match="is none, or wants TLS"):
        connect_to(f"etcd://127.0.0.1:{redis_session.port}").lock("x").acquire()
    connect_to(f"etcd://127.0.0.1:{redis_session.port},{etcd_session.address}").lock("x").acquire().release()


def test_a_server_that_is_too_old_is_told_with_the_version_that_is_needed(connect_to: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_old_server, args=(listener,), daemon=True).start()
        with pytest.raises(Unsupported, match=r"has version 3\.3\.25: holdfast needs 3.4 or newer"):
            connect_to(f"etcd://127.0.0.1:{listener.getsockname()[1]}").lock("x").acquire()


def _old_server(listener: socket.socket) -> None:
    """Answers the first call, the question for its version, as etcd 3.3 does."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        version = b"\x12\x063.3.25"
        message = b"\0" + struct.pack(">I", len(version)) + version
        connection.sendall(
            frame(4, 0, 0, b"")
            + frame(1, 4, 1, b"\x88" + literal(b"content-type", b"application/grpc"))
            + frame(0, 0, 1, message)
            + frame(1, 5, 1, literal(b"grpc-status", b"0"))
        )
        connection.recv(65536)


# -- what cannot be


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("etcd://", "names each host"),
        ("etcd://a,,b", "names each host"),
        ("etcd://a:0", "names each host"),
        ("etcd://a/path", "has no path: give a namespace="),
        ("etcd://a?ttl_s=3", "knows no option ttl_s"),
        ("etcd://a?ca=x", "is for TLS: etcds://"),
        ("etcd://ann@a", "takes user:password before the @"),
        ("etcds://a?ca=/nowhere", "could not read its ca, cert or key"),
        ("etcds://a?key=x", "belong to a cert="),
        ("etcds://a?verify=maybe", "verify is yes or no"),
        ("etcd://ann:s3cret:x@@a:b", "names each host"),
        ("etcd://ann:s3cret?x@a", "in a password / ? @ as %2F"),
        ("etcd://ann:x?s3cret@a", "in a password / ? @ as %2F"),
    ],
)
def test_a_bad_url_is_refused_when_the_client_is_made(url: str, says: str) -> None:
    for module in (connect, aio.connect):
        with pytest.raises(Misuse) as refused:
            module(url)
        assert says in str(refused.value)
        assert "s3cret" not in str(refused.value)


def test_a_put_beyond_what_a_server_takes_is_refused_and_the_connection_stands(
    etcd_url: str, connect_to: Connect
) -> None:
    client = connect_to(etcd_url)
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    most = client.capabilities.max_value_bytes
    with pytest.raises(Misuse, match=f"at most {most} bytes"):
        opened.put(b"x" * (most + 1))
    with pytest.raises(Misuse, match="write them in several puts"):
        opened.put(None, [Change(str(n), b"x" * most) for n in range(3)])
    with pytest.raises(Misuse, match="write them in several puts"):
        opened.put(None, [Change(str(n), b"") for n in range(5000)])
    opened.put(b"x" * most, [Change("k", b"x" * most)])
    assert lease.state == "HELD"
    lease.release()


def test_a_server_that_takes_less_says_so_and_what_is_too_short_is_refused(tmp_path: Path, connect_to: Connect) -> None:
    with EtcdServer(tmp_path, "--max-request-bytes", "100000") as server:
        client = connect_to(server.url)
        lease = client.lock("x").acquire()
        with pytest.raises(Misuse, match="--max-request-bytes"):
            client.cell("ledger").open(lease).put(b"x" * 200_000)
        assert lease.state == "HELD"
        lease.release()
        with pytest.raises((Misuse, Unsupported), match="2"):
            client.lock("y", ttl_s=1.0)
