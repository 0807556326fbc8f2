"""The queue of threads in front of a bounded number of connections."""

from __future__ import annotations

import threading
from collections import deque

import pytest
from servers import eventually

from holdfast.engines.room import Busy, Room


class Pool:
    """Two connections at most; each is a number."""

    def __init__(self) -> None:
        self.idle: deque[int] = deque()
        self.wires: set[int] = set()
        self.room = Room(2, self.idle, self.wires, "nowhere")

    def dial(self, wire: int) -> None:
        assert self.room.wait(1.0) is None
        self.wires.add(wire)
        self.room.dialled()

    def give(self, wire: int) -> None:
        self.idle.append(wire)
        self.room.serve()


@pytest.fixture
def pool() -> Pool:
    """With both in use."""
    pool = Pool()
    pool.dial(1)
    pool.dial(2)
    return pool


def queued(pool: Pool, served: list[object], name: str) -> threading.Thread:
    """Someone who waits behind those who do already."""
    before = len(pool.room.queue)
    thread = threading.Thread(target=lambda: served.append((name, pool.room.wait(20))))
    thread.start()
    eventually(lambda: len(pool.room.queue) == before + 1)
    return thread


def test_connections_are_handed_on_in_the_order_of_asking(pool: Pool) -> None:
    served: list[object] = []
    threads = [queued(pool, served, name) for name in "abc"]
    for number, wire in enumerate((2, 1, 2)):
        pool.give(wire)
        threads[number].join(20)
    assert served == [("a", 2), ("b", 1), ("c", 2)]


def test_a_connection_that_ended_makes_room_for_another(pool: Pool) -> None:
    served: list[object] = []
    thread = queued(pool, served, "a")
    pool.wires.discard(1)
    pool.room.serve()
    thread.join(20)
    assert served == [("a", None)]


def test_a_connection_that_was_not_made_leaves_its_room_to_the_next() -> None:
    pool, served = Pool(), list[object]()
    pool.dial(1)
    assert pool.room.wait(1.0) is None  # and it fails
    thread = queued(pool, served, "a")
    pool.room.dialled()
    thread.join(20)
    assert served == [("a", None)]


def test_who_waits_too_long_is_told_and_leaves_the_queue(pool: Pool) -> None:
    with pytest.raises(Busy, match="all 2 connections of this process to nowhere were busy"):
        pool.room.wait(0.01)
    assert not pool.room.queue
    pool.give(1)
    assert pool.room.wait(1.0) == 1
