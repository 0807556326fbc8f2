"""A lease's life, as events: for logging, metrics and traces. Unused, it costs one truth test."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

log = logging.getLogger("holdfast.hooks")


class Event(NamedTuple):
    """One step in a lease's life.

    ``kind``: ``waiting`` (queued behind others), ``held``, ``renewed``, ``unsure`` (a renewal failed), ``wanted``
    (another waits for it), ``lost``, ``released``, ``gave_up`` (timed out or was cancelled while waiting).
    ``elapsed_s``: for ``held`` the wait, for ``lost`` and ``released`` the time it was held, else 0.
    """

    kind: str
    turnstile: str
    claim: str
    token: int
    elapsed_s: float


Hook = Callable[[Event], None]
"""Called in the thread or loop where the step happened; keep it short. What it raises is logged and dropped."""


def emit(hooks: tuple[Hook, ...], event: Event) -> None:
    for hook in hooks:
        try:
            hook(event)
        except Exception:
            log.exception("a hook raised on %s of %s", event.kind, event.turnstile)


LEVELS = {"lost": logging.ERROR, "unsure": logging.WARNING, "gave_up": logging.INFO}


def log_events(event: Event) -> None:
    """A ready hook: each step to the logger ``holdfast.lease``; lost at ERROR, unsure at WARNING, the rest at DEBUG."""
    logging.getLogger("holdfast.lease").log(
        LEVELS.get(event.kind, logging.DEBUG),
        "%s %s token=%d claim=%s after %.3f s",
        event.turnstile,
        event.kind,
        event.token,
        event.claim,
        event.elapsed_s,
    )
