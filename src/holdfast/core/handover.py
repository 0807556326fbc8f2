"""Telling a member's user which partitions come and go: by callbacks that run apart, or as a stream that is read.

Either way one thing matters: a partition goes on to its next owner only once this one's user has let go of it.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from .. import model
from ..errors import Misuse
from ..model import NEVER_S, Signal
from ..world import World
from .lease import LeaseBase
from .tenure import Tenure

log = logging.getLogger("holdfast.partitions")

L = TypeVar("L", bound=LeaseBase)

AT_ONCE = 64
"""How many callbacks of one member run at once, each in a thread or task of its own."""


class Handover(NamedTuple, Generic[L]):
    """A partition that came to be ours (ASSIGNED), or that we are about to hand over, or have lost (REVOKED)."""

    kind: Literal["ASSIGNED", "REVOKED"]
    partition: int
    lease: L


@dataclass(slots=True, eq=False)
class Held(Generic[L]):
    """A partition that is ours. Its user is being told of it while it is ``assigning`` or ``leaving``."""

    partition: int
    tenure: Tenure
    lease: L
    phase: Literal["assigning", "owned", "leaving"] = "owned"
    unwanted_until: float = NEVER_S  # when it is given back though its user has not let go


class Users(Generic[L]):
    """Who is told. `tell`, `through` and `forget` are the loop's; `read` is the user's."""

    def __init__(
        self,
        world: World,
        name: str,
        on_assigned: Callable[[int, L], Any] | None,
        on_revoked: Callable[[int], Any] | None,
        nudge: Callable[[], None],
    ) -> None:
        self._world = world
        self._name = name
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._nudge = nudge
        self._waiting: deque[Held[L]] = deque()
        self._running: set[Held[L]] = set()
        self._through: deque[Held[L]] = deque()
        self._stream: deque[tuple[Held[L], Handover[L]]] | None = None
        self._bell = world.mailbox()
        self._read: Held[L] | None = None
        self._closed = False

    def tell(self, held: Held[L]) -> None:
        """Of one that is assigning or leaving; once its user knows, `through` gives it back."""
        if self._stream is not None:
            kind: Literal["ASSIGNED", "REVOKED"] = "REVOKED" if held.phase == "leaving" else "ASSIGNED"
            self._stream.append((held, Handover(kind, held.partition, held.lease)))
            self._bell.post(Signal(model.NUDGE))
        elif (self._on_assigned if held.phase == "assigning" else self._on_revoked) is None:
            self._through.append(held)
        else:
            self._waiting.append(held)
            self._pump()

    def through(self) -> list[Held[L]]:
        """Those whose user has been told since this was last asked."""
        found: list[Held[L]] = []
        while self._through:
            found.append(self._through.popleft())
        self._running.difference_update(found)
        self._pump()
        return found

    def forget(self, held: Held[L]) -> None:
        """Wait for its user no longer."""
        self._running.discard(held)
        if held in self._waiting:
            self._waiting.remove(held)

    def close(self) -> None:
        """Nothing more comes: a stream ends."""
        self._closed = True
        self._bell.post(Signal(model.NUDGE))

    def _pump(self) -> None:
        while self._waiting and len(self._running) < AT_ONCE:
            held = self._waiting.popleft()
            self._running.add(held)
            self._world.spawn(self._call(held), "holdfast-partition")

    async def _call(self, held: Held[L]) -> None:
        try:
            if held.phase == "assigning":
                assert self._on_assigned is not None
                result = self._on_assigned(held.partition, held.lease)
            else:
                assert self._on_revoked is not None
                result = self._on_revoked(held.partition)
            if inspect.isawaitable(result):
                await result
        except Exception:
            log.exception("a callback of partitions %s raised", self._name)
        finally:
            self._through.append(held)
            self._nudge()

    # -- the stream

    def start_stream(self) -> bool:
        """From now on they are read; False where they were before. Raises `Misuse` where there are callbacks."""
        if self._on_assigned is not None or self._on_revoked is not None:
            raise Misuse("a share has callbacks or events(), not both")
        began = self._stream is None
        if began:
            self._stream = deque()
        return began

    async def read(self, until: float) -> Handover[L] | None:
        """The next one, which says that the user is done with the one before; None at ``until`` or the end."""
        assert self._stream is not None
        if self._read is not None:
            self._through.append(self._read)
            self._read = None
            self._nudge()
        while not self._stream:
            if self._closed or (await self._world.wait_signal(self._bell, until) is None):
                return None
        self._read, handover = self._stream.popleft()
        return handover
