"""Steps of leases to OpenTelemetry: a span for the wait and one for the hold, and metrics."""

from __future__ import annotations

import os
import time

from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider, get_tracer

from .. import __version__
from .event import ENDS, Event
from .series import BUCKETS_S, Keys, Label

ATTRIBUTES = ("holdfast.engine", "holdfast.kind", "holdfast.name")


class OpenTelemetry:
    """A hook that keeps one thing: the spans of what is held, from held to the end that every lease has."""

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None, label: Label | None
    ) -> None:
        self._keys = Keys(label)
        self._holds: dict[int, Span] = {}  # by life
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._holds.clear)  # those leases and spans are the parent's
        self._tracer = get_tracer("holdfast", __version__, tracer_provider)
        meter = get_meter("holdfast", __version__, meter_provider)
        self._events = meter.create_counter("holdfast.lease.events", "{event}", "Steps in the lives of leases.")
        self._count = meter.create_up_down_counter("holdfast.lease.count", "{lease}", "Leases waiting or held.")
        self._wait_s = meter.create_histogram(
            "holdfast.lease.wait.duration",
            "s",
            "From asking for a lease to holding it, or giving up.",
            explicit_bucket_boundaries_advisory=BUCKETS_S,
        )
        self._hold_s = meter.create_histogram(
            "holdfast.lease.hold.duration",
            "s",
            "From holding a lease to its end, whichever.",
            explicit_bucket_boundaries_advisory=BUCKETS_S,
        )

    def __call__(self, event: Event) -> None:
        self._measure(event)
        self._trace(event)

    def _measure(self, event: Event) -> None:
        kind = event.kind
        of: dict[str, str] = dict(zip(ATTRIBUTES, self._keys(event), strict=False))
        self._events.add(1, {**of, "holdfast.event": kind})
        if kind == "waiting":
            self._count.add(1, {**of, "holdfast.state": "waiting"})
        elif kind == "held":
            self._wait_s.record(event.elapsed_s, of)
            self._count.add(1, {**of, "holdfast.state": "held"})
        elif kind == "gave_up":
            self._wait_s.record(event.elapsed_s, {**of, "error.type": kind})
        elif kind in ENDS:
            self._hold_s.record(event.elapsed_s, {**of, "error.type": kind} if kind == "lost" else of)
            self._count.add(-1, {**of, "holdfast.state": "held"})
        if event.waited and kind in ("held", "gave_up"):
            self._count.add(-1, {**of, "holdfast.state": "waiting"})

    def _trace(self, event: Event) -> None:
        kind = event.kind
        if kind == "held" or kind == "gave_up":
            now = time.time_ns()
            wait = self._span("wait", event, now - int(event.elapsed_s * 1e9))
            if kind == "gave_up":
                _fail(wait, event)
            wait.end(now)
            if kind == "held":
                hold = self._span("hold", event, now)
                if hold.is_recording():
                    self._holds[event.life] = hold
        elif kind in ENDS:
            ended = self._holds.pop(event.life, None)
            if ended is not None:
                ended.set_attribute("holdfast.end", kind)
                if kind == "lost":
                    _fail(ended, event)
                ended.end()
        elif kind in ("renewed", "unsure", "wanted"):
            holding = self._holds.get(event.life)
            if holding is not None:
                holding.add_event(kind, {"holdfast.why": event.why} if event.why else None)

    def _span(self, what: str, event: Event, start_ns: int) -> Span:
        """A child of what runs now: an event is told where it happens, and a hold begins in its holder."""
        turnstile = event.turnstile
        attributes: dict[str, str | int] = {
            "holdfast.engine": event.engine,
            "holdfast.kind": turnstile.kind,
            "holdfast.name": turnstile.name,
            "holdfast.claim": event.claim.id,
            "holdfast.token": event.token,
        }
        return self._tracer.start_span(f"{what} {turnstile.kind}", attributes=attributes, start_time=start_ns)


def _fail(span: Span, event: Event) -> None:
    span.set_attribute("error.type", event.kind)
    span.set_status(Status(StatusCode.ERROR, event.why or event.kind))
