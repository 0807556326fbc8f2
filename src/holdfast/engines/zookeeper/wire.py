"""Requests that kazoo can serialize, sent together; what it answers, in our words."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from ...errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from .connection import Slot
from .kazoo import CLOSED_STATES
from .target import Target

exceptions: Any = import_module("kazoo.exceptions")
serialization: Any = import_module("kazoo.protocol.serialization")
states: Any = import_module("kazoo.protocol.states")

_INT = struct.Struct(">i").unpack_from

EPHEMERAL, SEQUENTIAL, CONTAINER = 1, 2, 4
NEEDED = "holdfast needs ZooKeeper 3.5.3 or newer (container nodes)"

Create, Create2, Delete = serialization.Create, serialization.Create2, serialization.Delete
Exists, GetData = serialization.Exists, serialization.GetData
SetData, Sync, Transaction = serialization.SetData, serialization.Sync, serialization.Transaction

NodeExistsError, NoNodeError = exceptions.NodeExistsError, exceptions.NoNodeError
BadVersionError, NotEmptyError = exceptions.BadVersionError, exceptions.NotEmptyError
UnimplementedError = exceptions.UnimplementedError


class CreateContainer(Create2):  # type: ignore[misc, valid-type]
    """A node that the server removes some time after its last child went."""

    type = 19


class GetChildren(serialization.GetChildren):  # type: ignore[misc]
    """kazoo's, quicker to read for names in ASCII, as all of ours are."""

    @classmethod
    def deserialize(cls, data: bytes, offset: int) -> list[str]:
        (count,) = _INT(data, offset)
        text = data.decode("latin-1")
        names: list[str] = []
        at = offset + 4
        for _ in range(count):
            start = at + 4
            at = start + _INT(data, at)[0]
            names.append(text[start:at])
        return names


READS = (Exists, GetChildren, GetData, Sync)


class Batch:
    """Requests that were sent together: ``done`` gets the replies, or exceptions, once all are there.

    It is called on the connection's thread, or on the sender's where the session is over.
    """

    __slots__ = ("_arrived", "_done", "replies")

    def __init__(self, count: int, done: Callable[[list[Any]], None]) -> None:
        self.replies: list[Any] = [exceptions.ConnectionLoss()] * count
        self._arrived = itertools.count(1)
        self._done = done

    def put(self, index: int, reply: Any) -> None:
        self.replies[index] = reply
        if next(self._arrived) == len(self.replies):
            self._done(self.replies)


def send(client: Any, requests: Sequence[Any], done: Callable[[list[Any]], None]) -> None:
    """Send all of them, in this order."""
    batch = Batch(len(requests), done)
    slots = [(request, Slot(batch.put, index)) for index, request in enumerate(requests)]
    if client.client_state in CLOSED_STATES:
        for request, slot in slots:
            client._call(request, slot)  # which says why not
        return
    try:
        client._connection.post(slots)
    except (AttributeError, OSError):  # it is closing
        for _, slot in slots:
            slot.set_exception(exceptions.ConnectionClosedError())


# -- replies


def steps_of(reply: Any) -> list[Any]:
    """What became of each step of a transaction: errors where it was not done."""
    return reply if isinstance(reply, list) else [reply]  # pyright: ignore[reportUnknownVariableType]


def checked(reply: Any, target: Target, wrote: bool) -> Any:
    """The reply, or raise what its error means to the caller."""
    if isinstance(reply, Exception):
        raise refused(reply, target, wrote)
    return reply


def refused(error: Exception, target: Target, wrote: bool) -> HoldfastError:
    """``wrote``: whether something may have been changed."""
    if isinstance(error, HoldfastError):
        return error
    kind = type(error).__name__
    if isinstance(error, (exceptions.ConnectionLoss, exceptions.OperationTimeoutError, exceptions.SessionMovedError)):
        text = f"the connection to ZooKeeper at {target.where} broke"
        return OutcomeUnknown(text) if wrote else Unavailable(text)
    if isinstance(error, exceptions.SessionExpiredError):
        return Unavailable(f"the session with ZooKeeper at {target.where} is over; a new one is made")
    if isinstance(error, exceptions.NoAuthError):
        return Misuse(
            f"ZooKeeper at {target.where} does not allow this to {target.who}: give the user who made what stands "
            "there (zookeeper://user:password@…), or a namespace= of one's own"
        )
    if isinstance(error, (exceptions.AuthFailedError, exceptions.SessionClosedRequireSaslError)):
        return Misuse(f"ZooKeeper at {target.where} refused the credentials of {target.who}: {kind}")
    if isinstance(error, exceptions.InvalidACLError):
        return Misuse("acl=creator needs a user: zookeeper://user:password@…")
    if isinstance(error, UnimplementedError):
        return Unsupported(f"the ZooKeeper at {target.where} is too old: {NEEDED}")
    if isinstance(error, exceptions.NotReadOnlyCallError):
        return Unavailable(f"this ZooKeeper at {target.where} has lost its quorum and only lets read")
    return Unavailable(f"ZooKeeper at {target.where} refused: {kind} {error}")
