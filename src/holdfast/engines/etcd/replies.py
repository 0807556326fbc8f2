"""What etcd answers, as protocol buffers read by hand: only those fields that somebody asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ...errors import HoldfastError, OutcomeUnknown


def fields(message: bytes) -> list[tuple[int, Any]]:
    """The fields of a message: numbers, or bytes that the caller reads."""
    found: list[tuple[int, Any]] = []
    at, end = 0, len(message)
    while at < end:
        tag = message[at]
        at += 1
        if tag > 127:
            tag, at = _long(message, at - 1)
        value = message[at]
        at += 1
        if value > 127:
            value, at = _long(message, at - 1)
        if tag & 7 == 2:
            found.append((tag >> 3, message[at : at + value]))
            at += value
        elif tag & 7 == 0:
            found.append((tag >> 3, value))
        else:
            raise OutcomeUnknown("etcd answered what no version of it that we know answers")
    return found


def _long(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


class Kv(NamedTuple):
    """A key, and what is known of it."""

    key: bytes = b""
    created: int = 0
    changed: int = 0
    value: bytes = b""
    lease: int = 0


def _kv(message: bytes) -> Kv:
    found = dict(fields(message))
    get = found.get
    return Kv(found[1], get(2, 0), get(3, 0), get(5, b""), get(6, 0))


class Header(NamedTuple):
    """``revision``: of the whole store. ``term``: which leader this was."""

    revision: int = 0
    term: int = 0


def _header(message: bytes) -> Header:
    found = dict(fields(message))
    return Header(found.get(3, 0), found.get(4, 0))


class Ranged(NamedTuple):
    kvs: list[Kv]
    more: bool


class Deleted(NamedTuple):
    keys: int


class Done(NamedTuple):
    """A transaction: ``responses`` are `Ranged`, `Deleted`, `Done`, or None for a put."""

    succeeded: bool
    responses: list[Any]
    header: Header

    @property
    def revision(self) -> int:
        return self.header.revision

    @property
    def term(self) -> int:
        return self.header.term


def _ranged(message: bytes) -> Ranged:
    kvs: list[Kv] = []
    more = False
    for field, value in fields(message):
        if field == 2:
            kvs.append(_kv(value))
        elif field == 3:
            more = bool(value)
    return Ranged(kvs, more)


def done(message: bytes) -> Done:
    succeeded, header = False, Header()
    responses: list[Any] = []
    for field, value in fields(message):
        if field == 1:
            header = _header(value)
        elif field == 2:
            succeeded = bool(value)
        elif field == 3:
            ((kind, response),) = fields(value)
            responses.append(_RESPONSES[kind](response))
    return Done(succeeded, responses, header)


_RESPONSES: dict[int, Callable[[bytes], Any]] = {
    1: _ranged,
    2: lambda message: None,
    3: lambda message: Deleted(dict(fields(message)).get(2, 0)),
    4: done,
}


class Granted(NamedTuple):
    """A lease: ``ttl_s`` 0 where there is none."""

    id: int
    ttl_s: int
    header: Header


def granted(message: bytes) -> Granted:
    found = dict(fields(message))
    ttl_s = found.get(3, 0)
    return Granted(found.get(2, 0), 0 if ttl_s >> 63 else ttl_s, _header(found.get(1, b"")))


class Event(NamedTuple):
    deleted: bool
    kv: Kv


class Heard(NamedTuple):
    """One message of a watch."""

    watch: int
    revision: int
    created: bool
    canceled: bool
    compacted: bool
    reason: str
    events: list[Event]


def heard(message: bytes) -> Heard:
    events: list[Event] = []
    found: dict[int, Any] = {}
    for field, value in fields(message):
        if field == 11:
            event = dict(fields(value))
            events.append(Event(event.get(1, 0) == 1, _kv(event[2])))
        else:
            found[field] = value
    reason = found.get(6, b"").decode(errors="replace")
    revision = _header(found.get(1, b"")).revision
    return Heard(found.get(2, 0), revision, 3 in found, 4 in found, found.get(5, 0) > 0, reason, events)


def checked(reply: Any) -> Any:
    if isinstance(reply, HoldfastError):
        raise reply
    return reply
