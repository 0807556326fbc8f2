"""HTTP/2 as far as gRPC needs it, without I/O: bytes come in, bytes to be sent are collected, calls get their messages.

The server is asked to keep no table of header fields, so a block of them can be read by itself or not at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote

from .hpack import header_fields, literal

_DATA, _HEADERS, _RST, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_HEAD = struct.Struct(">BHBBI").pack
_READ = struct.Struct(">HBBBI").unpack_from
_FRAME_BYTES = 16384
_LARGE = (1 << 31) - 1
_WINDOW_BYTES = 1 << 30
"""How much the server may send on one stream, and on all, before it hears from us."""

_REFUSED_STREAM = 7


class NotHttp2(Exception):
    """What came is not from a server that speaks HTTP/2, or not to us."""


class Call:
    """One call: its messages as they come, and how it ended."""

    __slots__ = ("_left", "_pieces", "ended", "got", "id", "messages", "not_done", "on_end", "on_message", "status",
                 "text", "unsent", "window")  # fmt: skip

    def __init__(
        self,
        on_end: Callable[[Call], None] | None = None,
        on_message: Callable[[bytes], None] | None = None,
    ) -> None:
        self.id = 0
        self.messages: list[bytes] = []
        self.status = -1  # of gRPC; -1: it did not say
        self.text = ""
        self.ended = False
        self.not_done = False  # the server surely did nothing
        self.on_end = on_end
        self.on_message = on_message
        self.window = 0
        self.unsent: list[tuple[bytes, bool]] = []  # what waits for room, and whether it is the last
        self.got = 0
        self._pieces = b""

    def feed(self, piece: bytes) -> None:
        data = self._pieces + piece if self._pieces else piece
        while len(data) >= 5:
            size = int.from_bytes(data[1:5], "big")
            if len(data) < size + 5:
                break
            message = data[5 : size + 5]
            data = data[size + 5 :]
            if self.on_message is None:
                self.messages.append(message)
            else:
                self.on_message(message)
        self._pieces = data

    def end(self) -> None:
        if not self.ended:
            self.ended = True
            if self.on_end is not None:
                self.on_end(self)


class Connection:
    """One connection's state. ``out`` is to be sent."""

    def __init__(self, authority: bytes, tls: bool) -> None:
        self.out = bytearray(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, _WINDOW_BYTES)  # no table, no push, the size of windows
        self._frame(_SETTINGS, 0, 0, settings)
        self._frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_BYTES - 65535))
        self.calls: dict[int, Call] = {}
        self.closing = False  # it takes no new calls
        self.urgent = True  # what is in `out` shall not wait for the next request
        self.pongs = 0
        self._scheme_and_host = (b"\x83\x87" if tls else b"\x83\x86") + literal(b":authority", authority)
        self._heads: dict[tuple[bytes, bytes], bytes] = {}
        self._next = 1
        self._window = 65535
        self._first_window = 65535
        self._got = 0
        self._data = b""
        self._block: tuple[int, int, bytes] | None = None  # of header fields, that is not complete
        self._spoke = False

    # -- sending

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        if kind != _PING or not flags & _ACK:  # a server asks at each request, to measure; that would double packets
            self.urgent = True
        self.out += _HEAD(size >> 16, size & 0xFFFF, kind, flags, stream)
        self.out += payload

    def begin(self, call: Call, path: bytes, login: bytes) -> None:
        head = self._heads.get((path, login))
        if head is None:
            said = [(b":path", path), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
            said.append((b"hasleader", b"true"))  # a member that is cut off from the others says so at once
            if login:
                said.append((b"token", login))
            head = self._scheme_and_host + b"".join(literal(*field) for field in said)
            if len(self._heads) > 64:
                self._heads.clear()
            self._heads[path, login] = head
        call.id, self._next = self._next, self._next + 2
        if self._next > _LARGE - 2:
            self.closing = True
        call.window = self._first_window
        self.calls[call.id] = call
        self._frame(_HEADERS, _END_HEADERS, call.id, head)

    def send(self, call: Call, message: bytes, last: bool) -> None:
        """One message; in pieces as the server has room for them."""
        call.unsent.append((b"\0" + struct.pack(">I", len(message)) + message, last))
        self._flush(call)

    def _flush(self, call: Call) -> None:
        while call.unsent:
            piece, last = call.unsent[0]
            room = min(self._window, call.window, _FRAME_BYTES)
            if room <= 0:
                return
            part, rest = piece[:room], piece[room:]
            self._window -= len(part)
            call.window -= len(part)
            self._frame(_DATA, _END_STREAM if last and not rest else 0, call.id, part)
            if rest:
                call.unsent[0] = (rest, last)
            else:
                call.unsent.pop(0)

    def cancel(self, call: Call) -> None:
        """Nobody wants its answer any more."""
        if self.calls.pop(call.id, None) is not None:
            self._frame(_RST, 0, call.id, struct.pack(">I", 8))

    def ping(self) -> None:
        self._frame(_PING, 0, 0, b"holdfast")

    # -- receiving

    def receive(self, piece: bytes) -> None:
        data = self._data + piece if self._data else piece
        at, end = 0, len(data)
        if not self._spoke and data[:1] > b"\0":
            raise NotHttp2(f"it does not speak gRPC: {data[:40]!r}")
        while end - at >= 9:
            high, low, kind, flags, stream = _READ(data, at)
            size = high << 8 | low
            if not self._spoke:
                if kind != _SETTINGS or size > _FRAME_BYTES:
                    raise NotHttp2(f"it does not speak gRPC: {data[:40]!r}")
                self._spoke = True
            stop = at + 9 + size
            if stop > end:
                break
            self._take(kind, flags, stream & _LARGE, data[at + 9 : stop])
            at = stop
        self._data = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._take_data(flags, stream, payload)
        elif kind in (_HEADERS, _CONTINUATION):
            self._take_headers(kind, flags, stream, payload)
        elif kind == _WINDOW:
            self._widen(stream, int.from_bytes(payload, "big"))
        elif kind == _SETTINGS and not flags & _ACK:
            self._set(payload)
            self._frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING:
            if flags & _ACK:
                self.pongs += 1
            else:
                self._frame(_PING, _ACK, 0, payload)
        elif kind == _RST:
            if call := self.calls.pop(stream, None):
                call.not_done = int.from_bytes(payload, "big") == _REFUSED_STREAM
                call.text = "the server broke the call off"
                call.end()
        elif kind == _GOAWAY:
            self.closing = True
            last = int.from_bytes(payload[:4], "big")
            for id in [id for id in self.calls if id > last]:
                call = self.calls.pop(id)
                call.not_done, call.text = True, "the server is going away"
                call.end()

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self._got += size
        if self._got > _WINDOW_BYTES // 4:
            self._frame(_WINDOW, 0, 0, struct.pack(">I", self._got))
            self._got = 0
        call = self.calls.get(stream)
        if call is None:
            return
        call.got += size
        if call.got > _WINDOW_BYTES // 4:
            self._frame(_WINDOW, 0, stream, struct.pack(">I", call.got))
            call.got = 0
        call.feed(payload[1 : size - payload[0]] if flags & _PADDED else payload)
        if flags & _END_STREAM:
            self._end(call)

    def _take_headers(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS:
            if flags & _PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & _PRIORITY:
                payload = payload[5:]
            self._block = (stream, flags, payload)
        elif self._block is not None:
            self._block = (self._block[0], self._block[1], self._block[2] + payload)
        if not flags & _END_HEADERS or self._block is None:
            return
        stream, first_flags, block = self._block
        self._block = None
        call = self.calls.get(stream)
        if call is not None:
            status, text = _outcome(block)
            if status is not None:
                call.status, call.text = status, text
            if first_flags & _END_STREAM:
                self._end(call)

    def _end(self, call: Call) -> None:
        self.calls.pop(call.id, None)
        call.end()

    def _widen(self, stream: int, by: int) -> None:
        if not stream:
            self._window += by
            for call in list(self.calls.values()):
                self._flush(call)
        elif (one := self.calls.get(stream)) is not None:
            one.window += by
            self._flush(one)

    def _set(self, payload: bytes) -> None:
        for at in range(0, len(payload) - 5, 6):
            name, value = struct.unpack_from(">HI", payload, at)
            if name == 4:
                for call in list(self.calls.values()):
                    call.window += value - self._first_window
                    self._flush(call)
                self._first_window = value


@lru_cache(maxsize=64)
def _outcome(block: bytes) -> tuple[int | None, str]:
    """What a block of header fields says of how a call ended."""
    status, text = None, ""
    for name, value in header_fields(block):
        if name == b"grpc-status":
            status = int(value)
        elif name == b"grpc-message":
            text = unquote(value.decode("latin-1"))
        elif name == b":status" and value != b"200":
            status, text = 1000 + int(value), f"HTTP status {value.decode()}"
    return status, text
