"""Cells on ZooKeeper: a node with the fence and the version, under it the value and one node for each entry.

Every write is one transaction that needs the version of the cell's node which its decision was made on; so whoever was
overtaken looks again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...contract import LAYOUT
from ...errors import Misuse, Unavailable
from ...model import CellReply, CellSnapshot, Change, Fence
from .desk import Desk, Talk
from .queue import node_name, unquote
from .wire import (
    BadVersionError,
    Create,
    Create2,
    Delete,
    Exists,
    GetChildren,
    GetData,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    SetData,
    Transaction,
    steps_of,
)

TRIES = 16
"""How often an operation starts again because another wrote first."""

AT_ONCE = 1000
VALUE = "v"
ENTRY = "e!"


class Header(NamedTuple):
    """What the cell's own node holds, and the node's version in ZooKeeper (-1 for one that is not there)."""

    fence: Fence
    version: int
    op_id: str
    applied: str
    node_version: int

    def pack(self) -> bytes:
        said = {"layout": LAYOUT, "fence": self.fence, "version": self.version}
        return json.dumps({**said, "op": self.op_id, "applied": self.applied}).encode()

    @property
    def reply(self) -> CellReply:
        """To the put that made it."""
        applied = tuple(one == "1" for one in self.applied)
        return CellReply(True, self.version, self.fence.token, None, applied, False, self.fence.turnstile)


class Cells:
    """The operations of one desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def open(self, cell: str, fence: Fence) -> Talk[CellReply]:
        base = self.desk.cell(cell)
        for _ in range(TRIES):
            _, found, value = yield [self.desk.sync, GetData(base, None), GetData(f"{base}/{VALUE}", None)]
            header = self._header(found)
            if header is None:
                (reply,) = yield [Create2(base, Header(fence, 1, "", "", 0).pack(), self.desk.target.acl, 0)]
                if isinstance(reply, NodeExistsError):
                    continue
                self.desk.checked(reply)
                return CellReply(True, 1, fence.token, turnstile=fence.turnstile)
            stands = header.fence
            if stands.turnstile != fence.turnstile:
                return CellReply(False, header.version, stands.token, foreign=True, turnstile=stands.turnstile)
            newer = fence.token > stands.token or (
                fence.token == stands.token and fence.claim == stands.claim and fence.opening > stands.opening
            )
            if newer:
                version = header.node_version
                header = Header(fence, header.version + 1, "", "", version)
                (reply,) = yield [SetData(base, header.pack(), version)]
                if isinstance(reply, (BadVersionError, NoNodeError)):
                    continue
                self.desk.checked(reply)
            data = None if isinstance(value, NoNodeError) else self.desk.checked(value)[0]
            accepted = newer or fence == stands
            return CellReply(accepted, header.version, header.fence.token, data, (), False, fence.turnstile)
        raise self._overtaken(cell)

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Talk[CellReply]:
        base = self.desk.cell(cell)
        at = {change.key: f"{base}/{ENTRY}{node_name(change.key)}" for change in changes}
        synced: list[Any] = []
        for _ in range(TRIES):
            wanted = [Exists(path, None) for path in (f"{base}/{VALUE}", *at.values())]
            found, *stands = (yield [*synced, GetData(base, None), *wanted])[len(synced) :]
            there = dict(zip([VALUE, *at], (self.desk.checked(one) is not None for one in stands), strict=True))
            header = self._header(found)
            if header is not None and header.fence == fence and header.op_id == op_id:
                return header.reply
            if header is None or header.fence != fence or header.version != version:
                if not synced:  # what a follower knows may be old
                    synced = [self.desk.sync]
                    continue
                if header is None:
                    return CellReply(False)
                return CellReply(False, header.version, header.fence.token, turnstile=header.fence.turnstile)
            steps, applied = self._changes(at, there, changes)
            if value is not None:
                path = f"{base}/{VALUE}"
                steps.append(SetData(path, value, -1) if there[VALUE] else Create(path, value, self.desk.target.acl, 0))
            after = Header(fence, version + 1, op_id, applied, header.node_version)
            (reply,) = yield [Transaction([SetData(base, after.pack(), header.node_version), *steps])]
            outcomes = steps_of(reply)
            if any(isinstance(one, (BadVersionError, NoNodeError, NodeExistsError)) for one in outcomes):
                synced = [self.desk.sync]
                continue
            for one in outcomes:
                self.desk.checked(one)
            return after.reply
        raise self._overtaken(cell)

    def _changes(self, at: dict[str, str], there: dict[str, bool], changes: Sequence[Change]) -> tuple[list[Any], str]:
        """Steps that do what is to be done, in order, and for each change whether it takes place."""
        steps: list[Any] = []
        applied = ""
        for key, data, create in changes:
            takes_place = there[key] if data is None else not (create and there[key])
            applied += "1" if takes_place else "0"
            if not takes_place:
                continue
            if data is None:
                steps.append(Delete(at[key], -1))
            elif there[key]:
                steps.append(SetData(at[key], data, -1))
            else:
                steps.append(Create(at[key], data, self.desk.target.acl, 0))
            there[key] = data is not None
        return steps, applied

    def read(self, cell: str, keys: Sequence[str] | None) -> Talk[CellSnapshot]:
        """Everything as of one version: read again where it was written to meanwhile."""
        base = self.desk.cell(cell)
        for _ in range(TRIES):
            wanted = keys
            if wanted is None:
                _, children = yield [self.desk.sync, GetChildren(base, None)]
                if isinstance(children, NoNodeError):
                    return CellSnapshot()
                names = self.desk.checked(children, wrote=False)
                wanted = [unquote(name[len(ENTRY) :]) for name in names if name.startswith(ENTRY)]
            paths = [f"{base}/{ENTRY}{node_name(key)}" for key in wanted]
            asked = [self.desk.sync, GetData(base, None), GetData(f"{base}/{VALUE}", None)]
            _, before, value, *found = yield [*asked, *(GetData(path, None) for path in paths), GetData(base, None)]
            header, after = self._header(before), self._header(found.pop())
            if header != after:
                continue
            if header is None:
                return CellSnapshot()
            entries = {key: self._data(reply) for key, reply in zip(wanted, found, strict=True)}
            if keys is None and None in entries.values():
                continue
            there = {key: data for key, data in entries.items() if data is not None}
            return CellSnapshot(self._data(value), header.version, header.fence.token, header.fence.claim, there)
        raise self._overtaken(cell)

    def drop(self, cell: str) -> Talk[bool]:
        """The entries first, so that what a crash leaves is still known as a cell."""
        base = self.desk.cell(cell)
        for _ in range(TRIES):
            _, children = yield [self.desk.sync, GetChildren(base, None)]
            if isinstance(children, NoNodeError):
                return False
            names = self.desk.checked(children, wrote=False)
            for start in range(0, len(names), AT_ONCE):
                steps = [Delete(f"{base}/{name}", -1) for name in names[start : start + AT_ONCE]]
                yield [Transaction(steps)]
            (reply,) = yield [Delete(base, -1)]
            if isinstance(reply, NoNodeError):
                return False
            if not isinstance(reply, NotEmptyError):
                self.desk.checked(reply)
                return True
        raise self._overtaken(cell)

    def _header(self, reply: Any) -> Header | None:
        if isinstance(reply, NoNodeError):
            return None
        data, stat = self.desk.checked(reply, wrote=False)
        said = json.loads(data)
        if said["layout"] != LAYOUT:
            raise Misuse(
                f"layout {said['layout']} is stored here and this release knows layout {LAYOUT}: "
                "let all users of this ZooKeeper run the same release of holdfast"
            )
        return Header(Fence(*said["fence"]), said["version"], said["op"], said["applied"], stat.version)

    def _data(self, reply: Any) -> bytes | None:
        return None if isinstance(reply, NoNodeError) else self.desk.checked(reply, wrote=False)[0]

    @staticmethod
    def _overtaken(cell: str) -> Unavailable:
        return Unavailable(f"the cell {cell!r} was written to by others {TRIES} times while this looked at it")
