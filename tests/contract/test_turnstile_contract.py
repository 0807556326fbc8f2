"""The turnstile's contract, on every engine and both kinds of link."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from servers import eventually

from holdfast.errors import Misuse
from holdfast.model import ADMITTED, CHANGED, UNBOUNDED, WANTED, Signal, Standing, State, Turnstile

from .conftest import Seat

MUTEX = Turnstile("lock", "m", 1)
THREE = Turnstile("semaphore", "s", 3)
RW = Turnstile("rwlock", "rw", UNBOUNDED)
GROUP = Turnstile("group", "g", UNBOUNDED, announces=True)


# -- the rule


@pytest.mark.queue
def test_a_mutex_admits_one_and_then_the_next_in_order(seat: Seat) -> None:
    assert seat.enter(MUTEX, "a").state is State.ADMITTED
    assert seat.enter(MUTEX, "b").state is State.WAITING
    assert seat.enter(MUTEX, "c").state is State.WAITING
    assert seat.leave(MUTEX, "a")
    assert (seat.admitted(MUTEX), seat.waiting(MUTEX)) == (["b"], ["c"])


@pytest.mark.queue
def test_tokens_rise_in_admission_order_and_after_the_turnstile_emptied(seat: Seat) -> None:
    tokens = [seat.enter(MUTEX, id).token for id in "abc"]
    for id in "abc":
        seat.leave(MUTEX, id)
    assert seat.look(MUTEX).claims == ()
    tokens += [seat.enter(MUTEX, "d").token]
    assert tokens == sorted(set(tokens))
    assert all(0 < token < 2**53 for token in tokens)


@pytest.mark.queue
def test_a_semaphore_admits_what_fits_and_nobody_overtakes_a_heavy_one(seat: Seat) -> None:
    assert seat.enter(THREE, seat.claim("a", 2)).state is State.ADMITTED
    assert seat.enter(THREE, seat.claim("b", 2)).state is State.WAITING
    assert seat.enter(THREE, seat.claim("c", 1)).state is State.WAITING  # would fit, but b came first
    seat.leave(THREE, "a")
    assert seat.admitted(THREE) == ["b", "c"]


@pytest.mark.queue
def test_readers_share_and_a_writer_is_starved_by_no_later_reader(seat: Seat) -> None:
    assert seat.enter(RW, "r1").state is State.ADMITTED
    assert seat.enter(RW, "r2").state is State.ADMITTED
    assert seat.enter(RW, seat.claim("w", UNBOUNDED)).state is State.WAITING
    assert seat.enter(RW, "r3").state is State.WAITING
    seat.leave(RW, "r1")
    assert seat.admitted(RW) == ["r2"]
    seat.leave(RW, "r2")
    assert seat.admitted(RW) == ["w"]
    seat.leave(RW, "w")
    assert seat.admitted(RW) == ["r3"]


@pytest.mark.queue
def test_weightless_claims_are_all_in(seat: Seat) -> None:
    for id in "abcde":
        assert seat.enter(GROUP, seat.claim(id, 0)).state is State.ADMITTED
    assert seat.admitted(GROUP) == list("abcde")


@pytest.mark.queue
def test_a_waiter_that_goes_lets_those_behind_it_in(seat: Seat) -> None:
    seat.enter(THREE, seat.claim("a", 2))
    seat.enter(THREE, seat.claim("b", 2))
    seat.enter(THREE, seat.claim("c", 1))
    assert seat.leave(THREE, "b")
    assert seat.admitted(THREE) == ["a", "c"]


@pytest.mark.queue
def test_another_capacity_is_misuse_while_somebody_is_there(seat: Seat) -> None:
    seat.enter(THREE, "a")
    with pytest.raises(Misuse, match="capacity 3"):
        seat.enter(Turnstile("semaphore", "s", 4), "b")
    seat.leave(THREE, "a")
    assert seat.enter(Turnstile("semaphore", "s", 4), "b").state is State.ADMITTED


# -- nowait


def test_a_refused_nowait_leaves_nothing_behind(seat: Seat) -> None:
    seat.enter(MUTEX, "a")
    assert seat.enter(MUTEX, "b", nowait=True).state is State.BUSY
    assert [claim.id for claim in seat.look(MUTEX).claims] == ["a"]
    seat.leave(MUTEX, "a")
    assert seat.enter(MUTEX, "b", nowait=True).state is State.ADMITTED


def test_waiting_and_a_refused_nowait_raise_wanted_as_a_level(seats: Callable[..., Seat]) -> None:
    for nowait in (True, False):
        name = Turnstile("lock", f"wanted {nowait}", 1)
        holder, other = seats(), seats()
        holder.listen()
        holder.enter(name, f"a{nowait}")
        assert not holder.renew(name, f"a{nowait}").wanted
        other.enter(name, f"b{nowait}", nowait=nowait)
        holder.hears(WANTED, f"a{nowait}")
        assert holder.renew(name, f"a{nowait}").wanted
        assert holder.renew(name, f"a{nowait}").wanted


def test_a_holder_that_was_renewed_is_told_at_once_of_who_comes_later(seats: Callable[..., Seat]) -> None:
    holder, other = seats(), seats()
    holder.listen()
    for nowait in (True, False):
        holder.enter(MUTEX, f"a{nowait}")
        holder.renew(MUTEX, f"a{nowait}")
        other.leave(MUTEX, "stranger")  # a change that concerns nobody
        for _ in range(2):
            assert [claim.id for claim in holder.look(MUTEX).claims] == [f"a{nowait}"]
        assert Signal(WANTED, f"a{nowait}") not in holder.signals
        other.enter(MUTEX, f"b{nowait}", nowait=nowait)
        holder.hears(WANTED, f"a{nowait}")
        other.leave(MUTEX, f"b{nowait}")
        holder.leave(MUTEX, f"a{nowait}")


def test_who_is_admitted_by_a_reply_sees_there_whether_others_wait(seats: Callable[..., Seat]) -> None:
    holder, heir, last = seats(), seats(), seats()
    holder.enter(MUTEX, "a")
    heir.enter(MUTEX, "b")
    last.enter(MUTEX, "c")
    holder.leave(MUTEX, "a")
    answers: list[Standing] = []
    eventually(lambda: answers.append(heir.enter(MUTEX, "b")) or answers[-1].state is State.ADMITTED)
    assert answers[-1].wanted
    assert heir.renew(MUTEX, "b").wanted
    last.leave(MUTEX, "c")
    heir.leave(MUTEX, "b")
    assert last.enter(MUTEX, "d")[::2] == (State.ADMITTED, False)
    assert not last.renew(MUTEX, "d").wanted


@pytest.mark.queue
def test_who_is_admitted_while_others_wait_knows_at_once_that_it_is_wanted(seats: Callable[..., Seat]) -> None:
    holder, heir, last = seats(), seats(), seats()
    heir.listen()
    holder.enter(MUTEX, "a")
    heir.enter(MUTEX, "b")
    last.enter(MUTEX, "c")
    holder.leave(MUTEX, "a")
    assert heir.is_admitted_and_knows_that_it_is_wanted(MUTEX, "b")
    assert heir.enter(MUTEX, "b").wanted
    assert heir.renew(MUTEX, "b").wanted


@pytest.mark.own_ttl
@pytest.mark.queue
def test_who_takes_over_from_the_dead_while_others_wait_is_wanted_too(seats: Callable[..., Seat]) -> None:
    holder, heir, last = seats(), seats(), seats()
    heir.listen()
    holder.enter(MUTEX, holder.claim("a", ttl_s=1.0))
    heir.enter(MUTEX, "b")
    last.enter(MUTEX, "c")
    eventually(lambda: last.state(MUTEX, "c") is State.WAITING and last.admitted(MUTEX) == ["b"])
    assert heir.is_admitted_and_knows_that_it_is_wanted(MUTEX, "b")


@pytest.mark.queue
def test_who_waited_and_went_makes_nobody_wanted_who_is_admitted_later(seats: Callable[..., Seat]) -> None:
    holder, heir, last = seats(), seats(), seats()
    heir.listen()
    holder.enter(MUTEX, "a")
    heir.enter(MUTEX, "b")
    last.enter(MUTEX, "c")
    last.leave(MUTEX, "c")  # it waited long enough
    holder.leave(MUTEX, "a")
    heir.hears(ADMITTED, "b")
    assert not heir.renew(MUTEX, "b").wanted
    heir.leave(MUTEX, "b")
    assert not heir.enter(MUTEX, "d").wanted
    assert not heir.renew(MUTEX, "d").wanted
    assert WANTED not in [signal.kind for signal in heir.signals]


@pytest.mark.queue
def test_all_who_are_admitted_together_are_wanted_if_anyone_still_waits(seats: Callable[..., Seat]) -> None:
    holder, heirs, last = seats(), seats(), seats()
    heirs.listen()
    holder.enter(THREE, holder.claim("a", 3))
    for id in "bc":
        heirs.enter(THREE, id)
    last.enter(THREE, last.claim("d", 3))
    holder.leave(THREE, "a")
    for id in "bc":
        assert heirs.is_admitted_and_knows_that_it_is_wanted(THREE, id)


# -- idempotence, tombstones


@pytest.mark.queue
def test_entering_again_answers_as_it_stands(seat: Seat) -> None:
    first = seat.enter(MUTEX, "a")
    assert seat.enter(MUTEX, "a")[:2] == first[:2]
    waiting = seat.enter(MUTEX, "b")
    assert seat.enter(MUTEX, "b")[:2] == waiting[:2]
    seat.leave(MUTEX, "a")
    assert seat.enter(MUTEX, "b")[:2] == (State.ADMITTED, waiting.token)
    assert len(seat.look(MUTEX).claims) == 1


def test_a_leave_that_buries_answers_the_same_again(seat: Seat) -> None:
    seat.enter(MUTEX, "a")
    assert seat.leave(MUTEX, "a", bury=True)
    assert seat.leave(MUTEX, "a", bury=True)
    assert seat.leave(MUTEX, "a")


def test_an_enter_that_arrives_after_its_leave_leaves_no_orphan(seat: Seat) -> None:
    assert not seat.leave(MUTEX, "late")  # cancelled before its enter arrived
    assert seat.enter(MUTEX, "late").state is State.BURIED
    seat.enter(MUTEX, "a")
    seat.leave(MUTEX, "a", bury=True)
    assert seat.enter(MUTEX, "a").state is State.BURIED  # a late duplicate
    assert seat.enter(MUTEX, "a", nowait=True).state is State.BURIED
    assert seat.look(MUTEX).claims == ()


def test_a_leave_of_what_is_not_there_disturbs_nobody(seat: Seat) -> None:
    seat.enter(MUTEX, "a")
    seat.enter(MUTEX, "b")
    assert not seat.leave(MUTEX, "stranger")
    assert (seat.admitted(MUTEX), seat.waiting(MUTEX)) == (["a"], ["b"])


def test_a_quiet_leave_leaves_no_tombstone(seat: Seat) -> None:
    seat.enter(MUTEX, "a")
    seat.leave(MUTEX, "a")
    assert seat.enter(MUTEX, "a").state is State.ADMITTED


@pytest.mark.queue
def test_who_entered_twice_and_left_quietly_may_come_again(seat: Seat) -> None:
    for _ in range(2):
        seat.enter(THREE, "a")
    seat.leave(THREE, "a")
    seat.enter(THREE, "b")
    assert seat.enter(THREE, "a").state is State.ADMITTED


@pytest.mark.queue
def test_any_number_of_weightless_claims_fits_beside_the_others(seat: Seat) -> None:
    for number in range(6):
        assert seat.enter(THREE, seat.claim(f"n{number}", 0)).state is State.ADMITTED
    assert seat.enter(THREE, seat.claim("heavy", 3)).state is State.ADMITTED
    assert seat.enter(THREE, seat.claim("late", 1)).state is State.WAITING


# -- leases


@pytest.mark.own_ttl
def test_an_expired_holder_makes_way_and_is_told(seat: Seat) -> None:
    short = seat.claim("short", ttl_s=0.15)
    seat.enter(MUTEX, short)
    seat.enter(MUTEX, "b")
    eventually(lambda: seat.state(MUTEX, "b") is State.ADMITTED)
    assert seat.state(MUTEX, short) is State.GONE
    assert not seat.leave(MUTEX, short)


@pytest.mark.own_ttl
@pytest.mark.queue
def test_a_waiter_that_died_is_passed_over(seat: Seat) -> None:
    seat.enter(MUTEX, "a")
    seat.enter(MUTEX, seat.claim("dead", ttl_s=0.1))
    seat.enter(MUTEX, "c")
    eventually(lambda: seat.waiting(MUTEX) == ["c"])
    seat.leave(MUTEX, "a")
    assert seat.admitted(MUTEX) == ["c"]


@pytest.mark.own_ttl
def test_renewing_extends_holders_and_waiters(seat: Seat) -> None:
    holder, waiter = seat.claim("h", ttl_s=0.6), seat.claim("w", ttl_s=0.6)
    seat.enter(MUTEX, holder)
    seat.enter(MUTEX, waiter)
    entered = {claim.id: claim.remaining_s for claim in seat.look(MUTEX).claims}
    eventually(lambda: all(claim.remaining_s < 0.4 for claim in seat.look(MUTEX).claims))
    assert (seat.state(MUTEX, holder), seat.state(MUTEX, waiter)) == (State.ADMITTED, State.WAITING)
    assert all(claim.remaining_s > 0.4 for claim in seat.look(MUTEX).claims)
    assert set(entered) == {"h", "w"}


def test_renewing_never_creates(seat: Seat) -> None:
    assert seat.state(MUTEX, "ghost") is State.GONE
    assert seat.look(MUTEX).claims == ()


def test_many_are_renewed_in_bounded_batches(seat: Seat) -> None:
    items = [(Turnstile("lock", f"n{number}", 1), seat.claim(f"c{number}")) for number in range(300)]
    for turnstile, claim in items[::2]:
        seat.enter(turnstile, claim)
    requests = list(seat.engine.renew(items))
    heard = {}
    for reply in seat.call_many(requests):
        assert isinstance(reply, dict), reply
        heard.update(reply)
    expected = {f"c{n}": State.GONE if n % 2 else State.ADMITTED for n in range(300)}
    assert {id: standing.state for id, standing in heard.items()} == expected


@pytest.mark.own_ttl
def test_the_head_of_the_queue_is_told_when_to_look(seat: Seat) -> None:
    seat.enter(MUTEX, seat.claim("a", ttl_s=5.0))
    assert 0 < seat.enter(MUTEX, "b").look_in_s <= 5.0


@pytest.mark.own_ttl
@pytest.mark.queue
def test_others_are_told_to_look_when_the_one_just_ahead_would_be_gone(seat: Seat) -> None:
    for id, ttl_s in (("a", 30.0), ("b", 5.0), ("c", 20.0)):
        seat.enter(MUTEX, seat.claim(id, ttl_s=ttl_s))
    assert 0 < seat.renew(MUTEX, "c").look_in_s <= 5.0
    assert 5.0 < seat.enter(MUTEX, "d").look_in_s <= 30.0
    seat.leave(MUTEX, "a")
    assert 0 < seat.renew(MUTEX, seat.claim("c", ttl_s=20.0)).look_in_s <= 5.0


# -- signals


@pytest.mark.queue
def test_exactly_the_admitted_are_signalled(seats: Callable[..., Seat]) -> None:
    a, b, c = seats(), seats(), seats()
    for one in (a, b, c):
        assert one.listen()
        assert not one.listen()
    a.enter(THREE, a.claim("a", 3))
    b.enter(THREE, b.claim("b", 1))
    c.enter(THREE, c.claim("c", 3))
    a.leave(THREE, "a")
    b.hears(ADMITTED, "b")
    b.leave(THREE, "b")
    c.hears(ADMITTED, "c")
    assert [signal.kind for signal in a.signals + b.signals].count(ADMITTED) == 1


@pytest.mark.queue
def test_room_that_one_ahead_takes_is_not_promised_to_the_next_as_well(seats: Callable[..., Seat]) -> None:
    holders, waiters = seats(), seats()
    waiters.listen()
    for id, weight in (("a", 1), ("b", 2)):
        assert holders.enter(THREE, holders.claim(id, weight)).state is State.ADMITTED
    for id, weight in (("c", 1), ("d", 2)):
        assert waiters.enter(THREE, waiters.claim(id, weight)).state is State.WAITING
    holders.enter(MUTEX, "e")
    waiters.enter(MUTEX, "f")
    holders.leave(THREE, "b")
    waiters.hears(ADMITTED, "c")
    holders.leave(MUTEX, "e")
    waiters.hears(ADMITTED, "f")  # and with it all that was said before
    assert Signal(ADMITTED, "d") not in waiters.signals
    holders.leave(THREE, "a")
    waiters.hears(ADMITTED, "d")


@pytest.mark.own_ttl
def test_a_lease_that_changed_hands_is_signalled_at_its_new_inbox(seats: Callable[..., Seat]) -> None:
    first, second = seats(), seats()
    first.listen()
    second.listen()
    claim = first.claim("a")
    first.enter(MUTEX, claim)
    assert second.state(MUTEX, claim._replace(inbox=second.link.inbox)) is State.ADMITTED
    first.enter(MUTEX, "b")
    second.hears(WANTED, "a")


@pytest.mark.queue
def test_changes_are_announced_to_watchers_only(seats: Callable[..., Seat]) -> None:
    member, watcher, other = seats(), seats(), seats()
    for one in (watcher, other):
        one.listen()
    watcher.watch(GROUP)
    member.enter(GROUP, member.claim("a", 0))
    watcher.hears(CHANGED, GROUP.address)
    watcher.signals.clear()
    member.leave(GROUP, "a")
    watcher.hears(CHANGED, GROUP.address)
    watcher.unwatch(GROUP)
    watcher.signals.clear()
    member.enter(GROUP, member.claim("b", 0))
    member.enter(MUTEX, "m")  # announces nothing
    assert member.admitted(GROUP) == ["b"]
    assert not [signal for signal in watcher.signals + other.signals if signal.kind == CHANGED]


# -- looking


@pytest.mark.queue
def test_a_look_shows_who_and_since_when(seat: Seat) -> None:
    entered = seat.enter(THREE, seat.claim("a", 2, ttl_s=9.0, owner="host:1", payload=b"\x00pay"))
    seat.enter(THREE, seat.claim("b", 2))
    stand = seat.look(THREE)
    assert (stand.kind, stand.name, stand.capacity) == ("semaphore", "s", 3)
    a, b = stand.claims
    assert (a.id, a.token, a.weight, a.admitted, a.owner, a.payload) == (
        "a", entered.token, 2, True, "host:1", b"\x00pay",
    )  # fmt: skip
    assert 0 <= a.age_s < 5
    assert 0 < a.remaining_s <= 9.0
    assert (b.id, b.admitted) == ("b", False)
    assert seat.look(MUTEX).claims == ()


@pytest.mark.queue
def test_listing_gives_what_stands_sorted(seat: Seat) -> None:
    for name in ("b", "a", "c"):
        seat.enter(Turnstile("lock", name, 1), f"claim {name}")
    seat.enter(THREE, "x")
    assert [one.address for one in seat.list("lock:")] == ["lock:a", "lock:b", "lock:c"]
    assert [(one.address, one.capacity) for one in seat.list("sem")] == [("semaphore:s", 3)]
    seat.leave(Turnstile("lock", "b", 1), "claim b")
    assert [one.address for one in seat.list("lock:")] == ["lock:a", "lock:c"]


def test_kinds_and_namespaces_are_apart(seats: Callable[..., Seat]) -> None:
    here, there = seats("one"), seats("two")
    assert here.enter(Turnstile("lock", "x", 1), "a").state is State.ADMITTED
    assert here.enter(Turnstile("semaphore", "x", 1), "b").state is State.ADMITTED
    assert there.enter(Turnstile("lock", "x", 1), "c").state is State.ADMITTED
    assert len(here.list()) == 2
    assert len(there.list()) == 1


@pytest.mark.parametrize(
    "name", [" ", "a b", "{}", "%7B", "a:b", "x}y{z", "*?[a]", "\x00\n\r", "日本語 🜲", "n" * 512, "'; DROP--", "\\"]
)
def test_any_text_is_a_name(seat: Seat, name: str) -> None:
    turnstile = Turnstile("lock", name, 1)
    assert seat.enter(turnstile, "a").state is State.ADMITTED
    assert seat.enter(Turnstile("lock", name + "!", 1), "b").state is State.ADMITTED
    assert name in [one.name for one in seat.list("lock:")]
    assert seat.look(turnstile).name == name
    assert seat.leave(turnstile, "a")
