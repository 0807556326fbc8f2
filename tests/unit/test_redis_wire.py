"""Redis's protocol as bytes: replies in any pieces, and errors in our words."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("redis")

from holdfast.engines.redis.wire import Refusal, Replies, pack, refused, signals_of
from holdfast.errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from holdfast.model import Signal

STREAM = (
    b"+OK\r\n:-7\r\n$5\r\na\r\nbc\r\n$-1\r\n$0\r\n\r\n*0\r\n*-1\r\n"
    b"*3\r\n:1\r\n*2\r\n$1\r\nx\r\n*0\r\n+y\r\n-ERR no\r\n:1\r\n"
)
MEANING: list[Any] = [b"OK", -7, b"a\r\nbc", None, b"", [], [], [1, [b"x", []], b"y"], "ERR no", 1]


def plain(replies: list[Any]) -> list[Any]:
    return [reply.text if isinstance(reply, Refusal) else reply for reply in replies]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_replies_are_read_from_any_pieces(size: int) -> None:
    reader = Replies()
    read: list[Any] = []
    for at in range(0, len(STREAM), size):
        read += reader.feed(STREAM[at : at + size])
    assert plain(read) == MEANING


def test_each_reply_is_given_as_soon_as_it_is_whole() -> None:
    reader = Replies()
    assert reader.feed(b"*2\r\n:1\r\n$3\r\nab") == []
    assert reader.feed(b"c\r") == []
    assert reader.feed(b"\n:5\r\n:6") == [[1, b"abc"], 5]
    assert reader.feed(b"\r\n") == [6]


def test_another_protocol_is_refused() -> None:
    with pytest.raises(OutcomeUnknown, match="does not speak"):
        Replies().feed(b"HTTP/1.1 400 Bad Request\r\n")


def test_commands_carry_any_bytes() -> None:
    assert pack("SET", "kéy", b"\0\r\n") == b"*3\r\n$3\r\nSET\r\n$4\r\nk\xc3\xa9y\r\n$3\r\n\0\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("NOAUTH Authentication required.", Misuse, "password"),
        ("WRONGPASS invalid username-password pair", Misuse, "password"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", Misuse, r"\+evalsha"),
        ("READONLY You can't write against a read only replica.", Unavailable, "primary"),
        ("OOM command not allowed when used memory > 'maxmemory'.", Unavailable, "out of memory"),
        ("MISCONF Redis is configured to save RDB snapshots", Unavailable, "MISCONF"),
        ("LOADING Redis is loading the dataset in memory", Unavailable, "LOADING"),
        ("BUSY Redis is busy running a script.", Unavailable, "BUSY"),
        ("CLUSTERDOWN The cluster is down", Unavailable, "CLUSTERDOWN"),
        ("CLUSTERDOWN Hash slot not served", Unavailable, "serves this name's slot by no node"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Unavailable, "is being moved"),
        ("NOREPLICAS Not enough good replicas to write.", Unavailable, "too few replicas"),
        ("MOVED 3999 127.0.0.1:6381", Unsupported, r"redis\+cluster://"),
        ("ERR Write commands not allowed after non deterministic commands", Misuse, "Redis 5"),
        ("ERR unknown command 'EVALSHA'", Misuse, "lacks"),
        ("WRONGTYPE Operation against a key", Misuse, "namespace"),
    ],
)
def test_an_error_reply_says_what_to_change(text: str, kind: type[HoldfastError], says: str) -> None:
    error = refused(text)
    assert type(error) is kind
    with pytest.raises(kind, match=says):
        raise error


def test_messages_become_signals_and_what_is_unknown_is_ignored() -> None:
    assert list(signals_of(b"ac1", "")) == [Signal("admitted", "c1")]
    assert list(signals_of(b"wc1", "")) == [Signal("wanted", "c1")]
    assert list(signals_of(b"bc1", "")) == [Signal("wanted", "c1"), Signal("admitted", "c1")]
    assert list(signals_of(b"", "group:g")) == [Signal("changed", "group:g")]
    assert list(signals_of(b"", "")) == []
    assert list(signals_of(b"?", None)) == []
