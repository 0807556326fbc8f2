"""Steps of leases to Python's logging."""

from __future__ import annotations

import logging

from .event import Event

log = logging.getLogger("holdfast.lease")

LEVELS = {"lost": logging.ERROR, "unsure": logging.WARNING, "gave_up": logging.INFO}


def log_events(event: Event) -> None:
    """Each step to the logger ``holdfast.lease``: lost at ERROR, unsure at WARNING, gave_up at INFO, the rest at DEBUG.

    A handler finds the event itself as ``record.event``, for logs with fields.
    """
    level = LEVELS.get(event.kind, logging.DEBUG)
    if log.isEnabledFor(level):
        log.log(
            level,
            "%s %s token=%d claim=%s after %.3f s%s",
            event.turnstile.address,
            event.kind,
            event.token,
            event.claim.id,
            event.elapsed_s,
            event.why and f": {event.why}",
            extra={"event": event},
        )
