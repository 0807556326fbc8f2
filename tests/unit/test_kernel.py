"""Both kernels, the one in C and the one in Python, give the same answers; the one in C gives back what it takes."""

from __future__ import annotations

import ctypes
import enum
import gc
import importlib.util
import random
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import placement
from holdfast.errors import Misuse
from holdfast.placement import _kernel
from holdfast.placement.hashing import xxh64_python

SOURCE = Path(placement.__file__).with_name("_kernel.py")
LAST = 2**64 - 1


def in_python() -> Any:
    """The kernel in Python, whichever is in use."""
    spec = importlib.util.spec_from_file_location("holdfast.placement._kernel_in_python", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PY: Any = in_python()
C: Any = _kernel
needs_c = pytest.mark.skipif(_kernel.NAME != "c", reason="the kernel in C was not built here")
each_kernel = pytest.mark.parametrize("kernel", [pytest.param(C, marks=needs_c, id="c"), pytest.param(PY, id="python")])


def lookup(kernel: Any, finder: Any, names: tuple[str | None, ...], hasher: Any = None) -> Any:
    """As bare as a placement gets."""

    class Bare(kernel.Lookup):  # type: ignore[misc, name-defined]
        def _first_but(self, key: object, exclude: Iterable[str]) -> tuple[object, ...]:
            return "first but", key, exclude

        def _refuse_empty(self) -> Exception:
            return Misuse("there are no nodes")

    kernel.own_methods(Bare)
    made = Bare()
    made._table = kernel.Table(finder, names, hasher, "state")
    return made


def names_of(count: int) -> tuple[str, ...]:
    return tuple(f"cache-{slot}.example" for slot in range(count))


def ring_of(kernel: Any, names: tuple[str | None, ...], points: int = 40) -> Any:
    where, owners = array("Q"), array("I")
    for slot, name in enumerate(names):
        if name is not None:
            where += kernel.points_of(name.encode(), 0, points)
            owners += array("I", [slot]) * points
    return kernel.Ring(where, owners, names)


def both(count: int = 50, hasher: Any = None) -> tuple[Any, Any]:
    """The same ring of so many nodes under either kernel."""
    names = names_of(count)
    compiled, python = (lookup(kernel, ring_of(kernel, names), names, hasher) for kernel in (C, PY))
    return compiled, python


def outcome(ask: Callable[[], Any]) -> tuple[object, ...]:
    """What came back; of an error its type, and its words where they are ours."""
    try:
        answer = ask()
    except Misuse as error:
        return Misuse, str(error)
    except Exception as error:
        return (type(error),)
    return "answer", list(answer) if isinstance(answer, memoryview) else answer


# Hashes.


@needs_c
@given(st.binary(max_size=200), st.integers(-(2**70), 2**70))
def test_xxh64_in_c_is_that_in_python(data: bytes, seed: int) -> None:
    assert C.xxh64(data, seed) == xxh64_python(data, seed)
    for start in range(min(9, len(data))):  # from any address
        assert C.xxh64(memoryview(data)[start:]) == xxh64_python(data[start:])


@needs_c
@given(st.binary(max_size=50), st.integers(0, 2**32 - 40), st.integers(0, 30))
def test_points_are_the_hashes_of_a_name_and_a_number(raw: bytes, start: int, count: int) -> None:
    points = C.points_of(raw, start, start + count)
    assert points == PY.points_of(raw, start, start + count)
    assert points.typecode == "Q"


@needs_c
@given(st.integers(0, LAST))
def test_mix_in_c_is_that_in_python(value: int) -> None:
    assert C.mix(value) == PY.mix(value)


class Text(str):
    __slots__ = ()


class Odd(str):
    __slots__ = ()

    def encode(self, encoding: str = "", errors: str = "") -> bytes:
        return b"odd"


class Shard(enum.IntEnum):
    FIRST = 7


ODD_KEYS: list[Any] = [
    "", b"", 0, -0, 1, -1, 9, 10, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**4000, 10**5000, "\0",
    "a\0b", "é", "日本語", "🦊", "\ud800", "caf\udce9", "x" * 31, "x" * 32, "x" * 128, "x" * 129, "é" * 64, "é" * 65,
    "x" * 100_000, b"\xff" * 129, Text("user:7"), Odd("user:7"), Shard.FIRST, True, None, 1.0, (), [], {},
    bytearray(b"a"), memoryview(b"a"), object, 1j, range(3),
]  # fmt: skip
keys = st.one_of(st.text(), st.binary(), st.integers(), st.sampled_from(ODD_KEYS))


@needs_c
@given(keys)
def test_every_key_has_the_same_hash_or_the_same_refusal(key: Any) -> None:
    assert outcome(lambda: C.hash_key(key)) == outcome(lambda: PY.hash_key(key))


@needs_c
@given(st.lists(keys, max_size=20))
def test_every_key_goes_to_the_same_node_or_is_refused_in_the_same_words(some: list[Any]) -> None:
    compiled, python = both(5)
    for key in some:
        assert outcome(lambda key=key: compiled.get_node(key)) == outcome(lambda key=key: python.get_node(key))
    for made in (list, tuple, iter):
        ask = [outcome(lambda face=face, made=made: face.locate(made(some))) for face in (compiled, python)]
        assert ask[0] == ask[1]
        if ask[0][0] == "answer":
            assert ask[0][1] == [python.get_node(key) for key in some]


# Rings.

rings = st.tuples(
    st.lists(st.text(max_size=3), min_size=1, max_size=6, unique=True),
    st.sampled_from([LAST, 0xF << 60, 0xFF, 0]),  # masks: many points alike, heaped up at one end, all the same
    st.integers(0, 2**32),
)


def drawn(ring: tuple[list[str], int, int], count: int = 30) -> tuple[tuple[str, ...], list[int], list[int]]:
    """Names, points and owners."""
    names, mask, seed = ring
    chance = random.Random(seed)
    points = [chance.getrandbits(64) & mask for _ in range(chance.randint(1, count))]
    return tuple(names), points, [chance.randrange(len(names)) for _ in points]


def looks_alike(compiled: Any, python: Any, mask: int = LAST) -> None:
    assert list(compiled.points) == list(python.points)
    assert list(compiled.owners) == list(python.owners)
    near = [point + off for point in python.points for off in (-1, 0, 1) if 0 <= point + off <= LAST]
    for place in [0, 1, mask, LAST - 1, LAST, *near]:
        assert compiled.find(place) == python.find(place), place
        assert list(compiled.walk(place)) == list(python.walk(place)), place


@needs_c
@given(rings)
def test_rings_are_alike_whatever_their_points(ring: tuple[list[str], int, int]) -> None:
    names, points, owners = drawn(ring)
    looks_alike(C.Ring(points, owners, names), PY.Ring(points, owners, names), ring[1])
    looks_alike(C.Ring(array("Q", points), array("I", owners), names), PY.Ring(points, owners, names), ring[1])


@needs_c
@given(rings, st.data())
def test_a_changed_ring_is_the_ring_made_anew(ring: tuple[list[str], int, int], data: st.DataObject) -> None:
    names, points, owners = drawn(ring)
    slot = data.draw(st.integers(0, len(names)))  # at the end: a new one
    names = (*names, "that is new")
    mine = [point for point, owner in zip(points, owners, strict=True) if owner == slot]
    removed = mine[: data.draw(st.integers(0, len(mine)))]
    added = [data.draw(st.integers(0, LAST)) & ring[1] for _ in range(data.draw(st.integers(0, 8)))]
    strangers = [point for point in data.draw(st.lists(st.integers(0, LAST), max_size=3)) if point not in mine]
    kept = list(zip(points, owners, strict=True))
    for point in removed:
        kept.remove((point, slot))
    after = kept + [(point, slot) for point in added]
    compiled, python = C.Ring(points, owners, names), PY.Ring(points, owners, names)
    if not after:
        for old in (compiled, python):
            with pytest.raises(ValueError, match="point"):
                old.changed(slot, added, removed, names)
        return
    anew = PY.Ring([point for point, _ in after], [owner for _, owner in after], names)
    looks_alike(compiled.changed(slot, array("Q", added), array("Q", removed + strangers), names), anew, ring[1])
    looks_alike(python.changed(slot, added, removed + strangers, names), anew, ring[1])
    looks_alike(compiled, python, ring[1])  # as they were


@needs_c
def test_a_ring_that_grows_and_shrinks_through_many_sizes_is_the_ring_made_anew() -> None:
    names = names_of(40)
    ring = C.Ring(C.points_of(names[0].encode(), 0, 3), [0] * 3, names)
    for slot in range(1, 40):
        ring = ring.changed(slot, C.points_of(names[slot].encode(), 0, slot * 3), (), names)
    for slot in range(0, 40, 3):
        ring = ring.changed(slot, (), C.points_of(names[slot].encode(), 0, slot * 3 or 3), names)
    left = [(point, slot) for slot in range(40) if slot % 3 for point in C.points_of(names[slot].encode(), 0, slot * 3)]
    looks_alike(ring, PY.Ring([point for point, _ in left], [slot for _, slot in left], names))


@needs_c
def test_views_of_a_ring_outlive_it_and_cannot_write() -> None:
    ring = ring_of(C, names_of(3))
    points, owners, expected = ring.points, ring.owners, list(ring.points)
    del ring
    gc.collect()
    assert list(points) == expected == sorted(expected)
    assert (points.format, owners.format, len(owners)) == ("Q", "I", len(points) + 1)
    with pytest.raises(TypeError):
        points[0] = 1


@each_kernel
def test_what_is_no_ring_is_refused(kernel: Any) -> None:
    mistakes: list[Callable[[], Any]] = [
        lambda: kernel.Ring([], [], ("a",)),
        lambda: kernel.Ring([1, 2], [0], ("a",)),
        lambda: kernel.Ring([1], [1], ("a",)),
        lambda: kernel.Ring([1, 1], [0, 1], ("a", None)),
    ]
    for mistake in mistakes:
        with pytest.raises((ValueError, IndexError, TypeError)):
            mistake()


# Batches.


def many_keys(count: int) -> list[Any]:
    chance = random.Random(7)
    words = [str(path) for path in Path(random.__file__).parent.glob("*/*")][:2000]
    kinds: list[Callable[[int], Any]] = [
        lambda index: f"user:{index}",
        lambda index: f"{chance.choice(words)}#{index}",
        lambda index: f"clé-{index}".encode(),
        lambda index: chance.getrandbits(64) - 2**63,
        lambda index: f"{index}" * (index % 40),
    ]
    return [chance.choice(kinds)(index) for index in range(count)]


@needs_c
def test_a_million_keys_go_to_the_same_slots_in_a_batch_and_one_by_one() -> None:
    compiled, python = both(300)
    names, some = names_of(300), many_keys(1_000_000)
    slots = python.locate_slots(some)
    assert compiled.locate_slots(some) == slots
    assert compiled.locate(some) == [names[slot] for slot in slots] == [compiled.get_node(key) for key in some]
    numbers = range(2**40, 2**40 + 1_000_000)
    assert compiled.locate_slots(array("Q", numbers)) == python.locate_slots(numbers)


@needs_c
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1023, 1024, 1025, 5000, 50_000])
def test_batches_of_any_size_and_kind_are_whole(size: int) -> None:
    compiled, python = both()
    some = many_keys(size)
    expected = python.locate(some)
    assert compiled.locate(some) == expected
    assert compiled.locate(tuple(some)) == expected
    assert compiled.locate(key for key in some) == expected
    assert compiled.locate(dict.fromkeys(some)) == python.locate(dict.fromkeys(some))
    assert list(compiled.locate_slots(range(size))) == list(python.locate_slots(range(size)))
    assert compiled.locate_slots([]).format == "I" == python.locate_slots([]).format


@needs_c
def test_keys_of_every_length_are_whole_in_a_batch() -> None:
    compiled, python = both()
    some = [bytes([size & 255]) * size for size in range(600)]
    assert compiled.locate(some) == python.locate(some)
    assert compiled.locate([key.hex() for key in some]) == python.locate([key.hex() for key in some])


@needs_c
def test_long_keys_in_a_batch_are_hashed_where_they_are_and_let_go() -> None:
    compiled, python = both()
    some: list[Any] = [f"{index}" * 60 for index in range(4000)]
    some += [text.encode() * 9 for text in some] + ["é" * 5000, b"x" * 1_000_000]
    counts = [sys.getrefcount(key) for key in some]
    assert compiled.locate(iter(some)) == python.locate(some) == compiled.locate(some)
    assert [sys.getrefcount(key) for key in some] == counts
    with pytest.raises(Misuse):
        compiled.locate([*some, None])
    assert [sys.getrefcount(key) for key in some] == counts


@needs_c
@pytest.mark.parametrize("code", "bBhHiIlLqQ")
def test_a_buffer_of_integers_is_a_sequence_of_integers(code: str) -> None:
    compiled, python = both()
    bits = 8 * array(code).itemsize
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)
    chance = random.Random(1)
    numbers = array(code, [low, low + 1, 0, 1, high - 1, high, *(chance.randint(low, high) for _ in range(3000))])
    expected = [python.get_node(number) for number in numbers]
    for face in (compiled, python):
        assert face.locate(numbers) == expected
        assert face.locate(memoryview(numbers)[::3]) == expected[::3]
        assert face.locate(memoryview(numbers)[::-1]) == expected[::-1]
        assert face.locate(memoryview(numbers)[:0]) == []


@each_kernel
def test_other_buffers_are_what_they_are(kernel: Any) -> None:
    names = names_of(20)
    face = lookup(kernel, ring_of(kernel, names), names)
    expected = [face.get_node(number) for number in (1, 2, 200)]
    assert face.locate(bytearray([1, 2, 200])) == expected
    assert face.locate((ctypes.c_uint64 * 3)(1, 2, 200)) == expected
    assert face.locate((ctypes.c_int16 * 3)(1, 2, 200)) == expected
    odd: list[Any] = [
        array("d", [1.0]),
        array("f", [1.0]),
        memoryview(bytes(4)).cast("B", (2, 2)),
        memoryview(b"a").cast("?"),
    ]
    for given_keys in odd:
        with pytest.raises((Misuse, NotImplementedError)):
            face.locate(given_keys)
    for one in ("key", b"key", Text("key")):
        with pytest.raises(Misuse, match="get_node"):
            face.locate(one)
    with pytest.raises(TypeError):
        face.locate(7)


@each_kernel
def test_what_an_iterable_raises_comes_through(kernel: Any) -> None:
    names = names_of(20)
    face = lookup(kernel, ring_of(kernel, names), names)

    def fails(after: int) -> Iterator[str]:
        yield from map(str, range(after))
        raise ZeroDivisionError

    for after in (0, 10, 3000):
        with pytest.raises(ZeroDivisionError):
            face.locate(fails(after))


# Hashes and finders in Python.


class Third:
    """A finder in Python."""

    def find(self, place: int) -> int:
        return place % 3


@each_kernel
def test_finders_and_hashes_in_python_work_too(kernel: Any) -> None:
    names = names_of(3)
    plain = lookup(kernel, Third(), names)
    assert plain.locate(["a", b"b", 3]) == [names[kernel.hash_key(key) % 3] for key in ("a", "b", "3")]
    hashed = lookup(kernel, ring_of(kernel, names), names, lambda data: len(data) << 56)
    ring = hashed._table.finder
    assert hashed.get_node("four") == names[ring.find(4 << 56)] == hashed.locate(["1234"])[0]
    assert hashed._table.hash(1234) == 4 << 56
    assert list(hashed.locate_slots(array("i", [-123]))) == [ring.find(4 << 56)]
    assert (hashed._table.names, hashed._table.state) == (names, "state")


@each_kernel
def test_a_finder_or_hash_that_fails_fails_the_lookup(kernel: Any) -> None:
    names = names_of(3)

    def fails(_: object) -> int:
        raise ZeroDivisionError

    class Fails:
        find = staticmethod(fails)

    class Beyond:
        def find(self, place: int) -> int:
            return 7

    for face in (lookup(kernel, Fails(), names), lookup(kernel, Third(), names, fails)):
        for ask in (lambda face=face: face.get_node("a"), lambda face=face: face.locate(["a"])):
            with pytest.raises(ZeroDivisionError):
                ask()
    with pytest.raises(IndexError):
        lookup(kernel, Beyond(), names).get_node("a")


@needs_c
def test_a_table_whose_names_do_not_fit_its_ring_is_safe() -> None:
    ring = ring_of(C, names_of(50))
    face = lookup(C, ring, ("a", None))
    asked = [outcome(lambda key=key: face.get_node(key)) for key in range(500)]
    assert {("answer", "a"), (IndexError,)} == set(asked)
    with pytest.raises(IndexError):
        face.locate(range(500))


FINDERS: dict[str, Callable[[list[str], dict[str, float]], placement.Placement]] = {
    "jump": lambda names, _: placement.Jump(names),
    "choose": lambda names, _: placement.Choose(names),
    "maglev": lambda names, weights: placement.Maglev(weights, table_size=1009),
    "multiprobe": lambda names, _: placement.MultiProbe(names),
    "anchor": lambda names, _: placement.Anchor(names, capacity=300),
    "rendezvous": lambda names, _: placement.Rendezvous(names),
    "weighted rendezvous": lambda names, weights: placement.Rendezvous(weights),
}


@needs_c
@pytest.mark.parametrize("algorithm", FINDERS)
def test_every_finder_in_c_finds_what_the_one_in_python_says(algorithm: str) -> None:
    chance = random.Random(5)
    for count in (1, 2, 3, 7, 60, 200):
        names = [f"node-{index}" for index in range(count)]
        weights = {name: chance.choice([1e-9, 0.5, 1, 1, 3.7, 1e9]) for name in names}
        made = FINDERS[algorithm](names, weights)
        for gone in range(0, count - 1, 30 if count > 60 else 5):  # few removals at first, then many
            finder: Any = made._table.finder
            compiled = finder.native()
            assert isinstance(compiled, C.Finder)
            for place in (0, 1, LAST, *(chance.getrandbits(64) for _ in range(30))):
                assert compiled.find(place) == finder.find(place), (count, gone, place)
            some = [chance.getrandbits(60) for _ in range(30)]
            assert made.locate(some) == [made._table.names[finder.find(C.hash_key(key))] for key in some]
            for name in chance.sample(sorted(made.nodes), min(len(made) - 1, 30)) if made.removes_any else ():
                made.remove_node(name)


@needs_c
def test_a_finder_in_c_takes_no_state_that_makes_no_sense() -> None:
    logs, ring = [0] * 1025, C.Ring([1], [0], ("a",))
    mistakes: list[tuple[Any, ...]] = [
        (), ("nothing",), (1,), ("jump",), ("jump", 0), ("jump", -1), ("jump", 2**31), ("jump", "a"), ("occupied", []),
        ("occupied", [2]), ("entries", []), ("entries", [2**32]), ("entries", None), ("nearest", ring, 0),
        ("nearest", None, 1), ("best", [], [], None, logs), ("best", [1], [0, 1], None, logs),
        ("best", [1], [0], None, []), ("best", [1], [0], [], logs), ("best", [1], [0], ["a"], logs),
        ("anchor", [0], []), ("anchor", [2], [0]), ("anchor", [0], [1]),
    ]  # fmt: skip
    for state in mistakes:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            C.native(*state)
    lost = lookup(C, C.native("occupied", [0, 0, 0, 0, 0, 0]), names_of(6))
    with pytest.raises(IndexError):
        lost.get_node("a")
    endless = lookup(C, C.native("anchor", [1, 1], [0, 0]), names_of(2))
    outcome(lambda: endless.locate(range(100)))  # it ends


@each_kernel
def test_a_finder_in_python_may_have_none_in_c(kernel: Any) -> None:
    class Without(Third):
        def native(self) -> None:
            return None

    class Fails(Third):
        def native(self) -> None:
            raise ZeroDivisionError

    names = names_of(3)
    assert lookup(kernel, Without(), names).locate(range(99)) == lookup(kernel, Third(), names).locate(range(99))
    if kernel.NAME == "c":
        with pytest.raises(ZeroDivisionError):
            lookup(kernel, Fails(), names)


# The face.


@each_kernel
def test_get_node_leaves_exclusion_and_emptiness_to_the_class_above(kernel: Any) -> None:
    names = names_of(3)
    face = lookup(kernel, ring_of(kernel, names), names)
    assert face.get_node("a", exclude=["b"]) == ("first but", "a", ["b"])
    assert (
        face.get_node("a", exclude=())
        == face.get_node("a")
        == face.get_node(key="a")
        == face.get_node(b"a", exclude=[])
    )
    empty = lookup(kernel, None, ())
    for ask in (lambda: empty.get_node("a"), lambda: empty.locate(["a"]), lambda: empty.locate_slots([])):
        with pytest.raises(Misuse, match="no nodes"):
            ask()
    mistakes: list[Callable[[], Any]] = [
        face.get_node,
        lambda: face.get_node("a", ()),
        lambda: face.get_node("a", key="a"),
        lambda: face.get_node("a", exclud=()),
        lambda: face.get_node(exclude=()),
    ]
    for mistake in mistakes:
        with pytest.raises(TypeError):
            mistake()


@needs_c
def test_what_is_no_table_cannot_be_published() -> None:
    face = lookup(C, ring_of(C, names_of(2)), names_of(2))
    for value in (None, 1, PY.Table(None, (), None, None), type(face._table)):
        with pytest.raises(TypeError):
            face._table = value
    with pytest.raises((TypeError, AttributeError)):
        del face._table
    with pytest.raises(TypeError):
        C.Table(None, ["a"], None, None)
    with pytest.raises(AttributeError):
        C.Table(object(), ("a",), None, None)
    with pytest.raises(AttributeError):
        object.__new__(type(face)).get_node("a")


@each_kernel
def test_a_subclass_may_replace_a_method(kernel: Any) -> None:
    class Mine(kernel.Lookup):  # type: ignore[misc, name-defined]
        def get_node(self, key: Any, *, exclude: Any = ()) -> str:
            return "mine, not " + str(super().get_node(key, exclude=exclude))

    class Sub(Mine):
        pass

    for cls in (Mine, Sub):
        kernel.own_methods(cls)
    face = Sub()
    names = ("a",)
    face._table = kernel.Table(ring_of(kernel, names), names, None, None)
    assert face.get_node("key") == "mine, not a"
    assert face.locate(["key"]) == ["a"]


# Threads.


@contextmanager
def beside(work: Callable[[], object], count: int = 1) -> Iterator[list[BaseException]]:
    """Do this over and over in other threads; what they raise."""
    done, failures = threading.Event(), list[BaseException]()

    def again() -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=again) for _ in range(count)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        yield failures
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(usual)


@each_kernel
def test_readers_beside_a_writer_see_one_state_or_the_next(kernel: Any) -> None:
    names = names_of(4)
    rings = [ring_of(kernel, names[:3]), ring_of(kernel, names)]
    some = [f"key-{index}" for index in range(3000)]
    face = lookup(kernel, rings[0], names)
    tables = [kernel.Table(ring, names, None, None) for ring in rings]
    answers = [lookup(kernel, ring, names).locate(some) for ring in rings]
    assert answers[0] != answers[1]

    def read() -> None:
        assert face.locate(some) in answers
        for index in range(0, 3000, 100):
            assert face.get_node(some[index]) in (answers[0][index], answers[1][index])

    with beside(read, 2) as failures:
        for turn in range(3000):
            face._table = kernel.Table(rings[turn % 2], names, None, [turn]) if turn % 3 else tables[turn % 2]
            if turn % 100 == 0:
                time.sleep(0)
    assert not failures


@needs_c
def test_a_list_that_changes_while_it_is_looked_up_does_no_harm() -> None:
    compiled, _ = both(20)
    some = [f"key-{index}" * (1 + index % 30) for index in range(200_000)]
    chance = random.Random(3)

    def change() -> None:
        size = chance.randrange(len(some) or 1)
        del some[size:]
        some.extend(f"other-{chance.random()}" * chance.randint(1, 30) for _ in range(20_000 - size // 20))

    with beside(change) as failures:
        for _ in range(15):
            assert set(compiled.locate(some)) <= set(names_of(20))
    assert not failures


@needs_c
@pytest.mark.parametrize("kind", ["integers", "texts", "long texts"])
def test_a_large_batch_lets_other_threads_run(kind: str) -> None:
    compiled, _ = both()
    batches: dict[str, Callable[[], Any]] = {
        "integers": lambda: array("q", range(3_000_000)),
        "texts": lambda: [f"user:{index}" for index in range(500_000)],
        "long texts": lambda: [f"{index}" * 1_000_000 for index in range(30, 60)],
    }
    batch = batches[kind]()
    ticks = [0]

    def tick() -> None:
        ticks[0] += 1
        time.sleep(0.0001)

    with beside(tick) as failures:
        while not ticks[0]:
            time.sleep(0.001)
        sys.setswitchinterval(60)  # from here on, threads run only when others let them
        before = ticks[0]
        compiled.locate_slots(batch)
        after = ticks[0]
        sys.setswitchinterval(1e-5)
    assert not failures
    assert after > before


# What is taken is given back.


@needs_c
def test_nothing_leaks() -> None:
    names = names_of(30)
    some = [*many_keys(2000), "x" * 500]

    def everything() -> None:
        ring = ring_of(C, names)
        face = lookup(C, ring, names, None)
        bigger = ring.changed(0, [1, 2, 3], ring.points[:5], names)
        list(bigger.walk(5))
        next(bigger.walk(5))
        face._table = C.Table(bigger, names, None, {"some": "state"})
        face.locate(some)
        face.locate_slots(iter(some))
        face.locate(array("q", range(3000)))
        lookup(C, Third(), names, lambda data: len(data) + (1 << 60)).locate(some)
        for ask in (
            lambda: face.get_node("a", exclude=["b"]),
            lambda: face.get_node(None),
            lambda: face.locate([*some, None]),
            lambda: face.locate(key for key in [*some, None]),
            lambda: C.Ring([1], [0, 1], names),
            lambda: C.Ring([1, -1], [0, 0], names),
            lambda: C.Ring([1, 1], [0, 1], ("a", None)),
            lambda: ring.changed(0, [None], [], names),
            lambda: ring.changed(0, [], ring.points, names),
            lambda: ring.changed(-1, [], [], names),
            lambda: ring.find(-1),
            lambda: ring.walk("a"),
            lambda: C.hash_key("\ud800"),
            lambda: C.points_of(b"a", 5, 2**33),
            lambda: face.nothing,
        ):
            outcome(ask)

    everything()
    gc.collect()
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(6):
            for _ in range(5):
                everything()
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[-1] - sizes[1] < 20_000, sizes  # one of its rings is larger


@each_kernel
def test_a_lookup_in_a_cycle_is_collected(kernel: Any) -> None:
    names = names_of(2)
    face = lookup(kernel, ring_of(kernel, names), names)
    face._table = kernel.Table(face._table.finder, names, None, {"itself": face})
    gone = weakref.ref(face)
    del face
    gc.collect()
    assert gone() is None


# Without a compiler.

WITHOUT = """
import importlib.util, logging, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "holdfast.placement._kernel":
            return importlib.util.spec_from_file_location(name, path[0] + "/_kernel.py")

sys.meta_path.insert(0, Finder())
logging.basicConfig(format="%(name)s: %(message)s")
from holdfast.placement import HashRing, kernel
assert kernel() == "python"
print("imported", file=sys.stderr)
ring = HashRing(["a", "b", "c"])
ring.add_node("d")
HashRing(["e"])
print(ring.locate(range(100)), ring.fingerprint())
"""


def test_without_the_kernel_in_c_all_is_the_same_and_the_log_says_so_once() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=True)
    before, after = ran.stderr.split("imported\n")
    assert before == ""
    assert after.count("holdfast.placement: the kernel in C is missing") == 1
    ring = placement.HashRing(["a", "b", "c"])
    ring.add_node("d")
    assert ran.stdout == f"{ring.locate(range(100))} {ring.fingerprint()}\n"


def test_the_kernel_in_use_is_named() -> None:
    assert placement.kernel() == _kernel.NAME
    assert PY.NAME == "python"
    assert {name for name in PY.__all__ if not hasattr(C, name)} == set()
