"""A kept lease is handed over when somebody wants it, on every engine that processes share, long before a renewal."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from engines import ON_SESSIONS, SHARED
from onlooker import Onlooker
from servers import eventually

from holdfast import connect as connected
from holdfast.sync import Client, Lock

pytestmark = pytest.mark.live

TTL_S = 24
SOON_S = TTL_S / 4
"""Before the first renewal of any lease that is wanted by then."""

Connect = Callable[[], Client]


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest) -> str:
    value = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(value, str)
    return f"{value}?ttl_s={TTL_S}" if request.param in ON_SESSIONS else value


@pytest.fixture
def connect(url: str) -> Iterator[Connect]:
    clients: list[Client] = []

    def connect() -> Client:
        clients.append(connected(url))
        return clients[-1]

    yield connect
    for one in clients:
        one.close()


def sticky(client: Client) -> Lock:
    return client.lock("x", sticky=True) if client.capabilities.ttl_s else client.lock("x", sticky=True, ttl_s=TTL_S)


def test_who_comes_to_wait_for_a_kept_lease_gets_it_at_once(connect: Connect) -> None:
    keeper, other = sticky(connect()), sticky(connect())
    for _ in range(3):
        with keeper:
            pass
        asked = time.monotonic()
        with other:
            assert time.monotonic() - asked < SOON_S
        keeper, other = other, keeper


def test_a_refused_try_makes_a_kept_lease_free(connect: Connect) -> None:
    keeper, other = sticky(connect()), sticky(connect())
    with keeper:
        pass
    asked = time.monotonic()
    leases = (other.try_acquire() for _ in itertools.count())
    eventually(lambda: next(leases))
    assert time.monotonic() - asked < SOON_S


def test_who_was_admitted_while_others_wait_keeps_nothing_from_them(connect: Connect, url: str) -> None:
    first, looker = sticky(connect()), Onlooker(url)
    entered: list[float] = []

    def take(lock: Lock) -> None:
        with lock:
            entered.append(time.monotonic())

    waiting = [threading.Thread(target=take, args=(sticky(connect()),)) for _ in range(3)]
    with first:
        for one in waiting:
            one.start()
        eventually(lambda: looker.waiters("x") == len(waiting))
        left = time.monotonic()
    for one in waiting:
        one.join(60)
    looker.close()
    assert len(entered) == len(waiting)
    assert max(entered) - left < SOON_S
