"""PostgreSQL: every operation is one call of a function that locks its turnstile's row first, and a commit.

What the engine promises rests on the server's commits: as long as those survive (a crash and recovery, a synchronous
standby), so does who holds what. Tokens rise in any case, as far as clocks agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from ...contract import TOMBSTONE_S, AsyncLink, BlockingLink, Capabilities, Request
from ...core import turnstile as rule
from ...errors import Misuse
from ...model import (
    NEVER_S,
    CellReply,
    CellSnapshot,
    Change,
    Claim,
    ClaimView,
    Fence,
    Snapshot,
    Standing,
    State,
    Turnstile,
)
from . import schema as sql
from .schema import BYTEA, TEXT, Row
from .target import Postgres as Postgres

CAPABILITIES = Capabilities(
    engine="postgres",
    scope="fleet",
    fair=True,
    weighted=True,
    signals=True,
    cells=True,
    groups=True,
    survives_restart=True,
    token_survives_failover=True,
    token_source="the server's clock in µs, or the turnstile's last token + 1",
    min_ttl_s=0.05,
    max_value_bytes=64 << 20,
)

RENEW_BATCH = 50
"""Claims per call: it holds the rows of all their turnstiles."""

_STATES = {b"%d" % state: state for state in State}
_TRUE, _FALSE = b"t", b"f"


class PostgresEngine:
    """Turnstiles and cells in a schema of a PostgreSQL database.

    ``target`` is a URL (``postgresql://``, ``postgres://``, with everything that libpq reads from one), a psycopg pool,
    a function that makes psycopg connections, or a `Postgres` with options. No connection of the user's own is used.
    """

    def __init__(self, target: Any, namespace: str = "") -> None:
        self._target = target if isinstance(target, Postgres) else Postgres(target)
        self.identity = f"{self._target.identity}#{namespace}"
        self._space = f"{quote(namespace, safe='')}:"
        self._tied = _truth(self._target.ends_with_connection)

    @property
    def capabilities(self) -> Capabilities:
        """``signals`` is false from when a pooler was found in the way and no ``listen_url`` leads past it."""
        tied = self._target.ends_with_connection
        return replace(CAPABILITIES, signals=not self._target.polls, tied=tied, renewed_by_any=not tied)

    def blocking_link(self) -> BlockingLink:
        from .links import PostgresLink

        return PostgresLink(self._target, self._channel)

    def async_link(self) -> AsyncLink:
        from .tasks import AsyncPostgresLink

        return AsyncPostgresLink(self._target, self._channel)

    def _key(self, name: str) -> bytes:
        return (self._space + name).encode()

    def _channel(self, turnstile: Turnstile) -> str:
        """Where an announcing turnstile says that it changed: names of channels are short."""
        key = f"{self._target.schema} ".encode() + self._key(turnstile.address)
        return f"holdfast_{hashlib.sha256(key).hexdigest()[:32]}"

    # -- requests: turnstiles

    def ping(self) -> Request[None]:
        return Request("ping", (sql.PING, ()), _nothing)

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Request[Standing]:
        values = (
            self._key(turnstile.address),
            claim.id.encode(),
            _truth(nowait),
            b"%d" % claim.weight,
            _microseconds(claim.ttl_s),
            b"%d" % turnstile.capacity,
            self._channel(turnstile).encode() if turnstile.announces else b"",
            claim.inbox.encode(),
            self._tied,
            claim.owner.encode(),
            claim.payload,
        )
        return Request("enter", (sql.ENTER, values), lambda reply: _entered(turnstile, reply))

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Request[bool]:
        values = (self._key(turnstile.address), claim_id.encode(), _truth(bury), _microseconds(TOMBSTONE_S))
        return Request("leave", (sql.LEAVE, values), _is_true)

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Request[dict[str, Standing]]]:
        ordered = sorted(((self._key(turnstile.address), claim) for turnstile, claim in items), key=_first)
        for start in range(0, len(ordered), RENEW_BATCH):
            batch = ordered[start : start + RENEW_BATCH]
            values = (
                sql.array(BYTEA, [key for key, _ in batch]),
                sql.array(BYTEA, [claim.id.encode() for _, claim in batch]),
                sql.int8s([round(claim.ttl_s * 1e6) for _, claim in batch]),
                sql.array(TEXT, [claim.inbox.encode() for _, claim in batch]),
            )
            yield Request("renew", (sql.RENEW, values), _renewed([claim.id for _, claim in batch]))

    def look(self, turnstile: Turnstile) -> Request[Snapshot]:
        def parse(rows: Sequence[Row]) -> Snapshot:
            capacity = rows[0].number_at(0) if rows else 0
            return Snapshot(turnstile.kind, turnstile.name, capacity, tuple(map(_view, rows)))

        return Request("look", (sql.LOOK, (self._key(turnstile.address),)), parse)

    # -- requests: cells

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        return Request("open", (sql.OPEN, (self._key(cell), *_fence(fence))), _cell_reply)

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        values = (
            self._key(cell),
            *_fence(fence),
            b"%d" % version,
            op_id.encode(),
            value,
            sql.array(TEXT, [b"d" if one.value is None else b"c" if one.create else b"s" for one in changes]),
            sql.array(BYTEA, [one.key.encode() for one in changes]),
            sql.array(BYTEA, [one.value or b"" for one in changes]),
        )
        return Request("put", (sql.PUT, values), _cell_reply)

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        wanted = sql.array(BYTEA, [key.encode() for key in keys or ()])
        return Request("read", (sql.READ, (self._key(cell), _truth(keys is None), wanted)), _cell_snapshot)

    def drop(self, cell: str) -> Request[bool]:
        return Request("drop", (sql.DROP, (self._key(cell),)), _is_true)

    # -- what stands; last, because from here on `list` is this one

    def list(self, prefix: str) -> Request[Sequence[Turnstile]]:
        start = self._key(prefix)
        return Request("list", (sql.LIST, (start, start + b"\xff")), self._listed)

    def _listed(self, rows: Sequence[Row]) -> Sequence[Turnstile]:
        found: list[Turnstile] = []
        for row in rows:
            kind, _, name = row.octets(0).decode()[len(self._space) :].partition(":")
            found.append(Turnstile(kind, name, row.number_at(1), row.truth(2)))
        return found


# -- packing


def _truth(value: bool) -> bytes:
    return _TRUE if value else _FALSE


def _microseconds(seconds: float) -> bytes:
    return b"%d" % round(seconds * 1e6)


def _fence(fence: Fence) -> tuple[bytes, bytes, bytes, bytes]:
    return fence.turnstile.encode(), b"%d" % fence.token, fence.claim.encode(), b"%d" % fence.opening


def _first(pair: tuple[bytes, Claim]) -> bytes:
    return pair[0]


# -- reading


def _nothing(reply: Any) -> None:
    return None


def _is_true(reply: bytes) -> bool:
    return reply == _TRUE


def _entered(turnstile: Turnstile, reply: bytes) -> Standing:
    if reply.startswith(b"C "):
        rule.check_capacity(turnstile, int(reply[2:]))
        raise Misuse(f"{turnstile.address} changed while it was entered: try again")
    return _standing(*reply.split())


def _renewed(ids: Sequence[str]) -> Callable[[bytes], dict[str, Standing]]:
    def parse(reply: bytes) -> dict[str, Standing]:
        words = reply.split()
        return {id: _standing(*words[4 * number : 4 * number + 4]) for number, id in enumerate(ids)}

    return parse


def _standing(state: bytes, token: bytes, wanted: bytes, look_in: bytes) -> Standing:
    look_in_s = NEVER_S if look_in == b"-1" else int(look_in) / 1e6
    return Standing(_STATES[state], int(token), wanted == b"1", look_in_s)


def _view(row: Row) -> ClaimView:
    return ClaimView(
        id=row.octets(1).decode(),
        token=row.number_at(2),
        weight=row.number_at(3),
        admitted=row.truth(4),
        owner=row.octets(5).decode(),
        payload=row.octets(6),
        age_s=row.number_at(7) / 1e6,
        remaining_s=row.number_at(8) / 1e6,
    )


def _cell_reply(rows: Sequence[Row]) -> CellReply:
    (row,) = rows
    return CellReply(
        accepted=row.truth(0),
        version=row.number_at(1),
        token=row.number_at(2),
        value=row.data(3),
        applied=tuple(mark == 49 for mark in row.octets(4)),
        foreign=row.truth(5),
        turnstile=row.octets(6).decode(),
    )


def _cell_snapshot(rows: Sequence[Row]) -> CellSnapshot:
    if not rows:
        return CellSnapshot()
    head, *entries = rows
    return CellSnapshot(
        value=head.data(4),
        version=head.number_at(0),
        token=head.number_at(1),
        claim=head.octets(2).decode(),
        entries={row.octets(3).decode(): row.octets(4) for row in entries},
    )
