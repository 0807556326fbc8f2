"""No node has more than its bound, and no key moves that need not."""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Misuse
from holdfast.placement import ALGORITHMS, BoundedLoads, HashRing, Placement, Rendezvous, make

KEYS = [f"/srv/data/{number}.bin" for number in range(400)]
NODES = [f"node-{number}" for number in range(8)]
epsilons = st.sampled_from([0, 0.1, 0.25, 1, 7.5])
fleets = st.dictionaries(st.sampled_from(NODES), st.sampled_from([1, 2, 0.3, 5]), min_size=1)


def bound(nodes: dict[str, float], name: str, keys: int, epsilon: float) -> int:
    total = sum(Fraction(str(weight)) for weight in nodes.values())
    return math.ceil((1 + Fraction(str(epsilon))) * keys * Fraction(str(nodes[name])) / total)


def weights_of(placed: Placement) -> dict[str, float]:
    return {name: node.weight for name, node in placed.nodes.items()}


# A batch.


@given(fleets, epsilons, st.integers(0, 120))
def test_no_node_gets_more_than_its_bound(nodes: dict[str, float], epsilon: float, count: int) -> None:
    placed = Rendezvous(nodes)
    bounded = BoundedLoads(placed, epsilon)
    where = bounded.assign(KEYS[:count])
    loads = Counter(where.values())
    assert list(where) == KEYS[:count]
    for name in nodes:
        assert bounded.bounds(count)[name] == bound(nodes, name, count, epsilon)
        assert loads[name] <= bound(nodes, name, count, epsilon)
    for key, name in where.items():  # and each is on the first node that has room, or had none left
        better = list(placed.iterate_nodes(key))
        for other in better[: better.index(name)]:
            assert loads[other] == bound(nodes, other, count, epsilon)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bounds_hold_over_every_algorithm(algorithm: str) -> None:
    loads = Counter(BoundedLoads(make(algorithm, NODES), 0.1).assign(KEYS).values())
    assert max(loads.values()) <= 55
    assert loads.total() == 400


@given(st.permutations(KEYS[:60]), fleets)
def test_the_order_of_keys_does_not_matter(shuffled: list[str], nodes: dict[str, float]) -> None:
    bounded = BoundedLoads(HashRing(nodes, points=8), 0.1)
    assert bounded.assign(shuffled) == bounded.assign(KEYS[:60]) == bounded.assign(KEYS[:60] * 2)


def test_keys_that_are_one_count_once() -> None:
    bounded = BoundedLoads(HashRing(NODES), 0)
    where = bounded.assign([1, "1", b"1", "2"])
    assert where[1] == where["1"] == where[b"1"]
    assert set(where) == {1, "1", b"1", "2"}
    assert bounded.assign([]) == BoundedLoads(HashRing(), 0).assign([]) == {}


def test_bounds_are_those_of_a_person_who_counts() -> None:
    """10 % above a mean of 10 is 11; in binary fractions it would be 12."""
    assert set(BoundedLoads(HashRing(NODES), 0.1).bounds(80).values()) == {11}
    assert BoundedLoads(HashRing({"a": 0.1, "b": 0.2}), 0).bounds(30) == {"a": 10, "b": 20}


def test_a_node_that_comes_moves_few_keys_of_a_batch_in_vain() -> None:
    keys = list(range(4000))
    ring = HashRing(NODES)
    bounded = BoundedLoads(ring, 0.25)
    before = bounded.assign(keys)
    ring.add_node("new")
    after = bounded.assign(keys)
    moved = {key for key in keys if before[key] != after[key]}
    assert 4000 / 9 * 0.7 < len(moved) < 4000 / 9 * 2
    keys.remove(7)
    fewer = bounded.assign(keys)
    assert sum(after[key] != fewer[key] for key in keys) < 100


# A stream.


class Model:
    """What the caller knows: where it was told that keys are."""

    def __init__(self, bounded: BoundedLoads) -> None:
        self.bounded = bounded
        self.where: dict[Any, str] = {}

    def place(self, key: str) -> None:
        name = self.bounded.place(key)
        assert self.where.setdefault(key, name) == name

    def release(self, key: str) -> None:
        del self.where[key]
        self.moved(self.bounded.release(key))

    def moved(self, moves: Any) -> int:
        for key, (old, new) in moves.items():
            assert self.where[key] == old != new
            self.where[key] = new
        return len(moves)

    def check(self) -> None:
        nodes = weights_of(self.bounded.placement)
        loads = Counter(self.where.values())
        assert self.bounded.loads == {name: loads[name] for name in sorted(nodes)}
        assert len(self.bounded) == len(self.where)
        for name, load in loads.items():
            assert load <= bound(nodes, name, len(self.where), self.bounded.epsilon)


@given(fleets, epsilons, st.randoms(use_true_random=False))
def test_a_stream_keeps_the_bounds_and_tells_every_move(nodes: dict[str, float], epsilon: float, chance: Any) -> None:
    placed = Rendezvous(nodes)
    model = Model(BoundedLoads(placed, epsilon))
    for _ in range(60):
        what = chance.choice(["place"] * 5 + ["release"] * 3 + ["add", "remove", "weight"])
        if what == "place":
            model.place(chance.choice(KEYS[:50]))
        elif what == "release" and model.where:
            model.release(chance.choice(list(model.where)))
        elif what == "add" and len(placed) < len(NODES):
            placed.add_node(chance.choice([name for name in NODES if name not in placed]), chance.choice([1, 0.3, 5]))
        elif what == "remove" and len(placed) > 1:
            placed.remove_node(chance.choice(list(placed.nodes)))
        elif what == "weight":
            placed.set_weight(chance.choice(list(placed.nodes)), chance.choice([1, 2, 0.3]))
        if what in ("add", "remove", "weight"):
            check_that_settling_moves_the_fewest(model)
        model.check()


def check_that_settling_moves_the_fewest(model: Model) -> None:
    nodes = weights_of(model.bounded.placement)
    loads = Counter(model.where.values())
    must = sum(
        max(0, load - bound(nodes, name, len(model.where), model.bounded.epsilon)) if name in nodes else load
        for name, load in loads.items()
    )
    moved = model.moved(model.bounded.settle())
    assert moved == must
    assert not model.bounded.settle()


def test_placing_moves_no_other_key_and_twice_is_once() -> None:
    bounded = BoundedLoads(HashRing(NODES), 0.1)
    where = {key: bounded.place(key) for key in KEYS}
    assert {key: bounded.place(key) for key in KEYS} == where
    assert len(bounded) == sum(bounded.loads.values()) == 400
    assert max(bounded.loads.values()) <= 55
    ring = HashRing(NODES)
    at_home = sum(where[key] == ring.get_node(key) for key in KEYS)
    assert at_home > 300, "most are on their first choice"


def test_a_key_of_a_node_that_went_is_placed_anew() -> None:
    ring = HashRing(NODES)
    bounded = BoundedLoads(ring)
    for key in KEYS:
        bounded.place(key)
    lost = bounded.place(KEYS[0])
    ring.remove_node(lost)
    assert bounded.place(KEYS[0]) != lost
    assert bounded.loads[lost] > 0, "the others wait for settle"
    moves = bounded.settle()
    assert {old for old, _ in moves.values()} == {lost}
    assert lost not in bounded.loads


def test_who_came_last_leaves_first() -> None:
    ring = HashRing(["a"])
    bounded = BoundedLoads(ring, 0)
    for key in KEYS[:10]:
        bounded.place(key)
    ring.add_node("b")
    assert set(bounded.settle()) == set(KEYS[5:10])


def test_without_nodes_keys_are_kept_until_there_are_some() -> None:
    ring = HashRing(["a"])
    bounded = BoundedLoads(ring)
    bounded.place("k1")
    bounded.place("k2")
    ring.remove_node("a")
    for refused in (lambda: bounded.place("k1"), lambda: bounded.place("k3"), bounded.settle):
        with pytest.raises(Misuse, match="no nodes"):
            refused()
    assert bounded.release("k2") == {}
    ring.add_node("b")
    assert bounded.settle() == {"k1": ("a", "b")}


def test_threads_take_turns_and_the_bounds_hold() -> None:
    bounded = BoundedLoads(Rendezvous(NODES), 0.1)

    def work(part: int) -> None:
        chance = random.Random(part)
        mine = [f"{part}-{number}" for number in range(60)]
        for key in mine:
            bounded.place(key)
        for key in chance.sample(mine, 30):
            bounded.release(key)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bounded) == 120
    assert sum(bounded.loads.values()) == 120
    assert max(bounded.loads.values()) <= 17  # ceil(1.1 * 120 / 8)


@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf, "0.25", None, True])
def test_an_epsilon_that_makes_no_sense_is_refused(epsilon: Any) -> None:
    with pytest.raises(Misuse, match="epsilon"):
        BoundedLoads(HashRing(NODES), epsilon)


def test_what_makes_no_sense_is_refused() -> None:
    bounded = BoundedLoads(HashRing(NODES))
    mistakes: list[Any] = [
        lambda: bounded.release("never placed"),
        lambda: bounded.assign("one key"),
        lambda: bounded.assign([None]),  # type: ignore[list-item]
        lambda: bounded.place(1.5),  # type: ignore[arg-type]
        lambda: BoundedLoads(HashRing()).assign(["key"]),
        lambda: BoundedLoads(HashRing()).place("key"),
    ]
    for mistake in mistakes:
        with pytest.raises(Misuse):
            mistake()
    assert len(bounded) == 0
