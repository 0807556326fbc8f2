"""Who must copy what from whom when one placement becomes another: for all hashes, or for given keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import Misuse
from .hashing import Key, is_whole

if TYPE_CHECKING:
    from .base import Node, Placement

AnyKey = TypeVar("AnyKey", bound=Key)
CIRCLE = 1 << 64
CHUNK = 16_384
"""How many keys are looked up at once."""


class Move(NamedTuple):
    """Who copies from whom. ``drop`` may forget its copy afterwards; None: nobody may, as copies get more."""

    source: str
    target: str
    drop: str | None


RangeMoves = tuple[int, int, tuple[Move, ...]]
"""The first hash of a range, its last, and what moves there."""


def check_pair(before: Placement, after: Placement, replicas: int) -> None:
    """Whether there can be a plan between the two; raises `Misuse`."""
    one, two = _rules(before), _rules(after)
    different = [f"{rule} is {one.get(rule)!r} before and {two.get(rule)!r} after" for rule in {**one, **two}
                 if one.get(rule) != two.get(rule)]  # fmt: skip
    if different:
        raise Misuse(f"these two place by different rules, so nearly every key would move: {'; '.join(different)}")
    for placement, when in ((before, "before"), (after, "after")):
        if not len(placement):
            raise Misuse(f"there are no nodes {when}, so there is nothing to plan")
    most = max(len(before), len(after))
    if not is_whole(replicas) or not 1 <= replicas <= most:
        raise Misuse(f"replicas is a whole number from 1 to the {most} nodes there are, not {replicas!r}")


def _rules(placement: Placement) -> dict[str, object]:
    options = {option: getattr(placement, option) for option in placement.options}
    return {"algorithm": placement.algorithm, "hash": placement.hash, **options}


def key_moves(
    before: Placement, after: Placement, keys: Iterable[AnyKey], replicas: int = 1
) -> Iterator[tuple[int, list[tuple[AnyKey, Move]]]]:
    """For one chunk of ``keys`` after the other: how many they are, and what of them moves. Streams."""
    if isinstance(keys, str | bytes):
        raise Misuse(f"keys are many: [{keys!r}]")
    source, zones = iter(keys), _zones(before, after)
    while chunk := list(islice(source, CHUNK)):
        if replicas == 1:
            pairs = zip(chunk, before.locate(chunk), after.locate(chunk), strict=True)
            moving = [(key, Move(old, new, old)) for key, old, new in pairs if old != new]
        else:
            old_n, new_n = min(replicas, len(before)), min(replicas, len(after))
            moving = [
                (key, move)
                for key in chunk
                for move in _moves(before.get_nodes(key, old_n), after.get_nodes(key, new_n), zones)
            ]
        yield len(chunk), moving


def range_moves(before: Placement, after: Placement, replicas: int) -> Iterator[RangeMoves]:
    """Both circles walked together: first, last and moves of every range where something moves, neighbours joined."""
    olds, news = before.arcs(min(replicas, len(before))), after.arcs(min(replicas, len(after)))
    zones = _zones(before, after)
    i = j = first = 0
    start, end = 0, -1
    kept: tuple[Move, ...] = ()
    while first < CIRCLE:
        (old_last, old), (new_last, new) = olds[i], news[j]
        last = min(old_last, new_last)
        moves = _moves(old, new, zones) if old != new else ()
        if moves != kept:
            if kept:
                yield start, end, kept
            start, kept = first, moves
        end = last
        i += old_last == last
        j += new_last == last
        first = last + 1
    if kept:
        yield start, end, kept


def _moves(old: Sequence[str], new: Sequence[str], zones: Mapping[str, str | None]) -> tuple[Move, ...]:
    """How ``new`` get their copies. Each newcomer takes the place of one that leaves, as far as there are any.

    The source is one that stays where one does, in the newcomer's zone if possible. Else each newcomer copies from the
    one whose place it takes; newcomers that take nobody's place come first, while the sources still have all.
    """
    came = [name for name in new if name not in old]
    if not came:
        return ()
    stay = [name for name in old if name in new]
    left = [name for name in old if name not in new][: len(came)]
    drops: list[str | None] = [*[None] * (len(came) - len(left)), *left]
    moves: list[Move] = []
    for target, drop in zip(came, drops, strict=True):
        sources = stay or ([drop] if drop is not None else left)
        zone = zones.get(target)
        near = [name for name in sources if zones.get(name) == zone] if zone is not None else []
        moves.append(Move((near or sources)[0], target, drop))
    return tuple(moves)


def _zones(before: Placement, after: Placement) -> dict[str, str | None]:
    return {name: node.zone for placement in (before, after) for name, node in placement.nodes.items()}


def fair_copies(nodes: Mapping[str, Node], replicas: int = 1) -> dict[str, float]:
    """How many copies of a key each node has on average if weights alone decide: none has more than one."""
    left, weight = float(min(replicas, len(nodes))), sum(node.weight for node in nodes.values())
    fair: dict[str, float] = {}
    for name, node in sorted(nodes.items(), key=lambda item: (-item[1].weight, item[0])):
        fair[name] = min(1.0, left * node.weight / weight) if weight > 0 else 0.0
        left -= fair[name]
        weight -= node.weight
    return fair
