"""A change moves the keys it must and no others; readers never wait; every machine gives the same answers."""

from __future__ import annotations

import copy
import doctest
import json
import math
import os
import pickle
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Misuse
from holdfast.placement import HashRing, Node, hash_key, hashing
from holdfast.placement.hashing import xxh64, xxh64_python

GOLDEN = json.loads((Path(__file__).parent / "ring_golden.json").read_text())
KEYS = [*range(150), *(f"/usr/lib/python3/dist-packages/module_{index}.py" for index in range(150))]
POINTS = 12  # few, so that hypothesis builds many rings
FULL = 2**64 - 1
FOUR_BITS = 0xF << 60

# At most six characters: the longer names in the tests below never come from here.
names = st.one_of(st.sampled_from(["s1", "s1:1", "s1:11", "s11", "1"]), st.text(min_size=1, max_size=6))
weights = st.sampled_from([1e-9, 0.3, 0.5, 1.0, 1.5, 2, 3.7])
zones = st.sampled_from([None, "eu", "us", "ap"])
fleets = st.dictionaries(names, st.builds(Node, weights, zones), min_size=1, max_size=9)


def naive_points(ring: HashRing, mask: int = FULL) -> list[tuple[int, str]]:
    """What the documentation says the points are, computed the slow way."""
    return sorted(
        (xxh64(name.encode() + index.to_bytes(4, "little"), 0) & mask, name)
        for name, node in ring.nodes.items()
        for index in range(max(1, round(ring.points * node.weight)))
    )


def naive_order(ring: HashRing, key: Any, mask: int = FULL) -> list[str]:
    """What the documentation says of replicas: by how many of its zone came before, then in the ring's order."""
    points = naive_points(ring, mask)
    place = hash_key(key) & mask
    ahead = [name for point, name in points if point >= place] + [name for _, name in points]
    return spread(ring, list(dict.fromkeys(ahead)))


def spread(ring: HashRing, order: list[str]) -> list[str]:
    """Each zone's first, then each zone's second, and so on; otherwise as they were."""
    met: Counter[Any] = Counter()
    ranks: dict[str, int] = {}
    for name in order:
        zone = (ring.nodes[name].zone,) if ring.nodes[name].zone else name
        ranks[name] = met[zone]
        met[zone] += 1
    return sorted(order, key=ranks.__getitem__)


@contextmanager
def hashes_cut(mask: int) -> Iterator[None]:
    """Make points and keys fall together, which 64 bits never do in a test's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.placement.base.hasher_of", lambda _: lambda data: xxh64(data, 0) & mask)
        yield


# Movement.


@given(fleets, names, weights, zones)
def test_adding_a_node_moves_keys_only_to_it_and_removing_it_brings_them_back(
    fleet: dict[str, Node], name: str, weight: float, zone: str | None
) -> None:
    fleet.pop(name, None)
    ring = HashRing({**fleet, "that stays": 1.0}, points=POINTS)
    before = ring.locate(KEYS)
    ring.add_node(name, weight, zone)
    after = ring.locate(KEYS)
    assert all(new in (old, name) for old, new in zip(before, after, strict=True))
    ring.remove_node(name)
    assert ring.locate(KEYS) == before


@given(fleets, weights, st.data())
def test_a_weight_change_moves_keys_only_to_or_from_that_node(
    fleet: dict[str, Node], weight: float, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(fleet)))
    ring = HashRing(fleet, points=POINTS)
    before = ring.locate(KEYS)
    ring.set_weight(name, weight)
    for old, new in zip(before, ring.locate(KEYS), strict=True):
        assert new == old or (new == name if weight > fleet[name].weight else old == name)
    assert ring.nodes[name] == Node(weight, fleet[name].zone)


@given(fleets, st.lists(weights, max_size=4))
def test_a_node_that_was_reweighted_leaves_nothing_behind(fleet: dict[str, Node], history: list[float]) -> None:
    without = HashRing(fleet, points=POINTS)
    ring = HashRing({**fleet, "that goes": 1.0}, points=POINTS)
    for weight in history:
        ring.set_weight("that goes", weight)
    ring.remove_node("that goes")
    assert ring.locate(KEYS) == without.locate(KEYS)
    assert ring.fingerprint() == without.fingerprint()


@given(fleets, names, weights, zones, st.integers(1, 4))
def test_a_node_that_comes_or_goes_changes_one_replica_of_a_key_at_most(
    fleet: dict[str, Node], name: str, weight: float, zone: str | None, n: int
) -> None:
    fleet.pop(name, None)
    fleet |= {
        "that stays 1": Node(1, "eu"),
        "that stays 2": Node(1, "eu"),
        "that stays 3": Node(),
        "that stays 4": Node(),
    }
    small = HashRing(fleet, points=POINTS)
    large = HashRing(small.nodes, points=POINTS)
    large.add_node(name, weight, zone)
    for key in KEYS[::10]:
        before, after = set(small.get_nodes(key, n)), set(large.get_nodes(key, n))
        assert after - before <= {name}
        assert len(before - after) <= 1


# Order and replicas.


@pytest.mark.parametrize("mask", [FULL, FOUR_BITS])
@settings(max_examples=60)
@given(fleet=fleets, data=st.data())
def test_the_ring_does_not_depend_on_how_it_was_built(mask: int, fleet: dict[str, Node], data: st.DataObject) -> None:
    with hashes_cut(mask):
        check_independence_of_order(fleet, data)


def check_independence_of_order(fleet: dict[str, Node], data: st.DataObject) -> None:
    at_once = HashRing(fleet, points=POINTS)
    by_steps = HashRing(points=POINTS)
    for name in data.draw(st.permutations(sorted(fleet))):
        by_steps.add_node(name, data.draw(weights), fleet[name].zone)
        if data.draw(st.booleans()):
            by_steps.remove_node(name)
            by_steps.add_node(name, zone=fleet[name].zone)
    for name in data.draw(st.permutations(sorted(fleet))):
        by_steps.set_weight(name, fleet[name].weight)
    assert by_steps.nodes == at_once.nodes
    assert list(by_steps.nodes) == sorted(fleet)
    assert by_steps.fingerprint() == at_once.fingerprint()
    assert by_steps.locate(KEYS) == at_once.locate(KEYS)
    assert [list(by_steps.iterate_nodes(key)) for key in KEYS[::30]] == [
        list(at_once.iterate_nodes(key)) for key in KEYS[::30]
    ]


@pytest.mark.parametrize("mask", [FULL, FOUR_BITS])
@settings(max_examples=60)
@given(fleet=fleets)
def test_the_ring_does_what_its_documentation_says(mask: int, fleet: dict[str, Node]) -> None:
    with hashes_cut(mask):
        ring = HashRing(fleet, points=POINTS)
        for key in KEYS[::30]:
            order = naive_order(ring, key, mask)
            assert list(ring.iterate_nodes(key)) == order
            assert ring.get_node(key) == order[0] == ring.locate([key])[0]


@given(fleets)
def test_replicas_are_distinct_and_fewer_of_them_are_the_first_of_more(fleet: dict[str, Node]) -> None:
    ring = HashRing(fleet, points=POINTS)
    for key in KEYS[::30]:
        all_of_them = ring.get_nodes(key, len(fleet))
        assert sorted(all_of_them) == sorted(fleet)
        assert all_of_them == list(ring.iterate_nodes(key))
        for n in range(1, len(fleet)):
            assert ring.get_nodes(key, n) == all_of_them[:n]


@given(fleets, st.sets(names, max_size=4), st.data())
def test_excluding_nodes_moves_only_what_they_kept(
    fleet: dict[str, Node], strangers: set[str], data: st.DataObject
) -> None:
    down = data.draw(st.sets(st.sampled_from(sorted(fleet))))
    fleet["that stays"] = Node()
    ring = HashRing(fleet, points=POINTS)
    exclude = down | (strangers - fleet.keys())
    up = len(fleet) - len(down)
    for key in KEYS[::30]:
        left = [name for name in naive_order(ring, key) if name not in down]
        order = ring.get_nodes(key, up, exclude=exclude)
        assert order == spread(ring, left)
        assert ring.get_node(key, exclude=exclude) == left[0]
        for n in range(1, up):
            with_stand_ins = ring.get_nodes(key, n, exclude=exclude)
            assert with_stand_ins == order[:n]
            assert set(ring.get_nodes(key, n)) - down <= set(with_stand_ins)


@given(fleets, st.data())
def test_without_zones_excluding_nodes_is_what_removing_them_would_be(
    fleet: dict[str, Node], data: st.DataObject
) -> None:
    down = data.draw(st.sets(st.sampled_from(sorted(fleet))))
    nodes = {**{name: node.weight for name, node in fleet.items()}, "that stays": 1.0}
    ring = HashRing(nodes, points=POINTS)
    rest = HashRing({name: weight for name, weight in nodes.items() if name not in down}, points=POINTS)
    for key in KEYS[::30]:
        assert ring.get_nodes(key, len(rest), exclude=down) == list(rest.iterate_nodes(key))


def test_replicas_spread_over_zones_and_share_them_evenly_where_there_are_too_few() -> None:
    ring = HashRing({f"{zone}-{index}": Node(1.0, zone) for zone in ("eu", "us", "ap") for index in range(4)})
    ring.add_node("ap-extra", 3.0, "ap")
    for key in KEYS:
        taken = [ring.nodes[name].zone for name in ring.get_nodes(key, 13)]
        assert len(set(taken[:3])) == 3
        assert set(Counter(taken[:6]).values()) == {2}
        assert set(Counter(taken[:12]).values()) == {4}
        assert taken[12] == "ap"
    all_of_us = {name for name, node in ring.nodes.items() if node.zone == "us"}
    assert Counter(ring.nodes[name].zone for name in ring.get_nodes("a", 4, exclude=all_of_us)) == {"eu": 2, "ap": 2}


def test_a_node_without_a_zone_is_a_zone_of_its_own() -> None:
    ring = HashRing({"eu-1": Node(1, "eu"), "eu-2": Node(1, "eu"), "alone-1": 1, "alone-2": 1})
    for key in KEYS:
        assert ring.nodes[ring.get_nodes(key, 4)[3]].zone == "eu"
        assert len({"eu-1", "eu-2"} & set(ring.get_nodes(key, 3))) == 1


# Balance, on real names.


def real_paths() -> list[bytes]:
    """The files of the standard library that runs this, without what was installed into it."""
    paths: list[bytes] = []
    for folder, folders, files in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
        paths += [os.fsencode(os.path.join(folder, name)) for name in files]
    return paths


@pytest.mark.parametrize("count", [3, 10, 100])
@pytest.mark.parametrize("kind", ["paths", "numbers"])
def test_real_keys_fall_on_nodes_by_their_arcs_within_sampling_error(count: int, kind: str) -> None:
    ring = HashRing({f"cache-{index}.example:11211": 1 + index % 2 for index in range(count)})
    keys = real_paths() if kind == "paths" else list(range(1_000_000, 1_010_000))
    assert len(keys) > 500
    points = naive_points(ring)
    arcs: Counter[str] = Counter({points[0][1]: points[0][0] + 2**64 - points[-1][0]})
    for (start, _), (end, name) in pairwise(points):
        arcs[name] += end - start
    assert sum(arcs.values()) == 2**64
    weight = sum(node.weight for node in ring.nodes.values())
    seen = Counter(ring.locate(keys))
    for name, node in ring.nodes.items():
        share = arcs[name] / 2**64
        assert 0.7 < share / (node.weight / weight) < 1.3
        expected = len(keys) * share
        assert abs(seen[name] - expected) <= 5 * math.sqrt(expected * (1 - share)), (name, seen[name], expected)


def test_a_tenth_node_takes_about_its_share() -> None:
    ring = HashRing(f"node-{index}" for index in range(9))
    keys = range(20_000)
    before = ring.locate(keys)
    ring.add_node("node-9")
    moved = sum(old != new for old, new in zip(before, ring.locate(keys), strict=True))
    assert 0.07 < moved / len(keys) < 0.13


# Readers.


@contextmanager
def eager_switching() -> Iterator[None]:
    """Let threads take turns every few bytecodes."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def test_readers_see_the_old_ring_or_the_new_one_and_never_fail() -> None:
    ring = HashRing({f"node-{index}": Node(1.0, f"zone-{index % 3}") for index in range(6)}, points=40)
    keys = KEYS[:40]
    without = [ring.get_nodes(key, 6) for key in keys]
    states = [ring.locate(keys)]
    other = copy.deepcopy(ring)
    other.add_node("x", 2.0, "zone-0")
    states.append(other.locate(keys))
    other.set_weight("x", 0.5)
    states.append(other.locate(keys))
    assert states[0] != states[1] != states[2] != states[0]
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                assert ring.locate(keys) in states
                for index, key in enumerate(keys):
                    assert sorted(ring.get_nodes(key, 6, exclude=["x"])) == sorted(without[index])
                    assert ring.get_node(key) in {state[index] for state in states}
                    assert sorted(ring.iterate_nodes(key))[:6] == sorted(without[index])
        except BaseException as failure:
            failures.append(failure)

    readers = [threading.Thread(target=read) for _ in range(3)]
    with eager_switching():
        for reader in readers:
            reader.start()
        for _ in range(100):
            ring.add_node("x", 2.0, "zone-0")
            ring.set_weight("x", 0.5)
            ring.remove_node("x")
        done.set()
        for reader in readers:
            reader.join()
    assert not failures


def test_writers_take_turns_and_none_is_lost() -> None:
    ring = HashRing(points=POINTS)
    together = threading.Barrier(4)

    def add(part: int) -> None:
        together.wait()
        for index in range(30):
            ring.add_node(f"node-{part}-{index}")

    writers = [threading.Thread(target=add, args=(part,)) for part in range(4)]
    with eager_switching():
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert len(ring) == 120
    assert ring.fingerprint() == HashRing(ring.nodes, points=POINTS).fingerprint()


def test_an_iteration_goes_on_over_the_ring_it_began_with() -> None:
    ring = HashRing(["a", "b", "c"])
    order = ring.iterate_nodes("user:7")
    first = next(order)
    ring.remove_node("a")
    assert sorted([first, *order]) == ["a", "b", "c"]


# Identity.


def test_the_golden_rings_place_as_they_always_did() -> None:
    for golden in GOLDEN["rings"]:
        ring = HashRing.from_dict(golden["ring"])
        assert ring.to_dict() == golden["ring"]
        assert ring.fingerprint() == golden["fingerprint"]
        for name, points in golden["first_points"].items():
            assert [f"{xxh64_python(name.encode() + bytes([index, 0, 0, 0])):016x}" for index in (0, 1)] == points
        for placement in golden["placements"]:
            key, expected = placement["key"], placement["nodes"]
            assert ring.get_nodes(key, len(expected)) == expected == naive_order(ring, key)[: len(expected)]
            assert ring.get_node(key) == expected[0]


@given(fleets)
def test_a_ring_survives_json_pickle_and_copying(fleet: dict[str, Node]) -> None:
    ring = HashRing(fleet, points=POINTS)
    for twin in (
        HashRing.from_dict(json.loads(json.dumps(ring.to_dict()))),
        pickle.loads(pickle.dumps(ring)),
        copy.deepcopy(ring),
        copy.copy(ring),
    ):
        assert twin.nodes == ring.nodes
        assert twin.points == ring.points
        assert twin.fingerprint() == ring.fingerprint()
        assert twin.locate(KEYS) == ring.locate(KEYS)
        twin.add_node("a name longer than the others")
        assert len(ring) == len(fleet)


def test_the_fingerprint_tells_rings_apart_that_place_differently() -> None:
    rings = [
        HashRing(["a", "b", "c"]),
        HashRing(["a", "b", "d"]),
        HashRing(["a", "b"]),
        HashRing(["a", "b", "c"], points=161),
        HashRing({"a": 1, "b": 2, "c": 1}),
        HashRing({"a": Node(1, "x"), "b": Node(1, "x"), "c": 1}),
        HashRing({"a": Node(1, "x"), "b": 1, "c": Node(1, "x")}),
        HashRing(["ab"]),
        HashRing(),
    ]
    assert len({ring.fingerprint() for ring in rings}) == len(rings)


def test_the_fingerprint_overlooks_what_moves_nothing() -> None:
    def fingerprint(nodes: Mapping[str, float | Node], points: int = 160) -> str:
        return HashRing(nodes, points=points).fingerprint()

    plain = fingerprint({"a": 1, "b": 1, "c": 1})
    assert plain == fingerprint({"c": 2, "a": 2, "b": 2}, points=80)
    assert plain == fingerprint({"a": 1.0001, "b": 1, "c": 1})
    assert plain == fingerprint({name: Node(1, "all together") for name in "abc"})
    assert plain == fingerprint({name: Node(1, f"alone {name}") for name in "abc"})
    paired = fingerprint({"a": Node(1, "x"), "b": Node(1, "x"), "c": 1})
    assert paired == fingerprint({"a": Node(1, "y"), "b": Node(1, "y"), "c": Node(1, "x")})
    assert paired != plain


def test_answers_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    program = """
import json
from holdfast.placement import HashRing
ring = HashRing({name for name in "abcdefgh"})
ring.add_node("z", 2.0, "eu"); ring.add_node("y", 1.0, "eu")
print(json.dumps(ring.to_dict()), ring.fingerprint(), [ring.get_nodes(key, 4, exclude={"a", "b"}) for key in range(99)])
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(hashing.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(said) == 1


def test_the_caller_s_nodes_stay_as_they_were_and_the_ring_s_cannot_be_changed() -> None:
    mine = {"a": 1.0, "b": 2.0}
    ring = HashRing(mine)
    ring.remove_node("a")
    assert mine == {"a": 1.0, "b": 2.0}
    snapshot: Any = ring.nodes
    with pytest.raises(TypeError):
        snapshot["c"] = Node()
    assert ("b" in ring, "a" in ring, None in ring, len(ring)) == (True, False, False, 1)
    assert ring.nodes == {"b": Node(2.0)}


# Bad input.


@pytest.mark.parametrize("weight", [0, 0.0, -1, math.nan, math.inf, -math.inf, 1e9, 10**400, "2", None, True, [1]])
def test_a_weight_that_makes_no_sense_is_refused_and_nothing_changes(weight: Any) -> None:
    ring = HashRing(["a"])
    before = ring.fingerprint()
    with pytest.raises(Misuse, match="weight"):
        ring.add_node("b", weight)
    with pytest.raises(Misuse, match="weight"):
        ring.set_weight("a", weight)
    with pytest.raises(Misuse, match="weight"):
        HashRing({"a": weight})
    assert ring.fingerprint() == before
    ring.add_node("b", 1e-9)
    assert "b" in ring


@pytest.mark.parametrize("name", ["", 1, None, b"a", "x" * 513, "\udc80", ["a"], True])
def test_a_name_that_makes_no_sense_is_refused(name: Any) -> None:
    ring = HashRing(["a"])
    with pytest.raises(Misuse):
        ring.add_node(name)
    with pytest.raises(Misuse):
        HashRing([name])
    with pytest.raises(Misuse):
        ring.remove_node(name)
    if name is not None:
        with pytest.raises(Misuse):
            ring.add_node("b", zone=name)
    assert list(ring.nodes) == ["a"]


def test_an_empty_ring_says_so() -> None:
    ring = HashRing()
    for ask in (
        lambda: ring.get_node("a"),
        lambda: ring.get_node("a", exclude=["b"]),
        lambda: ring.get_nodes("a", 1),
        lambda: ring.iterate_nodes("a"),
        lambda: ring.locate(["a"]),
    ):
        with pytest.raises(Misuse, match="no nodes"):
            ask()


@pytest.mark.parametrize("n", [0, -1, 4, 1.0, "2", None, True])
def test_a_number_of_replicas_that_makes_no_sense_is_refused(n: Any) -> None:
    with pytest.raises(Misuse, match="n is"):
        HashRing(["a", "b", "c"]).get_nodes("key", n)


def test_excluding_too_many_is_refused() -> None:
    ring = HashRing(["a", "b", "c"])
    with pytest.raises(Misuse, match="the 2 nodes there are that are not excluded"):
        ring.get_nodes("key", 3, exclude=["a", "stranger"])
    with pytest.raises(Misuse, match="every node"):
        ring.get_node("key", exclude=iter("abc"))


@pytest.mark.parametrize("points", [0, -1, 1.5, "160", True, None, 1 << 21])
def test_a_number_of_points_that_makes_no_sense_is_refused(points: Any) -> None:
    with pytest.raises(Misuse, match="points"):
        HashRing(["a"], points=points)


def test_one_name_where_many_are_meant_is_refused() -> None:
    ring = HashRing(["a", "b"])
    mistakes: list[Any] = [
        lambda: HashRing("a,b"),
        lambda: ring.locate("key"),
        lambda: ring.get_node("key", exclude="a"),
        lambda: ring.get_nodes("key", 1, exclude=[1]),  # type: ignore[list-item]
    ]
    for mistake in mistakes:
        with pytest.raises(Misuse):
            mistake()


def test_a_duplicate_and_an_unknown_node_are_refused() -> None:
    ring = HashRing(["a", "b"])
    with pytest.raises(Misuse, match="'a'"):
        ring.add_node("a")
    with pytest.raises(Misuse, match="twice"):
        HashRing(["a", "b", "a"])
    with pytest.raises(Misuse, match="'c'"):
        ring.remove_node("c")
    with pytest.raises(Misuse, match="'c'"):
        ring.set_weight("c", 2)
    assert ring.fingerprint() == HashRing(["a", "b"]).fingerprint()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"version": "1"}, "whole number"),
        ({"version": True}, "whole number"),
        ({"algorithm": "maglev"}, "maglev"),
        ({"hash": "crc32"}, "crc32"),
        ({"points": 0}, "points"),
        ({"nodes": ["a"]}, "mapping"),
        ({"nodes": {"a": 1}}, "node 'a'"),
        ({"nodes": {"a": {}}}, "weight"),
        ({"nodes": {"a": {"weight": 1, "zne": "eu"}}}, "zne"),
        ({"nodes": {"a": {"weight": None}}}, "weight"),
        ({"nodes": {1: {"weight": 1}}}, "node name"),
        ({"replicas": 3}, "replicas"),
    ],
)
def test_data_of_a_newer_release_or_with_a_mistake_is_refused(change: dict[str, Any], says: str) -> None:
    data = HashRing(["a"]).to_dict()
    with pytest.raises(Misuse, match=says):
        HashRing.from_dict(data | change)
    with pytest.raises(Misuse, match="lacks hash"):
        HashRing.from_dict({field: value for field, value in data.items() if field != "hash"})
    not_data: Any = [1]
    with pytest.raises(Misuse, match="mapping"):
        HashRing.from_dict(not_data)


def test_the_examples_of_the_guide_run() -> None:
    guide = Path(__file__).parents[2] / "docs" / "placement.md"
    outcome = doctest.testfile(str(guide), module_relative=False)
    assert outcome.attempted > 20
    assert outcome.failed == 0
