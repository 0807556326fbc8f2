"""tools/fuzz_kernel.py SECONDS [SEED]: random rings, keys, batches and nonsense for both kernels, which must agree.

Best run by `make sanitize`, where a wrong step in C ends the process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import random
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from holdfast.errors import Misuse
from holdfast.placement import _kernel

C: Any = _kernel
ALPHABET = ["a", "1", "-", "é", "日", "🦊", "\0", "\ud800"]
BITS = [0, 8, 16, 64]


def in_python() -> Any:
    spec = importlib.util.spec_from_file_location(
        "holdfast.placement._kernel_in_python", Path(C.__file__).with_name("_kernel.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PY = in_python()


class Fuzz:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def size(self, most: int) -> int:
        """Small mostly, and near powers of two."""
        return min(most, max(0, (1 << self.chance.randint(0, most.bit_length())) + self.chance.randint(-2, 2)))

    def number(self) -> int:
        return self.chance.getrandbits(self.chance.choice([1, 8, 32, 63, 64])) * self.chance.choice([1, 1, 1, -1])

    def key(self) -> Any:
        chance = self.chance
        kind = chance.randrange(12)
        if kind < 5:
            return "".join(chance.choices(ALPHABET[:-1], k=self.size(40)))
        if kind < 8:
            return chance.randbytes(self.size(300))
        if kind < 11:
            return self.number()
        odd = [None, True, 2**64, -(2**63) - 1, "\ud800", 1.5, bytearray(b"a"), (), "x" * self.size(4000)]
        return chance.choice(odd)

    def keys(self) -> list[Any]:
        pool = [self.key() for _ in range(self.size(30) + 1)]
        usual = [key for key in pool if outcome(lambda: PY.hash_key(key))[0] == "answer"]  # noqa: B023
        return self.chance.choices(self.chance.choice([pool, usual or pool]), k=self.size(4000))

    def names(self) -> tuple[str, ...]:
        names = {"".join(self.chance.choices(ALPHABET[:-1], k=self.size(4))) for _ in range(self.size(20) + 1)}
        return tuple(self.chance.sample(sorted(names), len(names)))

    def points(self, mask: int, most: int = 300) -> list[int]:
        return [self.chance.getrandbits(64) & mask for _ in range(self.size(most))]

    def nonsense(self) -> Any:
        things: list[Any] = [
            None, -1, 2**64, 2**40, 1.5, "text", b"bytes", [], [None], [-1], ["a"], (1, 2), array("d", [1.0]), object(),
            array("q", [-5]), memoryview(b"12345678").cast("Q"), memoryview(bytes(8)).cast("B", (2, 4)), {}, range(5),
            (ctypes.c_uint8 * 4)(1, 2, 3, 4), lambda *_: 1, type, iter([1]), memoryview(array("Q", [1, 2, 3]))[::-2],
        ]  # fmt: skip
        return self.chance.choice(things)


def outcome(ask: Callable[[], Any]) -> tuple[object, ...]:
    try:
        answer = ask()
    except Misuse as error:
        return Misuse, str(error)
    except Exception:
        return ("refused",)
    return "answer", list(answer) if isinstance(answer, memoryview | Iterator) else answer


def agree(what: str, *asked: Callable[[], Any]) -> None:
    answers = [outcome(ask) for ask in asked]
    assert all(answer == answers[0] for answer in answers), (what, answers)


def placement(kernel: Any, ring: Any, names: tuple[str, ...], hasher: Any) -> Any:
    made = type(
        "Bare", (kernel.Lookup,), {"_first_but": lambda *_: "first but", "_refuse_empty": lambda _: Misuse("empty")}
    )
    kernel.own_methods(made)
    face = made()
    face._table = kernel.Table(ring, names, hasher, None)
    return face


def length_of(data: bytes) -> int:
    """A poor hash."""
    return len(data) << 56


def rings_agree(fuzz: Fuzz) -> None:
    mask = fuzz.chance.choice([2**64 - 1, 0xFF << 56, 0xF << 60, 0xFFFF, 0])
    names, points = fuzz.names(), fuzz.points(mask) or [0]
    owners = [fuzz.chance.randrange(len(names)) for _ in points]
    rings = [kernel.Ring(array("Q", points), array("I", owners), names) for kernel in (C, PY)]
    for _ in range(fuzz.size(6)):
        slot = fuzz.chance.randrange(len(names))
        mine = [point for point, owner in zip(rings[1].points, rings[1].owners, strict=False) if owner == slot]
        added = fuzz.points(mask, 40)
        removed = fuzz.chance.sample(mine, fuzz.chance.randint(0, len(mine))) + fuzz.points(mask, 2)
        if len(added) + len(rings[1].points) <= len(removed):
            continue
        args = slot, array("Q", added), array("Q", removed), names
        rings = [ring.changed(*args) for ring in rings]
    agree("points", *(lambda ring=ring: list(ring.points) for ring in rings))
    agree("owners", *(lambda ring=ring: list(ring.owners) for ring in rings))
    for place in [0, 2**64 - 1, *fuzz.chance.choices(rings[1].points, k=10), *fuzz.points(2**64 - 1, 50)]:
        for near in {max(0, place - 1), place, min(place + 1, 2**64 - 1)}:
            agree("find", *(lambda ring=ring, near=near: ring.find(near) for ring in rings))
            agree("walk", *(lambda ring=ring, near=near: list(ring.walk(near)) for ring in rings))
    hasher = length_of if fuzz.chance.randrange(4) == 0 else None
    faces = [placement(kernel, ring, names, hasher) for kernel, ring in zip((C, PY), rings, strict=True)]
    keys = fuzz.keys()
    agree("locate", *(lambda face=face: face.locate(keys) for face in faces))
    agree("of a tuple", *(lambda face=face: face.locate_slots(tuple(keys)) for face in faces))
    agree("of an iterator", *(lambda face=face: face.locate_slots(iter(keys)) for face in faces))
    for key in keys[:50]:
        agree("get_node", *(lambda face=face, key=key: face.get_node(key) for face in faces))
    code = fuzz.chance.choice("bBhHiIlLqQ")
    numbers = array(code, fuzz.chance.randbytes(array(code).itemsize * fuzz.size(3000)))
    step = fuzz.chance.choice([1, 1, 2, -1, -3])
    agree("integers", *(lambda face=face: face.locate_slots(memoryview(numbers)[::step]) for face in faces))


def hashes_agree(fuzz: Fuzz) -> None:
    data, seed, start = fuzz.chance.randbytes(fuzz.size(500)), fuzz.number(), fuzz.chance.randrange(8)
    agree("xxh64", *(lambda kernel=kernel: kernel.xxh64(memoryview(data)[start:], seed % 2**64) for kernel in (C, PY)))
    first, count = fuzz.chance.getrandbits(31), fuzz.size(50)
    agree("points_of", *(lambda kernel=kernel: kernel.points_of(data, first, first + count) for kernel in (C, PY)))
    key = fuzz.key()
    agree("hash_key", *(lambda kernel=kernel: kernel.hash_key(key) for kernel in (C, PY)))


def nonsensical_state(fuzz: Fuzz, ring: Any) -> list[Any]:
    """What may just pass for a finder's."""
    count = fuzz.chance.randint(1, 6)
    numbers = [[fuzz.chance.randrange(count + 1) for _ in range(count)] for _ in range(2)]
    weights = fuzz.chance.choice([None, [fuzz.chance.uniform(-2, 5) for _ in range(count)]])
    logs = [fuzz.chance.getrandbits(64) for _ in range(1025)]
    states: list[list[Any]] = [[count], numbers[:1], numbers, [ring, count], [*numbers, weights, logs]]
    return fuzz.chance.choice(states)


def nonsense_is_survived(fuzz: Fuzz) -> None:
    """Whatever comes in, it is refused or answered; the sanitizers see the rest."""
    names = fuzz.names()
    ring = C.Ring([1, 2, 3], [0, 0, len(names) - 1], names)
    face = placement(C, ring, names, None)
    calls: list[Callable[..., Any]] = [
        C.Ring, C.Table, C.hash_key, C.xxh64, C.points_of, C.mix, C.own_methods, ring.changed, ring.find, ring.walk,
        face.get_node, face.locate, face.locate_slots, face._table.hash, C.Finder, C.Lookup, type(ring.walk(1)),
    ]  # fmt: skip
    for kind in ("jump", "occupied", "entries", "nearest", "best", "anchor"):
        calls += [partial(C.native, kind)] * 2
        native = outcome(partial(C.native, kind, *nonsensical_state(fuzz, ring)))
        if native[0] == "answer":
            outcome(partial(placement(C, native[1], names, None).locate, range(20)))
    for _ in range(50):
        call = fuzz.chance.choice(calls)
        outcome(partial(call, *(fuzz.nonsense() for _ in range(fuzz.chance.randrange(5)))))
    odd = outcome(lambda: C.Table(fuzz.nonsense(), (*names, fuzz.nonsense()), fuzz.nonsense(), fuzz.nonsense()))
    if odd[0] == "answer":
        face._table = odd[1]
        outcome(lambda: face.get_node(fuzz.key()))
        outcome(lambda: face.locate(fuzz.nonsense()))
        outcome(lambda: face.locate(fuzz.keys()[:20]))


def main(seconds: float, seed: int) -> None:
    assert C.NAME == "c", "the kernel in C was not built"
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        fuzz = Fuzz(seed + rounds)
        try:
            for step in (rings_agree, hashes_agree, nonsense_is_survived):
                step(fuzz)
        except BaseException:
            print(f"the seed was {seed + rounds}", file=sys.stderr)
            raise
        rounds += 1
    print(f"{rounds} rounds of fuzz, from seed {seed}: the kernels agree")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().getrandbits(32))
