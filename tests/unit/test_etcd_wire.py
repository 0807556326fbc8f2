"""gRPC by hand: header fields, frames in whatever pieces, room to send, and messages, byte for byte."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.engines.etcd.hpack import header_fields, literal
from holdfast.engines.etcd.http2 import Call, Connection, NotHttp2
from holdfast.engines.etcd.messages import after, data, number, varint
from holdfast.engines.etcd.replies import fields, granted, heard

DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
HEAD = b"\x88" + literal(b"content-type", b"application/grpc")
OK = literal(b"grpc-status", b"0") + literal(b"grpc-message", b"")
HELLO = bytes(3) + bytes((SETTINGS,)) + bytes(5)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(payload: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(payload)) + payload


def frames(out: bytes) -> list[tuple[int, int, int, bytes]]:
    """What a client sent, without its preface."""
    found, at = [], out.index(b"SM\r\n\r\n") + 6 if out.startswith(b"PRI") else 0
    while at < len(out):
        size = int.from_bytes(out[at : at + 3], "big")
        kind, flags, stream = struct.unpack_from(">BBI", out, at + 3)
        found.append((kind, flags, stream, out[at + 9 : at + 9 + size]))
        at += 9 + size
    return found


def begun(count: int = 1) -> tuple[Connection, list[Call]]:
    """A connection with calls that were asked and not answered."""
    connection = Connection(b"host:1", tls=False)
    calls = [Call() for _ in range(count)]
    for call in calls:
        connection.begin(call, b"/a/B", b"")
        connection.send(call, b"ask", last=True)
    connection.receive(HELLO)
    connection.out.clear()
    return connection, calls


# -- header fields


def test_coded_text_is_read_as_the_standard_has_it() -> None:
    coded = bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")  # RFC 7541, C.4.1
    assert header_fields(b"\x41\x8c" + coded) == [(b"", b"www.example.com")]
    date = bytes.fromhex("d07abe941054d444a8200595040b8166e082a62d1bff")  # C.6.1
    assert header_fields(b"\x61" + bytes((0x80 | len(date),)) + date) == [(b"", b"Mon, 21 Oct 2013 20:13:21 GMT")]


def test_fields_come_back_and_sizes_of_the_table_are_passed_over() -> None:
    long = b"x" * 1000
    block = b"\x20\x3f\xe1\x1f\x88" + literal(b"grpc-status", b"5") + literal(b"grpc-message", long)
    assert header_fields(block) == [(b":status", b"200"), (b"grpc-status", b"5"), (b"grpc-message", long)]


# -- frames


def answer(stream: int, *payloads: bytes) -> bytes:
    body = b"".join(map(message, payloads))
    half = len(body) // 2
    return b"".join([
        frame(HEADERS, 0, stream, HEAD[:5]), frame(CONTINUATION, END_HEADERS, stream, HEAD[5:]),
        frame(DATA, 0, stream, body[:half]), frame(PING, 0, 0, b"12345678"), frame(0x77, 0, stream, b"unknown"),
        frame(DATA, PADDED, stream, b"\x03" + body[half:] + b"\0\0\0"),
        frame(HEADERS, END_HEADERS | END_STREAM, stream, OK),
    ])  # fmt: skip


@given(st.lists(st.integers(1, 40), min_size=1))
def test_answers_are_the_same_in_whatever_pieces_they_come(sizes: list[int]) -> None:
    connection, (one, two) = begun(2)
    whole = answer(3, b"two", b"") + answer(1, b"one" * 50)
    at = turn = 0
    while at < len(whole):
        size = sizes[turn % len(sizes)]
        connection.receive(whole[at : at + size])
        at, turn = at + size, turn + 1
    assert (one.messages, one.status, one.ended) == ([b"one" * 50], 0, True)
    assert (two.messages, two.status, two.ended) == ([b"two", b""], 0, True)
    pongs = [payload for kind, flags, _, payload in frames(bytes(connection.out)) if kind == PING and flags & ACK]
    assert pongs == [b"12345678"] * 2


def test_an_error_without_a_message_is_read_with_its_text() -> None:
    connection, (call,) = begun()
    text = literal(b"grpc-status", b"14") + literal(b"grpc-message", b"etcdserver: no%20leader")
    connection.receive(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88" + text))
    assert (call.ended, call.status, call.text) == (True, 14, "etcdserver: no leader")


def test_what_does_not_fit_waits_until_the_server_has_room() -> None:
    connection, _ = begun()
    call = Call()
    connection.begin(call, b"/a/B", b"")
    connection.send(call, b"x" * 200_000, last=True)

    def sent() -> bytes:
        out = frames(bytes(connection.out))
        assert all(len(payload) <= 16384 for _, _, _, payload in out)
        return b"".join(payload for kind, _, stream, payload in out if (kind, stream) == (DATA, call.id))

    first = len(sent())
    assert first <= 65535
    connection.receive(frame(WINDOW, 0, 0, struct.pack(">I", 1 << 20)))
    assert len(sent()) == 65535
    connection.receive(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 100_000)))
    assert len(sent()) == 100_000
    connection.receive(frame(WINDOW, 0, call.id, struct.pack(">I", 1 << 20)))
    assert sent() == message(b"x" * 200_000)
    last = [flags for kind, flags, stream, _ in frames(bytes(connection.out)) if (kind, stream) == (DATA, call.id)]
    assert [flags & END_STREAM for flags in last] == [0] * (len(last) - 1) + [1]


def test_a_server_that_goes_away_says_which_calls_it_never_saw() -> None:
    connection, (seen, unseen) = begun(2)
    connection.receive(frame(GOAWAY, 0, 0, struct.pack(">II", seen.id, 0)))
    assert (seen.ended, unseen.ended, unseen.not_done) == (False, True, True)
    assert connection.closing
    connection.receive(answer(1, b"late"))
    assert seen.messages == [b"late"]


@pytest.mark.parametrize(("code", "not_done"), [(7, True), (2, False)])
def test_a_call_that_is_broken_off_was_not_done_only_where_it_was_refused(code: int, not_done: bool) -> None:
    connection, (call,) = begun()
    connection.receive(frame(RST, 0, 1, struct.pack(">I", code)))
    assert (call.ended, call.not_done, call.status) == (True, not_done, -1)


def test_a_cancelled_call_hears_nothing_more_and_disturbs_no_other() -> None:
    connection, (one, two) = begun(2)
    connection.cancel(one)
    connection.receive(answer(1, b"late") + answer(3, b"two"))
    assert (one.messages, two.messages) == ([], [b"two"])


@pytest.mark.parametrize(
    "text", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command\r\n", b"\x15\x03\x01\0\x02\x02\x46"]
)
def test_what_speaks_no_http2_is_told_apart(text: bytes) -> None:
    connection = Connection(b"host:1", tls=False)
    with pytest.raises(NotHttp2):
        connection.receive(text + b"and more of it")


# -- messages


@given(st.lists(st.tuples(st.integers(1, 2000), st.one_of(st.integers(0, 2**63 - 1), st.binary(max_size=300)))))
def test_what_is_packed_is_read_back(said: list[tuple[int, Any]]) -> None:
    packed = b"".join(number(f, value) if isinstance(value, int) else data(f, value) for f, value in said)
    assert fields(packed) == said


def test_a_lease_that_is_over_has_no_time_left() -> None:
    header = data(1, number(3, 7) + number(4, 2))
    gone = header + number(2, 5) + b"\x18" + varint(2**64 - 1)  # -1, as protocol buffers have it
    assert (granted(gone).ttl_s, granted(header + number(2, 5) + number(3, 9)).ttl_s) == (0, 9)
    assert granted(gone).header == (7, 2)


def test_a_watch_that_was_thrown_out_with_its_history_says_so() -> None:
    said = heard(data(1, number(3, 9)) + number(2, 4) + number(4, 1) + number(5, 8))
    assert (said.watch, said.canceled, said.compacted, said.events) == (4, True, True, [])


@given(st.binary(min_size=1, max_size=20).filter(lambda prefix: prefix[-1] < 255), st.binary(max_size=20))
def test_all_keys_of_a_prefix_lie_before_what_comes_after_it(prefix: bytes, rest: bytes) -> None:
    assert prefix <= prefix + rest < after(prefix)
