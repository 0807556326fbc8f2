"""How each strategy waits: what it asks, when, and what it makes of signals that are late, doubled or missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted import LOCK, START_S, World, done, request_lost, says

from holdfast import model
from holdfast.core import lease
from holdfast.core.recipe import QUEUE, Recipe
from holdfast.core.tenure import Tenure, trusted_s
from holdfast.core.waiting import Adaptive, Backoff, Poll, Spin
from holdfast.errors import AcquireTimeout, Misuse, Unavailable
from holdfast.model import Claim, Signal, Standing, State
from holdfast.worlds.threads import drive

HOLDER = Claim("holder", 1, 600.0)


@pytest.fixture
def world() -> Iterator[World]:
    """Another holds the lock."""
    made = World()
    made.ask(made.engine.enter(LOCK, HOLDER, False))
    yield made
    made.close()


def new(world: World, **options: Any) -> Tenure:
    return lease.new_tenure(world.session, Recipe(LOCK, **options))


def take(world: World, tenure: Tenure, strategy: Any = QUEUE, timeout_s: float | None = None) -> None:
    drive(lease.acquire(world.session, tenure, strategy, timeout_s))


def goes(world: World, claim_id: str = HOLDER.id) -> Callable[[], object]:
    return lambda: world.ask(world.engine.leave(LOCK, claim_id, False))


def queue(world: World) -> list[str]:
    return [claim.id for claim in world.look().claims]


# -- Queue


def test_a_waiter_asks_no_more_than_to_enter_and_sleeps_until_its_signal(world: World) -> None:
    drive(world.session.listen())
    tenure = new(world)
    world.at(3.0, goes(world))
    take(world, tenure)
    assert world.ops() == ["enter"]
    assert world.time == START_S + 3
    assert world.kinds() == ["waiting", "held"]
    assert world.events[-1].elapsed_s == 3.0


def test_who_begins_to_listen_looks_again_for_what_was_said_before(world: World) -> None:
    """It is admitted between its enter and its first listening, so no signal comes."""
    tenure = new(world)

    def enter(do: Any) -> Any:
        standing = do()
        goes(world)()
        return standing

    world.answers["enter"] = [enter]
    take(world, tenure)
    assert world.ops() == ["enter", "renew"]


def test_a_signal_with_less_than_a_third_of_the_lease_left_is_checked_by_a_renewal(world: World) -> None:
    drive(world.session.listen())
    tenure = new(world)
    world.at(10.0, goes(world))
    take(world, tenure)
    assert world.ops() == ["enter", "renew"]
    assert tenure.deadline == START_S + 10 + trusted_s(15.0)


def test_the_renewer_keeps_a_waiters_place_and_tells_it_what_it_heard(world: World) -> None:
    world.hears = False  # every signal of the engine is lost
    tenure = new(world)
    world.renewer_at(5, 10, 15, 20)
    world.at(12.0, goes(world))
    take(world, tenure)
    assert world.time == START_S + 15
    assert queue(world) == [tenure.claim.id]


def test_a_place_that_was_lost_is_taken_again_at_the_end_of_the_queue(world: World) -> None:
    tenure = new(world)
    world.at(1.0, goes(world, tenure.claim.id))
    world.at(2.0, lambda: world.ask(world.engine.enter(LOCK, Claim("other", 1, 600.0), False)))
    world.renewer_at(5.0)
    world.at(6.0, goes(world))
    world.at(7.0, lambda: waits.append(queue(world)))
    world.at(8.0, goes(world, "other"))
    waits: list[list[str]] = []
    take(world, tenure)
    assert waits == [["other", tenure.claim.id]]
    assert world.time == START_S + 8


def test_a_late_signal_to_a_place_that_was_lost_admits_nobody(world: World) -> None:
    """A waiter is paused past its lease; the signal of the place that it lost is read after it has queued again."""
    tenure = new(world)
    admitted = Signal(model.ADMITTED, tenure.claim.id)
    world.at(1.0, goes(world, tenure.claim.id))
    world.renewer_at(5.0)
    world.at(5.5, lambda: world.session.deliver(admitted))
    world.at(9.0, goes(world))
    take(world, tenure)
    assert world.time == START_S + 9, "as long as the other holds it, it is not ours"


def test_a_doubled_signal_before_an_expiry_admits_nobody_after_it(world: World) -> None:
    tenure = new(world, ttl_s=3.0)
    for _ in range(2):
        world.at(4.0, lambda: tenure.mailbox.post(Signal(model.ADMITTED, tenure.claim.id)))
    world.at(4.0, lambda: world.pass_time(1.0))
    world.at(6.0, goes(world))
    take(world, tenure)
    assert world.time == START_S + 6


def test_a_claim_that_goes_between_its_signal_and_its_holders_waking_is_held_by_nobody(world: World) -> None:
    """Evicted in that moment, and the renewer hears of it first."""
    tenure = new(world)
    told: list[str] = []
    tenure.on_lost.append(lambda: told.append("lost"))

    def evicted() -> None:
        goes(world)()
        world.session.renewer.lose(tenure, "evicted")

    world.at(1.0, evicted)
    take(world, tenure)
    assert tenure.ended == "lost"
    assert told == ["lost"]
    assert tenure.claim.id not in world.session.tenures


def test_a_waiter_leaves_at_its_timeout(world: World) -> None:
    with pytest.raises(AcquireTimeout):
        take(world, new(world), timeout_s=2.0)
    assert world.time == START_S + 2
    assert world.ops() == ["enter", "renew", "leave"]
    assert queue(world) == [HOLDER.id]
    assert world.kinds() == ["waiting", "gave_up"]
    assert not world.session.tenures


def test_a_timeout_without_an_engine_leaves_the_rest_to_the_renewer(world: World) -> None:
    tenure = new(world)
    world.at(1.0, lambda: setattr(world, "down", True))
    with pytest.raises(AcquireTimeout):
        take(world, tenure, timeout_s=2.0)
    assert world.time < START_S + 2.5, "it does not wait for the engine once more"
    world.down = False
    drive(world.session.renewer._round())
    assert queue(world) == [HOLDER.id]


def test_a_waiter_outlasts_its_timeout_by_no_more_than_one_try(world: World) -> None:
    """Its place is lost, and the engine with it."""
    tenure = new(world)

    def lost() -> None:
        world.session.renewer.lose(tenure, "gone")
        world.down = True

    world.at(1.0, lost)
    with pytest.raises(Unavailable):
        take(world, tenure, timeout_s=2.0)
    assert world.time <= START_S + 2.0


def test_no_timeout_at_all_takes_what_is_free(world: World) -> None:
    goes(world)()
    take(world, new(world), timeout_s=0.0)
    assert world.time == START_S


def test_a_signal_of_another_kind_makes_a_waiter_look(world: World) -> None:
    tenure = new(world)
    world.at(1.0, lambda: tenure.mailbox.post(Signal(model.GONE, tenure.claim.id)))
    world.at(2.0, goes(world))
    take(world, tenure)
    assert world.ops() == ["enter", "renew", "renew"]
    assert queue(world) == [tenure.claim.id]


# -- the ones that ask again and again


@pytest.mark.parametrize(
    ("strategy", "pauses"),
    [
        (Spin(), [0.0] * 6),
        (Poll(0.25), [0.25] * 6),
        (Backoff(0.1, 0.5), [0.05, 0.1, 0.2, 0.25, 0.25, 0.25]),
    ],
)
def test_they_ask_after_the_pauses_that_they_promise(world: World, strategy: Any, pauses: list[float]) -> None:
    world.answers["enter"] = [says(Standing(State.BUSY))] * 6 + [done]
    goes(world)()
    take(world, new(world), strategy)
    assert world.slept == pauses
    assert world.ops() == ["enter"] * 7


def test_the_pauses_of_a_backoff_stay_within_their_bounds() -> None:
    strategy = Backoff(0.1, 0.5)
    for attempt in range(2000):
        assert strategy.pause_s(attempt, 0.0) == 0
        assert strategy.pause_s(attempt, 1.0) <= 0.5


@pytest.mark.parametrize("strategy", [Spin(), Poll(0.3), Backoff(0.3, 0.3)])
def test_they_leave_nothing_in_the_queue_and_no_later_than_their_timeout(world: World, strategy: Any) -> None:
    if isinstance(strategy, Spin):  # each of its calls takes time
        world.answers["enter"] = [lambda do: world.pass_time(0.1) or do()] * 20
    with pytest.raises(AcquireTimeout):
        take(world, new(world), strategy, timeout_s=1.0)
    assert START_S + 1 <= world.time <= START_S + 1.1
    assert queue(world) == [HOLDER.id]
    assert "leave" not in world.ops(), "who never was in the queue need not leave it"


@pytest.mark.parametrize("strategy", [Spin(), Poll(0.3), Adaptive()])
def test_a_late_copy_of_a_refused_enter_leaves_no_orphan(world: World, strategy: Any) -> None:
    """The first try is on its way for long; the engine refuses the second, and the waiter gives up."""
    tenure = new(world)
    late = world.engine.enter(LOCK, tenure.claim, True)
    slow = [lambda do: world.pass_time(0.5) or do()] * 9  # each of its calls takes time
    world.answers["enter"] = [request_lost, *slow]
    with pytest.raises(AcquireTimeout):
        take(world, tenure, strategy, timeout_s=1.0)
    goes(world)()
    assert world.ask(late).state is State.BURIED
    assert queue(world) == []


def test_a_late_copy_of_a_try_that_was_refused_leaves_no_orphan(world: World) -> None:
    tenure = new(world)
    late = world.engine.enter(LOCK, tenure.claim, True)
    world.answers["enter"] = [request_lost]
    assert not drive(lease.try_acquire(world.session, tenure))
    goes(world)()
    assert world.ask(late).state is State.BURIED
    assert queue(world) == []


def test_a_lease_that_a_late_copy_took_counts_from_the_first_try(world: World) -> None:
    """It comes between two asks, so the engine's lease began before the one that finds it."""
    tenure = new(world, ttl_s=1.0)
    late = world.engine.enter(LOCK, tenure.claim, True)
    world.answers["enter"] = [request_lost]
    world.at(0.1, goes(world))
    world.at(0.2, lambda: world.ask(late))
    take(world, tenure, Poll(0.5))
    (claim,) = world.look().claims
    assert tenure.deadline <= world.time + claim.remaining_s


# -- the one that asks a few times, and queues


def test_an_adaptive_waiter_asks_a_few_times_and_then_waits_as_one_that_queues(world: World) -> None:
    drive(world.session.listen())
    tenure = new(world)
    world.at(3.0, goes(world))
    take(world, tenure, Adaptive(most_asks=4))
    assert world.ops() == ["enter"] * 5
    assert world.slept == [0.0] * 4
    assert world.time == START_S + 3
    assert world.kinds() == ["waiting", "held"]
    assert queue(world) == [tenure.claim.id]


def test_an_adaptive_waiter_takes_what_becomes_free_while_it_asks(world: World) -> None:
    tenure = new(world)
    world.answers["enter"] = [says(Standing(State.BUSY))] * 2 + [lambda do: goes(world)() and do()]
    take(world, tenure, Adaptive(most_asks=4))
    assert world.ops() == ["enter"] * 3
    assert world.kinds() == ["held"]


def test_an_adaptive_waiter_stops_asking_when_its_time_for_it_is_over(world: World) -> None:
    world.answers["enter"] = [lambda do: world.pass_time(0.4) or do()] * 100
    world.at(5.0, goes(world))
    take(world, new(world), Adaptive(spin_s=1.0, most_asks=1000))
    assert world.ops() == ["enter"] * 4 + ["renew"], "three in a second, then it queues; what was said before is asked"


def test_an_adaptive_waiter_without_time_asks_once_and_is_never_in_the_queue(world: World) -> None:
    with pytest.raises(AcquireTimeout):
        take(world, new(world), Adaptive(), timeout_s=0.0)
    assert world.ops() == ["enter"]
    assert queue(world) == [HOLDER.id]


def test_an_adaptive_waiter_leaves_at_its_timeout(world: World) -> None:
    with pytest.raises(AcquireTimeout):
        take(world, new(world), Adaptive(), timeout_s=2.0)
    assert world.time == START_S + 2
    assert world.ops()[-1] == "leave"
    assert queue(world) == [HOLDER.id]
    assert not world.session.tenures


def test_an_adaptive_waiter_never_goes_before_one_that_queues(world: World) -> None:
    world.ask(world.engine.enter(LOCK, Claim("queued", 1, 600.0), False))
    tenure = new(world)
    world.answers["enter"] = [lambda do: goes(world)() and do()]  # the lock falls to the other while we ask
    world.at(4.0, goes(world, "queued"))
    take(world, tenure, Adaptive())
    assert world.time == START_S + 4


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Poll(0),
        lambda: Poll(-1.0),
        lambda: Backoff(0, 1),
        lambda: Backoff(2, 1),
        lambda: Adaptive(0),
        lambda: Adaptive(-1.0),
        lambda: Adaptive(float("nan")),
        lambda: Adaptive(2.0),
        lambda: Adaptive(most_asks=0),
        lambda: Adaptive(most_asks=1.5),  # type: ignore[arg-type]
    ],
)
def test_a_pause_that_is_none_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(Misuse):
        wrong()
