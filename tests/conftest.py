"""What all tests share: engines to run on."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_server import EtcdEnsemble, EtcdServer
from hypothesis import settings
from postgres_server import PgBouncer, PostgresServer, forget_template
from quorum_servers import SYNCED, QuorumServers
from redis_deployments import RedisCluster, SentinelDeployment
from servers import RedisServer
from zookeeper_server import ZooKeeperEnsemble, ZooKeeperServer

settings.register_profile("patient", deadline=None)  # that a machine is busy is no failure
settings.load_profile("patient")

# Whoever started us may ignore some (nohup, a shell's &), and what we start would inherit that.
for one in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"):
    if hasattr(signal, one) and signal.getsignal(getattr(signal, one)) is signal.SIG_IGN:
        signal.signal(getattr(signal, one), signal.default_int_handler if one == "SIGINT" else signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: thousands of collections in tests need not walk it again each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    forget_template()


@pytest.fixture(scope="session")
def redis_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for all tests of a worker process that do it no harm; use `redis_url`."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_session: RedisServer) -> str:
    """An empty Redis."""
    assert redis_session.command("FLUSHALL").startswith(b"+OK")
    return redis_session.url


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be harmed."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


@pytest.fixture(scope="session")
def sentinel_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelDeployment]:
    """A primary, a replica and three sentinels for all tests that do them no harm; use `sentinel_url`."""
    with SentinelDeployment(tmp_path_factory.mktemp("sentinel")) as deployment:
        yield deployment


@pytest.fixture
def sentinel_url(sentinel_session: SentinelDeployment) -> str:
    """An empty primary, found through sentinels."""
    sentinel_session.reset()
    return sentinel_session.url


@pytest.fixture(scope="session")
def cluster_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three primaries and three replicas for all tests that do them no harm; use `cluster_url`."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster_url(cluster_session: RedisCluster) -> str:
    """An empty cluster."""
    cluster_session.reset()
    return cluster_session.url


@pytest.fixture(scope="session")
def quorum_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QuorumServers]:
    """Five servers for all tests that do them no harm; use `quorum_url`."""
    with QuorumServers(tmp_path_factory.mktemp("quorum"), *SYNCED) as servers:
        yield servers


@pytest.fixture
def quorum_url(quorum_session: QuorumServers) -> str:
    """An empty quorum of five."""
    quorum_session.reset()
    return quorum_session.url


@pytest.fixture(scope="session")
def zookeeper_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """One server for all tests of a worker process that do it no harm; use `zookeeper_url`."""
    with ZooKeeperServer(tmp_path_factory.mktemp("zookeeper")) as server:
        yield server


@pytest.fixture
def zookeeper_url(zookeeper_session: ZooKeeperServer) -> str:
    """An empty tree on a ZooKeeper."""
    return zookeeper_session.new_url()


@pytest.fixture
def zookeeper_server(tmp_path: Path) -> Iterator[ZooKeeperServer]:
    """A server of the test's own, to be harmed."""
    folder = tmp_path / "zookeeper"
    folder.mkdir()
    with ZooKeeperServer(folder) as server:
        yield server


@pytest.fixture
def zookeeper_ensemble(tmp_path: Path) -> Iterator[ZooKeeperEnsemble]:
    """Three servers of the test's own, to be harmed."""
    folder = tmp_path / "ensemble"
    folder.mkdir()
    with ZooKeeperEnsemble(folder) as ensemble:
        yield ensemble


@pytest.fixture(scope="session")
def etcd_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One server for all tests of a worker process that do it no harm; use `etcd_url`."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def etcd_url(etcd_session: EtcdServer) -> str:
    """An empty etcd."""
    etcd_session.clear()
    return etcd_session.url


@pytest.fixture(scope="session")
def etcd_three_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdEnsemble]:
    """Three servers for all tests of a worker process that do them no harm; use `etcd_three_url`."""
    with EtcdEnsemble(tmp_path_factory.mktemp("etcds")) as ensemble:
        yield ensemble


@pytest.fixture
def etcd_three_url(etcd_three_session: EtcdEnsemble) -> str:
    """An empty etcd of three members."""
    etcd_three_session.servers[0].clear()
    return etcd_three_session.url


@pytest.fixture
def etcd_server(tmp_path: Path) -> Iterator[EtcdServer]:
    """A server of the test's own, to be harmed."""
    folder = tmp_path / "etcd"
    folder.mkdir()
    with EtcdServer(folder) as server:
        yield server


@pytest.fixture
def etcd_ensemble(tmp_path: Path) -> Iterator[EtcdEnsemble]:
    """Three servers of the test's own, to be harmed."""
    folder = tmp_path / "etcds"
    folder.mkdir()
    with EtcdEnsemble(folder) as ensemble:
        yield ensemble


@pytest.fixture(scope="session")
def postgres_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One server for all tests of a worker process that do it no harm; use `postgres_url`."""
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_session: PostgresServer) -> str:
    """An empty engine on a PostgreSQL."""
    postgres_session.empty()
    return postgres_session.url


@pytest.fixture(scope="session")
def pgbouncer_session(
    tmp_path_factory: pytest.TempPathFactory, postgres_session: PostgresServer
) -> Iterator[PgBouncer]:
    """A pooler in transaction mode."""
    with PgBouncer(tmp_path_factory.mktemp("pgbouncer"), postgres_session) as pooler:
        yield pooler


@pytest.fixture
def pgbouncer_url(pgbouncer_session: PgBouncer) -> str:
    """An empty engine behind a pooler, with a way past it for signals."""
    pgbouncer_session.server.empty()
    return pgbouncer_session.url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'engine' / 'holdfast.db'}"


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty engine that several processes can share."""
    value = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(value, str)
    return value
