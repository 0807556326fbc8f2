"""Members that come and go as they like, in threads and as tasks: no two own a partition at once. In real time."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator

import pytest
from ledger import Ledger, until

from holdfast import aio, sync
from holdfast.engines.memory import MemoryEngine


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    assert made.wrong == []


def test_no_two_members_own_one_at_once_whoever_comes_and_goes_in_threads(ledger: Ledger) -> None:
    engine = MemoryEngine()
    trouble: list[BaseException] = []

    def member(number: int) -> None:
        chance = random.Random(number)

        def pauses(partition: int) -> None:
            time.sleep(chance.uniform(0, 0.01))

        try:
            with sync.Client(engine) as hf:
                for turn in range(8):
                    share = hf.partitions("p", 16, ttl_s=5.0).join(**ledger.callbacks(f"{number}.{turn}", pauses))
                    time.sleep(chance.uniform(0, 0.1))
                    if chance.random() < 0.2:
                        return  # without a leave
                    share.leave()
                    assert share.owned == {}
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=member, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive()
    assert trouble == []
    assert len(ledger.events) > 50
    with sync.Client(engine) as hf, hf.partitions("p", 16).join() as last:
        give_up_at = time.monotonic() + 30
        while len(last.owned) < 16:
            assert time.monotonic() < give_up_at
            time.sleep(0.005)


def test_no_two_members_own_one_at_once_whoever_comes_and_goes_as_tasks(ledger: Ledger) -> None:
    engine = MemoryEngine()

    async def member(number: int) -> None:
        chance = random.Random(number)

        async def pauses(partition: int) -> None:
            await asyncio.sleep(chance.uniform(0, 0.01))

        async with aio.Client(engine) as hf:
            for turn in range(8):
                share = await hf.partitions("p", 16, ttl_s=5.0).join(**ledger.callbacks(f"{number}.{turn}", pauses))
                await asyncio.sleep(chance.uniform(0, 0.1))
                if chance.random() < 0.2:
                    return  # without a leave
                await share.leave()
                assert share.owned == {}

    async def main() -> None:
        await asyncio.gather(*(member(number) for number in range(8)))
        assert len(ledger.events) > 50
        async with aio.Client(engine) as hf:
            last = await hf.partitions("p", 16).join()
            await until(lambda: len(last.owned) == 16)

    asyncio.run(main())
