"""Watching: looking again whenever something may have changed, so that a lost signal costs time and no change."""

from __future__ import annotations

import logging
from typing import Generic, Protocol, TypeVar

from .. import model
from ..errors import HoldfastError, LeaseLost, Misuse, OutcomeUnknown, Unavailable, Unsupported
from ..model import NEVER_S, Signal, Turnstile
from .session import Session

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

log = logging.getLogger("holdfast.watch")

LOOK_S = 5.0
"""At least this often a watcher looks, whatever signals it gets."""


class See(Protocol[T_co]):
    """One look: what is watched, and in how many seconds it may change without a signal (the dead give none)."""

    async def __call__(self) -> tuple[T_co, float]: ...


class Changing(Protocol[T_co]):
    """What can be waited for again and again, until it is stopped: a `Watch`, or what is made of one."""

    async def changed(self, until: float) -> tuple[T_co] | None: ...

    async def stop(self) -> None: ...


class Watch(Generic[T]):
    """What ``see`` sees, whenever it may have changed. Never misses the last state; may skip ones in between.

    The turnstile's announcements say when to look; one that announces nothing is looked at every `LOOK_S`.
    """

    def __init__(self, session: Session, turnstile: Turnstile, see: See[T]) -> None:
        self._session = session
        self._turnstile = turnstile
        self._see = see
        self.mailbox = session.world.mailbox()
        self.look_at = 0.0
        self._ended = False
        self._watching = False
        self._seen = False
        self._last: T | None = None

    async def look(self) -> T:
        """What there is now; `look_at` is when to look again if no signal comes first. Raises `Unavailable`, and
        `Misuse` once the client was closed."""
        self._session.refuse_closed()
        if not self._watching and self._turnstile.announces:
            await self._session.watch(self._turnstile, self.mailbox)
            self._watching = True
        found, end_s = await self._see()
        world = self._session.world
        self.look_at = world.now() + max(0.02, min(LOOK_S, end_s + 0.005)) + world.random() * 0.02
        return found

    async def changed(self, until: float = NEVER_S) -> tuple[T] | None:
        """What there is once it differs from what was given last (at once the first time); None at ``until``, or once
        `end` was called.

        An engine that is out of reach is waited for: `Unavailable` is raised where it still is at ``until``. One that
        refuses is waited for as well, once it has let us look. What cannot heal is raised at once.
        """
        world = self._session.world
        trouble: HoldfastError | None = None
        while not self._ended:
            try:
                found = await self.look()
            except HoldfastError as error:
                if not self._may_heal(error):
                    raise
                if trouble is None:
                    log.warning("watching %s goes on: %s", self._turnstile.address, error)
                trouble = error
                self.look_at = world.now() + 0.5 + world.random() / 2
            else:
                trouble = None
                if not self._seen or found != self._last:
                    self._seen, self._last = True, found
                    return (found,)
            if not await self._wait(min(until, self.look_at)) and world.now() >= until:
                if trouble is not None:
                    raise trouble
                return None
        return None

    def _may_heal(self, error: HoldfastError) -> bool:
        return isinstance(error, (Unavailable, OutcomeUnknown)) or (
            self._seen and not isinstance(error, (Misuse, Unsupported, LeaseLost))
        )

    async def _wait(self, until: float) -> bool:
        """Wait for signals; several that came together make one look."""
        world = self._session.world
        if await world.wait_signal(self.mailbox, until) is None:
            return False
        while await world.wait_signal(self.mailbox, world.now()) is not None:
            pass
        return True

    def end(self) -> None:
        """Let `changed` return, whoever waits in it. From any thread; it is for that one to `stop`."""
        self._ended = True
        self.mailbox.post(Signal(model.NUDGE))

    async def stop(self) -> None:
        if self._watching:
            self._watching = False
            await self._session.unwatch(self._turnstile, self.mailbox)
