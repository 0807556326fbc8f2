"""Each algorithm does what its paper and its own documentation say, computed a slow and obvious way."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal, localcontext
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Misuse, Unsupported
from holdfast.placement import Anchor, Choose, Jump, Maglev, MultiProbe, Rendezvous, _kernel, hash_key, kernel
from holdfast.placement._kernel import mix
from holdfast.placement.hashing import xxh64
from holdfast.placement.jump import jump, walk
from holdfast.placement.scores import log2_table, minus_log2

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
KEYS = [f"/usr/lib/module-{number}.py" for number in range(120)]
places = st.integers(0, MASK)


def nodes(count: int) -> list[str]:
    return [f"node-{number}" for number in range(count)]


# Rendezvous.


def test_the_table_of_logarithms_is_exact() -> None:
    with localcontext() as context:
        context.prec = 50
        for index, entry in enumerate(log2_table()):
            exact = (1 + Decimal(index) / 1024).ln() / Decimal(2).ln() * (1 << 47)
            assert entry == int(exact)


@given(places, places)
def test_logarithms_are_near_and_never_out_of_order(one: int, two: int) -> None:
    low, high = sorted((one, two))
    assert 1 <= minus_log2(high) <= minus_log2(low) <= 1 << 53
    exact = -math.log2((low | 1) / 2**64)
    assert -1e-12 <= minus_log2(low) / (1 << 47) - exact <= 2e-7


@pytest.mark.parametrize("start", [0, 1 << 53, (1 << 63) - 40, (1 << 64) - (1 << 37) - 40, (1 << 64) - 80])
def test_logarithms_are_in_order_from_one_number_to_the_next(start: int) -> None:
    logarithms = [minus_log2(value) for value in range(start, start + 80)]
    assert all(one >= two for one, two in pairwise(logarithms))


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 5], [0.1, 0.1, 7]])
def test_rendezvous_gives_the_key_to_the_best_score(weights: list[float]) -> None:
    fleet = dict(zip("abc", weights, strict=True))
    placed = Rendezvous(fleet)

    def score(key: str, name: str) -> float:
        return -math.log2((mix(hash_key(key) ^ xxh64(name.encode(), 0)) | 1) / 2**64) / fleet[name]

    for key in KEYS:
        assert list(placed.iterate_nodes(key)) == sorted(fleet, key=lambda name: score(key, name))


def test_equal_weights_of_any_size_place_alike_and_one_unlike_moves_keys_only_to_or_from_itself() -> None:
    fleet = nodes(9)
    before = Rendezvous(dict.fromkeys(fleet, 3.7))
    assert before.locate(KEYS) == Rendezvous(fleet).locate(KEYS)
    after = before.copy()
    after.set_weight("node-4", 3.7000000000000006)  # the next double: from here on scores are compared, not numbers
    orders = [(list(before.iterate_nodes(key)), list(after.iterate_nodes(key))) for key in KEYS]
    for old, new in orders:
        assert [name for name in old if name != "node-4"] == [name for name in new if name != "node-4"]


def test_names_of_one_hash_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.placement.scores.xxh64", lambda data, seed: 7)
    for weights in ({"b": 1, "a": 1, "c": 1}, {"b": 2, "a": 2, "c": 1}):
        placed = Rendezvous(weights)
        assert placed.locate(KEYS) == ["a"] * len(KEYS)
        assert list(placed.iterate_nodes("key")) == ["a", "b", "c"]


# Jump.


def test_jump_gives_the_buckets_that_other_implementations_give() -> None:
    """Vectors that tests of implementations in C++, Go and Python share."""
    for value, buckets, bucket in [
        (1, 1, 0), (42, 57, 43), (0xDEAD10CC, 1, 0), (0xDEAD10CC, 666, 361), (256, 1024, 520), (0, 1, 0), (0, 1000, 0),
    ]:  # fmt: skip
        assert jump(value, buckets) == bucket
    placed = Jump(nodes(57))
    assert placed.get_node("key") == f"node-{jump(hash_key('key'), 57)}"


@given(places, st.integers(1, 40))
def test_an_order_of_slots_is_made_by_inserting_one_after_the_other(place: int, slots: int) -> None:
    def records(value: int) -> set[int]:
        return {jump(value, buckets) for buckets in range(1, slots + 1)}

    order: list[int] = []
    gone_through = [records(place), *(records(mix((place + p * GOLDEN) & MASK)) for p in range(1, slots))]
    for slot in range(slots):
        order.insert(next(p for p in count() if slot - p in gone_through[p]), slot)
    assert list(walk(place, slots)) == order
    assert order[0] == jump(place, slots)


@given(places, st.integers(1, 300))
def test_one_more_slot_changes_nothing_in_the_order_of_the_others(place: int, slots: int) -> None:
    before, after = list(walk(place, slots)), list(walk(place, slots + 1))
    assert sorted(before) == list(range(slots))
    assert [slot for slot in after if slot != slots] == before


def test_every_order_of_slots_is_equally_likely() -> None:
    seen = Counter(tuple(walk(mix(number), 4)) for number in range(24_000))
    assert len(seen) == 24
    assert all(abs(times - 1000) < 5 * math.sqrt(1000) for times in seen.values())


def test_jump_removes_the_last_node_only_and_says_what_removes_any() -> None:
    placed = Jump(["a", "b", "c"])
    with pytest.raises(Unsupported, match="only the last node, 'c'; Choose and Anchor"):
        placed.remove_node("b")
    assert list(placed.nodes) == ["a", "b", "c"]
    placed.remove_node("c")
    placed.remove_node("b")
    assert placed.slots == ("a",)


# Maglev.


def naive_maglev(weights: dict[str, float], size: int) -> list[str]:
    """Listing 1 of the paper, with Envoy's rule for weights, turn by turn."""
    total = math.fsum(weights.values())
    order = sorted(weights)
    shares = {name: weights[name] / total for name in order}
    largest = max(shares.values())
    offset = {name: xxh64(name.encode(), 0) % size for name in order}
    skip = {name: xxh64(name.encode(), 1) % (size - 1) + 1 for name in order}
    due, next_ = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0)
    table: dict[int, str] = {}
    for iteration in count(1):
        for name in order:
            if iteration * shares[name] < due[name]:
                continue
            due[name] += largest
            while (place := (offset[name] + next_[name] * skip[name]) % size) in table:
                next_[name] += 1
            table[place] = name
            if len(table) == size:
                return [table[place] for place in range(size)]
    raise AssertionError


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=4), st.sampled_from([1, 2, 3, 0.3, 0.7, 1e-3, 100]), min_size=1, max_size=9
    ),
    st.sampled_from([11, 251, 1021]),
)
@settings(max_examples=60)
def test_the_table_is_filled_as_the_paper_says(weights: dict[str, float], size: int) -> None:
    table = naive_maglev(weights, size)
    placed = Maglev(weights, table_size=size)
    assert [placed.slots[slot] for slot in entries(placed)] == table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.placement.maglev.fill", lambda *_: None)  # as where there is no kernel in C
        assert entries(Maglev(weights, table_size=size)) == entries(placed)


def test_weights_far_apart_fill_a_table_in_bounded_time() -> None:
    weights = dict.fromkeys(nodes(2000), 1e-12) | {"heavy": 1e12}
    filled = Counter(entries(Maglev(weights)))
    assert len(filled) == 2001
    assert max(filled.values()) == 65537 - 2000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.placement.maglev.fill", lambda *_: None)
        assert Counter(entries(Maglev(weights))) == filled


@pytest.mark.skipif(kernel() != "c", reason="the kernel in C was not built here")
def test_the_kernel_refuses_to_fill_a_table_from_nonsense() -> None:
    for nonsense in (
        (1, [0], [1], [0], None),  # too small
        (7, [7], [1], [0], None),  # begins beyond the end
        (7, [0], [7], [0], None),
        (7, [0], [0], [0], None),  # does not move on
        (6, [0], [2], [0], None),  # comes by half the places only
        (7, [0, 1], [1], [0, 1], None),
        (7, [], [], [], None),
        (7, [0], [1], [0], [0.5, 0.5]),
        (7, [0], [1], [0], [math.nan]),
        (7, [0], [1], [0], [-1.0]),
        (7, [0], [1], [0], [0.0]),
        (7, [0], [1], [2**32 - 1], None),
    ):
        with pytest.raises(ValueError, match=r"."):
            _kernel.fill(*nonsense)  # type: ignore[arg-type]
    for wrong in (
        (7, [0], [1], [0], ["x"]),
        (7, [0], [1], 3, None),
        ("7", [0], [1], [0], None),
        (-1, [0], [1], [0], None),
    ):
        with pytest.raises((TypeError, OverflowError, ValueError)):
            _kernel.fill(*wrong)  # type: ignore[arg-type]


def entries(placed: Maglev) -> list[int]:
    """The whole table: looked up by hashes, not by keys."""
    finder = placed._table.finder
    assert finder is not None
    return [finder.find(place) for place in range(placed.table_size)]


def test_maglev_is_even_to_the_size_of_its_table_and_moves_little_in_vain() -> None:
    before = Maglev(nodes(50))
    slots = entries(before)
    assert set(Counter(slots).values()) <= {65537 // 50, 65537 // 50 + 1}
    after = before.copy()
    after.remove_node("node-7")
    vain = sum(
        before.slots[old] not in ("node-7", after.slots[new]) for old, new in zip(slots, entries(after), strict=True)
    )
    assert 0 < vain / len(slots) < 0.03


def test_a_table_with_too_few_places_is_refused_and_told_what_would_do() -> None:
    placed = Maglev(nodes(7), table_size=7)
    assert len(set(map(placed.get_node, range(1000)))) == 7
    with pytest.raises(Misuse, match="table_size=809"):
        placed.add_node("node-7")
    assert len(placed) == 7
    with pytest.raises(Misuse, match="7001 nodes"):
        Maglev(nodes(7001), table_size=6997)


# Multi-probe.


@pytest.mark.parametrize("probes", [1, 2, 21])
def test_a_key_goes_to_the_nearest_node_of_any_probe(probes: int) -> None:
    fleet = nodes(20)
    placed = MultiProbe(fleet, probes=probes)
    points = {name: mix(xxh64(name.encode(), 0)) for name in fleet}
    for key in KEYS:
        looks = [mix((hash_key(key) + index * GOLDEN) & MASK) for index in range(probes)]
        away = {name: min((point - look) & MASK for look in looks) for name, point in points.items()}
        assert list(placed.iterate_nodes(key)) == sorted(fleet, key=away.__getitem__)
        assert placed.get_node(key) == min(fleet, key=away.__getitem__)


def test_with_21_probes_the_fullest_node_is_near_the_mean() -> None:
    loads = Counter(MultiProbe(nodes(30)).locate(range(30_000)))
    assert max(loads.values()) < 1000 * 1.06 + 5 * math.sqrt(1000)


# Anchor.


class NaiveAnchor:
    """With a copy of the working buckets for every removal: what the four arrays of the paper stand for."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.working = list(range(capacity))
        self.removed: list[tuple[int, list[int], list[int]]] = []

    def remove(self, bucket: int) -> None:
        before = self.working.copy()
        index, last = self.working.index(bucket), self.working.pop()
        if last != bucket:
            self.working[index] = last
        self.removed.append((bucket, before, self.working.copy()))

    def restore(self) -> int:
        bucket, self.working, _ = self.removed.pop()
        return bucket

    def find(self, place: int) -> int:
        after = {bucket: working for bucket, _, working in self.removed}
        bucket = mix(place) % self.capacity
        while bucket in after:
            left = after[bucket]
            bucket = left[mix((place + (bucket + 1) * GOLDEN) & MASK) % len(left)]
        return bucket


@given(st.data())
@settings(max_examples=60)
def test_anchor_goes_on_among_those_that_were_left_after_a_removal(data: Any) -> None:
    capacity = data.draw(st.integers(2, 20))
    size = data.draw(st.integers(1, capacity))
    placed, naive = Anchor(nodes(size), capacity=capacity), NaiveAnchor(capacity)
    for bucket in range(capacity - 1, size - 1, -1):
        naive.remove(bucket)
    for step in range(data.draw(st.integers(0, 12))):
        present = [name for name in placed.slots if name is not None]
        if len(present) < capacity and (len(present) == 1 or data.draw(st.booleans())):
            placed.add_node(f"new-{step}")
            assert placed.slots[naive.restore()] == f"new-{step}"
        elif len(present) > 1:
            name = data.draw(st.sampled_from(present))
            naive.remove(placed.slots.index(name))
            placed.remove_node(name)
    assert placed.locate(KEYS) == [placed.slots[naive.find(hash_key(key))] for key in KEYS]


def test_anchor_gives_the_bucket_that_was_removed_last_and_undoes_removals_in_reverse() -> None:
    placed = Anchor(nodes(8), capacity=20)
    fresh = placed.fingerprint()
    states = []
    for name in ("node-2", "node-7", "node-5"):
        states.append(placed.locate(KEYS))
        placed.remove_node(name)
    assert placed.fingerprint() != Anchor([name for name in nodes(8) if name in placed], capacity=20).fingerprint()
    for name in ("node-5", "node-7", "node-2"):
        placed.add_node(name)
        assert placed.locate(KEYS) == states.pop()
    assert placed.fingerprint() == fresh


def test_anchor_says_when_it_is_full() -> None:
    placed = Anchor(nodes(4), capacity=4)
    with pytest.raises(Misuse, match="capacity=4"):
        placed.add_node("one more")
    with pytest.raises(Misuse, match="capacity=4"):
        Anchor(nodes(5), capacity=4)
    placed.remove_node("node-1")
    placed.add_node("instead")
    assert placed.slots == ("node-0", "instead", "node-2", "node-3")


# Choose.


def test_choose_without_empty_slots_is_jump() -> None:
    fleet = nodes(30)
    for key in KEYS:
        assert Choose(fleet).get_nodes(key, 5) == Jump(fleet).get_nodes(key, 5)


@given(st.permutations(nodes(9)), st.integers(0, 8), st.data())
@settings(max_examples=40)
def test_the_order_of_removals_does_not_matter_to_choose(gone: list[str], count: int, data: Any) -> None:
    one, two = Choose(nodes(9)), Choose(nodes(9))
    for name in gone[:count]:
        one.remove_node(name)
    for name in data.draw(st.permutations(gone[:count])):
        two.remove_node(name)
    assert one.to_dict() == two.to_dict()
    assert one.fingerprint() == two.fingerprint()
    order = [name for name in Choose(nodes(9)).iterate_nodes("key") if name in one]
    assert list(one.iterate_nodes("key")) == list(two.iterate_nodes("key")) == order


def test_choose_forgets_nodes_that_came_and_went() -> None:
    placed = Choose(nodes(5))
    before, fingerprint = placed.locate(KEYS), placed.fingerprint()
    for name in ("x", "y", "z"):
        placed.add_node(name)
    for name in ("x", "z", "y"):
        placed.remove_node(name)
    assert placed.locate(KEYS) == before
    assert placed.fingerprint() == fingerprint
    placed.remove_node("node-1")
    placed.add_node("instead")
    assert placed.slots == ("node-0", "instead", "node-2", "node-3", "node-4")


def test_choose_stays_even_after_most_nodes_went() -> None:
    placed = Choose(nodes(100))
    for name in nodes(100):
        if int(name[5:]) % 10:
            placed.remove_node(name)
    loads = Counter(placed.locate(range(4000)))
    assert len(loads) == 10
    assert all(abs(load - 400) < 5 * math.sqrt(400) for load in loads.values())


def test_the_second_copies_of_a_node_s_keys_are_even_too() -> None:
    for kind in (Jump, Choose, Anchor, Maglev, Rendezvous):
        placed = kind(nodes(8))
        seconds = Counter(tuple(placed.get_nodes(key, 2)) for key in range(8000))
        for (first, _), times in seconds.items():
            share = sum(times for (other, _), times in seconds.items() if other == first) / 7
            assert abs(times - share) < 5 * math.sqrt(share), kind
        assert len(seconds) == 56
