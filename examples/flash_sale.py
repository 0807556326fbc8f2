"""A flash sale: workers sell what there is to far more orders, while one after the other is killed.

It never sells more than there is, and loses no order that was confirmed. Why: the goods lie in buckets. A bucket is one
cell, whose value is the stock and whose entries are the orders served; both change in one put, all or nothing, under
the bucket's lock, and the cell refuses whoever was paused past its lease. Who does not know what became of its orders
(it was killed, a reply was lost) asks again: those that were served stand there. Stocks only fall, so an order that
once went on from an empty bucket to the next will do so again, and is not served twice.

    python examples/flash_sale.py                                           # on the embedded engine; or on yours:
    python examples/flash_sale.py --engine redis://localhost --orders 100000 --stock 90000 --kill-every 1
"""

from __future__ import annotations

import os
import random
import secrets
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

import holdfast
from holdfast.sync import Client

BUCKETS = 4


class Sale:
    """``stock`` goods; who first sells from a bucket fills it with its share."""

    def __init__(self, hf: Client, name: str, stock: int) -> None:
        self.hf = hf
        self.ttl_s = hf.capabilities.ttl_s or max(0.5, hf.capabilities.min_ttl_s)  # so long others wait for the dead
        self.shares = {f"{name}/{n}": stock // BUCKETS + (n < stock % BUCKETS) for n in range(BUCKETS)}

    def sell(self, orders: Sequence[str]) -> set[str]:
        """Which of these orders, all of one bucket, are served. The answer stands; asking again changes nothing."""
        served, first = set[str](), bucket_of(orders[0])
        for bucket in [*self.shares][first:] + [*self.shares][:first]:
            if rest := [order for order in orders if order not in served]:
                served |= self._sell_from(bucket, rest)
        return served

    def _sell_from(self, bucket: str, orders: Sequence[str]) -> set[str]:
        seen = self.hf.cell(bucket).read(orders)
        if seen.value == b"0":  # it stays so, and all that it served are there: no lock is needed
            return {*seen.entries}
        with self.hf.lock(bucket, ttl_s=self.ttl_s) as lease:
            opened = self.hf.cell(bucket).open(lease)  # from here on nothing of earlier holders lands
            stock = self.shares[bucket] if opened.value is None else int(opened.value)
            found = opened.entries(orders)
            new = [order for order in dict.fromkeys(orders) if order not in found][:stock]
            opened.put(str(stock - len(new)).encode(), [holdfast.Change(order, b"", create=True) for order in new])
            return {*found, *new}

    def audit(self, answers: dict[str, bool]) -> list[str]:
        """What is wrong, given what each order was told; empty if all is well."""
        cells = {bucket: self.hf.cell(bucket).read() for bucket in self.shares}
        served = Counter(order for cell in cells.values() for order in cell.entries)
        left = sum(int(cell.value or self.shares[bucket]) for bucket, cell in cells.items())
        wrong = {
            "goods sold that were not there, or gone unsold": served.total() + left - sum(self.shares.values()),
            "orders served twice": served.total() - len(served),
            "confirmed orders lost": sum(yes and order not in served for order, yes in answers.items()),
            "refused orders served": sum(not yes and order in served for order, yes in answers.items()),
            "orders refused while there was some left": min(left, list(answers.values()).count(False)),
        }
        return [f"{what}: {count}" for what, count in wrong.items() if count]


def bucket_of(order: str) -> int:
    return zlib.crc32(order.encode()) % BUCKETS


def worker(
    url: str | None, name: str, stock: int, at_once: int, orders: Sequence[str], notes: Path, dies: bool
) -> None:
    """Sell to these orders, some at once, and note what each was told. Where anything fails, another one asks again."""
    batches: list[list[str]] = []
    for bucket in range(BUCKETS):
        ours = [order for order in orders if bucket_of(order) == bucket]
        batches += [ours[start : start + at_once] for start in range(0, len(ours), at_once)]
    random.shuffle(batches)  # so that workers meet at a bucket by chance only
    with holdfast.connect(url) as hf, notes.open("w") as file:
        sale = Sale(hf, name, stock)
        for batch in batches:
            served = sale.sell(batch)
            if dies:  # at the worst moment: these are served, and nobody was told
                os._exit(1)
            file.write("".join(f"{order} {order in served}\n" for order in batch))
            file.flush()


def told(folder: Path) -> dict[str, bool]:
    """What each order was told; a line that a kill cut off counts for nothing."""
    lines = [line for notes in folder.iterdir() for line in notes.read_text().split("\n")[:-1]]
    return {line.split()[0]: line.endswith("True") for line in lines}


def run(
    url: str | None, orders: int, stock: int, workers: int, at_once: int, kill_every_s: float, most_kills: int = 1000
) -> dict[str, Any]:
    """One sale to its end, and what came of it; ``wrong`` is empty if all is well."""
    name = f"flash-sale-{secrets.token_hex(4)}"
    ids = [f"order-{number}" for number in range(orders)]
    with tempfile.TemporaryDirectory() as folder, holdfast.connect(url) as hf:

        def arguments(number: int, start: int) -> tuple[Any, ...]:
            answered = told(Path(folder))
            todo = [order for order in ids[number::workers] if order not in answered]
            return url, name, stock, at_once, todo, Path(folder, f"notes-{start}"), start <= workers

        sale, began = Sale(hf, name, stock), time.monotonic()
        kills = harness.through_kills(worker, arguments, workers, kill_every_s, most_kills)
        seconds, answers = time.monotonic() - began, told(Path(folder))
        wrong = sale.audit(answers)
        for bucket in sale.shares:
            hf.cell(bucket).drop()
    return {"orders": len(answers), "served": sum(answers.values()), "kills": kills, "seconds": seconds, "wrong": wrong}


if __name__ == "__main__":
    given = harness.options(__doc__, orders=50_000, stock=40_000, workers=4, at_once=10, kill_every=1.0, kills=1000)
    found = run(given.engine, given.orders, given.stock, given.workers, given.at_once, given.kill_every, given.kills)
    per_s = found["orders"] / found["seconds"]
    print(f"{found['orders']} orders answered in {found['seconds']:.1f} s, {per_s:.0f} per second")
    print(f"{given.workers} workers died between selling and telling, {found['kills']} were killed")
    print(f"{found['served']} of {given.stock} sold;", "; ".join(found["wrong"]) or "none too many, and no order lost")
    raise SystemExit(bool(found["wrong"]))
