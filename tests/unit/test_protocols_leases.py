"""A lease from its first renewal to its end: the renewer's rounds, losses, moves to other processes, cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import LOCK, START_S, Box, World, reply_lost, request_lost, unavailable

from holdfast import model
from holdfast.core import cell, lease
from holdfast.core.group import group_turnstile, watch
from holdfast.core.recipe import Recipe
from holdfast.core.tenure import Tenure, trusted_s
from holdfast.engines.memory import MemoryEngine
from holdfast.errors import LeaseLost, Misuse, StaleToken
from holdfast.model import Change, Claim, Turnstile
from holdfast.sync import Lease
from holdfast.worlds.threads import drive

TTL_S = 15.0
TRUSTED_S = trusted_s(TTL_S)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def held(world: World, turnstile: Turnstile = LOCK, **options: Any) -> tuple[Tenure, Lease]:
    tenure = lease.new_tenure(world.session, Recipe(turnstile, **options))
    handle = Lease(world.session, tenure)
    assert drive(lease.try_acquire(world.session, tenure))
    world.calls.clear()
    world.events.clear()
    return tenure, handle


def rounds(world: World, until_s: float) -> None:
    """A round of the renewer whenever it asks for one."""
    until = START_S + until_s
    while (at := max(world.session.renewer._next_at(), world.time + 0.001)) <= until:
        world.pass_time(at - world.time)
        drive(world.session.renewer._round())
    world.pass_time(until - world.time)


# -- renewals


def test_a_lease_is_renewed_at_a_third_of_its_length_from_when_it_was_asked_for(world: World) -> None:
    tenure, _ = held(world)
    rounds(world, 31)
    assert [round(sent.at - START_S, 1) for sent in world.calls] == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    assert {sent.op for sent in world.calls} == {"renew"}
    assert tenure.deadline == world.calls[-1].at + TRUSTED_S
    assert set(world.kinds()) == {"renewed"}


def test_many_leases_are_renewed_in_one_call(world: World) -> None:
    """Taken within a twelfth of the lease's length of each other."""
    many = []
    for number in range(50):
        world.pass_time(0.02)
        many.append(held(world, Turnstile("lock", str(number), 1)))
    rounds(world, 30)
    assert len(world.ops()) <= 6
    assert all(handle.state == "HELD" for _, handle in many)


def test_clients_that_began_together_renew_apart_and_each_renews_its_leases_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    firsts: list[float] = []
    for draw in (0.0, 0.25, 0.5, 0.75, 1.0):
        monkeypatch.setattr(World, "random", lambda self, draw=draw: draw)
        world = World()
        for number in range(20):
            held(world, Turnstile("lock", str(number), 1))
        rounds(world, 31)
        times = [sent.at - START_S for sent in world.calls]
        firsts.append(times[0])
        assert all(0.9 * 5.0 <= after - before <= 1.1 * 5.0 for before, after in itertools.pairwise([0.0, *times]))
        assert len(times) == 31 // times[0], "all twenty in one call"
        world.close()
    assert firsts == [pytest.approx(at) for at in (4.5, 4.75, 5.0, 5.25, 5.5)]


def test_one_failed_renewal_makes_a_lease_unsure_and_the_next_one_sure_again(world: World) -> None:
    _, handle = held(world)
    strict = Lease(world.session, handle._tenure, "raise")
    world.answers["renew"] = [unavailable]
    world.pass_time(5.0)
    drive(world.session.renewer._round())
    assert handle.state == "UNSURE"
    assert handle.is_held
    handle.ensure_held()
    with pytest.raises(LeaseLost, match="may be lost soon"):
        strict.ensure_held()
    rounds(world, 7)
    assert handle.state == "HELD"
    strict.ensure_held()
    assert world.kinds() == ["unsure", "renewed"]


def test_a_lease_without_an_engine_is_tried_again_and_again_and_lost_once_at_its_deadline(world: World) -> None:
    tenure, handle = held(world)
    told: list[float] = []
    handle.on_lost(lambda: told.append(world.time))
    world.down = True
    rounds(world, TRUSTED_S - 0.01)
    assert handle.state == "UNSURE"
    assert len(world.ops()) >= 7
    rounds(world, 30)
    assert handle.state == "LOST"
    assert handle.remaining_s == 0
    assert [at - START_S for at in told] == [pytest.approx(TRUSTED_S, abs=0.1)]
    assert world.kinds() == ["unsure", "lost"]
    assert isinstance(tenure.mailbox, Box)
    assert tenure.mailbox.signals.pop().kind == model.LOST
    assert world.look().claims == ()


def test_a_lease_is_lost_at_its_deadline_even_before_the_renewer_says_so(world: World) -> None:
    _, handle = held(world)
    world.pass_time(TRUSTED_S)
    assert handle.state == "LOST"
    assert not handle.is_held
    with pytest.raises(LeaseLost, match="its time ran out"):
        handle.ensure_held()


def test_no_renewal_may_take_the_time_that_the_first_lease_to_end_has_left(world: World) -> None:
    held(world, Turnstile("lock", "long", 1), ttl_s=60.0)
    tenure, _ = held(world, ttl_s=3.0)
    world.answers["renew"] = [unavailable] * 100
    rounds(world, 2.9)
    assert len(world.calls) > 3
    for sent in world.calls:
        assert 0.05 <= sent.timeout_s <= max(0.05, tenure.deadline - sent.at)


def test_the_engines_word_ends_a_lease_at_once(world: World) -> None:
    tenure, handle = held(world)
    other, _ = held(world, Turnstile("lock", "other", 1))
    world.ask(world.engine.leave(LOCK, tenure.claim.id, True))
    rounds(world, 5.5)
    assert handle.state == "LOST"
    with pytest.raises(LeaseLost, match="memory no longer knows it"):
        drive(world.session.release(tenure))
    assert not other.ended, "and no other"


def test_a_part_of_the_leases_that_could_not_be_renewed_is_unsure_and_the_rest_is_not(world: World) -> None:
    tenures = [held(world, Turnstile("lock", str(n), 1))[0] for n in range(4)]

    class Batches(MemoryEngine):
        def renew(self, items: Any) -> Any:
            for item in items:
                yield from super().renew([item])

    world.engine.__class__ = Batches
    world.answers["renew"] = [unavailable, lambda do: do(), unavailable]
    world.pass_time(5.0)
    drive(world.session.renewer._round())
    assert [tenure.unsure for tenure in tenures] == [True, False, True, False]
    assert [tenure.claim.id in world.session.tenures for tenure in tenures] == [True] * 4


def test_max_hold_ends_a_lease_that_could_be_renewed_and_gives_it_back(world: World) -> None:
    _, handle = held(world, max_hold_s=12.0)
    rounds(world, 12.5)
    assert handle.state == "LOST"
    assert not world.look().claims
    with pytest.raises(LeaseLost, match="max_hold_s=12"):
        handle.ensure_held()


def test_a_callback_for_the_loss_is_called_once_however_late_it_was_given(world: World) -> None:
    tenure, handle = held(world)
    told: list[str] = []
    handle.on_lost(lambda: told.append("early"))
    world.session.renewer.lose(tenure, "scripted")
    handle.on_lost(lambda: told.append("late"))
    world.session.renewer.lose(tenure, "again")
    assert told == ["early", "late"]


def test_waiting_for_a_loss_leaves_nothing_behind(world: World) -> None:
    tenure, _ = held(world)
    for _ in range(100):
        assert drive(lease.wait_lost(world.session, tenure, 0.01)) is False
    assert tenure.ends == []
    world.at(1.0, lambda: world.session.renewer.lose(tenure, "scripted"))
    assert drive(lease.wait_lost(world.session, tenure, None)) is True


def test_others_waiting_is_told_once(world: World) -> None:
    tenure, handle = held(world)
    drive(world.session.listen())
    for number in range(3):
        world.ask(world.engine.enter(LOCK, Claim(str(number), 1, 60.0), False))
    rounds(world, 11)
    assert handle.wanted
    assert tenure.wanted
    assert world.kinds().count("wanted") == 1


# -- lost handles, closing


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lease_whose_handle_is_collected_is_given_back_in_the_next_round(world: World) -> None:
    held(world)
    while world.session.renewer._orphans:
        world.session.renewer._collect(*world.session.renewer._orphans.popleft())
    drive(world.session.renewer._round())
    assert not world.look().claims


def test_closing_gives_up_on_an_engine_that_is_away(world: World) -> None:
    held(world)
    world.down = True
    drive(world.session.close())
    assert world.time <= START_S + 1.1


def test_a_watch_that_could_not_begin_begins_later(world: World) -> None:
    turnstile = group_turnstile(world.engine.capabilities, "g")
    members = watch(world.session, turnstile)
    listen, world.listen = world.listen, failing  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        drive(members.look())
    world.listen = listen  # type: ignore[method-assign]
    assert drive(members.look()) == []
    world.at(1.0, lambda: world.ask(world.engine.enter(turnstile, Claim("a", 0, 60.0), False)))
    assert drive(world.session.world.wait_signal(members.mailbox, world.time + 2.0))
    assert world.time < START_S + 10


async def failing(*args: Any) -> bool:
    return unavailable(lambda: None)  # type: ignore[no-any-return]


# -- to another process and back


def attached(world: World, text: str) -> Tenure:
    tenure = lease.detached(world.session, text)
    drive(lease.attach(world.session, tenure))
    return tenure


def test_a_detached_lease_is_kept_by_nobody_until_it_is_attached(world: World) -> None:
    tenure, handle = held(world)
    text = handle.detach()
    assert handle.state == "RELEASED"
    assert not world.session.tenures
    world.pass_time(10.0)
    again = attached(world, text)
    assert (again.token, again.claim.id) == (tenure.token, tenure.claim.id)
    assert again.deadline == START_S + 10 + TRUSTED_S
    rounds(world, 60)
    drive(world.session.release(again))
    assert not world.look().claims


def test_a_detached_lease_that_ended_cannot_be_attached(world: World) -> None:
    text = held(world)[1].detach()
    world.pass_time(15.0)
    with pytest.raises(LeaseLost):
        attached(world, text)
    assert not world.session.tenures


def test_what_is_lost_cannot_be_detached(world: World) -> None:
    tenure, handle = held(world)
    world.ask(world.engine.leave(LOCK, tenure.claim.id, True))
    with pytest.raises(LeaseLost, match="no longer knew it"):
        handle.detach()
    assert handle.state == "LOST"
    with pytest.raises(LeaseLost):
        handle.detach()


def test_a_lease_that_could_not_be_detached_stays_ours_with_its_signals(world: World) -> None:
    tenure, handle = held(world)
    world.answers["renew"] = [reply_lost] + [unavailable] * 50
    with pytest.raises(ConnectionError):
        handle.detach()
    assert handle.state == "HELD"
    world.answers["renew"] = []
    rounds(world, 12)
    assert world.engine.stands[LOCK.address].places[tenure.claim.id].claim.inbox == world.inbox


def test_an_attached_lease_whose_release_is_interrupted_is_given_back(world: World) -> None:
    tenure = attached(world, held(world)[1].detach())

    def interrupts(do: Any) -> Any:
        raise KeyboardInterrupt

    world.answers["leave"] = [interrupts]
    with pytest.raises(KeyboardInterrupt):
        drive(world.session.release(tenure))
    assert not world.look().claims


# -- cells


def test_an_open_that_is_sent_again_is_the_same_opening(world: World) -> None:
    tenure, _ = held(world)
    world.answers["open"] = [reply_lost, request_lost]
    opening = drive(cell.open_cell(world.session, "c", tenure))
    assert opening.version == 1
    assert drive(cell.open_cell(world.session, "c", tenure)).version == 2


def test_a_put_that_is_sent_again_lands_once(world: World) -> None:
    tenure, _ = held(world)
    opening = drive(cell.open_cell(world.session, "c", tenure))
    world.answers["put"] = [reply_lost, reply_lost, unavailable]
    assert drive(cell.put(world.session, opening, b"one", [Change("k", b"v", create=True)])) == (True,)
    assert (opening.version, opening.value) == (2, b"one")
    assert drive(cell.put(world.session, opening, b"two", [Change("k", b"w", create=True)])) == (False,)
    assert drive(cell.read_own(world.session, opening, None)).entries == {"k": b"v"}


def test_an_earlier_holder_and_an_earlier_opening_are_refused(world: World) -> None:
    first, _ = held(world)
    opening = drive(cell.open_cell(world.session, "c", first))
    reopened = drive(cell.open_cell(world.session, "c", first))
    with pytest.raises(StaleToken, match="opened again"):
        drive(cell.put(world.session, opening, b"x", []))
    drive(world.session.release(first))
    second, _ = held(world)
    drive(cell.open_cell(world.session, "c", second))
    for stale in (
        lambda: cell.put(world.session, reopened, b"x", []),
        lambda: cell.read_own(world.session, reopened, []),
    ):
        with pytest.raises(StaleToken, match=f"opened under token {second.token}; ours is {first.token}"):
            drive(stale())
    assert drive(cell.read(world.session, "c", None)).value is None


def test_a_paused_holder_is_refused_even_if_nobody_told_it(world: World) -> None:
    """It opens after the next holder did, its own clock standing still."""
    first, _ = held(world)
    world.ask(world.engine.leave(LOCK, first.claim.id, False))
    second, _ = held(world)
    drive(cell.open_cell(world.session, "c", second))
    with pytest.raises(StaleToken):
        drive(cell.open_cell(world.session, "c", first))


def test_a_cell_is_not_opened_under_a_lease_that_ended_or_is_shared(world: World) -> None:
    tenure, _ = held(world)
    drive(world.session.release(tenure))
    with pytest.raises(LeaseLost):
        drive(cell.open_cell(world.session, "c", tenure))
    shared, _ = held(world, Turnstile("semaphore", "s", 2))
    with pytest.raises(Misuse, match="exclusive"):
        drive(cell.open_cell(world.session, "c", shared))
    assert "open" not in world.ops()
