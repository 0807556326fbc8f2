"""What live tests on Redis share: a server of one's own, a network to break, both faces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onlooker import Onlooker
    from peer import Peer
    from proxy import TcpProxy
    from redis_live import LiveRedis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveRedis]:
    pytest.importorskip("redis")
    from redis_live import LiveRedis

    server = LiveRedis(tmp_path)
    yield server
    server.close()


@pytest.fixture
def proxy(server: LiveRedis) -> Iterator[TcpProxy]:
    """A network between clients and ``server``."""
    from proxy import TcpProxy

    proxy = TcpProxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture(params=("sync", "aio"))
def face(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def connect(face: str) -> Iterator[Callable[..., Any]]:
    """Clients of that face, closed at the end."""
    import blocking

    clients: list[Any] = []

    def connect(url: str, **options: Any) -> Any:
        clients.append(blocking.connect(face, url, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def start_peer(face: str) -> Iterator[Callable[..., Peer]]:
    """Other processes of that face, killed at the end."""
    from peer import Peer

    peers: list[Peer] = []

    def start_peer(url: str, **options: Any) -> Peer:
        peers.append(Peer(face, url, **options))
        return peers[-1]

    yield start_peer
    for one in peers:
        one.close()


@pytest.fixture
def peer(start_peer: Callable[..., Peer], server: LiveRedis) -> Callable[[], Peer]:
    """The same, on ``server``."""
    return lambda: start_peer(server.url)


@pytest.fixture
def onlooker() -> Iterator[Callable[[str], Onlooker]]:
    """Those who look at an engine and take no part."""
    from onlooker import Onlooker

    onlookers: list[Onlooker] = []

    def onlooker(url: str) -> Onlooker:
        onlookers.append(Onlooker(url))
        return onlookers[-1]

    yield onlooker
    for one in onlookers:
        one.close()
