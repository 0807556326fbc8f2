"""A lease's life, as events: for logging, metrics and traces. Unused, each step costs one truth test.

    holdfast.connect(url, hooks=[hooks.log_events, hooks.prometheus(), hooks.opentelemetry()])

A hook is any function that takes an `Event`. Make an adapter once and give it to every client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import Misuse
from .event import ENDS, KINDS, NOT_HELD, Event, Hook
from .logs import log_events

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from .series import Label

__all__ = ["ENDS", "KINDS", "NOT_HELD", "Event", "Hook", "log_events", "opentelemetry", "prometheus"]


def prometheus(registry: CollectorRegistry | None = None, *, label: Label | None = None) -> Hook:
    """A hook that keeps metrics in ``registry`` (prometheus_client's own by default), by engine and kind of lock.

    ``label``: from a lock's name to one of few words, as a label ``name``. Names as they are would be a series for each
    of them, for ever. Raises `Misuse` without the extra ``prometheus``, and for a registry that has these metrics.
    """
    hook: Hook = _load("metrics", "prometheus").Prometheus(registry, label)
    return hook


def opentelemetry(
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    *,
    label: Label | None = None,
) -> Hook:
    """A hook that makes a span of each wait and each hold, and keeps metrics; the global providers by default.

    ``label``: as for `prometheus`, for the metrics; spans carry the name itself. Raises `Misuse` without the extra
    ``opentelemetry``.
    """
    hook: Hook = _load("telemetry", "opentelemetry").OpenTelemetry(tracer_provider, meter_provider, label)
    return hook


def _load(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(f".{module}", __name__)
    except ModuleNotFoundError as missing:
        if missing.name and missing.name.startswith("holdfast"):
            raise
        package = str(missing.name).partition(".")[0]
        raise Misuse(f"hooks.{extra}() needs the package {package}: pip install 'holdfast[{extra}]'") from missing
