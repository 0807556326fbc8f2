"""Who should own which partition: shared out by weight, exactly, and changed by the fewest moves. Pure.

Hashing members to partitions would need no memory, but is even only on average (10 % off with 100 partitions each), and
evening it out moves partitions between members that stay. So the assignment is remembered, in a cell, and the next is
made from the last: a member owns its share by weight, rounded up or down, and a partition stays where it is unless its
owner is gone or has more than its share.
"""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import HoldfastError
from . import chronicle
from .chronicle import Change

LAYOUT = 1
NOBODY = 0xFFFF


class Worker(NamedTuple):
    """A member as an assignment knows it: by its name, under which it may come back.

    ``id`` is its membership's, empty while it is away; ``owner`` says who for people. ``grace_s`` is how long its
    partitions wait for it once it is gone.
    """

    name: str
    id: str
    owner: str = ""
    weight: int = 1
    zone: str = ""
    grace_s: float = 0.0

    @property
    def called(self) -> str:
        """What people call it: its name, or who it is where it was given none."""
        return self.owner if self.name == self.id else self.name


@dataclass(frozen=True, slots=True)
class Assignment:
    """``places`` gives for each partition the index of its worker. ``epoch`` rises with each change."""

    places: tuple[int, ...]
    workers: tuple[Worker, ...] = ()
    epoch: int = 0
    history: tuple[Change, ...] = ()

    @staticmethod
    def new(count: int) -> Assignment:
        """Nobody owns anything."""
        return Assignment((NOBODY,) * count)

    def of(self, member_id: str) -> set[int]:
        """The partitions of the worker whose membership has this id."""
        for index, worker in enumerate(self.workers):
            if worker.id == member_id:
                return {partition for partition, place in enumerate(self.places) if place == index}
        return set()

    def by_name(self) -> dict[str, list[int]]:
        """The partitions of each worker, by its name."""
        found: dict[str, list[int]] = {worker.name: [] for worker in self.workers}
        for partition, place in enumerate(self.places):
            if place != NOBODY:
                found[self.workers[place].name].append(partition)
        return found

    def away(self) -> list[Worker]:
        """Those that are gone, and whose partitions wait for them."""
        return [worker for worker in self.workers if not worker.id]

    def fits(self, present: Sequence[Worker]) -> bool:
        """Whether it was made for just these."""
        return {worker for worker in self.workers if worker.id} == set(present)

    def moved(self, before: Assignment) -> list[int]:
        """The partitions that another owns now than ``before``."""
        names = [worker.name for worker in self.workers]
        former = [worker.name for worker in before.workers]
        return [
            partition
            for partition, (old, new) in enumerate(zip(before.places, self.places, strict=True))
            if new != NOBODY and (old == NOBODY or former[old] != names[new])
        ]

    def renewed(self, present: Sequence[Worker], may_return: Sequence[str] = ()) -> Assignment:
        """The next one, for those who are ``present``; who went and is named in ``may_return`` keeps its place."""
        here = {worker.name for worker in present}
        waiting = [
            worker._replace(id="")
            for worker, count in zip(self.workers, _counts(self.places, len(self.workers)), strict=True)
            if worker.name in may_return and worker.name not in here and count
        ]
        workers = (*present, *waiting)
        index = {worker.name: number for number, worker in enumerate(workers)}
        stays = [index.get(worker.name, NOBODY) for worker in self.workers]
        zones = [worker.zone for worker in self.workers]
        current = [NOBODY if place == NOBODY else stays[place] for place in self.places]
        former = ["" if place == NOBODY else zones[place] for place in self.places]
        return Assignment(tuple(share_out(current, former, workers)), workers, self.epoch + 1, self.history)

    def with_history(self, history: Sequence[Change]) -> Assignment:
        """The same with this record of changes, of which the last are kept."""
        return replace(self, history=tuple(history[-chronicle.KEPT :]))

    def dump(self) -> bytes:
        places = array("H", self.places)
        if sys.byteorder == "big":
            places.byteswap()
        return json.dumps(
            {
                "layout": LAYOUT,
                "epoch": self.epoch,
                "workers": self.workers,
                "places": base64.b64encode(places.tobytes()).decode(),
                "history": chronicle.dump(self.history),
            }
        ).encode()

    @staticmethod
    def load(data: bytes) -> Assignment:
        """Raises `HoldfastError` for one that another release wrote."""
        fields = json.loads(data)
        if fields["layout"] != LAYOUT:
            raise HoldfastError(
                f"this assignment has layout {fields['layout']}, and this release knows {LAYOUT}: another release "
                "shares the partitions; stop one of them"
            )
        places = array("H", base64.b64decode(fields["places"]))
        if sys.byteorder == "big":
            places.byteswap()
        workers = tuple(Worker(*worker) for worker in fields["workers"])
        return Assignment(tuple(places), workers, fields["epoch"], tuple(chronicle.load(fields["history"])))


def share_out(current: Sequence[int], former_zones: Sequence[str], workers: Sequence[Worker]) -> list[int]:
    """The owner of each partition, made from ``current`` by the fewest moves. `NOBODY` where there are no workers.

    Each has its exact share by weight, rounded up or down. What must move goes to a worker of its former zone where one
    has room, and else to any that has.
    """
    places = list(current)
    if not workers:
        return [NOBODY] * len(places)
    room = _shares(len(places), _counts(places, len(workers)), workers)
    homeless: list[int] = []
    for partition, place in enumerate(places):
        if place != NOBODY and room[place]:
            room[place] -= 1
        else:
            homeless.append(partition)
    by_zone: dict[str, list[int]] = {}
    for number, worker in enumerate(workers):
        by_zone.setdefault(worker.zone, []).extend([number] * room[number])
    abroad: list[int] = []
    for partition in homeless:
        near = by_zone.get(former_zones[partition])
        if near:
            places[partition] = near.pop()
        else:
            abroad.append(partition)
    anywhere = [number for near in by_zone.values() for number in near]
    for partition in abroad:
        places[partition] = anywhere.pop()
    return places


def _shares(total: int, counts: Sequence[int], workers: Sequence[Worker]) -> list[int]:
    """How many each is to own. Who owns more than its share is rounded up first, so that the fewest must move."""
    weight = sum(worker.weight for worker in workers)
    shares = [total * worker.weight // weight for worker in workers]
    broken = [number for number, worker in enumerate(workers) if total * worker.weight % weight]
    broken.sort(key=lambda n: (counts[n] <= shares[n], -(total * workers[n].weight % weight)))
    for number in broken[: total - sum(shares)]:
        shares[number] += 1
    return shares


def _counts(places: Sequence[int], workers: int) -> list[int]:
    counts = [0] * workers
    for place in places:
        if place != NOBODY:
            counts[place] += 1
    return counts
