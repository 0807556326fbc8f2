"""Holders and waiters on a quorum that die or pause."""

from __future__ import annotations

import select
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from onlooker import Onlooker
from peer import Peer
from servers import eventually

from holdfast import LeaseLost, StaleToken

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
StartPeer = Callable[..., Peer]


@pytest.fixture
def looker(quorum_url: str) -> Iterator[Onlooker]:
    looker = Onlooker(quorum_url)
    yield looker
    looker.close()


def test_after_a_killed_holder_the_next_enters_when_its_lease_ends(
    quorum_url: str, looker: Onlooker, connect: Connect, start_peer: StartPeer
) -> None:
    holder = start_peer(quorum_url)
    token = holder.do("acquire", "x", 1.0)
    holder.signal(signal.SIGKILL)
    lease = connect(quorum_url).lock("x", ttl_s=1.0).acquire(timeout_s=20)
    assert lease.token > token
    assert looker.holders("x") == [lease.token]
    lease.release()


def test_a_killed_waiter_holds_nobody_up(
    quorum_url: str, looker: Onlooker, connect: Connect, start_peer: StartPeer
) -> None:
    client, waiter = connect(quorum_url), start_peer(quorum_url)
    lease = client.lock("x", ttl_s=10.0).acquire()
    waiter.order("acquire", "x", 10.0)
    eventually(lambda: looker.waiters("x") == 1)
    waiter.signal(signal.SIGKILL)
    lease.release()
    client.lock("x", ttl_s=10.0).acquire(timeout_s=20).release()  # the dead one is no obstacle


def test_a_holder_paused_past_its_lease_is_told_and_refused_by_the_cell(
    quorum_url: str, looker: Onlooker, connect: Connect, start_peer: StartPeer
) -> None:
    paused = start_peer(quorum_url)
    token = paused.do("acquire", "x", 0.6)
    paused.do("open", "ledger")
    paused.do("put", "first")
    paused.signal(signal.SIGSTOP)
    client = connect(quorum_url)
    lease = client.lock("x", ttl_s=2.0).acquire(timeout_s=20)
    opened = client.cell("ledger").open(lease)
    assert (opened.value, lease.token > token) == (b"first", True)
    paused.signal(signal.SIGCONT)
    with pytest.raises(StaleToken):
        paused.do("put", "written in the past")
    opened.put(b"second")
    assert paused.do("wait_lost", 20.0)
    with pytest.raises(LeaseLost):
        paused.do("release")
    assert looker.cell("ledger").value == b"second"
    assert looker.holders("x") == [lease.token]
    lease.release()


def test_many_processes_take_turns_with_rising_tokens_and_nobody_beside_them(
    quorum_url: str, connect: Connect, start_peer: StartPeer
) -> None:
    peers: dict[Any, Peer] = {one.process.stdout: one for one in (start_peer(quorum_url) for _ in range(4))}
    client = connect(quorum_url)
    tokens: list[int] = []
    for _ in range(5):
        for one in peers.values():
            one.order("acquire", "x", 5.0)
        waiting = dict(peers)
        while waiting:
            entered, _, _ = select.select(list(waiting), [], [], 20)
            assert len(entered) == 1, "nobody, or two at once"
            one = waiting.pop(entered[0])
            tokens.append(one.answer())
            client.lock("y").acquire(timeout_s=20).release()  # time for another to come in wrongly
            assert not select.select(list(waiting), [], [], 0)[0]
            one.do("release")
    assert tokens == sorted(set(tokens))
