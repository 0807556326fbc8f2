"""etcd's JSON gateway as bytes: requests packed, answers read, errors put into our words.

Plain HTTP/1.1 over connections that stay open: no library, no thread, nothing that minds a fork. See docs/engines.md
for what it costs beside gRPC.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

from ..errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from .etcd_target import Target

NEEDED = "holdfast needs etcd 3.4 or newer, with its JSON gateway (--enable-grpc-gateway, which is the default)"


class LeaseGone(Unavailable):
    """The request was refused since its lease has ended; nothing was done."""


class NoLeader(Unavailable):
    """This member cannot serve now; another may."""


class TokenRefused(Unavailable):
    """The login has ended: log in again."""


class Ask(NamedTuple):
    """One request. ``reads``: it changes nothing, so a lost answer is no more than that."""

    path: bytes
    body: bytes
    reads: bool = False


def ask(path: str, body: Any, reads: bool = False) -> Ask:
    return Ask(path.encode(), json.dumps(body).encode(), reads)


def txn(compare: list[Any], success: list[Any], failure: list[Any], reads: bool = False) -> Ask:
    return ask("/v3/kv/txn", {"compare": compare, "success": success, "failure": failure}, reads)


def keepalive(lease_ids: list[str]) -> Ask:
    """The answer has one line for each."""
    return Ask(b"/v3/lease/keepalive", b"".join(b'{"ID":"%b"}' % id.encode() for id in lease_ids), True)


def pack(request: Ask, host: bytes, login: bytes) -> bytes:
    """``hasleader``: a member that is cut off from the others says so at once, and ends what is watched there."""
    return b"POST %b HTTP/1.1\r\nHost: %b\r\nGrpc-Metadata-Hasleader: true\r\n%bContent-Length: %d\r\n\r\n%b" % (
        request.path, host, b"Authorization: %b\r\n" % login if login else b"", len(request.body), request.body,
    )  # fmt: skip


# -- what goes into a transaction


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bytes_of(value: str | None) -> bytes:
    return base64.b64decode(value) if value else b""


def after(prefix: bytes) -> bytes:
    """The first key that does not start with ``prefix``."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def span(prefix: bytes) -> dict[str, str]:
    """All keys that start with it."""
    return {"key": text(prefix), "range_end": text(after(prefix))}


def absent(span: dict[str, str]) -> dict[str, Any]:
    """A comparison: no such key, or no key of that span."""
    return {**span, "target": "CREATE", "create_revision": 0}


def present(span: dict[str, str]) -> dict[str, Any]:
    return {**span, "target": "CREATE", "result": "GREATER", "create_revision": 0}


def made_before(span: dict[str, str], revision: int) -> dict[str, Any]:
    """A comparison: no key there is as young as ``revision``."""
    return {**span, "target": "CREATE", "result": "LESS", "create_revision": revision}


def put(key: bytes, value: bytes, lease: str = "0") -> dict[str, Any]:
    return {"request_put": {"key": text(key), "value": text(value), "lease": lease}}


def get(span: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"request_range": {**span, **more}}


def delete(span: dict[str, str]) -> dict[str, Any]:
    return {"request_delete_range": span}


def nested(compare: list[Any], success: list[Any], failure: list[Any]) -> dict[str, Any]:
    return {"request_txn": {"compare": compare, "success": success, "failure": failure}}


def kvs_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = response["response_range"].get("kvs", [])
    return found


def deleted(response: dict[str, Any]) -> bool:
    return int(response["response_delete_range"].get("deleted", 0)) > 0


# -- reading


class NoHttp(Exception):
    """What came is no answer of an etcd."""


class Answers:
    """Makes answers of bytes as they come, in whatever pieces: (status, body). A stream's lines come one by one."""

    __slots__ = ("_body", "_data", "_left", "_status", "streams")

    def __init__(self, streams: bool = False) -> None:
        self.streams = streams
        self._data = b""
        self._status = 0  # of the answer that is being read
        self._left: int | None = None  # bytes of its body; None: it comes in chunks
        self._body: list[bytes] = []

    def feed(self, piece: bytes) -> list[tuple[int, bytes]]:
        """The answers that ``piece`` completed."""
        self._data = self._data + piece if self._data else piece
        done: list[tuple[int, bytes]] = []
        while self._step(done):
            pass
        return done

    def _step(self, done: list[tuple[int, bytes]]) -> bool:
        data = self._data
        if not self._status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if data and not data.startswith(b"HTTP/1."[: len(data)]):
                    raise NoHttp(f"it does not speak HTTP: {data[:40]!r}")
                return False
            self._head(data[:end])
            self._data = data[end + 4 :]
            return True
        if self._left is not None:
            if len(data) < self._left:
                return False
            done.append((self._status, data[: self._left]))
            self._data, self._status = data[self._left :], 0
            return bool(self._data)
        return self._chunk(data, done)

    def _head(self, head: bytes) -> None:
        try:
            self._status = int(head[9:12])
            lower = head.lower()
            at = lower.find(b"\r\ncontent-length:")
            self._left = int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else None
        except ValueError:
            raise NoHttp(f"it does not speak HTTP: {head[:40]!r}") from None
        if self._left is None and b"chunked" not in lower:
            raise NoHttp(f"it answers as no etcd does: {head[:40]!r}")

    def _chunk(self, data: bytes, done: list[tuple[int, bytes]]) -> bool:
        end = data.find(b"\r\n")
        if end < 0:
            return False
        try:
            size = int(data[:end], 16)
        except ValueError:
            raise NoHttp(f"a chunk of no length: {data[:40]!r}") from None
        if size:
            stop = end + 2 + size
            if len(data) < stop + 2:
                return False
            self._body.append(data[end + 2 : stop])
            self._data = data[stop + 2 :]
            if self.streams:
                *lines, rest = b"".join(self._body).split(b"\n")
                self._body = [rest] if rest else []
                done += [(self._status, line) for line in lines]
            return True
        stop = end + 2 if data[end + 2 : end + 4] == b"\r\n" else data.find(b"\r\n\r\n", end) + 2  # else trailers
        if stop < 2 or len(data) < stop + 2:
            return False
        if not self.streams or self._body:
            done.append((self._status, b"".join(self._body)))
        self._body, self._status, self._data = [], 0, data[stop + 2 :]
        return bool(self._data)


def read(answer: tuple[int, bytes], target: Target, wrote: bool) -> Any:
    """What an answer says; an error is returned as its exception. Several lines make a list."""
    status, body = answer
    if status == 200:
        if body.endswith(b"\n"):
            lines = [json.loads(line) for line in body.splitlines()]
            errors = [line["error"] for line in lines if "error" in line]
            return refused(errors[0].get("message", ""), target, wrote) if errors else [one["result"] for one in lines]
        return json.loads(body)
    try:
        said = json.loads(body)
        message = said.get("message") or said["error"]
    except (ValueError, KeyError, TypeError, AttributeError):
        if status == 404:
            return Unsupported(f"{target.where} answers, but not as etcd 3.4 does: {NEEDED}")
        return OutcomeUnknown(f"etcd at {target.where} answered {status}: {body[:80]!r}")
    return refused(message, target, wrote)


def refused(message: str, target: Target, wrote: bool) -> HoldfastError:
    """What an error means to the caller. ``wrote``: whether something may have been changed."""
    where = f"etcd at {target.where}"
    for mark, error in (
        ("requested lease not found", LeaseGone(f"the lease of a claim has ended on {where}")),
        ("no leader", NoLeader(f"{where} has no leader: a majority of its members does not answer")),
        ("not capable", Unsupported(f"{where} is too old or still starting: {NEEDED}")),
        ("invalid auth token", TokenRefused(f"{where} wants a new login")),
        ("revision in header is old", TokenRefused(f"{where} wants a new login")),
        ("authentication is not enabled", Misuse(f"{where} has authentication off: leave user:password@ out")),
        ("authentication failed", Misuse(f"{where} refused the password of {target.who}")),
        ("user name is empty", Misuse(f"{where} wants a login: etcd://user:password@host")),
        ("user name not found", Misuse(f"{where} knows no {target.who}")),
        ("permission denied", Misuse(
            f"{where} does not allow this to {target.who}: its role needs readwrite on all keys that start with "
            "'holdfast/' (etcdctl role grant-permission ROLE readwrite holdfast/ --prefix)")),
        ("database space exceeded", Unavailable(
            f"{where} is full and takes no new claims: compact and defragment it, or raise --quota-backend-bytes; "
            "then etcdctl alarm disarm")),
        ("request is too large", Misuse(f"{where} takes no request of this size (its --max-request-bytes)")),
        ("too many operations", Misuse(f"{where} takes fewer operations at once (its --max-txn-ops, 128 by default)")),
        ("too many requests", Unavailable(f"{where} has too much to do")),
    ):  # fmt: skip
        if mark in message:
            return error
    if wrote:
        return OutcomeUnknown(f"{where} may or may not have done it: {message}")
    return Unavailable(f"{where} refused: {message}")


def checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply
