"""Rings that others speak place as the others do."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from holdfast import placement
from holdfast.errors import Misuse, Unsupported
from holdfast.placement import Ketama, Placement, envoy_maglev, envoy_ring_hash, ketama_libmemcached, ketama_twemproxy

# ketama: the real libmemcached 1.1.4 and twemproxy 0.5.0 of Debian 12 were asked (and agreed on 3,300 keys for each of
# 19 fleets of 1 to 100 servers, with and without weights). Envoy: the rings and tables in its own tests.
FOREIGN = json.loads((Path(__file__).parent / "placement_golden.json").read_text())["foreign"]


def find(placed: Placement, place: str) -> str | None:
    finder = placed._table.finder
    assert finder is not None
    return placed.slots[finder.find(int(place, 16))]


@pytest.mark.parametrize("golden", FOREIGN, ids=lambda golden: f"{golden['preset']}: {golden['source']}")
def test_a_preset_places_as_the_original(golden: dict[str, Any]) -> None:
    placed = getattr(placement, golden["preset"])(golden["nodes"], **golden["options"])
    keys, places = golden.get("keys", []), golden.get("places", [])
    assert len(keys) + len(places) >= 5
    for key, node in keys:
        assert placed.get_node(key) == node, key
    for place, node in places:
        assert find(placed, place) == node, place


def test_every_preset_has_vectors_of_the_original() -> None:
    assert {golden["preset"] for golden in FOREIGN} == {
        name for name in placement.__all__ if name[:5] in ("envoy", "ketam")
    }


def test_envoy_s_large_ring_has_the_loads_that_its_test_counts() -> None:
    """RingHashLoadBalancerTest.HostWeightedLargeRing."""
    nodes = {"127.0.0.1:90": 1, "127.0.0.1:91": 2, "127.0.0.1:92": 3}
    placed = envoy_ring_hash(nodes, minimum_ring_size=6144)
    step = (2**64 - 1) // 6000
    loads = Counter(find(placed, f"{number * step:x}") for number in range(6000))
    assert [loads[name] for name in nodes] == [987, 1932, 3081]


def test_the_usual_port_does_not_count_in_ketama() -> None:
    keys = range(200)
    with_port = ketama_libmemcached(["10.0.0.1:11211", "10.0.0.2:11211", "10.0.0.3:11212"])
    without = ketama_libmemcached(["10.0.0.1", "10.0.0.2", "10.0.0.3:11212"])
    assert [name.removesuffix(":11211") for name in with_port.locate(keys)] == without.locate(keys)


def test_a_node_without_points_is_the_last_to_be_tried() -> None:
    nodes = {"heavy": 1000, "heavier": 2000, "light": 1}
    placed = ketama_libmemcached(nodes)
    assert set(placed.locate(range(2000))) == {"heavy", "heavier"}
    assert all(placed.get_nodes(key, 3)[2] == "light" for key in range(50))
    assert placed.get_node("key", exclude=["heavy", "heavier"]) == "light"
    tiny = envoy_ring_hash(["a", "b", "c"], minimum_ring_size=1, maximum_ring_size=1)
    assert tiny.get_nodes("key", 3)[0] == "a"


def test_the_order_of_hosts_counts_in_envoy_s_ring_and_survives_changes() -> None:
    names = ["c", "a", "b"]
    placed = envoy_ring_hash({"c": 2, "x": 3, "a": 2, "b": 3})
    placed.remove_node("x")
    assert placed.slots == tuple(names)
    assert placed.fingerprint() == envoy_ring_hash({"c": 2, "a": 2, "b": 3}).fingerprint()
    assert placed.fingerprint() != envoy_ring_hash({"a": 2, "b": 3, "c": 2}).fingerprint()


@pytest.mark.parametrize("weight", [0.5, 1.25, 1 << 32])
def test_weights_are_whole_numbers_where_the_original_s_are(weight: float) -> None:
    for preset in (ketama_libmemcached, ketama_twemproxy, envoy_ring_hash):
        with pytest.raises(Misuse, match="whole number"):
            preset({"a": 1, "b": weight})
    assert envoy_maglev({"a": 1, "b": weight}).nodes["b"].weight == weight


def test_what_an_original_does_not_do_is_refused() -> None:
    with pytest.raises(Unsupported, match="points=160"):
        Ketama({"a": 1, "b": 2}, points=100)
    unweighted = ketama_libmemcached(["a", "b"], weighted=False)
    with pytest.raises(Unsupported, match="points=160"):
        unweighted.set_weight("a", 2)
    assert unweighted.nodes["a"].weight == 1
    with pytest.raises(Misuse, match="min_size"):
        envoy_ring_hash(["a"], minimum_ring_size=20, maximum_ring_size=10)
