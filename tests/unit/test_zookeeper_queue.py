"""Whom a waiter on ZooKeeper watches, from one listing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.turnstile import admitted

pytest.importorskip("kazoo")

from holdfast.engines.zookeeper.queue import Queue


def listed(weights: list[int], capacity: int) -> list[str]:
    return [f"1c!{capacity}!{weight}!-!id{place}!{place:010d}" for place, weight in enumerate(weights)]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(1, 8))
def test_a_waiter_cannot_fit_while_those_that_it_watches_stand_and_needs_each_of_them(
    weights: list[int], capacity: int
) -> None:
    weights = [min(weight, capacity) for weight in weights]
    names = listed(weights, capacity)
    queue = Queue(names)
    for place, weight in enumerate(weights):
        watched = [names.index(name) for name in queue.blockers(names[place])]
        if place < admitted(weights, capacity):
            assert watched == []
            continue
        assert all(one < place for one in watched)
        kept_out_by = sum(weights[one] for one in watched)
        assert kept_out_by + weight > capacity  # whoever else goes
        assert all(kept_out_by - weights[one] + weight <= capacity for one in watched)


def test_a_lock_watches_one_readers_the_writer_and_a_semaphore_as_many_as_it_has_permits() -> None:
    for weights, capacity, watched in (([1, 1, 1], 1, [1]), ([9, 1, 1, 1], 9, [0]), ([1] * 5, 2, [3, 2])):
        names = listed(weights, capacity)
        assert sorted(Queue(names).blockers(names[-1])) == sorted(names[one] for one in watched)
