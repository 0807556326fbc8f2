"""Keys to 64-bit numbers: XXH64, the same on every machine and in every language.

The `xxhash` package does the work where it is installed; the plain Python below gives the same numbers without it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeGuard

from ..errors import Misuse

HASH_NAME = "xxh64"

Key = str | bytes | int

_MASK = (1 << 64) - 1
_P1 = 0x9E3779B185EBCA87
_P2 = 0xC2B2AE3D27D4EB4F
_P3 = 0x165667B19E3779F9
_P4 = 0x85EBCA77C2B2AE63
_P5 = 0x27D4EB2F165667C5
_LANES = [struct.Struct(f"<{count}Q").unpack_from for count in range(4)]  # at most three follow the stripes


# Rotations below leave bits above the 64th: a product or sum masked afterwards does not see them.
def _round(acc: int, lane: int) -> int:
    acc = (acc + lane * _P2) & _MASK
    return ((acc << 31 | acc >> 33) * _P1) & _MASK


def xxh64_python(data: bytes, seed: int = 0) -> int:
    """XXH64 of ``data`` in plain Python; ``seed`` counts modulo 2**64."""
    size = len(data)
    stripes = size & ~31
    seed &= _MASK
    if stripes:
        a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        for w, x, y, z in struct.iter_unpack("<4Q", data[:stripes]):
            a, b, c, d = _round(a, w), _round(b, x), _round(c, y), _round(d, z)
        h = (a << 1 | a >> 63) + (b << 7 | b >> 57) + (c << 12 | c >> 52) + (d << 18 | d >> 46)
        for acc in (a, b, c, d):
            h = ((h ^ _round(0, acc)) * _P1 + _P4) & _MASK
    else:
        h = seed + _P5
    h = (h + size) & _MASK
    for lane in _LANES[(size & 31) >> 3](data, stripes):
        lane = (lane * _P2) & _MASK
        h ^= ((lane << 31 | lane >> 33) * _P1) & _MASK  # _round(0, lane), written out for speed: most keys are short
        h = ((h << 27 | h >> 37) * _P1 + _P4) & _MASK
    tail = size & ~7
    if size & 4:
        h ^= (int.from_bytes(data[tail : tail + 4], "little") * _P1) & _MASK
        h = ((h << 23 | h >> 41) * _P2 + _P3) & _MASK
        tail += 4
    for byte in data[tail:]:
        h ^= (byte * _P5) & _MASK
        h = ((h << 11 | h >> 53) * _P1) & _MASK
    h = ((h ^ h >> 33) * _P2) & _MASK
    h = ((h ^ h >> 29) * _P3) & _MASK
    return h ^ h >> 32


def _fastest() -> Callable[[bytes, int], int]:
    try:
        from xxhash import xxh64_intdigest
    except ImportError:
        return xxh64_python
    return xxh64_intdigest


xxh64 = _fastest()
"""XXH64 of bytes with a seed, by the `xxhash` package where it is installed."""


def is_whole(value: object) -> TypeGuard[int]:
    """Whether this is an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def hash_key(key: Key) -> int:
    """The place of a key on the ring: XXH64 with seed 0 of its bytes.

    Text stands for its UTF-8 bytes and an integer for its decimal text, so ``1``, ``"1"`` and ``b"1"`` are one key,
    and so are ``"a"`` and ``b"a"``. Everything else is `Misuse`: a bool, a float, None, a bytearray, and text with half
    of a surrogate pair (a path with odd bytes: give ``os.fsencode(path)``).
    """
    if isinstance(key, str):
        try:
            return xxh64(key.encode(), 0)
        except UnicodeEncodeError:
            raise Misuse(
                f"the key {key!r} holds half of a surrogate pair, so it has no UTF-8; for a path give os.fsencode(path)"
            ) from None
    if isinstance(key, bytes):
        return xxh64(key, 0)
    if is_whole(key):
        try:
            return xxh64(b"%d" % key, 0)
        except ValueError:
            raise Misuse(f"an integer key of {key.bit_length()} bits is too long to write in decimal") from None
    raise Misuse(f"a key is str, bytes or int, not {type(key).__name__}: {key!r}")
