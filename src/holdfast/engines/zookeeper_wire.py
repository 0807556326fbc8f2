"""kazoo, as lean as its own interfaces allow; requests that it can serialize; its errors in our words.

Its stock handler passes every reply through two more threads and makes an epoll object per read. Nothing that we do
when a reply or an event comes ever blocks, so here all of it is done on the connection's own thread.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar

from ..errors import HoldfastError, Misuse, OutcomeUnknown, Unavailable, Unsupported
from .zookeeper_target import Target

# kazoo has no types
kazoo_client: Any = import_module("kazoo.client")
kazoo_connection: Any = import_module("kazoo.protocol.connection")
kazoo_retry: Any = import_module("kazoo.retry")
kazoo_threading: Any = import_module("kazoo.handlers.threading")
exceptions: Any = import_module("kazoo.exceptions")
serialization: Any = import_module("kazoo.protocol.serialization")
states: Any = import_module("kazoo.protocol.states")

log = logging.getLogger("holdfast.zookeeper")

CONNECT_S = 2.0
"""How long one host has to accept a connection: the next one is tried while the session lives."""

EPHEMERAL, SEQUENTIAL, CONTAINER = 1, 2, 4
NEEDED = "holdfast needs ZooKeeper 3.5.3 or newer (container nodes)"

Create, Create2, Delete = serialization.Create, serialization.Create2, serialization.Delete
Exists, GetChildren, GetData = serialization.Exists, serialization.GetChildren, serialization.GetData
SetData, Sync, Transaction = serialization.SetData, serialization.Sync, serialization.Transaction

NodeExistsError, NoNodeError = exceptions.NodeExistsError, exceptions.NoNodeError
BadVersionError, NotEmptyError = exceptions.BadVersionError, exceptions.NotEmptyError


class CreateContainer(Create2):  # type: ignore[misc, valid-type]
    """A node that the server removes some time after its last child went."""

    type = 19


READS = (Exists, GetChildren, GetData, Sync)


class _Inline:
    """A queue of work that is done as it is put in."""

    def put(self, work: Callable[[], None]) -> None:
        work()


class Handler(kazoo_threading.SequentialThreadingHandler):  # type: ignore[misc]
    """One thread, the connection's."""

    queue_impl: ClassVar[Any] = _Inline
    thread: threading.Thread | None = None

    def start(self) -> None:
        self._running = True

    def stop(self) -> None:
        self._running = False

    def spawn(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> threading.Thread:
        self.thread = threading.Thread(target=func, args=args, kwargs=kwargs, name="holdfast-zookeeper", daemon=True)
        self.thread.start()
        return self.thread

    def dispatch_callback(self, callback: Any) -> None:
        try:
            callback.func(*callback.args)
        except Exception:
            log.exception("a watcher failed")

    def create_connection(self, *args: Any, **kwargs: Any) -> socket.socket:
        kwargs["timeout"] = min(kwargs.get("timeout") or CONNECT_S, CONNECT_S)
        return super().create_connection(*args, **kwargs)  # type: ignore[no-any-return]

    if hasattr(select, "poll"):

        def select(self, reads: Any, writes: Any, excepts: Any, timeout: float | None = None) -> Any:
            poller, of = select.poll(), dict[int, Any]()
            for one, event in (*((r, select.POLLIN) for r in reads), *((w, select.POLLOUT) for w in writes)):
                poller.register(one, event)
                of[one.fileno()] = one
            ready: list[Any] = [of[fd] for fd, _ in poller.poll(None if timeout is None else max(0.0, timeout * 1000))]
            return [r for r in reads if r in ready], [w for w in writes if w in ready], []


class _Connection(kazoo_connection.ConnectionHandler):  # type: ignore[misc]
    """kazoo's, which does not keep how long a session the server granted."""

    granted_s = 0.0

    def _invoke(self, timeout: float, request: Any, xid: int | None = None) -> Any:
        base: Any = super()
        result: Any = base._invoke(timeout, request, xid)
        if isinstance(request, serialization.Connect):
            self.granted_s = result[0].time_out / 1000
        return result


class _NoCredentials(logging.Filter):
    """kazoo logs every request; those that carry a password must not be."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args if isinstance(record.args, tuple) else ()
        return not any(isinstance(arg, (serialization.Auth, serialization.SASL)) for arg in args)


_kazoo_log = logging.getLogger("holdfast.zookeeper.kazoo")
_kazoo_log.addFilter(_NoCredentials())


def new_client(target: Target) -> Any:
    """A client that is not connected yet. Lost connections are made again at once and then every second or so."""
    retry = kazoo_retry.KazooRetry(max_tries=-1, delay=0.02, max_delay=1.0)
    client = kazoo_client.KazooClient(
        hosts=target.hosts + target.chroot,
        timeout=target.session_timeout_s,
        handler=Handler(),
        connection_retry=retry,
        logger=_kazoo_log,
        **target.options,
    )
    sasl = client._connection.sasl_options
    client._connection = _Connection(client, client._conn_retry.copy(), logger=_kazoo_log, sasl_options=sasl)
    return client


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


class _Slot:
    """Where kazoo puts one reply."""

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def set(self, value: Any = None) -> None:
        self._batch.put(self._index, value)

    set_exception = set


def send(client: Any, requests: Sequence[Any], done: Callable[[list[Any]], None]) -> None:
    """Queue all of them for the connection's thread, in this order."""
    batch = Batch(len(requests), done)
    for index, request in enumerate(requests):
        client._call(request, _Slot(batch, index))


def kick(client: Any) -> None:
    """Break a connection that says nothing, so that another one is made."""
    sock = client._connection._socket
    if sock is not None:
        with contextlib.suppress(OSError):  # broken already
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which would wait for an answer


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
    if isinstance(error, exceptions.UnimplementedError):
        return Unsupported(f"the ZooKeeper at {target.where} is too old: {NEEDED}")
    if isinstance(error, exceptions.NotReadOnlyCallError):
        return Unavailable(f"this ZooKeeper at {target.where} has lost its quorum and only lets read")
    return Unavailable(f"ZooKeeper at {target.where} refused: {kind} {error}")
