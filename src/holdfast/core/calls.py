"""Calling the engine until it answers: how long, how often, and with what pauses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

from ..contract import Request
from ..errors import HoldfastError, OutcomeUnknown, Unavailable
from ..model import NEVER_S
from ..world import World

T = TypeVar("T")

LEAST_TRY_S = 0.25
"""A try is never given less than this."""


class Asker(Protocol):
    """Notes whether some request of its own may or may not have been done."""

    unknown: bool


class Calls:
    """Every call of one client, tried again for at most ``patience_s``: every operation is idempotent by its id."""

    def __init__(self, engine_name: str, world: World, patience_s: float) -> None:
        self.engine_name = engine_name
        self.world = world
        self.patience_s = patience_s

    def ask(
        self, request: Request[T], give_up_at: float = NEVER_S, asker: Asker | None = None
    ) -> Coroutine[Any, Any, T]:
        """Call, and call again while the engine does not answer, yet not beyond ``give_up_at`` once it has been tried.

        Raises `Unavailable`; what may have been done nevertheless is noted on ``asker``.
        """
        return self.insist(request.op, partial(self.world.call, request), give_up_at, asker)

    async def insist(
        self,
        op: str,
        once: Callable[[float], Awaitable[T]],
        give_up_at: float = NEVER_S,
        asker: Asker | None = None,
    ) -> T:
        """`ask` for what is no request: ``once`` takes the seconds that this try has.

        It has half of the time that is left, so that a connection that died in silence leaves some for another.
        """
        started = now = self.world.now()
        give_up_at = min(started + self.patience_s, give_up_at)
        attempt = 0
        while True:
            try:
                return await once(max((give_up_at - now) / 2, LEAST_TRY_S))
            except (OutcomeUnknown, Unavailable) as trouble:
                if asker is not None and isinstance(trouble, OutcomeUnknown):
                    asker.unknown = True
                attempt += 1
                now = self.world.now()
                if now >= give_up_at:
                    tried = f"tried {attempt} times in {now - started:.1f} s"
                    raise Unavailable(f"{self.engine_name} did not serve {op} ({tried}): {trouble}") from trouble
            except HoldfastError:
                raise
            except BaseException:
                if asker is not None:
                    asker.unknown = True
                raise
            pause_s = min(1.0, 0.01 * 2**attempt) * (0.5 + self.world.random() / 2)
            await self.world.sleep(min(pause_s, give_up_at - now))
            now = self.world.now()
