"""Header fields of HTTP/2 (RFC 7541) where both ends keep no table of them: literals, and some fixed ones."""

from __future__ import annotations

import functools

_STATUS = (b"200", b"204", b"206", b"304", b"400", b"404", b"500")
_LENGTHS = (
    "=GLLLLLLLHNLLNLLLLLLLLNLLLLLLLLL6::<=68;::8;8666555666666678?6<:=67777777777777777777777878=C=>6?565"
    "65666577666567655677777?;>=LDFDDFFFGFGGGGGHGHHFGHGGGGEFGFGGHFEDFFGGEGFFHEFGGEEFEGFGGDFFFGFFGJJDCFGFI"
    "JJJKKJHICEJKKJKHEEJJLKKKDHDEFEEGFFIIHHJGJKJJKKKKKLKKKKKJ"
)
"""Of the code of each byte, in bits: the character less '0'. The code is canonical, so this is all of it."""


def _size(value: int, prefix: int, flags: int) -> bytes:
    most = (1 << prefix) - 1
    if value < most:
        return bytes((flags | value,))
    out, value = bytearray((flags | most,)), value - most
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """A field for nobody's table."""
    return b"\0" + _size(len(name), 7, 0) + name + _size(len(value), 7, 0) + value


def header_fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """All fields. Names from the fixed table are told of ``:status`` only: no other of them matters here."""
    found: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:  # a fixed field
            index, at = _read_size(block, at, 7)
            if 8 <= index <= 14:
                found.append((b":status", _STATUS[index - 8]))
        elif first & 0xE0 == 0x20:  # the size of the table
            _, at = _read_size(block, at, 5)
        else:
            index, at = _read_size(block, at, 6 if first & 0x40 else 4)
            name = b":status" if 8 <= index <= 14 else b""
            if not index:
                name, at = _read_text(block, at)
            value, at = _read_text(block, at)
            found.append((name, value))
    return found


def _read_size(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    most = (1 << prefix) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _read_text(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    size, at = _read_size(block, at, 7)
    text = block[at : at + size]
    return (_decoded(text) if coded else text), at + size


@functools.cache
def _codes() -> dict[tuple[int, int], int]:
    """Of each code its byte: (length, code)."""
    codes: dict[tuple[int, int], int] = {}
    code = before = 0
    for length, byte in sorted((ord(character) - 48, byte) for byte, character in enumerate(_LENGTHS)):
        code <<= length - before
        codes[length, code] = byte
        code, before = code + 1, length
    return codes


def _decoded(text: bytes) -> bytes:
    codes, out = _codes(), bytearray()
    code = length = 0
    for byte in text:
        for bit in range(7, -1, -1):
            code, length = code << 1 | byte >> bit & 1, length + 1
            found = codes.get((length, code))
            if found is not None:
                out.append(found)
                code = length = 0
    return bytes(out)  # what is left are ones, to fill the last byte
