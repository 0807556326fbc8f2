"""The bench: every peer that is installed here takes its lock and gives it back, and what is measured makes a page."""

from __future__ import annotations

import gc

import pytest

from bench.peers import ENGINES, Engine, engine
from bench.report import Found, section
from bench.workloads import Effort, available, contests, pairs, round_trips

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

TINY = Effort(pair_rounds=1, pairs=10, rounds=1, seconds=0.2, counting_s=0.2, sizes=(3,), insides_s=(0.0,))


def in_python(of: Engine, *names: str) -> Engine:
    """Some peers, or all but those whose jars would have to be fetched."""
    chosen = [peer for peer in of.peers if peer.face != "java" and (peer.name in names or not names)]
    return of._replace(peers=tuple(chosen))


@pytest.mark.filterwarnings("default")  # theirs are no concern of ours
@pytest.mark.parametrize("name", ENGINES)
def test_every_peer_takes_its_lock_and_gives_it_back(name: str) -> None:
    of = in_python(engine(name))
    left_out: list[str] = []
    with of.serve() as url:
        found = {peer.name for peer in available(of, {name: url}, left_out.append)}
    gc.collect()  # what theirs left open is warned of here and not in a later test
    assert {"holdfast", "holdfast.aio"} <= found, left_out
    assert len(found) + len(left_out) == len(of.peers)


def test_what_is_measured_makes_a_page() -> None:
    of = in_python(engine("redis"), "floor", "holdfast", "holdfast.aio", "redis-py, 0.1 s")
    left_out: list[str] = []
    with of.serve() as url:
        urls = {of.name: url}
        peers = available(of, urls, left_out.append)
        free = pairs(of, url, peers, TINY)
        trips = {peer.name: round_trips(url, peer) for peer in peers}
        contended = contests(of, urls, [peer for peer in peers if peer.use != "pair"], TINY, print, left_out.append)
    assert left_out == []
    assert trips == dict.fromkeys(free, 2.0)
    rows = contended[3, 0.0]
    assert 2.0 <= rows["holdfast"]["commands/acquisition"][0] < 3.0  # and some to look at connections that rested
    assert rows["holdfast"]["hand-overs/s"][0] > 0
    page = section(Found(of, of.name, peers, free, trips, contended))
    assert "| holdfast.aio |" in page
    assert "*redis-py, 0.1 s*" in page  # the peer that ratios are to
