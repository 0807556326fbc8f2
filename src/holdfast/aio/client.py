"""The client: where everything begins, and what becomes of it at a fork and at the end."""

from __future__ import annotations

import asyncio
import os
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
from ..sync import whoami
from ..worlds.tasks import Tasks
from .cell import Cell
from .election import Election
from .group import Group
from .lease import Lease
from .lock import Lock, RWLock
from .partitions import Partitions


class Client:
    """Locks, cells and groups on one engine, for the tasks of any event loop. Made by `holdfast.aio.connect`.

    It opens nothing before its first use. Each event loop that uses it gets connections of its own; after a fork the
    child holds nothing.
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
        self._live: dict[asyncio.AbstractEventLoop, Session] = {}
        self._closed = False
        _clients.add(self)

    @property
    def capabilities(self) -> Capabilities:
        """What this engine guarantees."""
        return self._engine.capabilities

    @property
    def session(self) -> Session:
        """The live side of the running loop; opened on first use. Raises `Misuse` after `aclose`."""
        return self._live.get(asyncio.get_running_loop()) or self._open()

    def _open(self) -> Session:
        if self._closed:
            raise Misuse("this client was closed; connect() again")
        for loop in list(self._live):  # of its own: other threads with other loops add theirs
            if loop.is_closed():
                gone = self._live.pop(loop, None)
                if gone is not None:
                    gone.strand()
        session = self._new_session()
        session.renewer.helper = self._helper and self._helper()
        session.keeper = Keeper(session)
        self._live[asyncio.get_running_loop()] = session
        _sessions.add(session)
        return session

    def _new_session(self) -> Session:
        world = Tasks(self._engine.async_link())
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

    async def attach(self, text: str) -> Lease:
        """Take over what `Lease.detach` let go, in this or another process."""
        session = self.session
        tenure = leases.detached(session, text)
        lease = Lease(session, tenure)
        await leases.attach(session, tenure)
        return lease

    async def ping(self) -> None:
        """One round trip to the engine. Raises `Unavailable`."""
        session = self.session
        await session.ask(session.engine.ping())

    async def aclose(self) -> None:
        """Release everything that this client holds on this loop, and its connections."""
        self._closed = True
        live = self._live.pop(asyncio.get_running_loop(), None)
        if live is not None:
            try:
                await live.close()
            finally:
                await live.world.link.close()
                await live.world.stop()  # type: ignore[attr-defined]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _after_fork(self) -> None:
        self._live = {}


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


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_inherited: list[Session] = []


def _after_fork() -> None:
    for session in list(_sessions):
        session.forget("this process is a fork of the one that held it")
        session.world.link.abandon()
        _inherited.append(session)
    _sessions.clear()
    for client in list(_clients):
        client._after_fork()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
