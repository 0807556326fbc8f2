"""One asyncio client on several event loops: at once in threads, and one after another."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from onlooker import Onlooker
from servers import eventually

import holdfast
from holdfast import LeaseLost, aio

pytestmark = pytest.mark.live

unclosed = pytest.mark.filterwarnings("ignore::ResourceWarning")
"""Of what a loop leaves behind that ends without aclose()."""


@pytest.fixture
def hf(url: str) -> Iterator[aio.Client]:
    client = aio.connect(url)
    yield client
    client._live.clear()
    gc.collect()  # here, where such warnings are left alone


async def count(hf: aio.Client, times: int) -> list[int]:
    """Count up a cell under its lock; what was seen there."""
    seen: list[int] = []
    for _ in range(times):
        async with hf.lock("x", timeout_s=30) as lease:
            opened = await hf.cell("count").open(lease)
            seen.append(int(opened.value or 0))
            await asyncio.sleep(0.001)
            await opened.put(str(seen[-1] + 1).encode())
    return seen


def test_tasks_of_two_loops_take_turns(hf: aio.Client) -> None:
    both_done = threading.Barrier(2)

    async def main() -> list[int]:
        seen = await asyncio.gather(*(count(hf, 5) for _ in range(4)))
        await asyncio.to_thread(both_done.wait, 40)
        await hf.aclose()  # this loop's part
        return [number for one in seen for number in one]

    with ThreadPoolExecutor(2) as pool:
        seen = [*pool.map(lambda _: asyncio.run(main()), range(2))]
    assert sorted(seen[0] + seen[1]) == list(range(40))


@unclosed
def test_a_release_on_one_loop_wakes_the_waiter_on_another(
    hf: aio.Client, url: str, onlooker: Callable[[str], Onlooker]
) -> None:
    view = onlooker(url)
    held = threading.Event()

    async def holder() -> None:
        async with hf.lock("x", ttl_s=60):
            held.set()
            await asyncio.to_thread(eventually, lambda: view.waiters("x") == 1)

    async def waiter() -> None:
        async with hf.lock("x", ttl_s=60, timeout_s=15):  # less than a third of the lease: it has to be told
            pass

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(asyncio.run, holder())
        assert held.wait(20)
        pool.submit(asyncio.run, waiter()).result()
        holding.result()


@unclosed
def test_loops_that_come_and_go_in_many_threads_at_once_share_a_client(hf: aio.Client) -> None:
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(asyncio.run, count(hf, 2)) for _ in range(30)]
        seen = [number for job in jobs for number in job.result()]
    assert sorted(seen) == list(range(60))


@unclosed
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_client_of_many_short_loops_keeps_nothing_open_of_those_that_ended(hf: aio.Client) -> None:

    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    asyncio.run(count(hf, 1))
    before = descriptors()
    for _ in range(40):
        asyncio.run(count(hf, 1))
    eventually(lambda: descriptors() <= before + 15)  # SQLite itself keeps a few, and uses them again


@unclosed
def test_what_a_loop_held_when_it_ended_is_lost_with_it_and_the_next_loop_gets_it(
    hf: aio.Client, url: str, onlooker: Callable[[str], Onlooker]
) -> None:
    view = onlooker(url)
    kept: list[Any] = []

    async def hold() -> None:
        kept.append(await hf.lock("x", ttl_s=1.0).acquire())

    async def enter() -> int:
        with pytest.raises(LeaseLost):
            await kept[0].release()
        async with hf.lock("x", ttl_s=60, timeout_s=15) as lease:
            return lease.token

    asyncio.run(hold())
    eventually(lambda: kept[0].state == "LOST")  # nobody renews it any more
    assert asyncio.run(enter()) > kept[0].token
    assert view.claims("x") == ()


@unclosed
def test_a_loop_that_ends_while_it_waits_leaves_no_place_in_the_queue(
    hf: aio.Client, url: str, onlooker: Callable[[str], Onlooker]
) -> None:
    view = onlooker(url)

    async def main() -> None:
        waiting = asyncio.create_task(hf.lock("x").acquire())
        await asyncio.to_thread(eventually, lambda: view.waiters("x") == 1)
        assert not waiting.done()

    with holdfast.connect(url) as other, other.lock("x"):
        asyncio.run(main())  # cancels the task that waits
        assert view.waiters("x") == 0
