"""Keys to bytes, bytes to 64-bit numbers: the same on every machine and in every language.

The default is XXH64. The `xxhash` package computes it where it is installed; the plain Python below gives the same
numbers without it. (The kernel in C has its own, and asks nobody.)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import TypeGuard

from ..errors import Misuse, Unsupported

DEFAULT_HASH = "xxh64"

Key = str | bytes | int
Hasher = Callable[[bytes], int]
"""From bytes to a number below 2**64."""

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


def _fastest() -> Callable[..., int]:
    try:
        from xxhash import xxh64_intdigest
    except ImportError:
        return xxh64_python
    return xxh64_intdigest


xxh64 = _fastest()
"""XXH64 of bytes with a seed, by the `xxhash` package where it is installed."""


def _digest(name: str) -> Hasher:
    """The first eight bytes of a digest of hashlib's, little-endian."""
    make = getattr(hashlib, name)

    def hasher(data: bytes) -> int:
        return int.from_bytes(make(data, usedforsecurity=False).digest()[:8], "little")

    return hasher


def _fnv1a_64(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


def hasher_of(name: str) -> Hasher | None:
    """The hash of that name; None for XXH64, which the kernel does by itself. Raises `Misuse`, `Unsupported`."""
    if name == DEFAULT_HASH:
        return None
    if name in ("md5", "sha1", "sha256", "blake2b"):
        return _digest(name)
    if name == "fnv1a_64":
        return _fnv1a_64
    if name == "xxh3_64":
        try:
            from xxhash import xxh3_64_intdigest
        except ImportError:
            raise Unsupported("the hash xxh3_64 needs the package xxhash: pip install xxhash") from None
        return xxh3_64_intdigest
    raise Misuse(f"no hash is called {name!r}; known: xxh64, xxh3_64, md5, sha1, sha256, blake2b, fnv1a_64")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether this is an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def key_bytes(key: Key) -> bytes:
    """The bytes of a key that are hashed: text in UTF-8, an integer in decimal.

    So ``1``, ``"1"`` and ``b"1"`` are one key, and so are ``"a"`` and ``b"a"``. Everything else is `Misuse`: a bool, a
    float, None, a bytearray, and text with half a surrogate pair (a path with odd bytes: give ``os.fsencode(path)``).
    """
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise Misuse(
                f"the key {key!r} holds half of a surrogate pair, so it has no UTF-8; for a path give os.fsencode(path)"
            ) from None
    if isinstance(key, bytes):
        return key
    if is_whole(key):
        try:
            return b"%d" % key
        except ValueError:
            raise Misuse(f"an integer key of {key.bit_length()} bits is too long to write in decimal") from None
    raise Misuse(f"a key is str, bytes or int, not {type(key).__name__}: {key!r}")
