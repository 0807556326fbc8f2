"""Cells on etcd: a header that every write replaces under the revision it had, the value, and one key for each entry.

SPACE k/CELL/f          the header: layout, fence, version, and the last put's id and answer
SPACE k/CELL/v          the value, if there is one
SPACE k/CELL/e/KEY      an entry
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from ...contract import LAYOUT
from ...errors import Misuse, OutcomeUnknown
from ...model import CellReply, CellSnapshot, Change, Fence
from .desk import TRIES, Desk, Talk
from .messages import Keys, after, changed_at, delete, get, nested, put, txn, under
from .queue import quoted
from .replies import Kv, Ranged, checked

GROUP = 60
"""Operations in one of the transactions within a transaction: a server takes 128 in all levels together."""

MAX_CHANGES = GROUP * GROUP
ENTRIES_AT_ONCE = 2000


class Header(NamedTuple):
    """What decides about the next write. ``revision``: of its key, 0 where the cell was never opened."""

    fence: Fence
    version: int
    op_id: str
    applied: str
    revision: int

    def pack(self) -> bytes:
        return json.dumps([LAYOUT, *self.fence, self.version, self.op_id, self.applied]).encode()

    @property
    def reply(self) -> CellReply:
        applied = tuple(one == "1" for one in self.applied)
        return CellReply(True, self.version, self.fence.token, None, applied, False, self.fence.turnstile)


class Cells:
    """The operations of one desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def open(self, cell: str, fence: Fence) -> Talk[CellReply]:
        base = self._base(cell)
        for _ in range(TRIES):
            responses, _ = yield from _read([_key(base + b"f"), _key(base + b"v")])
            header = _header(responses[0])
            if header is None:
                header = Header(fence, 1, "", "", 0)
                if (yield from _write(base, header, [])):
                    return CellReply(True, 1, fence.token, turnstile=fence.turnstile)
                continue
            stands = header.fence
            if stands.turnstile != fence.turnstile:
                return CellReply(False, header.version, stands.token, foreign=True, turnstile=stands.turnstile)
            newer = fence.token > stands.token or (
                fence.token == stands.token and fence.claim == stands.claim and fence.opening > stands.opening
            )
            if newer:
                header = Header(fence, header.version + 1, "", "", header.revision)
                if not (yield from _write(base, header, [])):
                    continue
            accepted = newer or fence == stands
            value = _value(responses[1])
            return CellReply(accepted, header.version, header.fence.token, value, (), False, fence.turnstile)
        raise _overtaken(cell)

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Talk[CellReply]:
        base = self._base(cell)
        at = {change.key: _entry(base, change.key) for change in changes}
        asks = list({change.key: None for change in changes if _depends(change)})
        for _ in range(TRIES):
            responses, _ = yield from _read([_key(base + b"f"), *(_key(at[key], keys_only=True) for key in asks)])
            header = _header(responses[0])
            if header is not None and header.fence == fence and header.op_id == op_id:
                return header.reply
            if header is None or header.fence != fence or header.version != version:
                if header is None:
                    return CellReply(False)
                return CellReply(False, header.version, header.fence.token, turnstile=header.fence.turnstile)
            there = {key: bool(one.kvs) for key, one in zip(asks, responses[1:], strict=True)}
            operations, applied = _changed(changes, at, there)
            if value is not None:
                operations.append(put(base + b"v", value))
            header = Header(fence, version + 1, op_id, applied, header.revision)
            if (yield from _write(base, header, operations)):
                return header.reply
        raise _overtaken(cell)

    def read(self, cell: str, keys: Sequence[str] | None) -> Talk[CellSnapshot]:
        base = self._base(cell)
        wanted = [_key(_entry(base, key)) for key in dict.fromkeys(keys or ())]
        if keys is None:
            wanted = [get(under(base + b"e/"), limit=ENTRIES_AT_ONCE)]
        responses, revision = yield from _read([_key(base + b"f"), _key(base + b"v"), *wanted])
        header = _header(responses[0])
        if header is None:
            return CellSnapshot()
        found = [kv for one in responses[2:] for kv in one.kvs]
        if keys is None and responses[2].more:
            found += yield from _rest(base, found[-1], revision)
        start = len(base) + 2
        entries = {unquote(kv.key[start:].decode()): kv.value for kv in found}
        return CellSnapshot(_value(responses[1]), header.version, header.fence.token, header.fence.claim, entries)

    def drop(self, cell: str) -> Talk[bool]:
        (reply,) = yield [txn([], [delete(under(self._base(cell)))])]
        return bool(checked(reply).responses[0].keys)

    def _base(self, cell: str) -> bytes:
        return b"%bk/%b/" % (self.desk.space, quoted(cell))


def _entry(base: bytes, key: str) -> bytes:
    return b"%be/%b" % (base, quoted(key))


def _key(key: bytes, keys_only: bool = False) -> bytes:
    return get(Keys(key), keys_only=keys_only)


def _depends(change: Change) -> bool:
    """Whether what it does depends on what is there."""
    return change.create or change.value is None


def _changed(changes: Sequence[Change], at: dict[str, bytes], there: dict[str, bool]) -> tuple[list[bytes], str]:
    """What to do to the keys, each once, and of each change whether it applied."""
    final: dict[str, bytes | None] = {}
    applied: list[bool] = []
    for change in changes:
        stands = there.get(change.key, False)
        done = stands if change.value is None else not (change.create and stands)
        applied.append(done)
        if done:
            there[change.key] = change.value is not None
            final[change.key] = change.value
    operations = [delete(Keys(at[key])) if value is None else put(at[key], value) for key, value in final.items()]
    return operations, "".join(map(str, map(int, applied)))


def _grouped(operations: list[bytes]) -> list[bytes]:
    """Few enough for one transaction, though it be by transactions within."""
    if len(operations) <= GROUP:
        return operations
    return [nested([], operations[at : at + GROUP], []) for at in range(0, len(operations), GROUP)]


def _read(operations: list[bytes]) -> Talk[tuple[list[Ranged], int]]:
    """All at one revision, and which."""
    (reply,) = yield [txn([], _grouped(operations), reads=True)]
    responses: list[Any] = checked(reply).responses
    if len(operations) > GROUP:
        responses = [inner for outer in responses for inner in outer.responses]
    return responses, reply.revision


def _rest(base: bytes, last: Kv, revision: int) -> Talk[list[Kv]]:
    """The entries after ``last``, as they were when that was read."""
    found: list[Kv] = []
    end = after(base + b"e/")
    while True:
        where = Keys(last.key + b"\0", end)
        (page,), _ = yield from _read([get(where, limit=ENTRIES_AT_ONCE, revision=revision)])
        found += page.kvs
        if not page.more:
            return found
        last = found[-1]


def _write(base: bytes, header: Header, operations: list[bytes]) -> Talk[bool]:
    """Replace the header, and do the rest with it; False where the header is another by now."""
    key = base + b"f"
    same = changed_at(Keys(key), header.revision)
    (reply,) = yield [txn([same], [put(key, header.pack()), *_grouped(operations)])]
    return bool(checked(reply).succeeded)


def _header(response: Ranged) -> Header | None:
    for kv in response.kvs:
        layout, *said = json.loads(kv.value)
        if layout != LAYOUT:
            raise Misuse(
                f"a cell of layout {layout} is stored here and this release knows layout {LAYOUT}: let all users of "
                "this etcd run the same release of holdfast"
            )
        return Header(Fence(*said[:4]), said[4], said[5], said[6], kv.changed)
    return None


def _value(response: Ranged) -> bytes | None:
    return response.kvs[0].value if response.kvs else None


def _overtaken(cell: str) -> Exception:
    return OutcomeUnknown(f"the cell {cell!r} changed {TRIES} times while it was written")


def check_size(value: bytes | None, changes: Sequence[Change], most: int) -> None:
    """Refuse what no server would take in one request."""
    size = len(value or b"") + sum(len(change.value or b"") + 4 * len(change.key) + 150 for change in changes)
    if size > most or len(changes) > MAX_CHANGES:
        raise Misuse(
            f"one put on etcd carries {most:,} bytes and {MAX_CHANGES:,} entries at most, this one {size:,} and "
            f"{len(changes):,}: write them in several puts"
        )
