"""Cells on a majority: each opening first raises its fence on one, then has the newest content stand on one.

A put counts once a majority has it. What a majority has, any later opening meets, reads, and takes with it before its
holder writes. Nodes that missed something are given the whole cell anew. No I/O: see protocol.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...errors import OutcomeUnknown, Unsupported
from ...model import CellReply, CellSnapshot, Change, Fence
from ..redis.scripts import Script
from ..redis.wire import Eval, bulk
from . import cell_scripts as scripts
from .protocol import (
    Replies,
    Round,
    Talk,
    acks,
    answers,
    at_once,
    everywhere,
    heard_from,
    majority,
    need_majority,
    no_majority,
    open_for,
    parts,
)

Stamp = tuple[int, int, int]
"""Under which token and opening, and as which version, a content was written. The greatest is the newest."""


class Put(NamedTuple):
    fence: Fence
    version: int
    op_id: str
    value: bytes | None
    changes: Sequence[Change]


def _eval(script: Script, keys: bytes, args: Sequence[bytes]) -> Eval:
    return Eval(script, 7 + len(args), bulk("4") + keys + b"".join(map(bulk, args)))


def _fence(fence: Fence) -> list[bytes]:
    return [fence.turnstile.encode(), b"%d" % fence.token, fence.claim.encode(), b"%d" % fence.opening]


def _check(replies: Replies, what: str) -> None:
    if b"U" in replies:
        raise Unsupported(
            "cells need nodes that sync every write before they answer: set appendonly yes and appendfsync always on "
            "each of them (and let its user see it: +config|get)"
        )
    need_majority(what, replies)


def _count(replies: Replies, outcome: int) -> list[int]:
    return [node for node, reply in enumerate(replies) if parts(reply)[:1] == [outcome]]


def any_listed(replies: Replies) -> bool:
    return any(parts(reply) for reply in replies) or None not in replies


# -- opening


def open_cell(size: int, keys: bytes, fence: Fence) -> Talk[CellReply]:
    def raised(replies: Replies) -> list[int]:
        return [node for node in _count(replies, 1) if replies[node][5] == 1]

    def enough(replies: Replies) -> bool:
        if b"U" in replies or len(raised(replies)) >= majority(size):
            return True
        return len(raised(replies)) + open_for(replies, range(size)) < majority(size) and (
            answers(replies) >= majority(size) or None not in replies
        )

    replies = yield Round(everywhere(size, _eval(scripts.RAISE, keys, _fence(fence))), enough)
    _check(replies, "open")
    for node in _count(replies, 2):
        _, token, _, _, version, _, turnstile = replies[node]
        return CellReply(False, int(version), int(token), foreign=True, turnstile=turnstile.decode())
    stamps = {node: _stamp(replies[node]) for node in raised(replies)}
    refused = _count(replies, 0)
    if len(stamps) < majority(size):
        if refused:
            token = max(int(replies[node][1]) for node in refused)
            return CellReply(False, max(int(replies[node][4]) for node in refused), token, turnstile=fence.turnstile)
        raise no_majority("open", replies)
    newest = max(stamps.values())
    resent = newest[:2] == (fence.token, fence.opening)
    version = newest[2] if resent else newest[2] + 1
    has = [node for node, stamp in stamps.items() if stamp == newest]
    value: bytes | None = replies[has[0]][6]
    if not (resent and len(has) >= majority(size)):
        lacks = [node for node in _count(replies, 1) if node not in has]
        yield from _commit(size, keys, fence, newest, version, has, lacks)
    return CellReply(True, version, fence.token, value, (), False, fence.turnstile)


def _stamp(reply: Sequence[Any]) -> Stamp:
    return int(reply[2]), int(reply[3]), int(reply[4])


def _commit(
    size: int, keys: bytes, fence: Fence, newest: Stamp, version: int, has: Sequence[int], lacks: Sequence[int]
) -> Talk[None]:
    """Have the newest content stand on a majority, stamped by this fence."""
    commit = _eval(scripts.COMMIT, keys, [*_fence(fence), *(b"%d" % part for part in (*newest, version))])
    bodies = {node: commit for node in range(size) if node not in lacks}
    if lacks:
        content = yield from _content(size, keys, fence, has)
        bodies.update(dict.fromkeys(lacks, _restore(keys, fence, version, content, op=False)))

    def enough(replies: Replies) -> bool:
        return acks(replies) >= majority(size) or acks(replies) + open_for(replies, range(size)) < majority(size)

    replies = yield Round(bodies, enough)
    if acks(replies) < majority(size):
        if answers(replies) >= majority(size):
            raise OutcomeUnknown("another opened the cell at the same time")
        raise no_majority("open", replies)


def _content(size: int, keys: bytes, fence: Fence, has: Sequence[int]) -> Talk[Sequence[Any]]:
    body = _eval(scripts.DUMP, keys, _fence(fence))
    replies = yield Round(dict.fromkeys(has, body), any_listed)
    for reply in replies:
        if parts(reply):
            return parts(reply)
    raise no_majority("a copy of the cell", replies)


def _restore(keys: bytes, fence: Fence, version: int, content: Sequence[Any], *, op: bool) -> Eval:
    _, _, _, value, has_value, op_id, applied, entries = content
    args = [*_fence(fence), b"%d" % version, value or b"", b"%d" % has_value]
    return _eval(scripts.RESTORE, keys, [*args, *((op_id, applied) if op else (b"", b"")), *entries])


# -- writing


def put(size: int, keys: bytes, put: Put) -> Talk[CellReply]:
    args = [*_fence(put.fence), b"%d" % put.version, put.op_id.encode()]
    args += (b"0" if put.value is None else b"1", put.value or b"")
    for change in put.changes:
        verb = b"delete" if change.value is None else b"create" if change.create else b"set"
        args += (verb, change.key.encode(), change.value or b"")

    def enough(replies: Replies) -> bool:
        done = len(_count(replies, 1))
        if b"U" in replies or done >= majority(size):
            return True
        return done + open_for(replies, range(size)) < majority(size) and (
            answers(replies) >= majority(size) or None not in replies
        )

    replies = yield Round(everywhere(size, _eval(scripts.PUT, keys, args)), enough)
    _check(replies, "put")
    done, behind, refused = (_count(replies, outcome) for outcome in (1, 3, 0))
    if done and behind:
        done += yield from _catch_up(size, keys, put.fence, replies, done, behind)
    if len(done) >= majority(size):
        _, token, version, applied = replies[done[0]]
        outcomes = tuple(one == 49 for one in applied)  # 49: b"1"
        return CellReply(True, int(version), int(token), None, outcomes, False, put.fence.turnstile)
    if done:
        raise OutcomeUnknown(f"{len(done)} of {size} nodes have the put, which is no majority")
    told = refused or behind
    if not told:
        raise no_majority("put", replies)
    newest = max(told, key=lambda node: int(replies[node][1]))
    return CellReply(False, int(replies[newest][2]), int(replies[newest][1]))


def _catch_up(
    size: int, keys: bytes, fence: Fence, replies: Replies, done: Sequence[int], behind: Sequence[int]
) -> Talk[list[int]]:
    """Give nodes that missed an earlier write all that is there; those who have it then."""
    content = yield from _content(size, keys, fence, done)
    body = _restore(keys, fence, int(content[2]), content, op=True)
    needed = len(done) < majority(size)
    heard = yield Round(dict.fromkeys(behind, body), heard_from(behind) if needed else at_once)
    return [node for node in behind if heard[node] == 1]


# -- reading


def read(size: int, keys: bytes, wanted: Sequence[str] | None) -> Talk[CellSnapshot]:
    args = [b"all"] if wanted is None else [b"keys", *(key.encode() for key in wanted)]

    def known(replies: Replies) -> list[Sequence[Any]]:
        return [parts(reply) for reply in replies if parts(reply)[:1] == [1]]

    def enough(replies: Replies) -> bool:
        return b"U" in replies or len(known(replies)) >= majority(size) or None not in replies

    replies = yield Round(everywhere(size, _eval(scripts.READ, keys, args)), enough)
    _check(replies, "read")
    found = known(replies)
    if len(found) < majority(size):
        raise no_majority("read", replies)
    newest = max(found, key=lambda reply: (int(reply[3]), int(reply[4]), int(reply[5])))
    if newest[5] == b"0":
        return CellSnapshot()
    fenced = max(found, key=lambda reply: int(reply[1]))
    pairs = zip(newest[7][::2], newest[7][1::2], strict=True)
    entries = {key.decode(): data for key, data in pairs}
    return CellSnapshot(newest[6], int(newest[5]), int(fenced[1]), fenced[2].decode(), entries)


def told_or_all(replies: Replies) -> bool:
    return b"U" in replies or None not in replies


def drop(size: int, keys: bytes) -> Talk[bool]:
    """On every node that can be reached."""
    body = _eval(scripts.DROP, keys, [b"", b"", b"", b""])
    replies = yield Round(everywhere(size, body), told_or_all)
    _check(replies, "drop")
    return acks(replies) > 0
