"""What etcd is asked, as protocol buffers packed by hand: the few messages that are used here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .replies import Granted, done, fields, granted

# -- packing


def varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    if value < 128 and field < 16:
        return bytes((field << 3, value))
    return varint(field << 3) + varint(value)


def data(field: int, value: bytes) -> bytes:
    size = len(value)
    if size < 128 and field < 16:
        return b"%c%c%b" % (field << 3 | 2, size, value)
    return varint(field << 3 | 2) + varint(size) + value


class Keys(NamedTuple):
    """One key, or all from ``key`` up to ``end``."""

    key: bytes
    end: bytes = b""


def after(prefix: bytes) -> bytes:
    """The first key that does not start with ``prefix``."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def under(prefix: bytes) -> Keys:
    """All keys that start with it."""
    return Keys(prefix, after(prefix))


_EQUAL, _LESS = 0, 2
_CREATE, _MOD, _LEASE = (1, 5), (2, 6), (4, 8)  # the target, and the field of what it is compared with


def _compare(keys: Keys, result: int, target: tuple[int, int], value: int) -> bytes:
    end = data(64, keys.end) if keys.end else b""
    return b"\x08%c\x10%c%b%b%b" % (result, target[0], data(3, keys.key), number(target[1], value), end)


def absent(keys: Keys) -> bytes:
    """A comparison: no such key, or no key of that span."""
    return _compare(keys, _EQUAL, _CREATE, 0)


def made_before(keys: Keys, revision: int) -> bytes:
    """A comparison: no key there is as young as ``revision``."""
    return _compare(keys, _LESS, _CREATE, revision)


def made_at(keys: Keys, revision: int) -> bytes:
    return _compare(keys, _EQUAL, _CREATE, revision)


def changed_at(keys: Keys, revision: int) -> bytes:
    """A comparison: its last change was that one; 0: there is no such key."""
    return _compare(keys, _EQUAL, _MOD, revision)


def holds(keys: Keys, value: bytes) -> bytes:
    """A comparison: that is its value."""
    return b"\x08%c\x10\x03%b%b" % (_EQUAL, data(3, keys.key), data(7, value))


def on_lease(keys: Keys, lease: int) -> bytes:
    return _compare(keys, _EQUAL, _LEASE, lease)


def get(
    keys: Keys,
    *,
    limit: int = 0,
    revision: int = 0,
    keys_only: bool = False,
    newest: bool = False,
    made_by: int = 0,
) -> bytes:
    """An operation: read. ``made_by``: only what stood at that revision; ``newest``: what was made last comes first."""
    parts = [data(1, keys.key)]
    if keys.end:
        parts.append(data(2, keys.end))
    if limit:
        parts.append(number(3, limit))
    if revision:
        parts.append(number(4, revision))
    if newest:
        parts.append(b"\x28\x02\x30\x02")
    if keys_only:
        parts.append(b"\x40\x01")
    if made_by:
        parts.append(number(13, made_by))
    return data(1, b"".join(parts))


def put(key: bytes, value: bytes, lease: int = 0) -> bytes:
    """An operation: write."""
    return data(2, b"%b%b\x18%b" % (data(1, key), data(2, value), varint(lease)))


def move(key: bytes, lease: int) -> bytes:
    """An operation: the key goes over to another lease, its value stays."""
    return data(2, data(1, key) + number(3, lease) + b"\x28\x01")


def delete(keys: Keys) -> bytes:
    """An operation; its answer is how many there were."""
    return data(3, data(1, keys.key) + (data(2, keys.end) if keys.end else b""))


def _txn(compare: Sequence[bytes], success: Sequence[bytes], failure: Sequence[bytes]) -> bytes:
    parts = [data(1, one) for one in compare]
    parts += [data(2, one) for one in success]
    parts += [data(3, one) for one in failure]
    return b"".join(parts)


def nested(compare: Sequence[bytes], success: Sequence[bytes], failure: Sequence[bytes]) -> bytes:
    """An operation: a transaction within."""
    return data(4, _txn(compare, success, failure))


# -- calls


class Ask(NamedTuple):
    """One call. ``reads``: it changes nothing, so a lost answer is no more than that."""

    path: bytes
    messages: tuple[bytes, ...]
    parse: Callable[[list[bytes]], Any]
    reads: bool = False


def _one(parse: Callable[[bytes], Any]) -> Callable[[list[bytes]], Any]:
    return lambda messages: parse(messages[0])


def _all_granted(messages: list[bytes]) -> list[Granted]:
    return list(map(granted, messages))


_parse_done, _parse_granted = _one(done), _one(granted)


def txn(compare: Sequence[bytes], success: Sequence[bytes], failure: Sequence[bytes] = (), reads: bool = False) -> Ask:
    """Answers `Done`."""
    return Ask(b"/etcdserverpb.KV/Txn", (_txn(compare, success, failure),), _parse_done, reads)


def grant(ttl_s: int) -> Ask:
    """Answers `Granted`, and so do the other calls on leases."""
    return Ask(b"/etcdserverpb.Lease/LeaseGrant", (number(1, ttl_s),), _parse_granted)


def time_to_live(lease: int) -> Ask:
    return Ask(b"/etcdserverpb.Lease/LeaseTimeToLive", (number(1, lease),), _parse_granted, True)


def keepalive(leases: Sequence[int]) -> Ask:
    """Answers a list."""
    messages = tuple(number(1, lease) for lease in leases)
    return Ask(b"/etcdserverpb.Lease/LeaseKeepAlive", messages, _all_granted, True)


def authenticate(user: str, password: str) -> Ask:
    """Answers the token."""
    message = data(1, user.encode()) + data(2, password.encode())
    return Ask(b"/etcdserverpb.Auth/Authenticate", (message,), _one(lambda one: dict(fields(one))[2]), True)


STATUS = Ask(
    b"/etcdserverpb.Maintenance/Status", (b"",), _one(lambda one: dict(fields(one)).get(2, b"").decode()), True
)
"""Answers the server's version."""

WATCH = b"/etcdserverpb.Watch/Watch"


def watch(id: int, keys: Keys, revision: int, deletes_only: bool) -> bytes:
    """From that revision on; 0: from now on."""
    parts = [data(1, keys.key)]
    if keys.end:
        parts.append(data(2, keys.end))
    if revision:
        parts.append(number(3, revision))
    if deletes_only:
        parts.append(b"\x28\x00")
    parts.append(number(7, id))
    return data(1, b"".join(parts))


def unwatch(id: int) -> bytes:
    return data(2, number(1, id))
