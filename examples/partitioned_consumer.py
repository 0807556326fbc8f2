"""Consumers share the partitions of a log and are killed and started anew; every record has its effect exactly once.

Each partition has one owner at a time. Its checkpoint holds the place in the log *and* what came of all records before
it (here: their sum), saved as one. So who takes a partition over, from one that left or one that died, begins with a
pair that fits, and what was read and not saved is read again. A former owner that was paused and still works on it has
its checkpoint refused. A partition that is wanted elsewhere is let go of between two checkpoints.

    python examples/partitioned_consumer.py                                 # on the embedded engine; or on yours:
    python examples/partitioned_consumer.py --engine redis://localhost --partitions 100 --consumers 8
"""

from __future__ import annotations

import json
import os
import secrets
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import harness

import holdfast
from holdfast.sync import Client, PartitionLease

AT_ONCE = 10  # records between two checkpoints


def log(partition: int, start: int, end: int) -> Sequence[int]:
    """Some records of the log: there, and the same, whoever reads them."""
    return [zlib.crc32(b"%d/%d" % (partition, offset)) for offset in range(start, end)]


def consume(lease: PartitionLease, end: int, stop: Event, dies: bool) -> None:
    """Record after record of one partition, until there are no more, or it is to be another's."""
    try:
        progress = decode(lease.load())
        progress["owners"] += 1
        while progress["offset"] < end and not stop.is_set():
            batch = log(lease.partition, progress["offset"], min(progress["offset"] + AT_ONCE, end))
            time.sleep(0.02)  # the work
            if dies:  # at the worst moment: all was done, and nothing saved
                os._exit(1)
            progress["offset"] += len(batch)
            progress["sum"] += sum(batch)
            lease.save(json.dumps(progress).encode())
    except (holdfast.LeaseLost, holdfast.StaleToken):
        pass  # we were paused, and another goes on from the last checkpoint


def decode(checkpoint: bytes | None) -> dict[str, int]:
    return {"offset": 0, "sum": 0, "owners": 0, **json.loads(checkpoint or b"{}")}


def checkpoints(hf: Client, name: str, count: int) -> list[dict[str, int]]:
    """A look at all of them, by whoever likes."""
    return [decode(hf.cell(f"partition:{name}/{partition}").read([]).value) for partition in range(count)]


def consumer(url: str | None, name: str, count: int, end: int, dies: bool) -> None:
    """Take part until every partition is consumed to its end, whoever does it."""
    running: dict[int, tuple[Event, Future[None]]] = {}

    def on_assigned(partition: int, lease: PartitionLease) -> None:
        stop = Event()
        running[partition] = stop, pool.submit(consume, lease, end, stop, dies)

    def on_revoked(partition: int) -> None:
        stop, consuming = running.pop(partition)
        stop.set()
        consuming.result()  # it is handed over when we return: after the last checkpoint

    with holdfast.connect(url) as hf, ThreadPoolExecutor(count) as pool:
        ttl_s = hf.capabilities.ttl_s or max(0.5, hf.capabilities.min_ttl_s)
        with hf.partitions(name, count, ttl_s).join(on_assigned=on_assigned, on_revoked=on_revoked):
            while any(progress["offset"] < end for progress in checkpoints(hf, name, count)):
                time.sleep(0.1)
                for _, consuming in list(running.values()):
                    if consuming.done():
                        consuming.result()  # it failed: so do we, and another takes our place


def main() -> bool:
    given = harness.options(__doc__, consumers=3, partitions=12, records=500, kill_every=0.7, kills=1000)
    name, count, end = f"log-{secrets.token_hex(4)}", given.partitions, given.records
    with holdfast.connect(given.engine) as hf:
        began = time.monotonic()
        kills = harness.through_kills(
            consumer,
            lambda number, start: (given.engine, name, count, end, start <= given.consumers),
            given.consumers,
            given.kill_every,
            given.kills,
        )
        seconds, found = time.monotonic() - began, checkpoints(hf, name, count)
        for partition in range(count):
            hf.cell(f"partition:{name}/{partition}").drop()
    owners, consumed = sum(one["owners"] for one in found), sum(one["offset"] for one in found)
    right = sum(one["sum"] == sum(log(partition, 0, end)) for partition, one in enumerate(found))
    print(f"{consumed} records of {count} partitions in {seconds:.1f} s")
    print(
        f"{given.consumers} consumers died in their work, {kills} were killed; {owners} times a partition got an owner"
    )
    print(f"{right} of {count} sums are those of a log that is read once")
    return bool(right == count)


if __name__ == "__main__":
    raise SystemExit(not main())
