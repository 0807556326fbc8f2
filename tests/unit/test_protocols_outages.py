"""Connections that died in silence, and outages that outlast a call: what waiters, calls and puts make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted import LOCK, START_S, World, done, reply_lost, request_lost, unavailable

from holdfast.contract import Deliver
from holdfast.core import cell, lease
from holdfast.core.recipe import Recipe
from holdfast.core.waiting import Queue
from holdfast.errors import OutcomeUnknown, StaleToken, Unavailable
from holdfast.model import Change, Claim
from holdfast.worlds.threads import drive


class Faulty(World):
    """Its silent connections cost each try all the time that it has; ``deaf``: signals cannot be had, for so long."""

    def __init__(self) -> None:
        super().__init__()
        self.deaf_until = 0.0

    def silence(self, do: Any) -> Any:
        self.pass_time(self.calls[-1].timeout_s)
        raise OutcomeUnknown("scripted: silence")

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool:
        if self.time < self.deaf_until:
            self.pass_time(0.01)
            raise Unavailable("scripted: no signals")
        return await super().listen(deliver, look_again, timeout_s)


@pytest.fixture
def world() -> Iterator[Faulty]:
    made = Faulty()
    yield made
    made.close()


def opened(world: World) -> cell.Opening:
    tenure = lease.new_tenure(world.session, Recipe(LOCK))
    assert drive(lease.try_acquire(world.session, tenure))
    opening = drive(cell.open_cell(world.session, "c", tenure))
    world.calls.clear()
    return opening


# -- one dead connection


def test_a_dead_connection_costs_a_call_half_of_its_patience_and_not_the_call(world: Faulty) -> None:
    world.answers["ping"] = [world.silence, done]
    drive(world.session.ask(world.engine.ping()))
    assert START_S + 2 < world.time < START_S + 3


def test_a_dead_connection_costs_no_release(world: Faulty) -> None:
    tenure = lease.new_tenure(world.session, Recipe(LOCK))
    assert drive(lease.try_acquire(world.session, tenure))
    world.answers["leave"] = [world.silence, done]
    drive(world.session.release(tenure))
    assert not world.look().claims
    assert not world.session.renewer.graves
    assert world.time < START_S + 3


def test_a_dead_connection_costs_no_lease(world: Faulty) -> None:
    tenure = lease.new_tenure(world.session, Recipe(LOCK, ttl_s=3.0))
    assert drive(lease.try_acquire(world.session, tenure))
    world.answers["renew"] = [world.silence, done]
    world.renewer_at(1.0, 2.5)
    world.pass_time(2.9)
    assert not tenure.ended
    assert tenure.deadline > START_S + 5


# -- signals


def wait(world: World, timeout_s: float | None = None) -> Any:
    """Wait behind another, who goes after 2 seconds."""
    world.ask(world.engine.enter(LOCK, Claim("other", 1, 60.0), False))
    world.at(2.0, lambda: world.ask(world.engine.leave(LOCK, "other", False)))
    tenure = lease.new_tenure(world.session, Recipe(LOCK))
    drive(lease.acquire(world.session, tenure, Queue(), timeout_s))
    return tenure


def test_a_waiter_goes_on_asking_for_signals(world: Faulty) -> None:
    world.deaf_until = START_S + 1
    tenure = wait(world)
    assert [claim.id for claim in world.look().claims] == [tenure.claim.id]
    assert world.time < START_S + 4


def test_a_waiter_that_gets_no_signals_for_its_patience_leaves_with_one_clear_error(world: Faulty) -> None:
    world.deaf_until = START_S + 60
    world.ask(world.engine.enter(LOCK, Claim("other", 1, 60.0), False))
    with pytest.raises(Unavailable, match=r"memory did not serve signals \(tried 1\d times in 5\.0 s\): scripted"):
        drive(lease.acquire(world.session, lease.new_tenure(world.session, Recipe(LOCK)), Queue(), None))
    assert [claim.id for claim in world.look().claims] == ["other"]
    assert not world.session.renewer.graves
    assert not world.session.tenures


def test_asking_for_signals_ends_with_the_callers_time(world: Faulty) -> None:
    world.deaf_until = START_S + 60
    with pytest.raises(Unavailable, match="signals"):
        wait(world, timeout_s=0.5)
    assert world.time < START_S + 1


# -- puts whose outcome stays unknown


@pytest.mark.parametrize("landed", [True, False], ids=["landed", "lost"])
def test_a_put_that_may_have_landed_says_so_and_the_next_one_comes_after_it(world: Faulty, landed: bool) -> None:
    opening = opened(world)
    world.answers["put"] = [reply_lost if landed else request_lost, *[unavailable] * 30]
    with pytest.raises(OutcomeUnknown, match="may or may not"):
        drive(cell.put(world.session, opening, b"one", [Change("k", b"v", create=True)]))
    assert (drive(cell.read(world.session, "c", None)).value == b"one") is landed
    world.answers.clear()
    assert drive(cell.put(world.session, opening, b"two", [Change("k", b"w", create=True)])) == (False,)
    stands = drive(cell.read(world.session, "c", None))
    assert (stands.value, stands.version, stands.entries) == (b"two", 3, {"k": b"v"})
    assert (opening.value, opening.version) == (b"two", 3)


def test_a_put_that_surely_did_nothing_is_not_done_later(world: Faulty) -> None:
    opening = opened(world)
    world.down = True
    with pytest.raises(Unavailable):
        drive(cell.put(world.session, opening, b"one", [Change("k", b"v")]))
    world.down = False
    drive(cell.put(world.session, opening, b"two", []))
    assert drive(cell.read(world.session, "c", None)).entries == {}
    assert opening.version == 2


Follow = Callable[[World, cell.Opening], Any]


@pytest.mark.parametrize(
    "follow",
    [
        lambda world, opening: cell.put(world.session, opening, b"two", []),
        lambda world, opening: cell.read_own(world.session, opening, []),
    ],
    ids=["put", "read"],
)
def test_an_interrupted_put_is_no_refusal_of_what_follows(world: Faulty, follow: Follow) -> None:
    def interrupts(do: Any) -> Any:
        do()
        raise KeyboardInterrupt

    opening = opened(world)
    world.answers["put"] = [interrupts]
    with pytest.raises(KeyboardInterrupt):
        drive(cell.put(world.session, opening, b"one", []))
    drive(follow(world, opening))
    stands = drive(cell.read(world.session, "c", None))
    assert (opening.value, opening.version) == (stands.value, stands.version)


def test_a_put_of_unknown_outcome_is_refused_once_another_has_opened_the_cell(world: Faulty) -> None:
    opening = opened(world)
    world.answers["put"] = [request_lost, *[unavailable] * 30]
    with pytest.raises(OutcomeUnknown):
        drive(cell.put(world.session, opening, b"late", []))
    world.answers.clear()
    drive(world.session.release(next(iter(world.session.tenures.values()))))
    after = opened(world)
    for _ in range(2):
        with pytest.raises(StaleToken):
            drive(cell.put(world.session, opening, b"later still", []))
    drive(cell.put(world.session, after, b"right", []))
    assert drive(cell.read(world.session, "c", None)).value == b"right"
