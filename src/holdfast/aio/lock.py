"""Locks: recipes for taking turns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Never, ParamSpec, TypeVar

from ..core import lease as leases
from ..core import recipe as recipes
from ..core.naming import call_namer
from ..core.recipe import LockOptions, Recipe
from ..core.session import Session
from ..core.sticky import Turn
from ..errors import AcquireTimeout, Misuse
from .lease import Lease, StickyLease

if TYPE_CHECKING:
    from .client import Client

P = ParamSpec("P")
R = TypeVar("R")


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
