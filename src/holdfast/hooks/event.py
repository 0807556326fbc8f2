"""The steps of a lease's life, in the order in which they came, and those who hear of them."""

from __future__ import annotations

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


class Event(NamedTuple):
    """One step in a lease's life, which goes ``waiting? (held (renewed | unsure | wanted)* END | gave_up | refused)``.

    ========== ======================================================== ===========================
    ``kind``   what happened                                            ``elapsed_s`` counts from
    ========== ======================================================== ===========================
    waiting    it was not free: queued, or asks again and again; once   when it was asked for
    held       it is ours (as well: attached, joined, a partition)      when it was asked for
    gave_up    not ours: timed out, cancelled, failed, client closed    when it was asked for
    refused    not ours: it was taken, and we would not wait            when it was asked for
    renewed    the engine extended it                                   when it was held
    unsure     a renewal failed and is retried; it may end as lost      as above, or asked for
    wanted     another waits for it (a hint); once                      when it was held
    released   END: given back, and nobody was known to want it         when it was held
    handed_over  END: given back while another was known to want it     when it was held
    lost       END: not ours any more, whatever its holder believes     when it was held
    detached   END: let go to be attached elsewhere; it is held on      when it was held
    ========== ======================================================== ===========================

    Each life that began has one END, `gave_up` or `refused`, and nothing after it; a process that dies tells nothing.
    A lease that a process keeps and takes again has a life for each taking, under one claim and token.
    """

    kind: str
    turnstile: Turnstile
    """``kind`` (``lock``, ``rwlock``, ``semaphore``, ``group``, …) and ``name``; ``address`` is both."""
    claim: Claim
    """``id`` is the same from held to the end; ``weight`` is 1 for a mutex, and tells readers from writers."""
    token: int
    elapsed_s: float
    engine: str = ""
    """``redis``, ``sqlite``, …"""
    waited: bool = False
    """Whether `waiting` was told of this life: who counts waiters takes off at held and gave_up where it was."""
    why: str = ""
    """For unsure and lost: the cause, for people."""


Hook = Callable[[Event], None]
"""Called in the thread or loop where the step happened; keep it short. What it raises is logged and dropped."""


class Life:
    """One lease's steps to its hooks, one at a time: threads that tell of it at once may do so in any order, and twice.

    Nobody waits for another's hooks: who finds them at work leaves the step to whoever is at it.
    """

    __slots__ = ("_engine", "_held", "_hooks", "_now", "_over", "_since", "_steps", "_turn", "_waited")

    def __init__(self, hooks: tuple[Hook, ...], engine: str, now: Callable[[], float]) -> None:
        self._hooks = hooks
        self._engine = engine
        self._now = now
        self._since = now()  # asked for, and later held
        self._waited = False
        self._held = False
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
        event = Event(kind, turnstile, claim, token, now - self._since, self._engine, self._waited, why)
        if kind == "held":
            self._since = now
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                log.exception("a hook raised on %s of %s", kind, turnstile.address)

    def _advance(self, kind: str) -> str:
        """What this step is where this life stands; empty where it is none."""
        if self._over:
            return ""
        if kind in ENDS or kind in NOT_HELD:
            self._over = True
            if self._held:
                return kind if kind in ENDS else "released"
            return kind if kind in NOT_HELD else "gave_up"
        if kind == "held":
            told, self._held = self._held, True
        elif kind == "waiting":
            told, self._waited = self._waited or self._held, True
        else:
            told = kind != "unsure" and not self._held
        return "" if told else kind
