"""The steps of a lease's life, in the order in which they came, and those who hear of them."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ..model import Claim, Turnstile

log = logging.getLogger("holdfast.hooks")

ENDS = ("released", "handed_over", "lost", "detached")
"""How a held lease ends."""

NOT_HELD = ("gave_up", "refused")
"""How a claim ends that was never held."""

KINDS = ("waiting", *NOT_HELD, "held", "renewed", "unsure", "wanted", *ENDS)

ONCE = ("waiting", "held", "wanted")
WHILE_HELD = ("renewed", "wanted")


class Event(NamedTuple):
    """One step in a lease's life, which goes ``waiting? (held (renewed | unsure | wanted)* END | gave_up | refused)``.

    ``elapsed_s`` counts from when it was asked for, up to held, gave_up and refused; from then on, since it was held.

    waiting      it was not free: queued, or asking again and again (once)
    gave_up      not ours: timed out, cancelled, failed, or the client was closed
    refused      not ours: it was taken, and we would not wait
    held         ours: taken, joined, attached, or a partition assigned
    renewed      the engine extended it
    unsure       a renewal failed and is retried; it ends as lost if none succeeds in time
    wanted       another waits for it, a hint (once)
    released     END: given back, and nobody was known to want it
    handed_over  END: given back while another was known to want it
    lost         END: not ours any more, though its holder had not released it
    detached     END here: let go, to be attached elsewhere

    Whatever happens, a life that began ends, once, and nothing of it is told after; only a process that dies, or the
    child of a fork, tells no more. Where a process keeps a lease and takes it again (sticky), each taking is a life of
    its own: those that hold it have one claim and token, one that waits for others of its process has none yet.
    """

    kind: str
    turnstile: Turnstile
    """``kind`` (``lock``, ``rwlock``, ``semaphore``, ``group``, …) and ``name``; ``address`` is both."""
    claim: Claim
    """``id`` is what others see; ``weight`` tells readers from writers."""
    token: int
    elapsed_s: float
    engine: str = ""
    """``redis``, ``sqlite``, …"""
    waited: bool = False
    """Whether `waiting` was told of this life: who counts waiters takes off at held and gave_up where it was."""
    why: str = ""
    """For people: the cause of what is unsure or lost."""
    life: int = 0
    """The same in all events of one life, and in no other of this process."""


Hook = Callable[[Event], None]
"""Called in the thread or loop where the step happened; keep it short. What it raises is logged and dropped."""


_ids = itertools.count(1)


class Life:
    """One lease's steps to its hooks: in an order that makes sense, though threads may tell of it at once, and twice.

    Nobody waits for another's hooks: who finds them at work leaves the step to whoever is at it.
    """

    __slots__ = ("_engine", "_hooks", "_id", "_now", "_over", "_since", "_steps", "_told", "_turn")

    def __init__(self, hooks: tuple[Hook, ...], engine: str, now: Callable[[], float]) -> None:
        self._id = next(_ids)
        self._hooks = hooks
        self._engine = engine
        self._now = now
        self._since = now()  # asked for, and later held
        self._told: set[str] = set()
        self._over = False
        self._steps: deque[tuple[str, Turnstile, Claim, int, str]] = deque()
        self._turn = threading.Lock()

    def step(self, kind: str, turnstile: Turnstile, claim: Claim, token: int, why: str = "") -> None:
        self._steps.append((kind, turnstile, claim, token, why))
        while self._steps and self._turn.acquire(blocking=False):
            try:
                while self._steps:
                    self._tell(*self._steps.popleft())
            finally:
                self._turn.release()

    def _tell(self, kind: str, turnstile: Turnstile, claim: Claim, token: int, why: str) -> None:
        kind = self._advance(kind)
        if not kind:
            return
        now = self._now()
        event = Event(
            kind, turnstile, claim, token, now - self._since, self._engine, "waiting" in self._told, why, self._id
        )
        if kind == "held":
            self._since = now
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                log.exception("a hook raised on %s of %s", kind, turnstile.address)

    def _advance(self, kind: str) -> str:
        """What this step is where this life stands; empty where it is none."""
        held = "held" in self._told
        if self._over:
            return ""
        if kind in ENDS or kind in NOT_HELD:
            self._over = True
            if held:
                return kind if kind in ENDS else "released"
            return kind if kind in NOT_HELD else "gave_up"
        if (kind in ONCE and kind in self._told) or (held and kind == "waiting") or (not held and kind in WHILE_HELD):
            return ""
        self._told.add(kind)
        return kind
