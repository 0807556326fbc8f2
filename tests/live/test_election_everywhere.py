"""Elections on every engine that processes can share: a leader is killed, resigns, is cut off."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import blocking
import pytest
from engines import ON_SESSIONS, SHARED
from onlooker import Onlooker
from peer import Peer
from proxy import TcpProxy
from redis_live import LiveRedis
from servers import eventually
from zookeeper_live import LONG
from zookeeper_server import ZooKeeperServer

import holdfast
from holdfast import LeaseLost
from holdfast.sync import Client

pytestmark = pytest.mark.live

TTL_S = 2
"""Short, so that the dead are not waited for long."""
ONE_OF_EACH = ("sqlite", "redis", "zookeeper", "etcd", "postgres", "quorum")


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest) -> str:
    return url_of(request)


@pytest.fixture(params=ONE_OF_EACH)
def url_of_one(request: pytest.FixtureRequest) -> str:
    return url_of(request)


def url_of(request: pytest.FixtureRequest) -> str:
    value = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(value, str)
    return f"{value}?ttl_s={TTL_S}" if request.param in ON_SESSIONS else value


@pytest.fixture
def peer(url_of_one: str) -> Iterator[Peer]:
    peer = Peer("sync", url_of_one)
    yield peer
    peer.close()


class Candidate:
    """Someone who campaigns in a thread."""

    def __init__(self, election: Any, payload: bytes) -> None:
        self.led_at = 0.0
        self.leadership: Any = None
        self._election, self._payload = election, payload
        self._thread = threading.Thread(target=self._campaign)
        self._thread.start()
        eventually(lambda: any(one.payload == payload for one in election.candidates()))

    def _campaign(self) -> None:
        self.leadership = self._election.campaign(self._payload, timeout_s=30)
        self.led_at = time.monotonic()

    def leads(self) -> Any:
        self._thread.join(40)
        assert self.leadership is not None
        return self.leadership


def test_a_killed_leader_is_followed_and_never_shown_again(url_of_one: str, peer: Peer) -> None:
    url = url_of_one
    token = peer.do("campaign", "e", "first", TTL_S)
    with holdfast.connect(url) as hf, holdfast.connect(url) as another:
        election = hf.election("e", TTL_S)
        first = election.leader()
        assert first is not None
        assert (first.payload, first.token, first.owner.split(":")[1]) == (b"first", token, str(peer.process.pid))
        seen: list[Any] = []
        observer = threading.Thread(target=lambda: observe(another, seen, b"second"))
        observer.start()
        eventually(lambda: seen == [first])
        waiting = Candidate(election, b"second")
        peer.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        leadership = waiting.leads()
        assert waiting.led_at - killed_at < 4 * TTL_S
        now = election.leader()
        assert now is not None
        assert (now.payload, now.token) == (b"second", leadership.token)
        assert now.token > token
        observer.join(20)
        assert (seen[0], seen[-1]) == (first, now)
        assert election.history()[-1].why == f"{first.owner} went without a word"
        leadership.resign()
        assert election.leader() is None


def observe(client: Client, seen: list[Any], last: bytes) -> None:
    for leader in client.election("e").observe(timeout_s=30):
        seen.append(leader)
        if leader is not None and leader.payload == last:
            return


def test_a_leader_that_resigns_is_followed_at_once_and_what_it_wrote_is_seen(url: str) -> None:
    first, second = blocking.connect("aio", url), blocking.connect("aio", url)
    leadership = first.election("e").campaign(b"starting")
    leadership.update(b"ready")
    election = second.election("e")
    assert election.leader().payload == b"ready"
    waiting = Candidate(election, b"next")
    resigned_at = time.monotonic()
    leadership.resign()
    following = waiting.leads()
    assert waiting.led_at - resigned_at < TTL_S, "its lease would have gone on for much longer"
    assert election.history()[-1].why.endswith(" resigned")
    assert (following.is_leader, leadership.is_leader) == (True, False)
    following.resign()
    first.close()
    second.close()


# -- a leader that is cut off


@pytest.fixture
def lost() -> threading.Event:
    return threading.Event()


def test_a_leader_that_cannot_renew_stops_long_before_its_deadline_and_gives_its_seat_back(
    server: LiveRedis, proxy: TcpProxy, connect: Callable[..., Any], lost: threading.Event
) -> None:
    leadership = connect(proxy.url, patience_s=0.5).election("e", 9.0).campaign()
    began = time.monotonic()
    leadership.on_lost(lost.set)
    proxy.silence()
    assert lost.wait(20)
    stopped_s = time.monotonic() - began
    assert (leadership.is_leader, stopped_s < 8) == (False, True)
    proxy.heal()
    following = connect(server.url).election("e", 9.0).campaign(timeout_s=20)
    assert time.monotonic() - began < 9, "it was given back"
    assert not leadership.is_leader
    with pytest.raises(LeaseLost, match="a renewal failed"):
        leadership.resign()
    following.resign()


def test_a_leader_that_keeps_on_outlasts_the_same_silence(
    server: LiveRedis, proxy: TcpProxy, connect: Callable[..., Any]
) -> None:
    election = connect(proxy.url, patience_s=0.5).election("e", 4.0, on_unsure="keep_until_deadline")
    leadership = election.campaign()
    proxy.silence()
    eventually(lambda: leadership.state == "UNSURE")
    assert leadership.is_leader
    proxy.heal()
    eventually(lambda: leadership.state == "HELD")
    leadership.resign()


def test_on_a_session_a_leader_stops_as_its_connection_breaks(
    zookeeper_server: ZooKeeperServer,
    connect: Callable[..., Any],
    onlooker: Callable[[str], Onlooker],
    lost: threading.Event,
) -> None:
    leadership = connect(f"{zookeeper_server.url}?{LONG}").election("e").campaign()
    leadership.on_lost(lost.set)
    zookeeper_server.kill()
    assert lost.wait(20)  # its renewal would have been due in ten seconds
    assert not leadership.is_leader
    zookeeper_server.start()
    eventually(lambda: not onlooker(zookeeper_server.url).claims("e", "election"))
