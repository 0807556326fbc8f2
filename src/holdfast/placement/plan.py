"""What moves when nodes change: the steps that turn one placement into another, and not one more.

A step copies one range of hashes, or some keys, to one node, from one that has them before. Steps depend on the two
placements (and the keys) alone: made again, or read from a file, a plan is the same. Doing a step twice does no harm,
so after a crash the plan goes on from the first step that was not recorded as done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from ..errors import Misuse
from ..model import check_name
from ._kernel import hash_key
from .hashing import Key, hasher_of, is_whole, key_bytes
from .moves import CIRCLE, Move, RangeMoves, check_pair, fair_copies, key_moves, range_moves

if TYPE_CHECKING:
    from .base import Node, Placement

VERSION = 1
KEYS_A_STEP = 1000


@dataclass(frozen=True, slots=True)
class Step:
    """Copy from ``source`` to ``target``; then ``drop`` may forget. ``number`` is its place in the plan, from 0."""

    number: int
    source: str
    target: str
    drop: str | None

    @property
    def size(self) -> int:
        """How many hashes, or keys."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class RangeStep(Step):
    """Copy the keys whose hash is from ``first`` to ``last``, both inclusive. It never wraps: ``first <= last``."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def covers(self, place: int) -> bool:
        """Whether keys of this hash are among those to copy."""
        return self.first <= place <= self.last


@dataclass(frozen=True, slots=True)
class KeyStep(Step):
    """Copy these keys: at most 1000, sorted by their bytes."""

    keys: tuple[Key, ...]

    @property
    def size(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Plan:
    """The steps from one placement to another. Made by `Placement.plan`."""

    before: str
    """The fingerprint of the placement that is."""
    after: str
    """The fingerprint of the one that shall be."""
    algorithm: str
    hash: str
    replicas: int
    copies: int
    """How many copies each key has after: ``replicas``, or one on every node where there are fewer nodes."""
    keys: int | None
    """How many keys were looked at; None: ranges cover every key there can be."""
    ideal: float
    """What would move if copies were spread exactly by weight, before and after (and if there were no zones)."""
    steps: tuple[Step, ...]
    """In the order to do them. Steps on one range stand together; ranges are sorted and do not overlap."""

    @property
    def moved(self) -> float:
        """The share of all copies that move, exactly; of all keys where ``replicas`` is 1."""
        return self._share(sum(step.size for step in self.steps))

    @property
    def least(self) -> float:
        """What has to move by any plan: what nodes have more after than before. Never above `moved`.

        Equal to it when nothing moves in vain: no node both gets and gives.
        """
        gain: Counter[str] = Counter()
        for step in self.steps:
            gain[step.target] += step.size
            if step.drop is not None:
                gain[step.drop] -= step.size
        return self._share(sum(size for size in gain.values() if size > 0))

    def shares(self) -> dict[tuple[str, str], float]:
        """From which source to which target how much is copied, in shares of all copies, the largest first."""
        sizes: Counter[tuple[str, str]] = Counter()
        for step in self.steps:
            sizes[step.source, step.target] += step.size
        return {pair: self._share(size) for pair, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))}

    def _share(self, size: int) -> float:
        total = (CIRCLE if self.keys is None else self.keys) * self.copies
        return size / total if total else 0.0

    def covers(self, key: Key) -> bool:
        """Whether something of this key moves. (A plan for keys knows those only that it was made for.)"""
        return bool(self.steps_for(key))

    def steps_for(self, key: Key) -> tuple[Step, ...]:
        """The steps that copy this key, in order: none if it stays, one for each new copy else."""
        if self.keys is not None:
            return self._by_key.get(key_bytes(key), ())
        place = self.place(key)
        ranges = cast(tuple[RangeStep, ...], self.steps)
        start = stop = bisect_right(self._firsts, place)
        while start and ranges[start - 1].covers(place):
            start -= 1
        return ranges[start:stop]

    def place(self, key: Key) -> int:
        """The hash of a key, which `RangeStep.covers` takes."""
        hasher = hasher_of(self.hash)
        return hash_key(key) if hasher is None else hasher(key_bytes(key))

    @cached_property
    def _firsts(self) -> list[int]:
        return [cast(RangeStep, step).first for step in self.steps]

    @cached_property
    def _by_key(self) -> dict[bytes, tuple[Step, ...]]:
        found: defaultdict[bytes, dict[Step, None]] = defaultdict(dict)  # a key given twice is there once
        for step in self.steps:
            for key in cast(KeyStep, step).keys:
                found[key_bytes(key)][step] = None
        return {key: tuple(steps) for key, steps in found.items()}

    def apply(self, move: Callable[[Step], object], *, done: int = 0) -> Iterator[int]:
        """Call ``move`` with each step from number ``done`` on; after each, give how many steps are done.

        Store that number, and give it as ``done`` after a crash. The work is done as the result is iterated. A step
        that ended but was not stored is done again; what its source no longer has is not copied, so nothing is lost.
        """
        if not is_whole(done) or not 0 <= done <= len(self.steps):
            raise Misuse(f"done is a whole number from 0 to the {len(self.steps)} steps of this plan, not {done!r}")
        return self._applied(move, done)

    def _applied(self, move: Callable[[Step], object], done: int) -> Iterator[int]:
        for step in islice(self.steps, done, None):
            move(step)
            yield step.number + 1

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON, for `from_dict`. Hashes are 16 hexadecimal digits, bytes ``{"hex": …}``."""
        return {
            "version": VERSION,
            "algorithm": self.algorithm,
            "hash": self.hash,
            "before": self.before,
            "after": self.after,
            "replicas": self.replicas,
            "copies": self.copies,
            "keys": self.keys,
            "moved": self.moved,
            "least": self.least,
            "ideal": self.ideal,
            "steps": [_told(step) for step in self.steps],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """What `to_dict` described. Data of a newer release, or with a mistake in it, is refused."""
        if not isinstance(data, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Misuse(f"a plan's data is a mapping, not {type(data).__name__}")
        version = data.get("version")
        if not is_whole(version) or version < 1:
            raise Misuse(f"the version of a plan's data is a whole number from 1, not {version!r}")
        if version > VERSION:
            raise Misuse(f"this plan was written in version {version}; this release reads up to {VERSION}: upgrade it")
        try:
            texts = {name: check_name(data[name], name) for name in ("before", "after", "algorithm", "hash")}
            replicas, copies, keys, ideal = data["replicas"], data["copies"], data["keys"], data["ideal"]
            steps = tuple(_read(number, step, keys is None) for number, step in enumerate(data["steps"]))
        except KeyError as missing:
            raise Misuse(f"a plan's data lacks {missing}") from None
        except (TypeError, AttributeError) as wrong:
            raise Misuse(f"this is no plan's data: {wrong}") from None
        for count in (replicas, copies, 0 if keys is None else keys):
            if not is_whole(count) or count < 0:
                raise Misuse(f"replicas, copies and keys are whole numbers in a plan's data, not {count!r}")
        if isinstance(ideal, bool) or not isinstance(ideal, int | float):
            raise Misuse(f"ideal is a number in a plan's data, not {ideal!r}")
        hasher_of(texts["hash"])
        if keys is None:
            _check_order(cast(tuple[RangeStep, ...], steps))
        return cls(**texts, replicas=replicas, copies=copies, keys=keys, ideal=float(ideal), steps=steps)

    def __repr__(self) -> str:
        return f"<Plan of {len(self.steps)} steps, {self.moved:.1%} moves>"


def make_plan(before: Placement, after: Placement, keys: Iterable[Key] | None, replicas: int) -> Plan:
    """See `Placement.plan`. Neither may change meanwhile."""
    check_pair(before, after, replicas)
    found: tuple[tuple[Step, ...], int | None]
    if keys is None:
        found = _range_steps(range_moves(before, after, replicas)), None
    else:
        found = _key_steps(before, after, keys, replicas)
    return Plan(
        before=before.fingerprint(),
        after=after.fingerprint(),
        algorithm=before.algorithm,
        hash=before.hash,
        replicas=replicas,
        copies=min(replicas, len(after)),
        keys=found[1],
        ideal=_ideal(before.nodes, after.nodes, replicas),
        steps=found[0],
    )


def _key_steps(
    before: Placement, after: Placement, keys: Iterable[Key], replicas: int
) -> tuple[tuple[KeyStep, ...], int]:
    count = 0
    found: defaultdict[Move, list[Key]] = defaultdict(list)
    for size, moving in key_moves(before, after, keys, replicas):
        count += size
        for key, move in moving:
            found[move].append(key)
    steps: list[KeyStep] = []
    # Moves that drop nothing first: where all old nodes of a key go, their source is one that a later step may drop.
    for move in sorted(found, key=lambda move: (move.drop is not None, move.source, move.target, move.drop)):
        ordered = sorted(found[move], key=key_bytes)
        for start in range(0, len(ordered), KEYS_A_STEP):
            steps.append(KeyStep(len(steps), *move, tuple(ordered[start : start + KEYS_A_STEP])))
    return tuple(steps), count


def _range_steps(ranges: Iterable[RangeMoves]) -> tuple[RangeStep, ...]:
    flat = [(move, first, last) for first, last, moves in ranges for move in moves]
    return tuple(RangeStep(number, *move, first, last) for number, (move, first, last) in enumerate(flat))


def _ideal(before: Mapping[str, Node], after: Mapping[str, Node], replicas: int) -> float:
    old, new = fair_copies(before, replicas), fair_copies(after, replicas)
    return sum(max(0.0, copies - old.get(name, 0.0)) for name, copies in new.items()) / min(replicas, len(new))


def _told(step: Step) -> dict[str, Any]:
    ends: dict[str, Any] = {"from": step.source, "to": step.target, "drop": step.drop}
    if isinstance(step, RangeStep):
        return {"first": f"{step.first:016x}", "last": f"{step.last:016x}", **ends}
    keys = cast(KeyStep, step).keys
    return {**ends, "keys": [{"hex": key.hex()} if isinstance(key, bytes) else key for key in keys]}


def _read(number: int, data: Mapping[str, Any], ranges: bool) -> Step:
    source, target = (check_name(data[end], "node name") for end in ("from", "to"))
    drop = None if data["drop"] is None else check_name(data["drop"], "node name")
    try:
        if ranges:
            return RangeStep(number, source, target, drop, _place(data["first"]), _place(data["last"]))
        keys = tuple(_key(key) for key in data["keys"])
    except ValueError as wrong:
        raise Misuse(f"step {number} of a plan's data: {wrong}") from None
    return KeyStep(number, source, target, drop, keys)


def _key(data: Any) -> Key:
    key: Key = bytes.fromhex(cast(dict[str, str], data)["hex"]) if isinstance(data, dict) else data
    key_bytes(key)
    return key


def _place(text: str) -> int:
    if len(text) != 16:
        raise ValueError(f"a hash is 16 hexadecimal digits, not {text!r}")
    return int(text, 16)


def _check_order(steps: tuple[RangeStep, ...]) -> None:
    end = -1
    span = (0, -1)
    for step in steps:
        if (step.first, step.last) != span and not end < step.first <= step.last:
            raise Misuse(f"the ranges of a plan's data are sorted and do not overlap; step {step.number} breaks that")
        span, end = (step.first, step.last), step.last
