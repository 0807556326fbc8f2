"""Assignments: exact shares, the fewest moves, and what is written is what is read."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from holdfast import HoldfastError
from holdfast.core.assignment import NOBODY, Assignment, Worker, share_out
from holdfast.core.chronicle import KEPT, Change, Step


def workers(*weights: int, zones: str = "") -> list[Worker]:
    zone_of = zones or " " * len(weights)
    return [Worker(f"w{n}", f"id{n}", "host:1", weight, zone_of[n].strip()) for n, weight in enumerate(weights)]


def fewest_moves(current: list[int], team: list[Worker]) -> int:
    """By trying every way to round the shares."""
    total, weight = len(current), sum(worker.weight for worker in team)
    counts = Counter(place for place in current if place != NOBODY)
    choices = [{total * w.weight // weight, -(-total * w.weight // weight)} for w in team]
    kept = [
        sum(min(counts[n], share) for n, share in enumerate(shares))
        for shares in itertools.product(*choices)
        if sum(shares) == total
    ]
    return total - max(kept)


@pytest.mark.parametrize("seed", range(300))
def test_shares_are_exact_and_moves_the_fewest_that_there_can_be(seed: int) -> None:
    chance = random.Random(seed)
    team = workers(*(chance.choice([1, 1, 1, 2, 5]) for _ in range(chance.randint(1, 6))))
    total = chance.randint(1, 60)
    current = [chance.choice([NOBODY, *range(len(team))]) for _ in range(total)]
    found = share_out(current, [""] * total, team)
    weight, counts = sum(worker.weight for worker in team), Counter(found)
    assert all(abs(counts[n] - total * worker.weight / weight) < 1 for n, worker in enumerate(team))
    assert sum(old != new for old, new in zip(current, found, strict=True)) == fewest_moves(current, team)


def test_who_comes_takes_its_share_and_nothing_else_moves() -> None:
    ten = Assignment.new(1000).renewed(workers(*[1] * 10))
    eleven = ten.renewed([*ten.workers, Worker("new", "id-new")])
    moved = eleven.moved(ten)
    assert len(moved) in (90, 91)
    assert {eleven.workers[eleven.places[partition]].name for partition in moved} == {"new"}
    assert max(Counter(eleven.places).values()) == 91


def test_who_goes_leaves_its_share_to_all_others_alike() -> None:
    ten = Assignment.new(1000).renewed(workers(*[1] * 10))
    nine = ten.renewed(ten.workers[1:])
    assert nine.moved(ten) == sorted(ten.of("id0"))
    assert max(Counter(nine.places).values()) - min(Counter(nine.places).values()) <= 1


def test_what_is_left_behind_goes_to_the_same_zone_first() -> None:
    before = Assignment.new(80).renewed(workers(1, 1, 1, 1, zones="abab"))
    after = before.renewed(before.workers[2:])
    heirs = {before.workers[before.places[p]].zone: after.workers[after.places[p]].zone for p in after.moved(before)}
    assert heirs == {"a": "a", "b": "b"}
    alone = before.renewed(before.workers[1:2])
    assert len(alone.moved(before)) == 60, "there is no other in the zone"


def test_who_may_return_keeps_its_place_and_has_it_again_under_a_new_id() -> None:
    team = workers(1, 1, 1)
    before = Assignment.new(30).renewed(team)
    its = before.of("id2")
    away = before.renewed(team[:2], ["w2"])
    assert away.moved(before) == []
    assert [worker.name for worker in away.away()] == ["w2"]
    assert away.fits(team[:2])
    back = away.renewed([*team[:2], team[2]._replace(id="id2-again")])
    assert back.moved(away) == []
    assert back.of("id2-again") == its
    gone = away.renewed(team[:2])
    assert set(gone.moved(away)) == its
    assert not gone.away()


def test_nobody_there_owns_nothing_and_the_first_to_come_everything() -> None:
    empty = Assignment.new(8)
    assert empty.renewed([]).places == (NOBODY,) * 8
    assert empty.renewed(workers(1)).of("id0") == set(range(8))
    assert empty.of("") == set()


def test_what_is_written_is_read_again() -> None:
    history = [Change(f"{n}", "why", "a:1", (Step("noticed", 1.5), Step("assigned", 2.0))) for n in range(KEPT + 5)]
    before = Assignment.new(1000).renewed(workers(3, 1, 2, zones="abc")).with_history(history)
    after = Assignment.load(before.dump())
    assert after == before
    assert len(after.history) == KEPT
    assert after.history[-1].took_s == 0.5
    assert len(before.dump()) < 8000


def test_another_layout_is_refused_in_words() -> None:
    with pytest.raises(HoldfastError, match="layout 9, and this release knows 1"):
        Assignment.load(Assignment.new(1).dump().replace(b'"layout": 1', b'"layout": 9'))
