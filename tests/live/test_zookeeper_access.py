"""Who may do what on a ZooKeeper, over TLS as well; addresses and settings that do not work are said in one line."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl
from servers import free_port
from zookeeper_server import ZooKeeperServer

from holdfast import Misuse, Unavailable, Unsupported, aio, connect
from holdfast.engines import engine_for
from holdfast.engines.zookeeper.wire import CreateContainer
from holdfast.model import Change

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


@pytest.fixture
def connect_to(connect: Connect) -> Connect:
    """Clients of both faces that do not wait for long."""
    return lambda url, **options: connect(url, **{"patience_s": 10.0, **options})


# -- permissions


def with_user(url: str, user: str) -> str:
    return url.replace("://", f"://{user}@")


def test_what_one_user_made_another_may_not_touch(zookeeper_url: str, connect_to: Connect) -> None:
    one = connect_to(with_user(zookeeper_url, "ann:s3cret%2F1"))
    lease = one.lock("x").acquire()
    opened = one.cell("ledger").open(lease)
    opened.put(b"mine")
    for url in (zookeeper_url, with_user(zookeeper_url, "bob:other"), with_user(zookeeper_url, "ann:wrong")):
        with pytest.raises(Misuse, match="does not allow this to") as refused:
            connect_to(url).lock("x").acquire()
        assert "other" not in str(refused.value)
        assert "wrong" not in str(refused.value)
    again = connect_to(with_user(zookeeper_url, "ann:s3cret%2F1"))
    assert again.lock("x").try_acquire() is None
    assert again.cell("ledger").read().value == b"mine"
    lease.release()


def test_a_user_may_leave_what_he_makes_open_to_all(zookeeper_url: str, connect_to: Connect) -> None:
    lease = connect_to(with_user(zookeeper_url, "ann:s3cret") + "?acl=open").lock("x").acquire()
    assert connect_to(zookeeper_url).lock("x").try_acquire() is None
    lease.release()


def test_no_password_is_logged_shown_or_told(
    zookeeper_url: str, connect_to: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = with_user(zookeeper_url, "ann:s3cret")
    client = connect_to(url)
    client.lock("x").acquire().release()
    engine = engine_for(url)
    for text in (caplog.text, repr(engine), engine.identity, repr(client)):
        assert "s3cret" not in text
    assert "Received response" in caplog.text  # of kazoo's log all the rest is there


def test_a_client_object_gives_its_settings_and_is_left_alone(zookeeper_url: str) -> None:
    host, _, path = zookeeper_url.partition("://")[2].partition("/")
    acl = [make_digest_acl("ann", "s3cret", all=True)]
    theirs = KazooClient(f"{host}/{path}", timeout=6.0, auth_data=[("digest", "ann:s3cret")], default_acl=acl)
    theirs.start(20)
    with connect(theirs) as client:
        assert client.capabilities.ttl_s == 3.0
        with client.lock("x"):
            assert theirs.exists("/holdfast") is not None
            acls: Any = theirs.get_acls("/holdfast")
            (found,) = acls[0]
            assert found.id.id.startswith("ann:")
    assert theirs.connected
    theirs.stop()
    theirs.close()


def test_credentials_that_the_server_refuses_are_a_misuse(zookeeper_session: ZooKeeperServer) -> None:
    theirs = KazooClient(zookeeper_session.address, auth_data=[("no such scheme", "ann:s3cret")])
    with connect(theirs, patience_s=20.0) as client, pytest.raises(Misuse, match="refused the credentials") as refused:
        client.lock("x").acquire()
    assert "ann" in str(refused.value)
    assert "s3cret" not in str(refused.value)


# -- addresses


def test_a_server_that_is_not_there_is_unavailable_after_the_callers_patience(connect: Connect) -> None:
    client = connect(f"zookeeper://127.0.0.1:{free_port()},127.0.0.1:{free_port()}", patience_s=1.0)
    with pytest.raises(Unavailable, match=r"no session with ZooKeeper at 127\.0\.0\.1:.*Connection refused"):
        client.lock("x").acquire()


def test_a_chroot_that_does_not_exist_is_said_and_used_once_it_does(
    zookeeper_session: ZooKeeperServer, connect_to: Connect, face: str
) -> None:
    path = f"/no/such/{face}"
    client = connect_to(f"{zookeeper_session.url}{path}")
    with pytest.raises(Misuse, match=f"the chroot {path} does not exist"):
        client.lock("x").acquire()
    admin = zookeeper_session.client()
    admin.ensure_path(path)
    client.lock("x").acquire().release()
    assert admin.exists(f"{path}/holdfast") is not None
    admin.stop()
    admin.close()


def test_a_session_longer_than_the_server_grants_is_refused_with_what_would_do(
    zookeeper_url: str, connect_to: Connect
) -> None:
    client = connect_to(f"{zookeeper_url}?ttl_s=600")
    with pytest.raises(Misuse, match=r"sessions of 60 s at most, and ttl_s=600 takes 901.5: .*\?ttl_s=39 or less"):
        client.lock("x").acquire()


def test_a_server_too_old_is_refused_with_the_version_that_is_needed(
    zookeeper_url: str, connect_to: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One before 3.5.3 answers to container nodes as this one does to what is still to come."""
    monkeypatch.setattr(CreateContainer, "type", 199)
    client = connect_to(zookeeper_url)
    with pytest.raises(Unsupported, match=r"too old: holdfast needs ZooKeeper 3\.5\.3 or newer"):
        client.lock("x").acquire()
    monkeypatch.undo()
    client.lock("x").acquire().release()


def test_something_else_that_listens_there_is_unavailable(redis_url: str, connect: Connect) -> None:
    port = redis_url.rpartition(":")[2].partition("/")[0]
    client = connect(f"zookeeper://127.0.0.1:{port}", patience_s=1.0)
    with pytest.raises(Unavailable, match="no session with ZooKeeper"):
        client.lock("x").acquire()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("zookeeper://", "names each host"),
        ("zookeeper://a,,b", "names each host"),
        ("zookeeper://a:port", "names each host"),
        ("zookeeper://a:70000", "names each host"),
        ("zookeeper://::1", "names each host"),
        ("zookeeper://user@a", "user:password"),
        ("zookeeper://a/../b", "is no path"),
        ("zookeeper://a?timeout=3", "knows no option timeout"),
        ("zookeeper://a?ttl_s=soon", "is a number of seconds"),
        ("zookeeper://a?ttl_s=0", "is a number of seconds"),
        ("zookeeper://a?ttl_s=nan", "is a number of seconds"),
        ("zookeeper://a?ttl_s=0.01", "a session of"),
        ("zookeeper://a?session_timeout_s=1", "a session of 1 s backs no leases"),
        ("zookeeper://a?session_timeout_s=9&ttl_s=5", "say the same"),
        ("zookeeper://a?acl=mine", "acl is open or creator"),
        ("zookeeper://a?ca=x", "is for TLS: zookeepers://"),
        ("zookeepers://a?verify=maybe", "verify is yes or no"),
        ("zookeeper://ann:s3cret:x@@a:b", "names each host"),
        ("zookeeper://ann:s3cret/x@a", "in a password / ? @ as %2F"),
        ("zookeeper://ann:s3cret?x@a", "in a password / ? @ as %2F"),
        ("zookeeper://ann:x?s3cret@a", "in a password / ? @ as %2F"),
    ],
)
def test_a_bad_url_is_refused_when_the_client_is_made(url: str, says: str) -> None:
    for module in (connect, aio.connect):
        with pytest.raises(Misuse) as refused:
            module(url)
        assert says in str(refused.value)
        assert "s3cret" not in str(refused.value)


def test_a_put_beyond_what_a_server_takes_is_refused_and_the_connection_stands(
    zookeeper_url: str, connect_to: Connect
) -> None:
    client = connect_to(zookeeper_url)
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    most = client.capabilities.max_value_bytes
    with pytest.raises(Misuse, match=f"at most {most} bytes"):
        opened.put(b"x" * (most + 1))
    with pytest.raises(Misuse, match="less than 1 MB"):
        opened.put(None, [Change(str(n), b"x" * most) for n in range(3)])
    opened.put(b"x" * most)
    assert lease.state == "HELD"
    lease.release()


# -- TLS


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ZooKeeperServer, Path]]:
    """A server that speaks TLS only, to clients that show a certificate; and the folder of the certificates."""
    folder = tmp_path_factory.mktemp("secure")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*make.split(), *names], cwd=folder, check=True, capture_output=True)
    both = (folder / "key.pem").read_text() + (folder / "cert.pem").read_text()
    (folder / "both.pem").write_text(both)
    ssl = {"keyStore": "both.pem", "trustStore": "cert.pem"}
    options = [f"-Dzookeeper.ssl.{what}.location={folder / file}" for what, file in ssl.items()]
    netty = "-Dzookeeper.serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory"
    server = ZooKeeperServer(folder, f"secureClientPort={free_port()}\nsecureClientPortAddress=127.0.0.1\n", netty,
                             *options)  # fmt: skip
    with server:
        yield server, folder


def test_tls_with_a_client_certificate(secure: tuple[ZooKeeperServer, Path], connect_to: Connect) -> None:
    server, folder = secure
    port = server.settings.partition("=")[2].partition("\n")[0]
    shown = f"ca={folder}/cert.pem&cert={folder}/cert.pem&key={folder}/key.pem"
    client = connect_to(f"zookeepers://localhost:{port}?{shown}")
    lease = client.lock("x").acquire()
    opened = client.cell("ledger").open(lease)
    opened.put(b"x" * 400_000)
    assert connect_to(f"zookeepers://127.0.0.1:{port}?{shown}").lock("x").try_acquire() is None
    lease.release()


def test_a_certificate_that_is_not_trusted_is_no_connection(
    secure: tuple[ZooKeeperServer, Path], connect: Connect
) -> None:
    port = secure[0].settings.partition("=")[2].partition("\n")[0]
    for scheme, says in (("zookeepers", "CERTIFICATE_VERIFY_FAILED"), ("zookeeper", "no session with ZooKeeper")):
        with pytest.raises(Unavailable, match=says):
            connect(f"{scheme}://localhost:{port}", patience_s=2.0).lock("x").acquire()
