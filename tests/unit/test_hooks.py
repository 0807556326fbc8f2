"""Hooks: however a lease ends, its life is told whole and once, and the ready hooks keep nothing of it."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from faces import Face, go, held
from hypothesis import given
from hypothesis import strategies as st
from lives import Observed, ended, lives, observed_run
from scripted import LOCK, World

from holdfast import AcquireTimeout, LeaseLost, Misuse, Poll, Unavailable, aio, sync
from holdfast.core import lease as leases
from holdfast.core.recipe import QUEUE, Recipe
from holdfast.engines.memory import MemoryEngine
from holdfast.hooks import ENDS, KINDS, Event
from holdfast.hooks.event import Life
from holdfast.model import Claim
from holdfast.worlds.threads import drive

CLAIM = Claim("c", 1, 15.0)


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Face:
    monkeypatch.setattr("holdfast.testing.tasks.REAL_S", 0.0)
    return Face(request.param)


# -- one life, whoever tells it


def life_of(*heard: Callable[[Event], None]) -> Callable[[str], None]:
    life = Life(heard, "memory", time.monotonic)
    return lambda kind: life.step(kind, LOCK, CLAIM, 1)


@given(st.lists(st.sampled_from(KINDS), max_size=12))
def test_told_in_any_order_it_is_one_life_that_makes_sense(kinds: list[str]) -> None:
    events: list[Event] = []
    tell = life_of(events.append)
    for kind in kinds:
        tell(kind)
    lives(events)
    is_over = any(kind in ENDS or kind in ("gave_up", "refused") for kind in kinds)
    assert is_over == (len(ended(events)) == 1 if is_over else False)


def test_threads_that_end_it_at_once_tell_one_end_and_nothing_after() -> None:
    for number in range(300):
        events: list[Event] = []
        tell = life_of(lambda _: time.sleep(0), events.append)
        steps = ["held", "wanted", "renewed", *ENDS]
        random.Random(number).shuffle(steps)
        barrier = threading.Barrier(len(steps))

        def told(kind: str, tell: Any = tell, barrier: Any = barrier) -> None:
            barrier.wait()
            tell(kind)

        threads = [threading.Thread(target=told, args=(kind,)) for kind in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (life,) = ended(events)
        assert life.startswith(("held", "gave_up"))


def test_what_a_hook_does_to_the_lease_is_told_after_what_it_hears() -> None:
    heard: list[str] = []

    def lets_go(event: Event) -> None:
        if event.kind == "held":
            tell("released")

    tell = life_of(lets_go, lambda event: heard.append(event.kind))
    tell("held")
    assert heard == ["held", "released"]


def test_a_slow_hook_of_one_thread_holds_up_no_other() -> None:
    heard: list[str] = []
    begun, goes_on = threading.Event(), threading.Event()

    def slow(event: Event) -> None:
        if event.kind == "held":
            begun.set()
            assert goes_on.wait(20)

    tell = life_of(slow, lambda event: heard.append(event.kind))
    holder = threading.Thread(target=tell, args=("held",))
    holder.start()
    assert begun.wait(20)
    tell("lost")
    assert heard == []
    goes_on.set()
    holder.join(20)
    assert heard == ["held", "lost"]


def test_a_client_that_is_closed_as_a_waiter_waits_tells_that_it_gave_up() -> None:
    world = World()
    world.ask(world.engine.enter(LOCK, Claim("holder", 1, 600.0), False))
    world.at(1.0, lambda: drive(world.session.close()))
    tenure = leases.new_tenure(world.session, Recipe(LOCK))
    with pytest.raises(Misuse, match="closed"):
        drive(leases.acquire(world.session, tenure, QUEUE, None))
    assert ended(world.events) == ["waiting gave_up"]
    world.session.hold(tenure)  # in a thread that was about to
    assert ended(world.events) == ["waiting gave_up"]
    world.close()


# -- every way in which a lease may end, on both faces

Way = Callable[[Any], Coroutine[Any, Any, None]]


async def is_released(hf: Any) -> None:
    async with held(hf.lock("x")):
        await go(hf.clock.advance(6))


async def is_handed_over(hf: Any) -> None:
    async with held(hf.lock("x")):
        with pytest.raises(AcquireTimeout):
            await go(hf.other().lock("x").acquire(timeout_s=1))
        await go(hf.clock.advance(6))


async def is_refused(hf: Any) -> None:
    async with held(hf.lock("x")):
        assert await go(hf.other().lock("x").try_acquire()) is None
        await go(hf.clock.advance(6))


async def gives_up_polling(hf: Any) -> None:
    async with held(hf.lock("x")):
        with pytest.raises(AcquireTimeout):
            await go(hf.other().lock("x", strategy=Poll(0.3)).acquire(timeout_s=1))
        await go(hf.clock.advance(6))


async def is_lost(hf: Any) -> None:
    lease = await go(hf.lock("x").acquire())
    lease.lose()
    with pytest.raises(LeaseLost):
        await go(lease.release())


async def runs_out(hf: Any) -> None:
    lease = await go(hf.lock("x", renew=False, ttl_s=3).acquire())
    await go(hf.clock.advance(4))
    assert lease.state == "LOST"


async def is_held_too_long(hf: Any) -> None:
    await go(hf.lock("x", max_hold_s=8).acquire())
    await go(hf.clock.advance(9))


async def is_gone_at_its_release(hf: Any) -> None:
    lease = await go(hf.lock("x").acquire())
    hf.engine.stands.clear()
    with pytest.raises(LeaseLost):
        await go(lease.release())


async def moves_to_another_client(hf: Any) -> None:
    lease = await go(hf.lock("x").acquire())
    text = await go(lease.detach())
    other = await go(hf.other().attach(text))
    await go(other.release())


async def is_thrown_away(hf: Any) -> None:
    lease = await go(hf.semaphore("x", 2).acquire())
    hf.session.holdings.pop("1 semaphore:x", False)
    with pytest.warns(ResourceWarning, match="never released"):  # noqa: PT031
        del lease
        gc.collect()
        await go(hf.clock.advance(0.1))


async def is_left_to_close(hf: Any) -> None:
    hf.kept = await go(hf.lock("x").acquire())


async def is_released_late(hf: Any) -> None:
    lease = await go(hf.lock("x").acquire())
    with hf.engine.unavailable(op="leave", times=3):
        await go(lease.release())
    await go(hf.clock.advance(10))


async def cannot_be_asked_for(hf: Any) -> None:
    hf.engine.unavailable(op="enter", times=1000)
    with pytest.raises(Unavailable):
        await go(hf.lock("x").acquire())
    hf.engine.available()


async def is_unsure_and_renewed(hf: Any) -> None:
    async with held(hf.lock("x")):
        hf.engine.unavailable(op="renew", times=2)
        await go(hf.clock.advance(9))


WAYS: list[tuple[Way, list[str]]] = [
    (is_released, ["held renewed released"]),
    (is_handed_over, ["held renewed wanted handed_over", "waiting gave_up"]),
    (is_refused, ["held renewed wanted handed_over", "refused"]),
    (gives_up_polling, ["held renewed wanted handed_over", "waiting gave_up"]),
    (is_lost, ["held lost"]),
    (runs_out, ["held lost"]),
    (is_held_too_long, ["held renewed lost"]),
    (is_gone_at_its_release, ["held lost"]),
    (moves_to_another_client, ["held detached", "held released"]),
    (is_thrown_away, ["held released"]),
    (is_left_to_close, ["held released"]),
    (is_released_late, ["held released"]),
    (cannot_be_asked_for, ["gave_up"]),
    (is_unsure_and_renewed, ["held unsure renewed released"]),
]


@pytest.mark.parametrize(("way", "told"), WAYS, ids=[way.__name__ for way, _ in WAYS])
def test_a_lease_that_ends_so_is_told_once_and_leaves_nothing_in_any_hook(
    face: Face, way: Way, told: list[str]
) -> None:
    observed = observed_run(face, way)
    assert ended(observed.events) == told


def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing() -> None:
    async def scenario(hf: Any) -> None:
        async with hf.lock("x"):
            task = asyncio.create_task(hf.other().lock("x").acquire())
            await hf.clock.advance(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await hf.clock.advance(6)

    observed = observed_run(Face("aio"), scenario)
    assert ended(observed.events) == ["held renewed wanted handed_over", "waiting gave_up"]


def test_what_an_event_loop_held_that_is_gone_is_told_as_lost_by_the_next() -> None:
    observed = Observed()
    hf = aio.Client(MemoryEngine(), hooks=observed.hooks)
    kept: list[Any] = []

    async def take(name: str) -> None:
        kept.append(await hf.lock(name).acquire())

    async def take_and_close() -> None:
        await take("y")
        await hf.aclose()

    asyncio.run(take("x"))
    assert lives(observed.events) == ["held"]
    asyncio.run(take_and_close())
    assert ended(observed.events) == ["held lost", "held released"]
    observed.assert_nothing_is_left()


def test_members_readers_permits_and_partitions_leave_nothing(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(await go(hf.group("g").join())), held(hf.semaphore("s", 3, 2)), held(hf.rwlock("r").read()):
            first = await go(hf.partitions("p", 8).join())
            await go(hf.clock.advance(1))
            second = await go(hf.other().partitions("p", 8).join())
            await go(hf.clock.advance(1))
            await go(first.leave())
            await go(hf.clock.advance(1))
            assert len(second.owned) == 8
            await go(second.leave())

    observed = observed_run(face, scenario)
    told = {event.turnstile.kind for event in observed.events}
    assert told == {"group", "semaphore", "rwlock", "partitions", "partition", "assign"}


def test_threads_that_fight_for_one_lock_leave_nothing() -> None:
    observed = Observed()
    engine = MemoryEngine()

    def work(number: int) -> None:
        chance = random.Random(number)
        with sync.Client(engine, hooks=observed.hooks) as hf:
            for _ in range(20):
                way = chance.random()
                if way < 0.2:
                    if hf.lock("x").try_acquire():
                        hf.lock("x").release()
                elif way < 0.4:
                    lease = hf.lock("x").acquire()
                    drive(hf.session.ask(engine.leave(LOCK, lease._tenure.claim.id, True)))
                    hf.session.renewer.lose(lease._tenure, "the test took it away")
                else:
                    try:
                        with hf.lock("x", timeout_s=chance.choice([0.002, 5.0])):
                            time.sleep(0)
                    except (AcquireTimeout, LeaseLost):
                        pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    observed.assert_nothing_is_left()
    assert len(ended(observed.events)) == 120
