"""Steps of leases to Prometheus, through prometheus_client."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from ..errors import Misuse
from .event import ENDS, KINDS, Event
from .series import BUCKETS_S, Key, Keys, Label


class Series(NamedTuple):
    """What is counted under one set of labels."""

    events: dict[str, Counter]
    waiting: Gauge
    held: Gauge
    wait_s: Histogram
    held_s: Histogram


class Prometheus:
    """A hook without memory: each event says all that it changes, so nothing is left of a lease that ended."""

    def __init__(self, registry: CollectorRegistry | None, label: Label | None) -> None:
        self._keys = Keys(label)
        self._series: dict[Key, Series] = {}
        registry = registry or REGISTRY
        labels = ("engine", "kind") if label is None else ("engine", "kind", "name")
        try:
            self._events = Counter(
                "holdfast_lease_events", "Steps in the lives of leases.", (*labels, "event"), registry=registry
            )
            self._waiting = Gauge(
                "holdfast_leases_waiting",
                "Claims that wait.",
                labels,
                multiprocess_mode="livesum",  # where several processes share one registry: of those that live
                registry=registry,
            )
            self._held = Gauge(
                "holdfast_leases_held",
                "Leases that are held.",
                labels,
                multiprocess_mode="livesum",
                registry=registry,
            )
            self._wait_s = Histogram(
                "holdfast_lease_wait_seconds",
                "From asking for a lease to holding it, or giving up.",
                labels,
                buckets=BUCKETS_S,
                registry=registry,
            )
            self._held_s = Histogram(
                "holdfast_lease_held_seconds",
                "From holding a lease to its end, whichever.",
                labels,
                buckets=BUCKETS_S,
                registry=registry,
            )
        except ValueError as twice:
            raise Misuse(
                f"this registry has holdfast's metrics already: make one hook and give it to every client ({twice})"
            ) from None

    def __call__(self, event: Event) -> None:
        key = self._keys(event)
        series = self._series.get(key) or self._make(key)
        kind = event.kind
        series.events[kind].inc()
        if kind == "waiting":
            series.waiting.inc()
        elif kind == "held" or kind == "gave_up":
            series.wait_s.observe(event.elapsed_s)
            if event.waited:
                series.waiting.dec()
            if kind == "held":
                series.held.inc()
        elif kind in ENDS:
            series.held_s.observe(event.elapsed_s)
            series.held.dec()

    def _make(self, key: Key) -> Series:
        """All of them at once, so that what never happened is 0 and not absent: the first loss is then an increase."""
        series = self._series[key] = Series(
            {kind: self._events.labels(*key, kind) for kind in KINDS},
            self._waiting.labels(*key),
            self._held.labels(*key),
            self._wait_s.labels(*key),
            self._held_s.labels(*key),
        )
        return series
