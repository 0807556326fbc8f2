"""The asyncio face. Assembly only: what happens is in `core`; `sync` has the same names and signatures."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Never, ParamSpec, Self, TypeVar, Unpack

from .contract import Capabilities, Engine, Scope
from .core import cell as cells
from .core import group as groups
from .core import lease as leases
from .core import partitions as sharing
from .core import recipe as recipes
from .core.group import Member
from .core.helping import Helper
from .core.naming import call_namer
from .core.recipe import LockOptions, Recipe
from .core.session import Session, lost_message
from .core.sticky import Keeper, StickyBase, Turn
from .engines import resolve
from .errors import AcquireTimeout, LeaseLost, Misuse
from .hooks import Hook
from .model import NEVER_S, CellSnapshot, Change, Turnstile
from .renewing import HANG_S, RenewerKind, helper_for
from .sync import whoami
from .worlds.tasks import Tasks

P = ParamSpec("P")
R = TypeVar("R")


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


class Lock:
    """An immutable recipe for taking turns: share it freely. An async context manager and a decorator.

    What ``async with`` and `acquire` took is kept per task, and `release` gives back the innermost.
    """

    __slots__ = ("_client", "_recipe")

    def __init__(self, client: Client, recipe: Recipe) -> None:
        self._client = client
        self._recipe = recipe

    @property
    def name(self) -> str:
        return self._recipe.turnstile.name

    async def acquire(self, timeout_s: float | None = None, **foreign: Never) -> Lease:
        """Wait for at most ``timeout_s`` seconds (None: the lock's own ``timeout_s``).

        Raises `AcquireTimeout`, `Unavailable`; nothing is left behind then.
        """
        if foreign:
            recipes.refuse_words_of_acquire(foreign)
        return await self._take(self._client.session, timeout_s)

    async def _take(self, session: Session, timeout_s: float | None, scoped: bool = False) -> Lease:
        recipe = self._recipe
        lease: Lease | None = session.holdings.top(recipe.key) if recipe.reentrant else None
        if lease is None or not lease.is_held:
            waits_s = recipe.timeout_s if timeout_s is None else timeout_s
            if recipe.sticky:
                turn = Turn()
                lease = StickyLease(session, turn, recipe.on_unsure)
                if not session.keeper.retake(turn, recipe):
                    await session.keeper.acquire(turn, recipe, waits_s)
            else:
                tenure = leases.new_tenure(session, recipe)
                lease = Lease(session, tenure, recipe.on_unsure)
                await leases.acquire(session, tenure, recipe.strategy, waits_s)
        session.holdings.push(recipe.key, lease, scoped)
        return lease

    async def try_acquire(self) -> Lease | None:
        """Take it if it is free now, else None."""
        return await self._try()

    async def _try(self, scoped: bool = False) -> Lease | None:
        session, recipe = self._client.session, self._recipe
        lease: Lease | None = session.holdings.top(recipe.key) if recipe.reentrant else None
        if lease is None or not lease.is_held:
            if recipe.sticky:
                turn = Turn()
                lease = StickyLease(session, turn, recipe.on_unsure)
                taken = session.keeper.retake(turn, recipe) or await session.keeper.try_acquire(turn, recipe)
            else:
                tenure = leases.new_tenure(session, recipe)
                lease = Lease(session, tenure, recipe.on_unsure)
                taken = await leases.try_acquire(session, tenure)
            if not taken:
                return None
        session.holdings.push(recipe.key, lease, scoped)
        return lease

    async def release(self) -> None:
        """Give back what this task took last. Raises `Misuse` if it holds nothing, `LeaseLost` if it lost it."""
        lease, last = leases.pop_own(self._client.session, self._recipe)
        if last:
            await lease.release()

    async def __aenter__(self) -> Lease:
        session = self._client.session
        if session.holdings.has(self._recipe.key):
            leases.refuse_nesting(session, self._recipe)
        return self._guard(await self._take(session, None, True))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, last = leases.pop_own(self._client.session, self._recipe, scoped=True)
        if last:
            await lease.__aexit__(kind, error, trace)

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Decorate: each call runs under the lock; ``{argument}`` in the name is that call's argument."""
        if not inspect.iscoroutinefunction(function):
            raise Misuse(f"{function!r} is no async function: use a lock of holdfast.connect() for it")
        namer = call_namer(self.name, function)

        @functools.wraps(function)
        async def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            lock = self if namer is None else Lock(self._client, self._recipe.named(namer(*args, **kwargs)))
            if await lock._enter() is None:
                return None  # type: ignore[return-value]
            try:
                result: R = await function(*args, **kwargs)
            except BaseException as error:
                await lock.__aexit__(type(error), error, error.__traceback__)
                raise
            await lock.__aexit__(None, None, None)
            return result

        return locked

    async def _enter(self) -> Lease | None:
        """As ``on_busy`` says; None where the call is to be skipped."""
        if self._recipe.on_busy == "wait":
            return await self.__aenter__()
        lease = await self._try(scoped=True)
        if lease is None and self._recipe.on_busy == "raise":
            raise AcquireTimeout(f"{self._recipe.turnstile.address} is taken")
        return lease and self._guard(lease)

    def _guard(self, lease: Lease) -> Lease:
        if self._recipe.cancel_on_lost:
            lease._cancel_task_on_lost()  # pyright: ignore[reportPrivateUsage]
        return lease

    def __repr__(self) -> str:
        return f"<Lock {self._recipe.turnstile.address}>"


class RWLock:
    """A read-write lock: ``async with rw.read():`` for many at once, ``async with rw.write():`` alone."""

    __slots__ = ("_client", "_name", "_options")

    def __init__(self, client: Client, name: str, options: LockOptions) -> None:
        self._client, self._name, self._options = client, name, options
        self.read()

    def read(self) -> Lock:
        return Lock(self._client, recipes.reader(self._client.capabilities, self._name, {**self._options}))

    def write(self) -> Lock:
        return Lock(self._client, recipes.writer(self._client.capabilities, self._name, {**self._options}))


class Lease(leases.LeaseBase):
    """A held lock, semaphore permit or membership. ``async with`` releases it at the end."""

    __slots__ = ("_cancels",)

    def __init__(self, session: Session, tenure: Any, on_unsure: str = "pass") -> None:
        super().__init__(session, tenure, on_unsure)
        self._cancels: _CancelOnLost | None = None

    async def release(self) -> None:
        """Give it back, from any task. Raises `LeaseLost` if it was lost; releasing twice does nothing."""
        await self._session.release(self._tenure)

    async def detach(self) -> str:
        """Let go without releasing: what is returned, `Client.attach` takes over elsewhere before the lease ends."""
        return await leases.detach(self._session, self._tenure)

    async def wait_lost(self, timeout_s: float | None = None) -> bool:
        """Wait until it is lost (True), or released or ``timeout_s`` over (False)."""
        return await leases.wait_lost(self._session, self._tenure, timeout_s)

    def _cancel_task_on_lost(self) -> None:
        """Cancel the running task if the lease is lost before the ``async with`` that it is used in ends."""
        if self._cancels is None:  # once, though it was taken again within
            self._cancels = _CancelOnLost(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cancels, self._cancels = self._cancels, None
        ours = cancels is not None and cancels.disarm(error)
        try:
            await self.release()
        except LeaseLost as lost:
            if error is None or ours:
                raise lost from error
            error.add_note(str(lost))
        if ours:
            raise LeaseLost(lost_message(self._tenure)) from error


class StickyLease(StickyBase, Lease):
    """One taking of a sticky lock."""

    __slots__ = ()

    def __init__(self, session: Session, turn: Turn, on_unsure: str = "pass") -> None:
        super().__init__(session, turn, on_unsure)
        self._cancels = None

    async def release(self) -> None:
        """End this taking; the lease goes back to the engine only if others want it. Raises `LeaseLost`."""
        tenure = self._end_turn()
        if tenure is not None:
            await self._session.release(tenure)


class _CancelOnLost:
    """Cancels one task once, and tells that cancellation from others, as `asyncio.timeout` does."""

    def __init__(self, lease: Lease) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._armed = True
        self._fired = False
        lease.on_lost(self._fire)

    def _fire(self) -> None:
        if self._armed:
            self._fired = True
            self._task.cancel("the lease was lost")

    def disarm(self, error: BaseException | None) -> bool:
        """True if ``error`` is the cancellation that we caused, and no other is pending."""
        self._armed = False
        if not self._fired:
            return False
        return self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)


class Cell:
    """A fenced, versioned register: bytes, and small keyed entries of bytes."""

    __slots__ = ("_client", "_name")

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name

    async def open(self, lease: Lease) -> OpenCell:
        """Raise the fence to this exclusive lease's token: earlier holders can write no more.

        Raises `StaleToken` if a later holder opened it, `Misuse` if it belongs to another lock.
        """
        session = self._client.session
        return OpenCell(session, await cells.open_cell(session, self._name, leases.own(session, lease)))

    async def read(self, keys: Sequence[str] | None = None) -> CellSnapshot:
        """The value and entries (all, or those named), unfenced: a look, not a right."""
        return await cells.read(self._client.session, self._name, keys)

    async def drop(self) -> bool:
        """Remove the cell and its fence, unfenced: for what is known to be finished. True if it stood."""
        session = self._client.session
        return await session.ask(session.engine.drop(self._name))


class OpenCell:
    """A cell opened under a lease. Every write is refused with `StaleToken` once a newer holder opened it."""

    __slots__ = ("_lock", "_opening", "_session")

    def __init__(self, session: Session, opening: cells.Opening) -> None:
        self._session, self._opening, self._lock = session, opening, asyncio.Lock()

    @property
    def value(self) -> bytes | None:
        """What stood there at the opening, or what this opening put since; None before the first put."""
        return self._opening.value

    @property
    def version(self) -> int:
        """Rises with every open and put."""
        return self._opening.version

    @property
    def token(self) -> int:
        return self._opening.fence.token

    async def put(self, value: bytes | None = None, changes: Sequence[Change] = ()) -> tuple[bool, ...]:
        """Write the value (None leaves it as it is) and changes of entries, all or nothing.

        Says of each change whether it took place: a create-only one does not where the entry exists.
        Raises `StaleToken`, and `OutcomeUnknown` where no reply came in ``patience_s``: it may have landed, and what is
        put next under this opening lands after it.
        """
        self._session.refuse_fork()
        async with self._lock:
            return await cells.put(self._session, self._opening, value, changes)

    async def set(self, key: str, value: bytes, create: bool = False) -> bool:
        """Write one entry; with ``create`` only if there is none, False if there is."""
        return (await self.put(changes=[cells.entry(key, value, create)]))[0]

    async def delete(self, key: str) -> bool:
        """Remove one entry; False if there was none."""
        return (await self.put(changes=[Change(key, None)]))[0]

    async def __getitem__(self, key: str) -> bytes:
        """One entry, as ``await opened[key]``. Raises KeyError, `StaleToken`."""
        return (await self.entries([key]))[key]

    async def entries(self, keys: Sequence[str] | None = None) -> Mapping[str, bytes]:
        """The entries (all, or those named). Raises `StaleToken`."""
        self._session.refuse_fork()
        async with self._lock:
            return (await cells.read_own(self._session, self._opening, keys)).entries


class Group:
    """A named set of live members."""

    __slots__ = ("_client", "_turnstile")

    def __init__(self, client: Client, turnstile: Turnstile) -> None:
        self._client, self._turnstile = client, turnstile

    async def join(self, payload: bytes = b"", ttl_s: float | None = None) -> Lease:
        """Become a member until the lease is released or lost.

        Others notice a crash after ``ttl_s`` at most: 15 s, or the engine's session.
        """
        session = self._client.session
        tenure = groups.new_member(session, self._turnstile, payload, ttl_s)
        lease = Lease(session, tenure)
        await groups.join(session, tenure)
        return lease

    async def members(self) -> list[Member]:
        """Who is in now, senior first."""
        return await groups.members(self._client.session, self._turnstile)

    async def watch(self, timeout_s: float | None = None) -> AsyncIterator[list[Member]]:
        """The members now, and again after each change; ends once nothing changed for ``timeout_s``.

        Never misses the last state; may skip ones in between.
        """
        session = self._client.session
        watch = groups.Watch(session, self._turnstile)
        try:
            while True:
                until = NEVER_S if timeout_s is None else session.world.now() + timeout_s
                found = await watch.changed(until)
                if found is None:
                    return
                yield found
        finally:
            await watch.stop()


class Partitions:
    """A number of partitions that the members of one name share by consistent hashing."""

    __slots__ = ("_client", "_ttl_s", "_turnstile")

    def __init__(self, client: Client, turnstile: Turnstile, ttl_s: float) -> None:
        self._client, self._turnstile, self._ttl_s = client, turnstile, ttl_s

    async def join(
        self,
        payload: bytes = b"",
        on_assigned: Callable[[int, Lease], Any] | None = None,
        on_revoked: Callable[[int], Any] | None = None,
    ) -> Share:
        """Take part; the share is kept in the background until `Share.leave`.

        ``on_assigned(partition, lease)`` after a partition became ours; the rest waits for its return.
        ``on_revoked(partition)`` before it is handed over, which is done when it returns, or after it was lost; each
        in a task of its own, so that one that takes long holds up no other partition. Both may be plain or async.
        """
        session = self._client.session
        share = sharing.Share[Lease](
            session, self._turnstile, self._ttl_s, payload, functools.partial(Lease, session), on_assigned, on_revoked
        )
        await share.start()
        return Share(session, share)

    async def members(self) -> list[Member]:
        """Who takes part now, senior first."""
        return await groups.members(self._client.session, self._turnstile)

    async def owners(self) -> dict[int, str]:
        """Who owns each partition now; those that are between two owners are left out."""
        return await sharing.owners(self._client.session, self._turnstile.name, self._turnstile.capacity)


class Share:
    """What one member owns. An async context manager that leaves at its end."""

    __slots__ = ("_session", "_share")

    def __init__(self, session: Session, share: sharing.Share[Lease]) -> None:
        self._session, self._share = session, share

    @property
    def owned(self) -> Mapping[int, Lease]:
        """Our partitions now, each with its lease (which opens cells)."""
        return self._share.owned

    @property
    def member_id(self) -> str:
        """Our id among the members; empty while we are none."""
        return self._share.member_id

    async def wait_change(self, timeout_s: float | None = None) -> bool:
        """Wait until `owned` changed; False after ``timeout_s``."""
        until = NEVER_S if timeout_s is None else self._session.world.now() + timeout_s
        return await self._share.wait_change(until)

    async def leave(self) -> None:
        """Hand everything over at once, and go."""
        await self._share.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.leave()


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
