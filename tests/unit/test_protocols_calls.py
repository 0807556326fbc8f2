"""One call after another: what `ask`, `enter`, `release` and `undo` make of each thing that can happen to a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted import LOCK, START_S, World, done, reply_lost, request_lost, unavailable

from holdfast.core import group, lease, renewer
from holdfast.core.recipe import Recipe
from holdfast.core.tenure import Tenure, trusted_s
from holdfast.errors import LeaseLost, Misuse, Unavailable
from holdfast.model import Claim, State
from holdfast.worlds.threads import drive


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def new(world: World, **options: Any) -> Tenure:
    return lease.new_tenure(world.session, Recipe(LOCK, **options))


def held(world: World, **options: Any) -> Tenure:
    tenure = new(world, **options)
    assert drive(lease.try_acquire(world.session, tenure))
    world.calls.clear()
    world.events.clear()
    return tenure


def slow(world: World, seconds: float, then: Callable[[Any], Any] = done) -> Callable[[Any], Any]:
    """The reply takes so long; the engine did it at once."""

    def answer(do: Any) -> Any:
        try:
            return then(do)
        finally:
            world.pass_time(seconds)

    return answer


# -- ask


def test_a_call_that_fails_is_sent_again_after_growing_pauses(world: World) -> None:
    world.answers["ping"] = [unavailable, request_lost, reply_lost, unavailable]
    drive(world.session.ask(world.engine.ping()))
    assert world.ops() == ["ping"] * 5
    assert world.slept == sorted(world.slept)
    assert world.slept[3] == 8 * world.slept[0]


def test_a_call_gives_up_when_its_patience_is_over_and_says_how_often_it_tried(world: World) -> None:
    world.down = True
    with pytest.raises(Unavailable, match=r"memory did not serve ping \(tried 1\d times in 5\.0 s\): scripted"):
        drive(world.session.ask(world.engine.ping()))
    assert START_S + 4 < world.time <= START_S + 5


def test_no_try_is_given_more_time_than_there_is_left(world: World) -> None:
    world.answers["ping"] = [slow(world, 2.0, unavailable), slow(world, 2.0, unavailable), done]
    drive(world.session.ask(world.engine.ping()))
    for sent in world.calls:
        assert 0.25 <= sent.timeout_s <= max(0.25, START_S + 5 - sent.at)


def test_a_call_is_tried_once_even_when_its_time_is_over_and_not_again(world: World) -> None:
    world.down = True
    with pytest.raises(Unavailable, match="tried 1 times"):
        drive(world.session.ask(world.engine.ping(), give_up_at=START_S - 1))
    assert [sent.timeout_s for sent in world.calls] == [0.25]


@pytest.mark.parametrize(
    ("answer", "unknown"), [(unavailable, False), (request_lost, True), (reply_lost, True), (done, False)]
)
def test_what_may_have_been_done_is_noted(world: World, answer: Any, unknown: bool) -> None:
    tenure = new(world)
    world.answers["enter"] = [answer]
    drive(world.session.enter(tenure, nowait=False))
    assert tenure.unknown is unknown


def test_what_the_engine_refuses_is_not_asked_again(world: World) -> None:
    world.ask(world.engine.enter(LOCK, Claim("other", 1, 15.0), False))
    tenure = world.session.new_tenure(LOCK.__class__("lock", "x", 2), 1, 15.0)
    with pytest.raises(Misuse, match="capacity 1"):
        drive(world.session.enter(tenure, nowait=False))
    assert world.ops() == ["enter"]
    assert not tenure.unknown


# -- enter


def test_an_enter_that_is_sent_again_finds_the_claim_of_the_first_try(world: World) -> None:
    tenure = new(world)
    world.answers["enter"] = [reply_lost, reply_lost]
    standing = drive(world.session.enter(tenure, nowait=False))
    assert standing.state is State.ADMITTED
    assert [claim.id for claim in world.look().claims] == [tenure.claim.id]
    assert [claim.token for claim in world.look().claims] == [tenure.token]


def test_a_deadline_counts_from_before_the_first_try_was_sent(world: World) -> None:
    tenure = new(world)
    world.answers["enter"] = [slow(world, 2.0, unavailable), slow(world, 1.0)]
    drive(world.session.enter(tenure, nowait=False))
    assert world.time > START_S + 3
    assert tenure.deadline == START_S + trusted_s(15.0) < START_S + 15


def test_a_reply_that_leaves_too_little_of_the_lease_is_renewed_first(world: World) -> None:
    tenure = new(world)
    world.answers["enter"] = [slow(world, 10.5)]
    assert drive(world.session.enter(tenure, nowait=False)).state is State.ADMITTED
    assert world.ops() == ["enter", "renew"]
    assert tenure.deadline == START_S + 10.5 + trusted_s(15.0)


def test_a_claim_that_expired_on_the_way_is_told_as_gone(world: World) -> None:
    tenure = new(world)
    world.answers["enter"] = [slow(world, 16.0)]
    assert drive(world.session.enter(tenure, nowait=False)).state is State.GONE
    assert not world.look().claims
    assert drive(lease.try_acquire(world.session, tenure))


def test_an_id_that_was_given_up_elsewhere_is_replaced(world: World) -> None:
    tenure = new(world)
    buried = tenure.claim.id
    world.ask(world.engine.leave(LOCK, buried, True))
    assert drive(world.session.enter(tenure, nowait=False)).state is State.ADMITTED
    assert tenure.claim.id != buried
    assert [*world.session.tenures] == [tenure.claim.id] == [claim.id for claim in world.look().claims]


def test_a_claim_is_known_before_its_enter_is_sent_so_that_no_signal_comes_too_early(world: World) -> None:
    tenure = new(world)
    world.answers["enter"] = [lambda do: world.session.tenures[tenure.claim.id] is tenure and do()]
    assert drive(world.session.enter(tenure, nowait=False)).state is State.ADMITTED


def test_a_client_that_is_closed_while_a_call_is_under_way_takes_nothing(world: World) -> None:
    def close(do: Any) -> Any:
        reply = do()
        drive(world.session.close())
        return reply

    world.answers["enter"] = [close]
    with pytest.raises(Misuse, match="closed"):
        drive(lease.acquire(world.session, new(world), Recipe(LOCK).strategy, None))
    assert not world.look().claims
    assert not world.session.tenures


# -- giving back: release, undo


def test_a_release_is_one_call_without_a_tombstone(world: World) -> None:
    tenure = held(world)
    drive(world.session.release(tenure))
    assert world.ops() == ["leave"]
    assert not world.engine.tombstones
    assert world.kinds() == ["released"]
    drive(world.session.release(tenure))
    assert world.ops() == []


def test_a_release_after_the_deadline_says_that_the_lease_was_lost_and_tells_who_asked(world: World) -> None:
    tenure = held(world, renew=False)
    told: list[str] = []
    tenure.on_lost.append(lambda: told.append("lost"))
    world.pass_time(trusted_s(15.0))
    for _ in range(2):
        with pytest.raises(LeaseLost, match="its time ran out"):
            drive(world.session.release(tenure))
    assert world.ops() == [], "what expires by itself needs no call"
    assert world.kinds() == ["lost"]
    assert told == ["lost"]


def test_a_release_that_finds_nothing_says_that_the_lease_was_lost_and_tells_who_asked(world: World) -> None:
    tenure = held(world)
    told: list[str] = []
    tenure.on_lost.append(lambda: told.append("lost"))
    world.ask(world.engine.leave(LOCK, tenure.claim.id, True))
    world.engine.tombstones.clear()
    with pytest.raises(LeaseLost, match="memory no longer knew it at its release"):
        drive(world.session.release(tenure))
    assert told == ["lost"]
    assert world.kinds() == ["lost"], "not as one that was released"


def test_a_release_whose_reply_was_lost_is_asked_again_and_no_loss(world: World) -> None:
    tenure = held(world)
    world.answers["leave"] = [reply_lost]
    drive(world.session.release(tenure))
    assert world.ops() == ["leave", "leave"]
    assert not world.look().claims
    assert world.kinds() == ["released"]


def test_a_release_without_an_engine_returns_and_goes_on_in_the_background(world: World) -> None:
    tenure = held(world)
    world.down = True
    drive(world.session.release(tenure))
    assert START_S + 4 < world.time <= START_S + 5.5
    assert world.look().claims
    world.down = False
    drive(world.session.renewer._round())
    assert not world.look().claims
    assert not world.session.renewer.graves


def test_what_is_given_back_in_the_background_is_forgotten_once_it_has_expired(world: World) -> None:
    tenure = held(world, ttl_s=6.0)
    world.down = True
    drive(world.session.release(tenure))
    world.ops()
    world.pass_time(6.0)
    drive(world.session.renewer._round())
    assert world.ops() == []
    assert not world.session.renewer.graves
    assert not world.look().claims


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_giving_back_in_the_background_is_done_in_bounded_rounds(world: World) -> None:
    many = [world.session.new_tenure(LOCK.__class__("lock", str(n), 1), 1, 60.0) for n in range(600)]
    for tenure in many:
        drive(lease.try_acquire(world.session, tenure))
        world.session.renewer._collect(tenure, None)
    world.ops()
    sizes = []
    while world.session.renewer.graves:
        drive(world.session.renewer._round())
        sizes.append(len(world.ops()))
    assert sum(sizes) == 600
    assert max(sizes) <= renewer.GRAVES_AT_ONCE


@pytest.mark.parametrize(("answer", "buries"), [(unavailable, False), (request_lost, True), (reply_lost, True)])
def test_only_where_an_outcome_is_unknown_a_tombstone_is_left(world: World, answer: Any, buries: bool) -> None:
    tenure = new(world)
    world.ask(world.engine.enter(LOCK, Claim("other", 1, 60.0), False))
    world.answers["enter"] = [answer]
    with pytest.raises(TimeoutError):
        drive(lease.acquire(world.session, tenure, Recipe(LOCK).strategy, 1.0))
    assert [claim.id for claim in world.look().claims] == ["other"]
    assert [key[1] for key in world.engine.tombstones] == [tenure.claim.id] * buries


def test_what_is_released_while_it_is_renewed_leaves_a_tombstone(world: World) -> None:
    """Or a node of a quorum, which the release reached before the renewal, would be asked to grant it again."""
    before, during = new(world), new(world)
    for tenure in (before, during):
        drive(lease.try_acquire(world.session, tenure))
        if tenure is before:
            drive(world.session.release(tenure))

    def released(do: Any) -> Any:
        drive(world.session.release(during))
        return do()

    world.answers["renew"] = [released]
    during.due = world.now()
    drive(world.session.renewer._round())
    assert [key[1] for key in world.engine.tombstones] == [during.claim.id]
    assert not during.buries
    assert not world.look().claims


def test_a_late_copy_of_an_enter_that_was_given_up_leaves_no_orphan(world: World) -> None:
    tenure = new(world)
    late = world.engine.enter(LOCK, tenure.claim, False)
    world.answers["enter"] = [request_lost] * 100
    with pytest.raises(Unavailable):
        drive(lease.acquire(world.session, tenure, Recipe(LOCK).strategy, None))
    assert world.ask(late).state is State.BURIED
    assert not world.look().claims


def test_what_surely_never_reached_the_engine_is_not_given_back(world: World) -> None:
    world.answers["enter"] = [unavailable] * 100
    with pytest.raises(Unavailable):
        drive(lease.acquire(world.session, new(world), Recipe(LOCK).strategy, None))
    assert "leave" not in world.ops()
    assert not world.session.renewer.graves


def test_a_join_that_fails_leaves_no_member(world: World) -> None:
    turnstile = group.group_turnstile(world.engine.capabilities, "g")
    world.answers["enter"] = [reply_lost] * 100
    with pytest.raises(Unavailable):
        drive(group.join(world.session, group.new_member(world.session, turnstile, b"", 15.0)))
    assert not world.look(turnstile).claims
    assert not world.session.tenures


def test_a_member_that_expired_on_the_way_joins_afresh(world: World) -> None:
    turnstile = group.group_turnstile(world.engine.capabilities, "g")
    tenure = group.new_member(world.session, turnstile, b"", 15.0)
    world.answers["enter"] = [slow(world, 16.0)]
    drive(group.join(world.session, tenure))
    assert [claim.id for claim in world.look(turnstile).claims] == [tenure.claim.id]


# -- interrupts, as a call meets them (all of them: test_interrupts.py)


class Interrupt(BaseException):
    pass


def interrupts(do: Any) -> Any:
    do()
    raise Interrupt


def test_an_interrupted_release_is_finished(world: World) -> None:
    tenure = held(world)
    world.answers["leave"] = [interrupts]
    with pytest.raises(Interrupt):
        drive(world.session.release(tenure))
    assert world.kinds() == ["released"]
    assert not world.look().claims
    assert not world.session.renewer.graves


def test_what_interrupts_keep_from_being_given_back_the_renewer_gives_back(world: World) -> None:
    tenure = held(world)
    world.answers["leave"] = [unavailable, interrupts, interrupts]
    with pytest.raises(Interrupt):
        drive(world.session.release(tenure))
    assert world.session.renewer.graves[tenure.claim.id].due <= world.time
    drive(world.session.renewer._round())
    assert not world.session.renewer.graves
