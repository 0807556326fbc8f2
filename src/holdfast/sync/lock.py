"""Locks: recipes for taking turns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Never, ParamSpec, TypeVar

from ..core import lease as leases
from ..core import recipe as recipes
from ..core.naming import call_namer
from ..core.recipe import LockOptions, Recipe
from ..core.session import Session
from ..core.sticky import Turn
from ..errors import AcquireTimeout, LeaseLost, Misuse
from ..worlds.threads import drive
from .lease import Lease, StickyLease

if TYPE_CHECKING:
    from .client import Client

P = ParamSpec("P")
R = TypeVar("R")


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
