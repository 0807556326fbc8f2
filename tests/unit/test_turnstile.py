"""The rule of admission, and the lemma that everything leans on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.turnstile import admitted, blockers, check_capacity, next_token
from holdfast.errors import Misuse
from holdfast.model import Turnstile

QUEUES = st.lists(st.integers(0, 5), max_size=12)
CAPACITIES = st.integers(1, 8)


@given(QUEUES, CAPACITIES)
def test_a_claim_is_admitted_when_all_ahead_and_itself_fit(weights: list[int], capacity: int) -> None:
    by_the_rule = [sum(weights[: place + 1]) <= capacity for place in range(len(weights))]
    assert admitted(weights, capacity) == sum(by_the_rule)
    assert by_the_rule == sorted(by_the_rule, reverse=True)  # the admitted are a prefix


@given(QUEUES, CAPACITIES, st.data())
def test_who_is_admitted_stays_admitted_whoever_goes(weights: list[int], capacity: int, data: st.DataObject) -> None:
    if not weights:
        return
    before = admitted(weights, capacity)
    gone = data.draw(st.integers(0, len(weights) - 1))
    after = admitted(weights[:gone] + weights[gone + 1 :], capacity)
    assert after >= before - (gone < before)


@given(QUEUES, st.integers(0, 5), CAPACITIES)
def test_a_waiter_cannot_fit_while_all_its_blockers_stand_and_needs_each_of_them(
    ahead: list[int], weight: int, capacity: int
) -> None:
    weight = min(weight, capacity)
    watched = [ahead[place] for place in blockers(ahead, weight, capacity)]
    fits = sum(ahead) + weight <= capacity
    assert (not watched) == fits
    if watched:
        assert sum(watched) + weight > capacity  # while they stay it cannot fit, whoever else goes
        assert sum(watched) - min(watched) + weight <= capacity  # and no fewer of them do


def test_a_mutex_watches_one_a_reader_the_nearest_writer_and_a_semaphore_as_many_as_it_has_permits() -> None:
    assert blockers([1, 1, 1], 1, 1) == [0]
    assert blockers([1, 1, 9, 1, 9], 1, 9) == [2]
    assert sorted(blockers([1] * 5, 1, 2)) == [0, 1]


def test_another_capacity_is_refused() -> None:
    check_capacity(Turnstile("lock", "x", 1), 1)
    with pytest.raises(Misuse, match="stands with capacity 2"):
        check_capacity(Turnstile("lock", "x", 1), 2)


def test_a_token_is_above_the_last_and_the_clock() -> None:
    assert next_token(0, 1_000.9) == 1_000
    assert next_token(2_000, 1_000) == 2_001
