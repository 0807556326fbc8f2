"""The fleet's bench: its members do what they are measured by; and the storm for a minute, longer in `make storm`."""

from __future__ import annotations

import pytest

from bench.fleet import elections, page, sharing, storm
from bench.fleet.places import PLACES

pytestmark = pytest.mark.live


def test_what_is_measured_of_a_fleet_makes_a_page() -> None:
    place = PLACES["sqlite"]
    with place.serve() as (url, _):
        election = elections.measure(place, url, members=2, kills=1, resignations=1)
    with place.serve() as (url, _):
        one = sharing.measure(place, url, "owner", members=2, count=10, ttl_s=1.0)
    assert (one.start.load, one.joined.load) == (1.0, 1.0)
    assert one.killed.moved == one.killed.least == 5
    assert one.joined.moved == one.joined.least == 5
    assert [change.twice for change in one] == [0, 0, 0]
    found = page.Found({"sqlite": election}, {"sqlite": {"owner": [one]}}, {}, {})
    assert "| SQLite | partitions: one joins, moves | ≤ 1.1 × the least | 1.00 | holds |" in page.targets(found, 1.0)
    assert "SIGKILLed" in "\n".join(page.details(found))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["redis", "sqlite"])
def test_no_two_own_one_thing_at_once_in_a_minute_of_storm(name: str) -> None:
    found = storm.run(PLACES[name], minutes=1, members=6, count=30)
    assert found.faults.total() > 10
    assert found.saves > 100
    assert (found.overlaps, found.fallen_tokens, found.stale_saves) == ([], [], []), found
