"""Following what stands on an engine: what is said when something is different. In fake time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from holdfast.core.chronicle import Change, Step
from holdfast.fleet import follow
from holdfast.fleet.follow import Event, Follower
from holdfast.fleet.overview import Failover, Overview, gather
from holdfast.fleet.portions import Partitions, Place
from holdfast.testing.threads import FakeClient
from holdfast.worlds.threads import drive


def follower(hf: FakeClient, prefix: str = "") -> Callable[[], list[tuple[str, str]]]:
    """Looks again at each call, and gives what is different."""
    made = Follower(hf.session, prefix)
    return lambda: [(event.kind, event.text) for event in drive(made.look())]


def test_members_that_come_and_go_are_told_once(hf: FakeClient) -> None:
    look = follower(hf)
    assert look() == []
    lease = hf.group("workers").join()
    who = hf.session.owner
    assert look() == [("joined", f"{who} joined")]
    assert look() == []
    lease.release()
    assert look() == [("left", f"{who} left")]


def test_one_that_died_is_late_first_and_then_gone(hf: FakeClient) -> None:
    look = follower(hf)
    dead = hf.other()
    lease = dead.group("workers").join()
    assert [kind for kind, _ in look()] == ["joined"]
    hf.clock.advance(6)
    assert look() == []
    dead.session.forget("it died")
    hf.clock.advance(9)
    ((kind, text),) = look()
    assert (kind, "of its lease left" in text) == ("late", True)
    hf.clock.advance(10)
    ((kind, text),) = look()
    assert (kind, text.endswith("is gone: its lease ran out")) == ("left", True)
    assert lease is not None


def test_partitions_that_move_are_told_by_owners_not_one_by_one() -> None:
    def view(*owners: str) -> Overview:
        places = tuple(Place(number, owner, "", False, None) for number, owner in enumerate(owners))
        return Overview(0.0, partitions=(Partitions("orders", len(owners), (), places, 0),))

    told = [event.text for event in follow.changes(view("a", "a", "a", "", "b"), view("b", "b", "", "a", "b"))]
    assert told == ["2 partitions from a to b", "1 partition from a without an owner", "1 partition to a"]
    assert follow.changes(view("a"), view("a")) == []


def test_a_failover_is_told_when_it_is_new() -> None:
    old, new = (
        Failover("election", "x", Change(f"{who} leads", "why", who, (Step("admitted", 1.0), Step("ready", 2.5))))
        for who in ("a", "b")
    )
    assert follow.changes(None, Overview(0.0, failovers=(old,))) == []
    told = follow.changes(Overview(0.0, failovers=(old,)), Overview(0.0, failovers=(new, old)))
    assert told == [Event(0.0, "election:x", "failover", "b leads (why), took 1.500 s")]


def test_an_outage_is_told_once_and_so_is_its_end(hf: FakeClient) -> None:
    look = follower(hf)
    lease = hf.group("workers").join()
    look()
    with hf.engine.unavailable():
        ((kind, text),) = look()
        assert (kind, "unavailable" in text) == ("out", True)
        assert look() == []
    assert [kind for kind, _ in look()] == ["back"], "and what is as it was is not told again"
    lease.release()
    assert [kind for kind, _ in look()] == ["left"]


def test_it_looks_as_soon_as_something_announces_a_change_and_at_the_interval_else(hf: FakeClient) -> None:
    made = Follower(hf.session, every_s=60)
    began = hf.clock.now()
    with hf.group("workers").join():
        drive(made.look())
        other = hf.other().group("workers").join()
        drive(made.wait())
        assert hf.clock.now() - began < 1
        assert [event.kind for event in drive(made.look())] == ["joined"]
        drive(made.wait())
        assert 60 <= hf.clock.now() - began < 62
        other.release()


def test_a_look_that_takes_long_is_followed_by_a_longer_rest(hf: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Follower(hf.session, every_s=0.1)

    async def slow(*args: Any) -> Overview:
        hf.clock.advance(2)
        return await gather(*args)

    monkeypatch.setattr("holdfast.fleet.follow.gather", slow)
    began = hf.clock.now()
    drive(made.look())
    drive(made.wait())
    assert hf.clock.now() - began >= 2 / follow.BUSY_SHARE
