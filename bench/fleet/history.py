"""What journals say together: who owned what from when to when, and whether that is as it must be. Pure.

An entry has ``at``, ``what`` and ``who``, and further:

* ``own`` and ``lost``: ``key``, ``token``. A holding lasts from when its owner knew of it until it knew that it was no
  more: it let go, was told, or its lease's deadline came, whichever was first.
* ``killed``: by whoever killed; ends all that ``who`` had.
* ``saved``: ``key``, ``token``, ``began``, ``count``. A checkpoint that was accepted.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from .journal import Entry

Key = int | str


class Holding(NamedTuple):
    who: str
    key: Key
    token: int
    start: float
    end: float
    """Infinite where it had not ended."""


def holdings(entries: Iterable[Entry]) -> list[Holding]:
    """By their start."""
    open_: dict[tuple[str, Key, int], float] = {}
    found: list[Holding] = []

    def close(name: tuple[str, Key, int], end: float) -> None:
        found.append(Holding(*name, start := open_.pop(name), max(start, end)))

    for entry in sorted(entries, key=_at):
        if entry["what"] == "killed":
            for name in [name for name in open_ if name[0] == entry["who"]]:
                close(name, entry["at"])
        elif entry["what"] in ("own", "lost"):
            name = entry["who"], entry["key"], entry["token"]
            if entry["what"] == "own":
                open_[name] = entry["at"]
            elif name in open_:
                close(name, entry["at"])
    for name in list(open_):
        close(name, math.inf)
    return sorted(found, key=lambda one: one.start)


def _at(entry: Entry) -> float:
    return float(entry["at"])


def by_key(found: Iterable[Holding]) -> dict[Key, list[Holding]]:
    keys: dict[Key, list[Holding]] = defaultdict(list)
    for one in found:
        keys[one.key].append(one)
    return keys


def overlaps(found: Iterable[Holding]) -> list[tuple[Holding, Holding]]:
    """Two owners at once of one thing: each holding that began before an earlier one had ended, with that one."""
    wrong: list[tuple[Holding, Holding]] = []
    for some in by_key(found).values():
        last = some[0]
        for one in some[1:]:
            if one.start < last.end:
                wrong.append((last, one))
            last = max(last, one, key=lambda holding: holding.end)
    return wrong


def fallen_tokens(found: Iterable[Holding]) -> list[tuple[Holding, Holding]]:
    """An owner whose token is not above that of the one before it."""
    return [
        (earlier, later)
        for some in by_key(found).values()
        for earlier, later in itertools.pairwise(some)
        if later.token <= earlier.token
    ]


def stale_saves(entries: Iterable[Entry]) -> list[tuple[Entry, Entry]]:
    """A checkpoint that was accepted, sent after another had been acknowledged that its writer cannot have known.

    That one's token was higher; or it had counted as far.
    """
    wrong: list[tuple[Entry, Entry]] = []
    saves: dict[Key, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry["what"] == "saved":
            saves[entry["key"]].append(entry)
    for some in saves.values():
        acknowledged = sorted(some, key=_at)
        newest: Entry | None = None
        number = 0
        for save in sorted(some, key=lambda entry: float(entry["began"])):
            while acknowledged[number]["at"] < save["began"]:
                if newest is None or _rank(acknowledged[number]) > _rank(newest):
                    newest = acknowledged[number]
                number += 1
            if newest is not None and (newest["token"] > save["token"] or newest["count"] >= save["count"]):
                wrong.append((newest, save))
    return wrong


def _rank(save: Entry) -> tuple[int, int]:
    return save["token"], save["count"]


class Gap(NamedTuple):
    """Nobody owned it."""

    key: Key
    start: float
    end: float

    @property
    def length_s(self) -> float:
        return self.end - self.start


def gaps(found: Iterable[Holding], keys: Iterable[Key], start: float, end: float) -> list[Gap]:
    """When each of these had no owner between ``start`` and ``end``."""
    keyed = by_key(found)
    free: list[Gap] = []
    for key in keys:
        at = start
        for one in keyed.get(key, []):
            if at < one.start and at < end:
                free.append(Gap(key, at, min(one.start, end)))
            at = max(at, one.end)
        if at < end:
            free.append(Gap(key, at, end))
    return free


class Claims(NamedTuple):
    """Who claims what, at one time or over a while."""

    settled_at: float
    """From when on each key had one owner (and, if asked, all members as many as they should); NaN: never."""
    twice: int
    """Keys that two claimed at once, at some time."""


def settled(
    found: Sequence[Holding], keys: Collection[Key], members: Collection[str], since: float, *, even: bool
) -> Claims:
    """``even``: each of ``members`` owns its share, rounded up or down."""
    least, most = len(keys) // len(members), -(-len(keys) // len(members))
    ends = [(one.end, False, one) for one in found if one.end < math.inf]
    steps = sorted([*ends, *((one.start, True, one) for one in found)], key=lambda step: (step[0], step[1]))
    owners: Counter[Key] = Counter()
    owned: Counter[str] = Counter()
    once, twice = 0, set[Key]()
    settled_at = math.nan
    for at, same in itertools.groupby(steps, key=lambda step: step[0]):
        for _, begins, one in same:
            before = owners[one.key]
            owners[one.key] += 1 if begins else -1
            owned[one.who] += 1 if begins else -1
            once += (owners[one.key] == 1) - (before == 1)
            if owners[one.key] > 1 and at >= since:
                twice.add(one.key)
        right = once == len(keys) and (not even or all(least <= owned[who] <= most for who in members))
        if not right:
            settled_at = math.nan
        elif math.isnan(settled_at):
            settled_at = max(at, since)
    return Claims(settled_at, len(twice))


def owners_at(found: Iterable[Holding], at: float) -> dict[Key, str]:
    return {one.key: one.who for one in found if one.start <= at < one.end}
