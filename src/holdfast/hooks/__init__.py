"""A lease's life, as events: for logging, metrics and traces. Unused, each step costs one truth test.

    holdfast.connect(url, hooks=[hooks.log_events, hooks.prometheus(), hooks.opentelemetry()])

A hook is any function that takes an `Event`. Make an adapter once and give it to every client.
"""

from __future__ import annotations

from .event import ENDS, KINDS, NOT_HELD, Event, Hook
from .logs import log_events

__all__ = ["ENDS", "KINDS", "NOT_HELD", "Event", "Hook", "log_events"]
