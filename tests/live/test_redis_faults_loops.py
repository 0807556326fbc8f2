"""One asyncio client on several event loops, and a loop that stands still while it holds."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from redis_live import LiveRedis
from servers import eventually

import holdfast
from holdfast import LeaseLost, aio

pytestmark = pytest.mark.live

TURNS = 25


def test_one_client_on_two_event_loops_hands_over_between_them(server: LiveRedis) -> None:
    client = aio.connect(server.url)
    inside: list[int] = []
    tokens: list[int] = []
    overlaps: list[int] = []

    async def turns(me: int) -> None:
        for _ in range(TURNS):
            async with client.lock("x", ttl_s=20.0) as lease:
                inside.append(me)
                await asyncio.sleep(0.001)
                overlaps.extend(other for other in inside if other != me)
                tokens.append(lease.token)
                inside.remove(me)

    async def main(first: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for me in (first, first + 1):
                tasks.create_task(turns(me))
        both_done.wait(30)
        await client.aclose()

    both_done = threading.Barrier(2)
    threads = [threading.Thread(target=lambda first=first: asyncio.run(main(first))) for first in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert overlaps == []
    assert len(tokens) == 4 * TURNS
    assert tokens == sorted(set(tokens))
    assert server.claims("x") == ()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the other loop could not close its connections
def test_the_loop_that_goes_on_is_not_disturbed_when_the_other_ends(server: LiveRedis) -> None:
    def run() -> None:
        client = aio.connect(server.url)

        async def hold() -> None:
            async with client.lock("a", ttl_s=1.0) as lease:
                await asyncio.to_thread(other.start)
                await asyncio.to_thread(other.join)
                ends_s = lease.remaining_s
                while lease.remaining_s <= ends_s:  # renewed after the other loop ended
                    ends_s = lease.remaining_s
                    await asyncio.sleep(0.01)
                async with client.lock("b"):
                    assert lease.state == "HELD"
            await client.aclose()

        async def come_and_go() -> None:
            async with client.lock("b"):
                pass

        other = threading.Thread(target=lambda: asyncio.run(come_and_go()))
        asyncio.run(asyncio.wait_for(hold(), 40))

    run()
    gc.collect()  # what warns warns here
    assert server.claims("a") == server.claims("b") == ()


def test_a_loop_that_stands_still_past_its_lease_is_told_and_the_next_one_holds(server: LiveRedis) -> None:
    with holdfast.connect(server.url) as follower:
        told: list[str] = []

        async def main() -> None:
            async with aio.connect(server.url) as client:
                lease = await client.lock("x", ttl_s=0.5).acquire()
                lease.on_lost(lambda: told.append("lost"))
                following = follower.lock("x", ttl_s=20.0).acquire(timeout_s=20)  # on the loop's own thread
                assert following.token > lease.token
                assert lease.state == "LOST"
                with pytest.raises(LeaseLost):
                    await lease.release()
                assert server.holders("x") == [following.token]
                following.release()

        asyncio.run(main())
        eventually(lambda: told == ["lost"])
        assert server.claims("x") == ()
