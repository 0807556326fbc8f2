"""Keys become the same 64-bit numbers on every machine, with the xxhash package or without it."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Misuse
from holdfast.placement import hash_key, hashing
from holdfast.placement.hashing import xxh64, xxh64_python

GOLDEN = json.loads((Path(__file__).parent / "ring_golden.json").read_text())
SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("hashed", [xxh64, xxh64_python])
def test_the_published_vectors_come_out(hashed: Any) -> None:
    for vector in GOLDEN["hashes"]:
        assert f"{hashed(bytes.fromhex(vector['hex']), int(vector['seed'], 16)):016x}" == vector["xxh64"], vector


def test_the_golden_keys_have_their_golden_hashes() -> None:
    for vector in GOLDEN["keys"]:
        assert f"{hash_key(vector['key']):016x}" == vector["hash"], vector


def test_plain_python_gives_the_package_s_numbers_for_every_length_up_to_300() -> None:
    package = pytest.importorskip("xxhash")
    data = bytes(index * 37 & 255 for index in range(300))
    for size in range(301):
        for seed in (0, 1, 2**63, 2**64 - 1):
            assert xxh64_python(data[:size], seed) == package.xxh64_intdigest(data[:size], seed), (size, seed)


@given(st.binary(max_size=200), SEEDS)
def test_plain_python_gives_the_package_s_numbers(data: bytes, seed: int) -> None:
    package = pytest.importorskip("xxhash")
    assert xxh64_python(data, seed) == package.xxh64_intdigest(data, seed)


@given(st.binary(max_size=50), SEEDS)
def test_a_seed_counts_modulo_two_to_the_64(data: bytes, seed: int) -> None:
    assert xxh64_python(data, seed) == xxh64_python(data, seed + 2**64) == xxh64_python(data, seed - 2**64)


@given(st.integers(-(2**200), 2**200))
def test_an_integer_is_the_same_key_as_its_decimal_text(number: int) -> None:
    assert hash_key(number) == hash_key(str(number)) == hash_key(str(number).encode())


@given(st.text())
def test_a_text_is_the_same_key_as_its_utf8_bytes(text: str) -> None:
    assert hash_key(text) == hash_key(text.encode())


def test_a_member_of_an_enum_is_the_key_that_it_holds() -> None:
    class Shard(enum.IntEnum):
        FIRST = 7

    class Kind(enum.StrEnum):
        USER = "user"

    assert hash_key(Shard.FIRST) == hash_key(7)
    assert hash_key(Kind.USER) == hash_key("user")


@pytest.mark.parametrize("key", [None, True, 1.0, ("a",), ["a"], bytearray(b"a"), memoryview(b"a"), object()])
def test_a_key_of_another_type_is_refused(key: Any) -> None:
    with pytest.raises(Misuse, match="str, bytes or int"):
        hash_key(key)


def test_text_without_a_utf8_form_is_refused_with_the_way_out() -> None:
    with pytest.raises(Misuse, match="fsencode"):
        hash_key("caf\udce9")


def test_an_integer_too_long_for_decimal_is_refused() -> None:
    with pytest.raises(Misuse, match="too long"):
        hash_key(10**5000)


def test_a_machine_without_the_package_places_alike() -> None:
    program = """
import sys
if sys.argv[1] == "without":
    sys.modules["xxhash"] = None  # an import of it now fails
from holdfast.placement import HashRing, hashing
assert (hashing.xxh64 is hashing.xxh64_python) or sys.argv[1] == "with"
ring = HashRing(["a", "b", "c"])
print(ring.fingerprint(), ring.locate(range(200)))
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", program, which],
            env={"PYTHONPATH": str(Path(hashing.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for which in ("with", "without")
    ]
    assert said[0] == said[1] != ""
