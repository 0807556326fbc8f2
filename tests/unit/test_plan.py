"""Done step by step a plan makes every key live where the new placement has it, and touches no other."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Misuse, Unsupported
from holdfast.placement import HashRing, Node, hash_key
from holdfast.placement.base import Placement
from holdfast.placement.hashing import key_bytes, xxh64
from holdfast.placement.moves import CHUNK, CIRCLE, fair_copies, key_moves
from holdfast.placement.plan import KEYS_A_STEP, KeyStep, Plan, RangeStep, Step
from holdfast.placement.registry import ALGORITHMS, make

KEYS: list[Any] = [*range(100), *(f"/usr/lib/python3/module_{index}.py" for index in range(100)), b"\xff\xfe", "häß🐙"]
POINTS = 8  # few, so that hypothesis builds many rings
LAST = CIRCLE - 1

names = st.sampled_from([f"node-{index}" for index in range(9)])
nodes = st.builds(Node, st.sampled_from([1e-9, 0.5, 1.0, 1.5, 3.0]), st.sampled_from([None, "eu", "us"]))
fleets = st.dictionaries(names, nodes, min_size=1, max_size=7)
replicas = st.integers(1, 4)


def rings(before: dict[str, Node], after: dict[str, Node]) -> tuple[HashRing, HashRing]:
    return HashRing(before, points=POINTS), HashRing(after, points=POINTS)


def copies(placement: Placement, key: Any, n: int) -> list[str]:
    return placement.get_nodes(key, min(n, len(placement)))


def key_at(place: int) -> bytes:
    """The key of eight bytes whose XXH64 is ``place``: every step of the hash of eight bytes can be undone."""
    p1, p2, p3, p4, p5 = (
        0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5,
    )  # fmt: skip

    def unmultiplied(value: int, factor: int) -> int:
        return value * pow(factor, -1, CIRCLE) % CIRCLE

    def unrotated(value: int, bits: int) -> int:
        return (value >> bits | value << 64 - bits) % CIRCLE

    h = place ^ place >> 32
    h = unmultiplied(h, p3)
    h = h ^ h >> 29 ^ h >> 58
    h = unmultiplied(h, p2)
    h ^= h >> 33
    h = unrotated(unmultiplied(h - p4, p1), 27) ^ p5 + 8
    return unmultiplied(unrotated(unmultiplied(h, p1), 31), p2).to_bytes(8, "little")


class Cluster:
    """Which node has which keys, and the mover that a user would write."""

    def __init__(self, placement: Placement, keys: list[Any], n: int) -> None:
        self.has: dict[str, set[Any]] = {name: set() for name in placement.nodes}
        for key in keys:
            for name in copies(placement, key, n):
                self.has[name].add(key)

    def move(self, step: Step) -> None:
        stored = self.has.get(step.source, set())
        if isinstance(step, RangeStep):
            keys = {key for key in stored if step.covers(hash_key(key))}
        else:
            assert isinstance(step, KeyStep)
            keys = set(step.keys) & stored
        self.has.setdefault(step.target, set()).update(keys)
        if step.drop is not None:
            self.has[step.drop] -= keys

    def holders(self, key: Any) -> set[str]:
        return {name for name, keys in self.has.items() if key in keys}


def edges(plan: Plan) -> list[bytes]:
    """Keys on both ends of every range, and just outside of it."""
    ends = {end + shift for step in plan.steps if isinstance(step, RangeStep)
            for end in (step.first, step.last) for shift in (-1, 0, 1)}  # fmt: skip
    return [key_at(end) for end in sorted({end % CIRCLE for end in ends} | {0, LAST})]


def assert_leads_from_to(plan: Plan, before: Placement, after: Placement, keys: list[Any], n: int) -> None:
    cluster = Cluster(before, keys, n)
    for step in plan.steps:
        held = {key for key in keys if step in plan.steps_for(key)}
        assert held <= cluster.has.get(step.source, set()), f"{step.source} has not what {step} wants copied from it"
        cluster.move(step)
    for key in keys:
        old, new = set(copies(before, key, n)), set(copies(after, key, n))
        gone = set(before.nodes) - set(after.nodes)  # a node that is no more may be left with what nobody took over
        assert cluster.holders(key) - gone == new
        assert plan.covers(key) == bool(new - old)


@pytest.mark.parametrize("place", [0, 1, LAST, 1 << 63, 0x0123456789ABCDEF])
def test_the_keys_that_these_tests_make_lie_where_they_say(place: int) -> None:
    assert hash_key(key_at(place)) == place


# What a plan does.


@settings(deadline=None)
@given(fleets, fleets, replicas)
def test_steps_done_in_order_lead_from_the_old_placement_to_the_new_and_move_nothing_else(
    old: dict[str, Node], new: dict[str, Node], n: int
) -> None:
    before, after = rings(old, new)
    n = min(n, max(len(old), len(new)))
    plan = before.plan(after, replicas=n)
    assert_leads_from_to(plan, before, after, [*KEYS, *edges(plan)[:400]], n)


@settings(deadline=None)
@given(fleets, fleets, replicas)
def test_a_plan_for_keys_does_the_same_for_those_keys(old: dict[str, Node], new: dict[str, Node], n: int) -> None:
    before, after = rings(old, new)
    n = min(n, max(len(old), len(new)))
    plan = before.plan(after, keys=iter(KEYS), replicas=n)
    assert_leads_from_to(plan, before, after, KEYS, n)
    assert plan.keys == len(KEYS)
    whole = before.plan(after, replicas=n)
    for key in KEYS:
        moves = [(step.source, step.target, step.drop) for step in whole.steps_for(key)]
        assert sorted(map(str, moves)) == sorted(
            str((step.source, step.target, step.drop)) for step in plan.steps_for(key)
        )


@settings(deadline=None)
@given(fleets, fleets, replicas, st.data())
def test_a_plan_resumed_after_a_crash_or_done_twice_comes_to_the_same(
    old: dict[str, Node], new: dict[str, Node], n: int, data: st.DataObject
) -> None:
    before, after = rings(old, new)
    n = min(n, max(len(old), len(new)))
    plan = before.plan(after, replicas=n) if data.draw(st.booleans()) else before.plan(after, keys=KEYS, replicas=n)
    straight = Cluster(before, KEYS, n)
    assert list(plan.apply(straight.move)) == list(range(1, len(plan.steps) + 1))

    crashed = Cluster(before, KEYS, n)
    stop = data.draw(st.integers(0, len(plan.steps)))
    stored = data.draw(st.integers(0, stop))  # the last steps before the crash were done, but not stored
    for step in plan.steps[:stop]:
        crashed.move(step)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert list(again.apply(crashed.move, done=stored)) == list(range(stored + 1, len(plan.steps) + 1))
    assert crashed.has == straight.has
    assert len(list(plan.apply(crashed.move))) == len(plan.steps)
    assert crashed.has == straight.has


@settings(deadline=None)
@given(fleets, fleets, replicas)
def test_a_copy_comes_from_a_node_that_stays_if_one_does_and_from_the_newcomers_zone_if_it_can(
    old: dict[str, Node], new: dict[str, Node], n: int
) -> None:
    before, after = rings(old, new)
    n = min(n, max(len(old), len(new)))
    plan = before.plan(after, replicas=n)
    for key in KEYS:
        had, has = copies(before, key, n), copies(after, key, n)
        stay = set(had) & set(has)
        for step in plan.steps_for(key):
            assert step.source in (stay or had)
            if stay:
                zone = after.nodes[step.target].zone
                near = {name for name in stay if zone is not None and after.nodes[name].zone == zone}
                assert step.source in (near or stay)


def test_of_those_that_stay_the_one_in_the_newcomers_zone_is_copied_from() -> None:
    fleet = {"n1": "north", "n2": "north", "s1": "south", "s2": "south"}
    before = HashRing({name: Node(1, zone) for name, zone in fleet.items()})
    after = before.copy()
    after.add_node("s3", zone="south")
    chosen = {step.source for step in before.plan(after, replicas=4).steps if step.target == "s3"}
    assert chosen <= {"s1", "s2"}
    assert len(chosen) == 2


# Its ranges and figures.


@settings(deadline=None)
@given(fleets, fleets, replicas)
def test_ranges_are_sorted_apart_and_joined_where_they_touch(
    old: dict[str, Node], new: dict[str, Node], n: int
) -> None:
    before, after = rings(old, new)
    plan = before.plan(after, replicas=min(n, max(len(old), len(new))))
    by_range: dict[tuple[int, int], list[tuple[str, str, str | None]]] = {}
    for step in plan.steps:
        assert isinstance(step, RangeStep)
        assert 0 <= step.first <= step.last <= LAST
        by_range.setdefault((step.first, step.last), []).append((step.source, step.target, step.drop))
    assert list(by_range) == sorted(by_range)
    for (one, did), (two, does) in pairwise(by_range.items()):
        assert one[1] < two[0]
        assert one[1] + 1 < two[0] or did != does
    assert [step.number for step in plan.steps] == list(range(len(plan.steps)))


@settings(deadline=None)
@given(fleets, st.sampled_from([LAST, 0xF << 60]), replicas)
def test_keys_live_where_the_arcs_say_also_where_points_fall_together(
    fleet: dict[str, Node], mask: int, n: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.placement.base.hasher_of", lambda _: lambda data: xxh64(data, 0) & mask)
        ring = HashRing(fleet, points=POINTS)
        n = min(n, len(ring))
        arcs = ring.arcs(n)
        ends = [last for last, _ in arcs]
        assert ends == sorted(set(ends))
        assert ends[-1] == LAST
        for key in KEYS:
            place = xxh64(key_bytes(key), 0) & mask
            assert list(arcs[bisect_left(ends, place)][1]) == ring.get_nodes(key, n)


@settings(deadline=None)
@given(fleets, fleets)
def test_what_moves_is_to_the_last_hash_what_the_arcs_gained_and_lost(
    old: dict[str, Node], new: dict[str, Node]
) -> None:
    before, after = rings(old, new)
    plan = before.plan(after)

    def sizes(ring: HashRing) -> dict[str, int]:
        found: dict[str, int] = {}
        end = -1
        for last, (name,) in ring.arcs():
            found[name] = found.get(name, 0) + last - end
            end = last
        assert end == LAST
        return found

    now, then = sizes(before), sizes(after)
    assert sum(now.values()) == sum(then.values()) == CIRCLE
    for name in old | new:
        gained = sum(step.size for step in plan.steps if step.target == name)
        lost = sum(step.size for step in plan.steps if step.source == name)
        assert now.get(name, 0) + gained - lost == then.get(name, 0)
    assert sum(plan.shares().values()) == pytest.approx(plan.moved)
    assert plan.least <= plan.moved
    assert plan.least == pytest.approx(sum(max(0, then[name] - now.get(name, 0)) for name in then) / CIRCLE)


@settings(deadline=None)
@given(fleets.filter(lambda fleet: "node-0" not in fleet), nodes, replicas)
def test_one_node_that_comes_only_takes_and_one_that_goes_only_gives(
    fleet: dict[str, Node], node: Node, n: int
) -> None:
    less, more = rings(fleet, {**fleet, "node-0": node})
    n = min(n, len(less))
    comes, goes = less.plan(more, replicas=n), more.plan(less, replicas=n)
    if all(one.zone is None for one in (*fleet.values(), node)):  # a zone more makes others change zones, too
        assert {step.target for step in comes.steps} <= {"node-0"}
        assert {step.drop for step in goes.steps} <= {"node-0"}
    if n == 1:
        assert {target for _, target in comes.shares()} <= {"node-0"}
        assert {source for source, _ in goes.shares()} <= {"node-0"}
        assert comes.moved == comes.least == goes.moved == goes.least


def test_a_fifth_node_takes_about_a_fifth() -> None:
    before = HashRing([f"cache-{index}" for index in range(4)])
    after = before.copy()
    after.add_node("cache-4")
    plan = before.plan(after)
    assert plan.ideal == pytest.approx(0.2)
    assert plan.moved == plan.least == pytest.approx(0.2, abs=0.04)
    sample = before.plan(after, keys=range(20_000))
    assert sample.moved == pytest.approx(plan.moved, abs=0.015)
    assert len(before) == 4, "a copy is another ring"


@settings(deadline=None)
@given(fleets, st.integers(1, 7))
def test_fair_copies_are_n_together_and_never_two_on_one_node(fleet: dict[str, Node], n: int) -> None:
    n = min(n, len(fleet))
    fair = fair_copies(fleet, n)
    assert sum(fair.values()) == pytest.approx(n)
    assert max(fair.values()) <= 1
    ratios = [share / fleet[name].weight for name, share in fair.items() if share < 0.999]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True


def test_nothing_moves_between_two_rings_that_place_alike() -> None:
    one, two = HashRing({"a": 1, "b": 2}), HashRing({"b": 2, "a": 1})
    for plan in (one.plan(two), one.plan(two, keys=KEYS), one.plan(two, replicas=2)):
        assert plan.steps == ()
        assert plan.moved == plan.least == plan.ideal == 0
        assert not plan.covers("x")
        assert list(plan.apply(print)) == []


def test_two_rings_of_a_thousand_nodes_with_nothing_in_common_are_planned_from_one_end_to_the_other() -> None:
    before, after = (HashRing([f"{letter}{index}" for index in range(1000)]) for letter in "ab")
    plan = before.plan(after)
    assert plan.moved == 1
    assert 300_000 < len(plan.steps) <= 320_000
    assert all(plan.covers(key) for key in KEYS)


# Keys.


def test_a_plan_for_keys_depends_on_the_keys_and_not_on_their_order() -> None:
    before, after = HashRing(["a", "b", "c"]), HashRing(["a", "b", "c", "d"])
    keys = [f"user:{index}" for index in range(20_000)]
    plan = before.plan(after, keys=keys)
    assert plan == before.plan(after, keys=reversed(keys))
    assert all(1 <= step.size <= KEYS_A_STEP for step in plan.steps)
    assert len(plan.steps) < 10
    moved = [key for step in plan.steps if isinstance(step, KeyStep) for key in step.keys]
    assert sorted(moved) == [key for key in sorted(keys) if before.get_node(key) != after.get_node(key)]
    assert plan.moved == len(moved) / len(keys)
    assert plan.covers(str(moved[0]).encode()), "text and its UTF-8 are one key"


def test_keys_are_streamed() -> None:
    taken = 0

    def stream() -> Iterator[int]:
        nonlocal taken
        for key in range(3 * CHUNK):
            taken += 1
            yield key

    chunks = key_moves(HashRing(["a", "b"]), HashRing(["a", "c"]), stream())
    assert next(chunks)[0] == CHUNK
    assert taken == CHUNK
    assert sum(size for size, _ in chunks) == 2 * CHUNK


# Other algorithms.

OTHERS = sorted(set(ALGORITHMS) - {"ring"})


@pytest.mark.parametrize("algorithm", OTHERS)
@pytest.mark.parametrize("n", [1, 3])
def test_any_algorithm_can_be_planned_for_keys(algorithm: str, n: int) -> None:
    before = make(algorithm, [f"node-{index}" for index in range(7)])
    after = before.copy()
    after.remove_node("node-6")
    after.add_node("node-8")
    plan = before.plan(after, keys=KEYS, replicas=n)
    assert_leads_from_to(plan, before, after, KEYS, n)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    if before.minimal and n == 1:
        assert all(step.source == "node-6" or step.target == "node-8" for step in plan.steps)


@pytest.mark.parametrize("algorithm", OTHERS)
def test_without_ranges_and_keys_there_is_no_plan(algorithm: str) -> None:
    placement = make(algorithm, ["a", "b"])
    with pytest.raises(Unsupported, match=f"{type(placement).__name__} gives nodes no ranges of hashes"):
        placement.plan(placement)
    with pytest.raises(Misuse, match=f"algorithm is 'ring' before and '{algorithm}' after"):
        HashRing(["a", "b"]).plan(placement, keys=KEYS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_copy_starts_alike_and_changes_alone(algorithm: str) -> None:
    placement = make(algorithm, ["a", "b", "c"])
    twin = placement.copy()
    assert twin.fingerprint() == placement.fingerprint()
    twin.add_node("d")
    assert "d" not in placement
    placement.remove_node("c")
    assert list(twin.nodes) == ["a", "b", "c", "d"]
    assert twin.locate(KEYS) == [twin.get_node(key) for key in KEYS]


# Data.


@settings(deadline=None)
@given(fleets, fleets, replicas, st.booleans())
def test_a_plan_survives_json(old: dict[str, Node], new: dict[str, Node], n: int, by_keys: bool) -> None:
    before, after = rings(old, new)
    plan = before.plan(after, keys=KEYS if by_keys else None, replicas=min(n, max(len(old), len(new))))
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert (again.before, again.after) == (before.fingerprint(), after.fingerprint())
    assert (again.moved, again.shares()) == (plan.moved, plan.shares())
    for key in KEYS:
        assert again.steps_for(key) == plan.steps_for(key)


def spoiled(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(data))
    *way, last = path.split(".")
    at: Any = data
    for part in way:
        at = at[int(part)] if isinstance(at, list) else at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("version", 2, "upgrade"),
        ("version", "1", "whole number"),
        ("steps", None, "lacks 'steps'"),
        ("steps.0.to", None, "lacks 'to'"),
        ("steps.0.to", 7, "node name is text"),
        ("steps.0.first", "12", "16 hexadecimal digits"),
        ("steps.0.last", "zzzzzzzzzzzzzzzz", "step 0"),
        ("steps.0.last", "ffffffffffffffff", "sorted"),
        ("steps", 5, "no plan's data"),
        ("hash", "crc32", "no hash is called"),
        ("replicas", -3, "whole numbers"),
        ("ideal", "much", "ideal is a number"),
    ],
)
def test_data_with_a_mistake_in_it_is_refused(path: str, value: Any, told: str) -> None:
    data = HashRing(["a", "b"]).plan(HashRing(["a", "c"])).to_dict()
    with pytest.raises(Misuse, match=told):
        Plan.from_dict(spoiled(data, path, value))
    with pytest.raises(Misuse, match="mapping"):
        Plan.from_dict([data])  # type: ignore[arg-type]


# What is refused.


def test_a_plan_between_placements_of_different_rules_is_refused_and_the_difference_named() -> None:
    ring = HashRing(["a", "b"])
    with pytest.raises(Misuse, match="points is 160 before and 200 after"):
        ring.plan(HashRing(["a", "b"], points=200))
    with pytest.raises(Misuse, match="hash is 'xxh64' before and 'md5' after"):
        ring.plan(HashRing(["a", "b"], hash="md5"), keys=KEYS)


def test_a_plan_needs_nodes_on_both_sides_and_no_more_copies_than_there_are_nodes() -> None:
    ring, empty = HashRing(["a", "b"]), HashRing()
    for before, after, when in ((ring, empty, "after"), (empty, ring, "before")):
        with pytest.raises(Misuse, match=f"no nodes {when}"):
            before.plan(after)
    for bad in (0, 3, -1, 1.5, True, "2"):
        with pytest.raises(Misuse, match="replicas is a whole number from 1 to the 2 nodes"):
            ring.plan(ring, replicas=bad)  # type: ignore[arg-type]
    with pytest.raises(Misuse, match="keys are many"):
        ring.plan(ring, keys="user:7")
    with pytest.raises(Misuse, match="a key is str, bytes or int"):
        ring.plan(HashRing(["c"]), keys=[None])  # type: ignore[list-item]


def test_progress_that_this_plan_cannot_have_is_refused_at_once() -> None:
    plan = HashRing(["a", "b"]).plan(HashRing(["a", "c"]))
    for bad in (-1, len(plan.steps) + 1, 0.5, True, None):
        with pytest.raises(Misuse, match="done is a whole number from 0 to"):
            plan.apply(print, done=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, 3, True, 1.0])
def test_arcs_of_more_nodes_than_there_are_are_refused(n: Any) -> None:
    with pytest.raises(Misuse, match="from 1 to the 2 nodes"):
        HashRing(["a", "b"]).arcs(n)
    with pytest.raises(Misuse, match="no nodes"):
        HashRing().arcs()
