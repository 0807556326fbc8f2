"""Sticky leases: kept after their release, taken again without the engine, handed over as soon as others want them."""

# ruff: noqa: PT012 (a block that a lock guards is more than one statement)

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from typing import Any

import pytest
from faces import Face, go, held

from holdfast import AcquireTimeout, LeaseLost, Misuse, StaleToken, Unavailable, sync
from holdfast.core import sticky
from holdfast.hooks import Event


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Face:
    monkeypatch.setattr("holdfast.testing.tasks.REAL_S", 0.0)  # here a wait of the test's own is meant to end
    return Face(request.param)


async def take(lock: Any) -> None:
    async with held(lock):
        pass


def holders(hf: Any, name: str = "x") -> int:
    """How many claims stand at the engine."""
    stands = [stand for stand in hf.engine.stands.values() if stand.turnstile.name == name]
    return sum(len(stand.places) for stand in stands)


# -- keeping


def test_taking_it_again_needs_no_engine(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        await take(lock)
        with hf.engine.unavailable():
            for _ in range(3):
                async with held(lock) as lease:
                    assert lease.state == "HELD"
                    assert lease.is_held
                    assert lease.remaining_s > 0
                    lease.ensure_held()
            await go((await go(lock.acquire())).release())
            assert await go(lock.try_acquire()) is not None
            await go(lock.release())
            with pytest.raises(Unavailable):
                await go(hf.other().lock("y", sticky=True).acquire(timeout_s=1))

    face.run(scenario)


def test_it_is_renewed_while_it_is_kept(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True, ttl_s=6)
        await take(lock)
        await go(hf.clock.advance(60))
        with hf.engine.unavailable():
            await take(lock)

    face.run(scenario)


def test_each_taking_is_a_lease_of_its_own(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        async with held(lock) as first:
            pass
        assert first.state == "RELEASED"
        assert not first.is_held
        assert first.remaining_s == 0
        with pytest.raises(LeaseLost, match="released"):
            first.ensure_held()
        async with held(lock) as second:
            await go(first.release())
            assert second.state == "HELD"
            assert await go(lock.try_acquire()) is None, "one at a time, within the process too"
        told: list[int] = []
        first.on_lost(lambda: told.append(1))
        hf.lose(await go(lock.acquire()))
        await asyncio.sleep(0.01)
        assert not told, "a taking that is over loses nothing"

    face.run(scenario)


def test_what_a_lease_may_not_do_is_misuse(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(hf.lock("x", sticky=True)) as lease:
            with pytest.raises(Misuse, match="sticky=False"):
                _ = lease.token
            with pytest.raises(Misuse, match="sticky=False"):
                await go(lease.detach())
            assert "token=" in repr(lease), "for people"
        with pytest.raises(Misuse, match="sticky is for lock"):
            hf.semaphore("x", 2, sticky=True)
        with pytest.raises(Misuse, match="sticky is for lock"):
            hf.rwlock("x", sticky=True)
        for wrong in (-1, "5", float("inf")):
            with pytest.raises(Misuse, match="batch_s"):
                hf.lock("x", sticky=True, batch_s=wrong)
        with pytest.raises(Misuse, match="sticky=True"):
            hf.lock("x", batch_s=1)

    face.run(scenario)


def test_one_that_takes_it_in_itself_is_told(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(hf.lock("x", sticky=True)):
            for options in ({"sticky": True}, {}):
                with pytest.raises(Misuse, match="wait for itself"):
                    async with held(hf.lock("x", **options)):
                        pass
        again = hf.lock("y", sticky=True, reentrant=True)
        async with held(again) as outer, held(again) as inner:
            assert inner is outer
        with hf.engine.unavailable():
            async with held(again) as outer:
                async with held(again):
                    pass
                assert outer.is_held

    face.run(scenario)


# -- handing over


def test_one_that_nobody_uses_is_handed_over_at_once(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        await take(hf.lock("x", sticky=True))
        theirs = await go(hf.other().lock("x").acquire(timeout_s=1))
        assert theirs.state == "HELD"
        await go(theirs.release())
        await take(hf.lock("x", sticky=True))

    face.run(scenario)


def test_one_that_is_used_is_handed_over_at_the_end_of_that_use(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock, other = hf.lock("x", sticky=True), hf.other()
        await take(lock)
        async with held(lock) as lease:
            assert await go(other.lock("x").try_acquire()) is None
            assert lease.wanted
            await go(hf.clock.advance(20))
            assert lease.state == "HELD"
        assert await go(other.lock("x").try_acquire()) is not None, "by the time that the block is left"

    face.run(scenario)


def test_a_refused_nowait_wants_it_as_well(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        await take(hf.lock("x", sticky=True))
        other = hf.other().lock("x")
        assert await go(other.try_acquire()) is None
        await go(hf.clock.advance(0))
        assert await go(other.try_acquire()) is not None

    face.run(scenario)


def test_a_renewal_tells_what_a_signal_did_not(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        hf.session.deliver = lambda signal: None
        lock = hf.lock("x", sticky=True)
        await take(lock)
        other = hf.other()
        async with held(lock) as lease:
            assert await go(other.lock("x").try_acquire()) is None
            assert not lease.wanted, "no signal arrives"
            await go(hf.clock.advance(6))
            assert lease.wanted
        assert holders(hf) == 0

    face.run(scenario)


def test_a_batch_goes_on_for_so_long_once_it_is_wanted_and_no_longer(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock, other = hf.lock("x", sticky=True, batch_s=2), hf.other().lock("x")
        await take(lock)
        assert await go(other.try_acquire()) is None, "wanted from here on"
        await go(hf.clock.advance(1.9))
        with hf.engine.unavailable():
            await take(lock)
        assert await go(other.try_acquire()) is None
        async with held(lock):
            await go(hf.clock.advance(1))
        assert await go(other.try_acquire()) is not None, "the end of the use that outlasted the batch"

    face.run(scenario)


def test_what_is_due_to_others_is_not_taken_again_though_it_was_not_given_back_yet(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy_elsewhere(kept: sticky.Kept, tenure: Any) -> bool:
        tenure.let_go_at = float("inf")
        return False

    monkeypatch.setattr(sticky.Kept, "let_go", busy_elsewhere)

    async def scenario(hf: Any) -> None:
        lock, other = hf.lock("x", sticky=True, batch_s=2), hf.other().lock("x")
        async with held(lock) as first:
            before = repr(first).split()[2]
        assert await go(other.try_acquire()) is None
        await go(hf.clock.advance(3))
        assert holders(hf) == 1
        async with held(lock) as second:
            assert repr(second).split()[2] != before, "it was given back, and asked for behind all others"

    face.run(scenario)


def test_a_batch_that_nobody_uses_ends_by_itself(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        await take(hf.lock("x", sticky=True, batch_s=2))
        other = hf.other().lock("x")
        assert await go(other.try_acquire()) is None
        await go(hf.clock.advance(1.9))
        assert holders(hf) == 1
        await go(hf.clock.advance(0.2))
        assert holders(hf) == 0

    face.run(scenario)


def test_a_batch_begins_with_the_holding_where_others_waited_already(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        theirs = await go(hf.other().lock("x").acquire())
        lock = hf.lock("x", sticky=True, batch_s=2)
        await go(hf.clock.advance(5))
        await go(theirs.release())
        await take(lock)
        assert await go(hf.other().lock("x").try_acquire()) is None
        await go(hf.clock.advance(1.9))
        with hf.engine.unavailable():
            await take(lock)
        await go(hf.clock.advance(0.2))
        assert holders(hf) == 0

    face.run(scenario)


def test_after_it_was_handed_over_it_is_asked_for_again(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        mine, theirs = hf.lock("x", sticky=True), hf.other().lock("x", sticky=True)
        for _ in range(3):
            async with held(mine) as lease:
                assert lease.state == "HELD"
            async with held(theirs) as lease:
                assert lease.state == "HELD"

    face.run(scenario)


def test_closing_the_client_gives_it_back(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        other = hf.other()
        await take(other.lock("x", sticky=True))
        assert holders(hf) == 1
        await go(other.close() if face.name == "sync" else other.aclose())
        assert holders(hf) == 0

    face.run(scenario)


def test_of_too_many_the_oldest_goes_back(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticky, "MOST_KEPT", 3)

    async def scenario(hf: Any) -> None:
        for name in "abcde":
            await take(hf.lock(name, sticky=True))
            await go(hf.clock.advance(0))
        assert [holders(hf, name) for name in "abcde"] == [0, 0, 1, 1, 1]

    face.run(scenario)


# -- losing


def test_a_lost_one_ends_the_taking_and_the_next_asks_anew(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True, **({"cancel_on_lost": False} if face.name == "aio" else {}))
        await take(lock)
        told = threading.Event()
        lease = None
        with pytest.raises(LeaseLost):
            async with held(lock) as lease:
                lease.on_lost(told.set)
                hf.lose(lease)
                assert lease.state == "LOST"
                await go(hf.clock.advance(0))
                assert await go(lease.wait_lost(1)) is True
        await asyncio.sleep(0.01)
        assert told.wait(10)
        assert lease is not None
        assert lease.state == "LOST"
        async with held(lock) as lease:
            assert lease.state == "HELD"

    face.run(scenario)


def test_a_kept_one_ends_like_any_lease_where_it_cannot_be_renewed(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        await take(lock)
        before = repr(await go(lock.acquire()))
        await go(lock.release())
        with hf.engine.unavailable(op="renew"):
            await go(hf.clock.advance(16))
        async with held(hf.other().lock("x")):
            with pytest.raises(AcquireTimeout):
                await go(lock.acquire(timeout_s=0.5))
        async with held(lock) as lease:
            assert repr(lease) != before, "another token"

    face.run(scenario)


def test_one_whose_end_is_near_is_renewed_before_it_is_taken_again(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True, renew=False, ttl_s=9)
        await take(lock)
        await go(hf.clock.advance(7))
        async with held(lock) as lease:
            assert lease.remaining_s > 8
        assert holders(hf) == 1

    face.run(scenario)


def test_who_gives_up_while_it_is_renewed_leaves_nothing_behind() -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True, ttl_s=9)
        await take(lock)
        with hf.engine.unavailable(op="renew"):
            await hf.clock.advance(7)
            taking = asyncio.ensure_future(lock.acquire())
            await hf.clock.advance(0)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
        assert holders(hf) == 0
        async with hf.other().lock("x", timeout_s=0):
            pass

    Face("aio").run(scenario)


def test_who_was_told_of_a_loss_in_one_taking_hears_nothing_of_the_next(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock, told = hf.lock("x", sticky=True), threading.Event()
        async with held(lock) as first:
            first.on_lost(told.set)
        second = await go(lock.acquire())
        heard = threading.Event()
        second.on_lost(heard.set)
        hf.lose(second)
        await go(hf.clock.advance(0))
        await asyncio.sleep(0.01)
        assert heard.wait(10)
        assert not told.is_set()

    face.run(scenario)


def test_max_hold_counts_each_taking(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True, max_hold_s=4, **({"cancel_on_lost": False} if face.name == "aio" else {}))
        for _ in range(4):
            async with held(lock) as lease:
                await go(hf.clock.advance(3))
                assert lease.is_held
        await go(hf.clock.advance(30))
        with hf.engine.unavailable():
            lease = await go(lock.acquire())
        await go(hf.clock.advance(5))
        assert lease.state == "LOST"

    face.run(scenario)


def test_waiting_for_a_loss_ends_with_the_taking() -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        lease = await lock.acquire()
        waiting = asyncio.ensure_future(lease.wait_lost())
        await asyncio.sleep(0)
        await lease.release()
        assert await waiting is False

    Face("aio").run(scenario)


# -- cells


def test_each_taking_opens_its_cell_anew_and_shuts_out_the_one_before(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock, cell = hf.lock("x", sticky=True), hf.cell("c")
        async with held(lock) as first:
            early = await go(cell.open(first))
            await go(early.put(b"one"))
        with pytest.raises(LeaseLost, match="released before"):
            await go(cell.open(first))
        async with held(lock) as second:
            late = await go(cell.open(second))
            assert late.value == b"one"
            with pytest.raises(StaleToken):
                await go(early.put(b"too late"))
            await go(late.put(b"two"))
        async with held(hf.other().lock("x")) as theirs:
            other = hf  # the cell is shared; the lease is not
            assert theirs.is_held
            with pytest.raises(Misuse, match="another client"):
                await go(other.cell("c").open(theirs))
        assert (await go(cell.read())).value == b"two"

    face.run(scenario)


# -- those of one process


def test_tasks_of_one_process_take_turns_in_the_order_they_came() -> None:
    async def scenario(hf: Any) -> None:
        lock, order = hf.lock("x", sticky=True), []

        async def turn(number: int) -> None:
            async with lock:
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(turn(number) for number in range(20)))
        assert order == list(range(20))
        assert holders(hf) == 1

    Face("aio").run(scenario)


def test_others_come_between_the_tasks_of_one_process() -> None:
    async def scenario(hf: Any) -> None:
        order: list[str] = []

        async def turns(client: Any, name: str) -> None:
            async def turn() -> None:
                async with client.lock("x", sticky=True):
                    order.append(name)
                    await asyncio.sleep(0.001)

            await asyncio.gather(*(turn() for _ in range(5)))

        await asyncio.gather(turns(hf, "a"), turns(hf.other(), "b"))
        assert "".join(order) in ("ab" * 5, "ba" * 5), order

    Face("aio").run(scenario)


def test_one_that_gives_up_waiting_here_holds_up_nobody() -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        first = await lock.acquire()
        timed, cancelled, patient = (asyncio.ensure_future(lock.acquire(timeout_s=s)) for s in (1, 30, 40))
        await hf.clock.advance(2)
        with pytest.raises(AcquireTimeout, match="others of this client"):
            await timed
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await first.release()
        await (await patient).release()
        assert holders(hf) == 1

    Face("aio").run(scenario)


def test_the_next_here_asks_where_the_one_who_asked_gives_up() -> None:
    async def scenario(hf: Any) -> None:
        theirs = await hf.other().lock("x").acquire()
        lock = hf.lock("x", sticky=True)
        timed, cancelled, patient = (asyncio.ensure_future(lock.acquire(timeout_s=s)) for s in (1, 30, 40))
        await hf.clock.advance(2)
        with pytest.raises(AcquireTimeout):
            await timed
        await hf.clock.advance(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await hf.clock.advance(0)
        await theirs.release()
        assert (await patient).state == "HELD"
        assert holders(hf) == 1

    Face("aio").run(scenario)


def test_a_thread_that_dies_with_it_holds_up_nobody() -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        thread = threading.Thread(target=lock.acquire)
        thread.start()
        thread.join()
        gc.collect()
        hf.clock.advance(0)
        lease = lock.try_acquire()
        assert lease is not None
        lease.release()

    with pytest.warns(ResourceWarning, match="never released"):
        Face("sync").run(scenario)


def test_one_that_is_thrown_away_while_it_waits_here_holds_up_nobody() -> None:
    """As two interrupts in a row leave it."""

    async def scenario(hf: Any) -> None:
        lock, keeper = hf.lock("x", sticky=True), hf.session.keeper
        first = lock.acquire()
        turn = sticky.Turn()
        handle = sync.StickyLease(hf.session, turn)
        assert not keeper._join(turn, lock._recipe)
        del handle
        gc.collect()
        hf.clock.advance(0)
        first.release()
        with lock as lease:
            assert lease.is_held

    Face("sync").run(scenario)


def test_a_handle_may_be_released_by_another_thread() -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        lease = lock.acquire()
        thread = threading.Thread(target=lease.release)
        thread.start()
        thread.join()
        assert lease.state == "RELEASED"
        with hf.engine.unavailable(), lock as again:
            assert again.is_held

    Face("sync").run(scenario)


# -- observed, and plain


def test_each_taking_has_a_life_of_its_own(face: Face) -> None:
    events: list[Event] = []

    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", sticky=True)
        for _ in range(2):
            await take(lock)
        async with held(lock):
            assert await go(hf.other().lock("x").try_acquire()) is None

    face.run(scenario, hooks=[events.append])
    ours = [event for event in events if event.kind not in ("renewed", "refused")]
    assert [event.kind for event in ours] == ["held", "released", "held", "released", "held", "wanted", "handed_over"]
    assert [event.life for event in ours] == sorted(event.life for event in ours)
    assert len({event.life for event in ours}) == 3
    assert len({event.token for event in ours}) == 1


def test_taking_again_is_a_plain_function() -> None:
    assert not inspect.iscoroutinefunction(sticky.Keeper.retake)
    assert not inspect.iscoroutinefunction(sticky.Kept.leave)
