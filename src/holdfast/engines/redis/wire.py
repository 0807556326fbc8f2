"""Redis as bytes: commands packed once, replies read, errors put into our words, connections dialled.

The client library opens a connection and does its handshake (TLS, passwords, database); from then on the bytes
are ours, because a lock is two round trips and the library's own path costs as much as the server does.
"""

from __future__ import annotations

import importlib
import inspect
import platform
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis

from ... import model
from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from ...model import Signal
from .scripts import Script

CONNECT_S = 5.0
"""How long a lost connection for signals may take to be made again; calls bring their own time."""

CHANNELS = "holdfast:"
"""What every key and channel of ours starts with."""

ACL_HELP = (
    f"its user needs the commands +evalsha +eval +ping +scan +subscribe +unsubscribe +publish and those of the scripts"
    f" (+@hash +@sortedset +@string +@keyspace +time), the keys ~{CHANNELS}* and the channels &{CHANNELS}*"
)


class Refusal:
    """An error reply."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


# -- packing


def bulk(value: str | bytes) -> bytes:
    """One argument."""
    data = value.encode() if isinstance(value, str) else value
    return b"$%d\r\n%b\r\n" % (len(data), data)


def pack(*args: str | bytes) -> bytes:
    """One command."""
    return b"*%d\r\n%b" % (len(args), b"".join(map(bulk, args)))


class Eval:
    """One script call, ready to send: ``rest`` is the packed number of keys, keys and arguments, ``count`` of them."""

    __slots__ = ("count", "rest", "script")

    def __init__(self, script: Script, count: int, rest: bytes) -> None:
        self.script = script
        self.count = count
        self.rest = rest

    def by_sha(self) -> bytes:
        return b"*%d\r\n%b%b" % (self.count + 2, self.script.by_sha, self.rest)

    def by_text(self) -> bytes:
        return b"*%d\r\n%b%b" % (self.count + 2, self.script.by_text, self.rest)


class Wait(bytes):
    """A packed WAIT: speaks of what was sent before it on the same connection."""

    __slots__ = ()


def first_try(body: Eval | bytes) -> bytes:
    """What to send for a request's body, a script call or a packed command."""
    if isinstance(body, Eval):
        return b"*%d\r\n%b%b" % (body.count + 2, body.script.by_sha, body.rest)
    return body


def is_unknown_script(reply: Any) -> bool:
    return type(reply) is Refusal and reply.text.startswith("NOSCRIPT")


def to_repeat(bodies: Sequence[Any], replies: Sequence[Any]) -> list[int]:
    """Which to send again: script calls that the server has forgotten the script of, and a WAIT for such a one."""
    again: list[int] = []
    for i, reply in enumerate(replies):
        if is_unknown_script(reply) or (type(bodies[i]) is Wait and again and again[-1] == i - 1):
            again.append(i)
    return again


def with_texts(bodies: Sequence[Any]) -> list[bytes]:
    """Script calls again, for a server that forgot them: the first of each script brings its text."""
    brought: set[int] = set()
    payload: list[bytes] = []
    for body in bodies:
        if type(body) is not Eval:
            payload.append(body)
            continue
        payload.append(body.by_sha() if id(body.script) in brought else body.by_text())
        brought.add(id(body.script))
    return payload


# -- reading


class Replies:
    """Makes replies of bytes as they come, in whatever pieces: each byte is looked at once."""

    __slots__ = ("_need", "_open", "_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._need = 0  # fewer bytes than this bring nothing new
        self._open: list[tuple[list[Any], int]] = []  # arrays that are not complete, and their lengths

    def feed(self, piece: bytes) -> list[Any]:
        """The replies that ``piece`` completed."""
        data = piece
        if self._pieces:
            self._pieces.append(piece)
            self._size += len(piece)
            if self._size < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces, self._need = [], 0
        done: list[Any] = []
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            kind, line, stop = data[at], data[at + 1 : end], end + 2
            value: Any
            if kind == 36:  # $
                size = int(line)
                if size < 0:
                    value = None
                else:
                    stop += size + 2
                    if len(data) < stop:
                        self._need = stop - at
                        break
                    value = data[end + 2 : stop - 2]
            elif kind == 58:  # :
                value = int(line)
            elif kind == 43:  # +
                value = line
            elif kind == 45:  # -
                value = Refusal(line.decode(errors="replace"))
            elif kind == 42:  # *
                value = []
                if int(line) > 0:
                    self._open.append((value, int(line)))
                    at = stop
                    continue
            else:
                raise OutcomeUnknown(f"the server does not speak the Redis protocol: {data[at : at + 40]!r}")
            at = stop
            while self._open:
                items, count = self._open[-1]
                items.append(value)
                if len(items) < count:
                    break
                value = items
                self._open.pop()
            else:
                done.append(value)
                if at == len(data):
                    return done
        if at < len(data):
            self._pieces, self._size = [data[at:]], len(data) - at
        return done


def answered(reply: Any) -> Any:
    """The reply, or the exception that it stands for."""
    return refused(reply.text) if type(reply) is Refusal else reply


def all_of(replies: Sequence[Any]) -> Sequence[Any]:
    """The replies, where none of them is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


SAID = {b"a": (model.ADMITTED,), b"w": (model.WANTED,), b"b": (model.WANTED, model.ADMITTED)}
"""What the first letter of a message says of the claim that the rest names."""


def signals_of(text: bytes, address: str | None) -> Iterable[Signal]:
    """What a message means: one of the inbox (address ''), or of a watched turnstile."""
    if address:
        return (Signal(model.CHANGED, address),)
    return [Signal(kind, text[1:].decode()) for kind in SAID.get(text[:1], ())]


# -- errors


def refused(text: str) -> HoldfastError:
    """What an error reply means to the caller. None of them has changed anything on the server."""
    code = text.partition(" ")[0]
    # 'unauthenticated': a call has more arguments than a stranger may send
    if (
        code in ("NOAUTH", "WRONGPASS")
        or "unauthenticated" in text
        or "invalid password" in text
        or "invalid username" in text.lower()
    ):
        return Misuse(f"Redis refused the user or password: {text}; give them in the URL: redis://user:password@host")
    if code == "NOPERM" or "ACL failure" in text or "user executing the script can't" in text:
        return Misuse(f"Redis forbids what holdfast needs: {text}; {ACL_HELP}")
    if code == "READONLY":
        return Unavailable(f"this Redis is a read-only replica: {text}; connect to the primary")
    if code == "OOM" or "OOM command" in text:
        return Unavailable(f"Redis is out of memory and takes no new claims: {text}; raise maxmemory or free some")
    if code in ("MOVED", "ASK", "CROSSSLOT"):
        return Unsupported(f"this Redis is one node of a cluster: name it redis+cluster://host,host ({text})")
    if code == "TRYAGAIN":
        return Unavailable(f"this name's slot is being moved to another node of the cluster: {text}")
    if code == "CLUSTERDOWN":
        return Unavailable(f"the cluster serves this name's slot by no node at present: {text}")
    if code == "NOREPLICAS":
        return Unavailable(f"Redis takes no writes while too few replicas follow it (min-replicas-to-write): {text}")
    if "non deterministic" in text:
        return Misuse(f"this server is too old: Redis 5 or newer is needed: {text}")
    if code == "WRONGTYPE" or "WRONGTYPE" in text:
        return Misuse(f"a key of holdfast's holds something else: {text}; give a namespace= of its own")
    if "DB index" in text:
        return Misuse(f"Redis has no such database: {text}; change the number at the end of the URL")
    if "unknown command" in text:
        return Misuse(f"this server lacks a command that holdfast needs: {text}")
    return Unavailable(f"Redis refused: {text}")


def not_connected(error: BaseException, where: str, tried_s: float) -> HoldfastError:
    """Why no connection came about; nothing was sent, so nothing was done."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # names, because valkey-py has classes of its own
    text = str(error) or type(error).__name__
    if "AuthenticationError" in kinds and "NOAUTH" not in text and "WRONGPASS" not in text:
        return refused(f"WRONGPASS {text}")
    if kinds & {"ResponseError", "AuthenticationError"}:
        return refused(text)
    return Unavailable(f"no connection to Redis at {where} (tried for {tried_s:.1f} s): {text}")


# -- dialling


class Target(NamedTuple):
    """A server, and how to connect to it: the client library's class and its options."""

    kind: Any
    options: dict[str, Any]
    where: str
    identity: str
    keeps: Any  # the user's client: a Sentinel connection asks its pool for the address

    def at(self, host: str, port: int) -> Target:
        """Another server with the same settings."""
        return self._replace(options={**self.options, "host": host, "port": port}, where=f"{host}:{port}")

    def connection(self, timeout_s: float) -> Any:
        """A connection object of the client library, not connected; every step of connecting is bounded."""
        connection = self.kind(**self.options)
        for limit in ("socket_timeout", "socket_connect_timeout"):
            own_s = self.options.get(limit)
            setattr(connection, limit, timeout_s if own_s is None else min(own_s, timeout_s))
        return connection


_NOT_OURS = (
    "retry",
    "retry_on_timeout",
    "retry_on_error",
    "health_check_interval",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
)
"""Options that are left out: resending is decided by our protocols, and health by our own look at the connection."""


def target_of(client: Any) -> tuple[bool, Target]:
    """The server behind a client object, and whether that client is for asyncio."""
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        raise Unsupported(
            f"holdfast takes a client for one Redis, for Sentinel or for a cluster, not {type(client).__name__}"
        )
    return inspect.iscoroutinefunction(pool.connection_class.connect), _target(pool, client)


def target_at(url: str, asynchronous: bool) -> Target:
    """The server at a URL, with everything that the client library lets a URL say."""
    scheme, mark, rest = url.partition("://")
    plain = scheme.replace("valkey", "redis") + mark + rest
    try:
        pools: Any = importlib.import_module("redis.asyncio") if asynchronous else redis
        target = _target(pools.ConnectionPool.from_url(plain), None)
        target.connection(CONNECT_S)
    except (TypeError, ValueError, redis.RedisError) as error:
        raise Misuse(f"the URL {scheme}://… is one that redis-py does not take: {_what_is_wrong(url, error)}") from None
    return target


def _what_is_wrong(url: str, error: Exception) -> str:
    """Without a word of the URL where a part of its password may have been taken for something else."""
    try:
        urlsplit(url).port  # noqa: B018
    except ValueError:
        return "its host or port is none; in a password write / ? # @ : [ ] as %2F %3F %23 %40 %3A %5B %5D"
    return str(error)


def _target(pool: Any, client: Any) -> Target:
    options = {name: value for name, value in pool.connection_kwargs.items() if name not in _NOT_OURS}
    options["protocol"] = 2
    service = getattr(pool, "service_name", None)
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    where = f"service {service}" if service else options.get("path") or f"{host}:{port}"
    # an address that means another server on another machine does not identify one
    local = not service and ("path" in options or host in ("localhost", "127.0.0.1", "::1"))
    identity = f"redis:{platform.node() + ':' if local else ''}{where}/{options.get('db') or 0}"
    return Target(pool.connection_class, options, where, identity, client)
