"""What only one face has: threads on the one; tasks, cancellation and event loops on the other. In real time."""

# ruff: noqa: PT012, PT031 (a block that a lock guards is more than one statement)

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from holdfast import AcquireTimeout, LeaseLost, Misuse, aio, sync, testing
from holdfast.engines.memory import MemoryEngine
from holdfast.testing.tasks import AsyncFakeClient


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


# -- threads


def test_threads_take_turns_in_the_order_they_came(engine: MemoryEngine) -> None:
    with sync.Client(engine) as hf:
        inside, order = [0], []
        first = hf.lock("x").acquire()

        def work(number: int) -> None:
            with hf.lock("x"):
                inside[0] += 1
                assert inside[0] == 1
                order.append(number)
                inside[0] -= 1

        with ThreadPoolExecutor(8) as pool:
            jobs = []
            for number in range(8):
                jobs.append(pool.submit(work, number))
                while len(engine.stands["lock:x"].places) < number + 2:
                    time.sleep(0.001)
            first.release()
            for job in jobs:
                job.result()
        assert order == list(range(8))


def test_another_thread_may_release_the_lease_but_not_through_the_lock(engine: MemoryEngine) -> None:
    with sync.Client(engine) as hf, ThreadPoolExecutor(1) as pool:
        lock = hf.lock("x")
        lease = lock.acquire()
        with pytest.raises(Misuse, match=r"lease\.release"):
            pool.submit(lock.release).result()
        assert lease.is_held
        assert pool.submit(lock.try_acquire).result() is None
        pool.submit(lease.release).result()
        assert not engine.stands


def test_a_reentrant_lock_is_not_shared_between_threads(engine: MemoryEngine) -> None:
    with sync.Client(engine) as hf, ThreadPoolExecutor(1) as pool:
        lock = hf.lock("x", reentrant=True)
        with lock:
            assert pool.submit(lock.try_acquire).result() is None


@pytest.mark.filterwarnings("default::ResourceWarning")
def test_what_a_thread_leaves_behind_is_released(engine: MemoryEngine) -> None:
    with sync.Client(engine) as hf, pytest.warns(ResourceWarning, match="lock:x was never released"):
        thread = threading.Thread(target=lambda: hf.lock("x").acquire())
        thread.start()
        thread.join()
        del thread
        gc.collect()
        hf.lock("x").acquire(timeout_s=5)


def test_on_lost_runs_apart_from_the_renewer(engine: MemoryEngine) -> None:
    with sync.Client(engine) as hf:
        blocked, told = threading.Event(), threading.Event()
        kept = hf.lock("kept", ttl_s=0.3).acquire()
        lost = hf.lock("lost", ttl_s=0.2, renew=False).acquire()
        lost.on_lost(blocked.wait)
        lost.on_lost(told.set)
        assert told.wait(5)
        time.sleep(0.5)
        assert kept.is_held
        blocked.set()


# -- asyncio


def fake(scenario: Callable[[AsyncFakeClient], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with testing.aio_client() as hf:
            await scenario(hf)

    asyncio.run(main())


def test_another_task_may_release_the_lease_but_not_through_the_lock() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        lock = hf.lock("x")
        lease = await lock.acquire()
        with pytest.raises(Misuse, match=r"lease\.release"):
            await asyncio.create_task(lock.release())
        await asyncio.create_task(lease.release())
        assert not hf.engine.stands

    fake(scenario)


def test_the_body_is_cancelled_and_the_task_goes_on() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        with pytest.raises(LeaseLost) as caught:
            async with hf.lock("x") as lease:
                hf.lose(lease)
                await asyncio.Event().wait()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    fake(scenario)


def test_a_body_that_swallows_its_cancellation_still_learns_of_the_loss() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        with pytest.raises(LeaseLost):
            async with hf.lock("x") as lease:
                hf.lose(lease)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
        await asyncio.sleep(0)

    fake(scenario)


def test_an_outer_lease_that_is_lost_ends_both_blocks_and_gives_the_inner_back() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        inner_saw: list[type[BaseException]] = []
        with pytest.raises(LeaseLost, match="lock:outer"):
            async with hf.lock("outer") as outer:
                try:
                    async with hf.lock("inner"):
                        hf.lose(outer)
                        await asyncio.Event().wait()
                except BaseException as error:
                    inner_saw.append(type(error))
                    raise
        assert inner_saw == [asyncio.CancelledError]
        assert not hf.engine.stands

    fake(scenario)


def test_two_leases_lost_at_once_leave_as_the_outer_ones_loss() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        with pytest.raises(LeaseLost, match="lock:outer"):
            async with hf.lock("outer") as outer, hf.lock("inner") as inner:
                hf.lose(inner)
                hf.lose(outer)
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    fake(scenario)


def test_a_reentrant_lease_that_is_lost_within_leaves_as_one_loss() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        lock = hf.lock("x", reentrant=True)
        with pytest.raises(LeaseLost, match="lock:x"):
            async with lock as lease:
                for _ in range(3):
                    async with lock:
                        pass
                async with lock, lock:
                    hf.lose(lease)
                    await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    fake(scenario)


@pytest.mark.parametrize("lost_first", [True, False])
def test_a_cancellation_from_outside_stays_one_when_the_lease_is_lost_as_well(lost_first: bool) -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        entered = asyncio.Event()
        leases: list[aio.Lease] = []

        async def body() -> None:
            async with hf.lock("x") as lease:
                leases.append(lease)
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await entered.wait()
        for step in (lambda: hf.lose(leases[0]), task.cancel)[:: 1 if lost_first else -1]:
            step()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert task.cancelled()
        assert not lost_first or "was lost" in caught.value.__notes__[0]

    fake(scenario)


def test_timeouts_inside_and_outside_keep_their_meaning() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        with pytest.raises(LeaseLost):
            async with hf.lock("x") as lease, asyncio.timeout(30):
                hf.lose(lease)
                await asyncio.Event().wait()
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.01), hf.lock("y"):
                await asyncio.Event().wait()
        assert not isinstance(caught.value, AcquireTimeout)
        assert "lock:y" not in hf.engine.stands

    fake(scenario)


def test_who_asked_for_no_cancellation_gets_none() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        done = False
        with pytest.raises(LeaseLost):
            async with hf.lock("x", cancel_on_lost=False) as lease:
                hf.lose(lease)
                await asyncio.sleep(0.01)
                done = True
        assert done
        lease = await hf.lock("y").acquire()
        hf.lose(lease)
        await asyncio.sleep(0.01)
        async with hf.lock("z") as kept:
            pass
        hf.lose(kept)
        await asyncio.sleep(0.01)

    fake(scenario)


def test_a_decorated_coroutine_is_cancelled_too() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        @hf.lock("x")
        async def job() -> None:
            (claim,) = (await hf.session.ask(hf.engine.look(hf.lock("x")._recipe.turnstile))).claims
            hf.lose(leases_of(hf)[claim.id])
            await asyncio.Event().wait()

        with pytest.raises(LeaseLost):
            await job()

    fake(scenario)


def leases_of(hf: AsyncFakeClient) -> dict[str, aio.Lease]:
    handles = {id: tenure.handle for id, tenure in hf.session.tenures.items()}
    return {id: lease for id, handle in handles.items() if handle is not None and (lease := handle()) is not None}


def test_cancelling_a_waiter_leaves_nothing_and_the_others_go_on() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        held = await hf.lock("x").acquire()
        first, second = (asyncio.create_task(hf.lock("x").acquire()) for _ in range(2))
        await hf.clock.advance(20)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len(hf.engine.stands["lock:x"].places) == 2
        await held.release()
        assert (await second).is_held

    fake(scenario)


def test_on_lost_may_be_a_coroutine_function() -> None:
    async def scenario(hf: AsyncFakeClient) -> None:
        told = asyncio.Event()

        async def tell() -> None:
            told.set()

        lease = await hf.lock("x").acquire()
        lease.on_lost(tell)
        hf.lose(lease)
        await told.wait()

    fake(scenario)


def test_one_client_serves_event_loops_one_after_another_and_keeps_none(engine: MemoryEngine) -> None:
    hf = aio.Client(engine)
    loops: list[weakref.ref[Any]] = []

    async def use() -> int:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with hf.lock("x") as lease:
            return lease.token

    tokens = [asyncio.run(use()) for _ in range(4)]
    assert tokens == sorted(set(tokens))
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 1


def test_one_client_serves_two_event_loops_at_once(engine: MemoryEngine) -> None:
    hf = aio.Client(engine)
    inside, most = [0], [0]

    async def worker() -> None:
        for _ in range(20):
            async with hf.lock("x", timeout_s=30):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                await asyncio.sleep(0)
                inside[0] -= 1

    async def main() -> None:
        await asyncio.gather(*(worker() for _ in range(3)))

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(asyncio.run, main()) for _ in range(2)]:
            job.result(timeout=30)
    assert most == [1]
    assert not engine.stands
