"""The blocking face. Assembly only: what happens is in `core`; `aio` has the same names and signatures."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .core.session import Session
from .core.sticky import Keeper, StickyBase, Turn
from .engines import resolve
from .errors import AcquireTimeout, LeaseLost, Misuse
from .hooks import Hook
from .model import NEVER_S, CellSnapshot, Change, Turnstile
from .renewing import HANG_S, RenewerKind, helper_for
from .worlds.threads import Threads, drive

P = ParamSpec("P")
R = TypeVar("R")


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


class Lock:
    """An immutable recipe for taking turns: share it freely. A context manager and a decorator.

    What ``with`` and `acquire` took is kept per thread, and `release` gives back the innermost.
    """

    __slots__ = ("_client", "_recipe")

    def __init__(self, client: Client, recipe: Recipe) -> None:
        self._client = client
        self._recipe = recipe

    @property
    def name(self) -> str:
        return self._recipe.turnstile.name

    def acquire(self, timeout_s: float | None = None, **foreign: Never) -> Lease:
        """Wait for at most ``timeout_s`` seconds (None: the lock's own ``timeout_s``).

        Raises `AcquireTimeout`, `Unavailable`; nothing is left behind then.
        """
        if foreign:
            recipes.refuse_words_of_acquire(foreign)
        return self._take(self._client.session, timeout_s)

    def _take(self, session: Session, timeout_s: float | None, scoped: bool = False) -> Lease:
        recipe = self._recipe
        lease: Lease | None = session.holdings.top(recipe.key) if recipe.reentrant else None
        if lease is None or not lease.is_held:
            waits_s = recipe.timeout_s if timeout_s is None else timeout_s
            if recipe.sticky:
                turn = Turn()
                lease = StickyLease(session, turn, recipe.on_unsure)
                if not session.keeper.retake(turn, recipe):
                    drive(session.keeper.acquire(turn, recipe, waits_s))
            else:
                tenure = leases.new_tenure(session, recipe)
                lease = Lease(session, tenure, recipe.on_unsure)
                drive(leases.acquire(session, tenure, recipe.strategy, waits_s))
        session.holdings.push(recipe.key, lease, scoped)
        return lease

    def try_acquire(self) -> Lease | None:
        """Take it if it is free now, else None."""
        return self._try()

    def _try(self, scoped: bool = False) -> Lease | None:
        session, recipe = self._client.session, self._recipe
        lease: Lease | None = session.holdings.top(recipe.key) if recipe.reentrant else None
        if lease is None or not lease.is_held:
            if recipe.sticky:
                turn = Turn()
                lease = StickyLease(session, turn, recipe.on_unsure)
                taken = session.keeper.retake(turn, recipe) or drive(session.keeper.try_acquire(turn, recipe))
            else:
                tenure = leases.new_tenure(session, recipe)
                lease = Lease(session, tenure, recipe.on_unsure)
                taken = drive(leases.try_acquire(session, tenure))
            if not taken:
                return None
        session.holdings.push(recipe.key, lease, scoped)
        return lease

    def release(self) -> None:
        """Give back what this thread took last. Raises `Misuse` if it holds nothing, `LeaseLost` if it lost it."""
        lease, last = leases.pop_own(self._client.session, self._recipe)
        if last:
            lease.release()

    def __enter__(self) -> Lease:
        session, key = self._client.session, self._recipe.key
        holdings = session.holdings
        depth = 0
        if holdings.has(key):
            depth = holdings.depth(key)
            leases.refuse_nesting(session, self._recipe)
        try:
            return self._take(session, None, True)
        except BaseException:
            if holdings.depth(key) > depth:  # an interrupt between taking it and entering the body
                self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave()
        except LeaseLost as lost:
            if error is None:
                raise
            error.add_note(str(lost))

    def _leave(self) -> None:
        """Give back what the innermost block took."""
        lease, last = leases.pop_own(self._client.session, self._recipe, scoped=True)
        if last:
            lease.release()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate: each call runs under the lock; ``{argument}`` in the name is that call's argument."""
        if inspect.iscoroutinefunction(function):
            raise Misuse(f"{function.__qualname__} is async: use a lock of holdfast.aio, this one would block its loop")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise Misuse(f"{function.__qualname__} is a generator: its body runs after the call; use `with` inside it")
        namer = call_namer(self.name, function)

        @functools.wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            lock = self if namer is None else Lock(self._client, self._recipe.named(namer(*args, **kwargs)))
            if lock._enter() is None:
                return None  # type: ignore[return-value]
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                lock.__exit__(type(error), error, error.__traceback__)
                raise
            lock.__exit__(None, None, None)
            return result

        return locked

    def _enter(self) -> Lease | None:
        """As ``on_busy`` says; None where the call is to be skipped."""
        if self._recipe.on_busy == "wait":
            return self.__enter__()
        lease = self._try(scoped=True)
        if lease is None and self._recipe.on_busy == "raise":
            raise AcquireTimeout(f"{self._recipe.turnstile.address} is taken")
        return lease

    def __repr__(self) -> str:
        return f"<Lock {self._recipe.turnstile.address}>"


class RWLock:
    """A read-write lock: ``with rw.read():`` for many at once, ``with rw.write():`` alone."""

    __slots__ = ("_client", "_name", "_options")

    def __init__(self, client: Client, name: str, options: LockOptions) -> None:
        self._client, self._name, self._options = client, name, options
        self.read()

    def read(self) -> Lock:
        return Lock(self._client, recipes.reader(self._client.capabilities, self._name, {**self._options}))

    def write(self) -> Lock:
        return Lock(self._client, recipes.writer(self._client.capabilities, self._name, {**self._options}))


class Lease(leases.LeaseBase):
    """A held lock, semaphore permit or membership. ``with`` releases it at the end."""

    __slots__ = ()

    def release(self) -> None:
        """Give it back, from any thread. Raises `LeaseLost` if it was lost; releasing twice does nothing."""
        drive(self._session.release(self._tenure))

    def detach(self) -> str:
        """Let go without releasing: what is returned, `Client.attach` takes over elsewhere before the lease ends."""
        return drive(leases.detach(self._session, self._tenure))

    def wait_lost(self, timeout_s: float | None = None) -> bool:
        """Wait until it is lost (True), or released or ``timeout_s`` over (False)."""
        return drive(leases.wait_lost(self._session, self._tenure, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LeaseLost as lost:
            if error is None:
                raise
            error.add_note(str(lost))


class StickyLease(StickyBase, Lease):
    """One taking of a sticky lock."""

    __slots__ = ()

    def release(self) -> None:
        """End this taking; the lease goes back to the engine only if others want it. Raises `LeaseLost`."""
        tenure = self._end_turn()
        if tenure is not None:
            drive(self._session.release(tenure))


class Cell:
    """A fenced, versioned register: bytes, and small keyed entries of bytes."""

    __slots__ = ("_client", "_name")

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name

    def open(self, lease: Lease) -> OpenCell:
        """Raise the fence to this exclusive lease's token: earlier holders can write no more.

        Raises `StaleToken` if a later holder opened it, `Misuse` if it belongs to another lock.
        """
        session = self._client.session
        return OpenCell(session, drive(cells.open_cell(session, self._name, leases.own(session, lease))))

    def read(self, keys: Sequence[str] | None = None) -> CellSnapshot:
        """The value and entries (all, or those named), unfenced: a look, not a right."""
        return drive(cells.read(self._client.session, self._name, keys))

    def drop(self) -> bool:
        """Remove the cell and its fence, unfenced: for what is known to be finished. True if it stood."""
        session = self._client.session
        return drive(session.ask(session.engine.drop(self._name)))


class OpenCell:
    """A cell opened under a lease. Every write is refused with `StaleToken` once a newer holder opened it."""

    __slots__ = ("_lock", "_opening", "_session")

    def __init__(self, session: Session, opening: cells.Opening) -> None:
        self._session, self._opening, self._lock = session, opening, threading.Lock()

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

    def put(self, value: bytes | None = None, changes: Sequence[Change] = ()) -> tuple[bool, ...]:
        """Write the value (None leaves it as it is) and changes of entries, all or nothing.

        Says of each change whether it took place: a create-only one does not where the entry exists.
        Raises `StaleToken`, and `OutcomeUnknown` where no reply came in ``patience_s``: it may have landed, and what is
        put next under this opening lands after it.
        """
        self._session.refuse_fork()
        with self._lock:
            return drive(cells.put(self._session, self._opening, value, changes))

    def set(self, key: str, value: bytes, create: bool = False) -> bool:
        """Write one entry; with ``create`` only if there is none, False if there is."""
        return self.put(changes=[cells.entry(key, value, create)])[0]

    def delete(self, key: str) -> bool:
        """Remove one entry; False if there was none."""
        return self.put(changes=[Change(key, None)])[0]

    def __getitem__(self, key: str) -> bytes:
        """One entry. Raises KeyError, `StaleToken`."""
        return self.entries([key])[key]

    def entries(self, keys: Sequence[str] | None = None) -> Mapping[str, bytes]:
        """The entries (all, or those named). Raises `StaleToken`."""
        self._session.refuse_fork()
        with self._lock:
            return drive(cells.read_own(self._session, self._opening, keys)).entries


class Group:
    """A named set of live members."""

    __slots__ = ("_client", "_turnstile")

    def __init__(self, client: Client, turnstile: Turnstile) -> None:
        self._client, self._turnstile = client, turnstile

    def join(self, payload: bytes = b"", ttl_s: float | None = None) -> Lease:
        """Become a member until the lease is released or lost.

        Others notice a crash after ``ttl_s`` at most: 15 s, or the engine's session.
        """
        session = self._client.session
        tenure = groups.new_member(session, self._turnstile, payload, ttl_s)
        lease = Lease(session, tenure)
        drive(groups.join(session, tenure))
        return lease

    def members(self) -> list[Member]:
        """Who is in now, senior first."""
        return drive(groups.members(self._client.session, self._turnstile))

    def watch(self, timeout_s: float | None = None) -> Iterator[list[Member]]:
        """The members now, and again after each change; ends once nothing changed for ``timeout_s``.

        Never misses the last state; may skip ones in between.
        """
        session = self._client.session
        watch = groups.Watch(session, self._turnstile)
        try:
            while True:
                until = NEVER_S if timeout_s is None else session.world.now() + timeout_s
                found = drive(watch.changed(until))
                if found is None:
                    return
                yield found
        finally:
            drive(watch.stop())


class Partitions:
    """A number of partitions that the members of one name share by consistent hashing."""

    __slots__ = ("_client", "_ttl_s", "_turnstile")

    def __init__(self, client: Client, turnstile: Turnstile, ttl_s: float) -> None:
        self._client, self._turnstile, self._ttl_s = client, turnstile, ttl_s

    def join(
        self,
        payload: bytes = b"",
        on_assigned: Callable[[int, Lease], Any] | None = None,
        on_revoked: Callable[[int], Any] | None = None,
    ) -> Share:
        """Take part; the share is kept in the background until `Share.leave`.

        ``on_assigned(partition, lease)`` after a partition became ours; the rest waits for its return.
        ``on_revoked(partition)`` before it is handed over, which is done when it returns, or after it was lost; each
        in a thread of its own, so that one that takes long holds up no other partition.
        """
        session = self._client.session
        share = sharing.Share[Lease](
            session, self._turnstile, self._ttl_s, payload, functools.partial(Lease, session), on_assigned, on_revoked
        )
        drive(share.start())
        return Share(session, share)

    def members(self) -> list[Member]:
        """Who takes part now, senior first."""
        return drive(groups.members(self._client.session, self._turnstile))

    def owners(self) -> dict[int, str]:
        """Who owns each partition now; those that are between two owners are left out."""
        return drive(sharing.owners(self._client.session, self._turnstile.name, self._turnstile.capacity))


class Share:
    """What one member owns. A context manager that leaves at its end."""

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

    def wait_change(self, timeout_s: float | None = None) -> bool:
        """Wait until `owned` changed; False after ``timeout_s``."""
        until = NEVER_S if timeout_s is None else self._session.world.now() + timeout_s
        return drive(self._share.wait_change(until))

    def leave(self) -> None:
        """Hand everything over at once, and go."""
        drive(self._share.leave())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()


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
