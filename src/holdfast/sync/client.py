"""The client: where everything begins, and what becomes of it at a fork and at the end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self, Unpack

from ..contract import Capabilities, Engine, Scope
from ..core import cell as cells
from ..core import election as elections
from ..core import group as groups
from ..core import lease as leases
from ..core import partitions as sharing
from ..core import recipe as recipes
from ..core.election import OnUnsure
from ..core.helping import Helper
from ..core.recipe import LockOptions
from ..core.session import Session
from ..core.sticky import Keeper
from ..engines import resolve
from ..errors import Misuse
from ..hooks import Hook
from ..renewing import HANG_S, RenewerKind, helper_for
from ..worlds.threads import Threads, drive
from .cell import Cell
from .election import Election
from .group import Group
from .lease import Lease
from .lock import Lock, RWLock
from .partitions import Partitions


class Client:
    """Locks, cells and groups on one engine, for the threads of one process. Made by `holdfast.connect`.

    It opens nothing before its first use, so it may be made at import time and before a fork; after a fork the child
    holds nothing and opens its own connections.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        patience_s: float = 5.0,
        hooks: Sequence[Hook] = (),
        owner: str | None = None,
        helper: Callable[[], Helper] | None = None,
    ):
        self._engine = engine
        self._patience_s = recipes.check_patience(patience_s)
        self._hooks = tuple(hooks)
        self._owner = owner
        self._helper = helper
        self._lock = threading.Lock()
        self._live: Session | None = None
        self._inherited: dict[str, list[tuple[Any, bool]]] = {}
        self._closed = False
        _clients.add(self)

    @property
    def capabilities(self) -> Capabilities:
        """What this engine guarantees."""
        return self._engine.capabilities

    @property
    def session(self) -> Session:
        """The live side; opened on first use. Raises `Misuse` after `close`."""
        return self._live or self._open()

    def _open(self) -> Session:
        with self._lock:
            if self._closed:
                raise Misuse("this client was closed; connect() again")
            if self._live is None:
                live = self._new_session()
                live.renewer.helper = self._helper and self._helper()
                live.keeper = Keeper(live)
                live.holdings.inherited = self._inherited
                _sessions.add(live)
                _release_at_exit_of_child(os.getpid())
                self._live = live
            return self._live

    def _new_session(self) -> Session:
        world = Threads(self._engine.blocking_link())
        return Session(
            self._engine, world, patience_s=self._patience_s, owner=self._owner or whoami(), hooks=self._hooks
        )

    def lock(self, name: str, **options: Unpack[LockOptions]) -> Lock:
        """A mutex: one holder at a time. Options: `LockOptions`."""
        return Lock(self, recipes.mutex(self.capabilities, name, {**options}))

    def rwlock(self, name: str, **options: Unpack[LockOptions]) -> RWLock:
        """Many readers or one writer, first come, first served: readers starve no writer."""
        return RWLock(self, name, options)

    def semaphore(self, name: str, permits: int, weight: int = 1, **options: Unpack[LockOptions]) -> Lock:
        """At most ``permits`` at once; this one takes ``weight`` of them."""
        return Lock(self, recipes.semaphore(self.capabilities, name, permits, weight, {**options}))

    def cell(self, name: str) -> Cell:
        """A fenced register for bytes, with small keyed entries."""
        return Cell(self, cells.check_cell(self.capabilities.cells, self.capabilities.engine, name))

    def group(self, name: str) -> Group:
        """Who is alive: processes join with a payload, others look and watch."""
        return Group(self, groups.group_turnstile(self.capabilities, name))

    def election(self, name: str, ttl_s: float | None = None, on_unsure: OnUnsure = "stop") -> Election:
        """One leader among those who campaign. A dead one is followed after ``ttl_s`` (15 s, or the engine's session).

        ``on_unsure``: the first renewal that fails ends a leadership (``stop``), or only its deadline does
        (``keep_until_deadline``).
        """
        return Election(self, elections.rules(self.capabilities, name, ttl_s, on_unsure))

    def partitions(self, name: str, count: int, ttl_s: float | None = None) -> Partitions:
        """``count`` partitions shared among the live members, each with one owner at most."""
        ttl_s = recipes.ttl_of(self.capabilities, ttl_s)
        return Partitions(self, sharing.member_turnstile(self.capabilities, name, count, ttl_s), ttl_s)

    def attach(self, text: str) -> Lease:
        """Take over what `Lease.detach` let go, in this or another process."""
        session = self.session
        tenure = leases.detached(session, text)
        lease = Lease(session, tenure)
        drive(leases.attach(session, tenure))
        return lease

    def ping(self) -> None:
        """One round trip to the engine. Raises `Unavailable`."""
        session = self.session
        drive(session.ask(session.engine.ping()))

    def close(self) -> None:
        """Release everything that this client holds, and its connections."""
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
        if live is not None:
            _close(live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _after_fork(self) -> None:
        if self._live is not None:
            self._inherited = self._live.holdings.bequest()
        self._live, self._lock = None, threading.Lock()


def connect(
    target: Any = None,
    *,
    namespace: str = "",
    scope: Scope | None = None,
    patience_s: float = 5.0,
    hooks: Sequence[Hook] = (),
    owner: str | None = None,
    renewer: RenewerKind = "here",
    hang_s: float = HANG_S,
) -> Client:
    """A client on the engine that ``target`` names: a URL or a Redis client; HOLDFAST_URL, else the embedded default.

    Does no I/O. ``namespace`` keeps applications apart; ``scope="fleet"`` refuses an engine that one machine alone can
    see; ``patience_s`` is how long one call goes on trying to reach the engine; ``owner`` is shown to others who look
    (host and process by default). ``renewer="process"`` keeps leases from a process of its own as well, through calls
    that hold the GIL or block the loop, for a program that hangs no longer than ``hang_s``. Raises `Misuse`,
    `Unsupported`.
    """
    engine = resolve(target, namespace, scope)
    helper = helper_for(renewer, target, namespace, engine, hang_s)
    return Client(engine, patience_s=patience_s, hooks=hooks, owner=owner, helper=helper)


def whoami() -> str:
    """Who we are, for people who look: host and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _close(session: Session) -> None:
    try:
        drive(session.close())
    finally:
        session.world.link.close()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()  # they outlive a client that is thrown away
_inherited: list[Session] = []  # a forked child keeps its parent's sessions, so that nothing closes what they share


def _after_fork() -> None:
    for client in list(_clients):
        client._after_fork()  # pyright: ignore[reportPrivateUsage]
    for session in list(_sessions):
        session.forget("this process is a fork of the one that held it")
        session.world.link.abandon()
        _inherited.append(session)
    _sessions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    for client in list(_clients):
        with contextlib.suppress(Exception):
            client.close()
    for session in list(_sessions):
        if not session.renewer.closing:
            with contextlib.suppress(Exception):
                _close(session)


@functools.cache
def _release_at_exit_of_child(pid: int) -> None:
    """A child that multiprocessing forked ends without atexit, by finalizers of its own: be among them, once."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=0)
