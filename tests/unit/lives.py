"""What hooks heard, life by life, and whether the ready ones have anything left of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from faces import Face
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from holdfast import hooks
from holdfast.hooks import ENDS, KINDS, Event

LIFE = re.compile(
    r"((waiting|unsure) )*"
    r"((gave_up|refused) |held ((renewed|unsure|wanted) )*((released|handed_over|lost|detached) )?)?"
)


def lives(events: Iterable[Event]) -> list[str]:
    """Each life's kinds, in the order in which they began; every one is as `Event` says."""
    told: dict[int, list[str]] = {}
    for event in events:
        told.setdefault(event.life, []).append(event.kind)
    found = [" ".join(kinds) for kinds in told.values()]
    for kinds in told.values():
        assert LIFE.fullmatch("".join(f"{kind} " for kind in kinds)), kinds
        assert kinds.count("waiting") <= 1
        assert kinds.count("wanted") <= 1
    return found


def ended(events: Iterable[Event]) -> list[str]:
    """The same, where each has an end."""
    found = lives(events)
    for life in found:
        assert life.split()[-1] in ("gave_up", "refused", "released", "handed_over", "lost", "detached"), life
    return found


class Observed:
    """All ready hooks with nowhere to send to, and a plain one."""

    def __init__(self, label: Callable[[str], str] | None = None, **tracing: Any) -> None:
        self.events: list[Event] = []
        self.registry = CollectorRegistry()
        self.spans = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracing = TracerProvider(**tracing)
        self.tracing.add_span_processor(SimpleSpanProcessor(self.spans))
        meters = MeterProvider([self.reader])
        self.opentelemetry: Any = hooks.opentelemetry(self.tracing, meters, label=label)
        self.hooks = [
            self.events.append,
            hooks.log_events,
            hooks.prometheus(self.registry, label=label),
            self.opentelemetry,
        ]

    def value(self, metric: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(metric, {"engine": "memory", "kind": "lock", **labels})

    def count(self, step: str, /, **labels: str) -> float | None:
        return self.value("holdfast_lease_events_total", event=step, **labels)

    def finished(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def points(self, name: str) -> list[Any]:
        return [point for one in self._collected() if one.name == name for point in one.data.data_points]

    def metrics(self) -> set[str]:
        return {one.name for one in self._collected()}

    def _collected(self) -> list[Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return [one for found in data.resource_metrics for scope in found.scope_metrics for one in scope.metrics]

    def assert_nothing_is_left(self) -> None:
        """Every life ended, and all three say the same of it."""
        ended(self.events)
        assert self.opentelemetry._holds == {}
        kinds = {event.turnstile.kind for event in self.events}
        for kind in kinds:
            assert self.value("holdfast_leases_held", kind=kind) == 0
            assert self.value("holdfast_leases_waiting", kind=kind) == 0
            of_kind = [event.kind for event in self.events if event.turnstile.kind == kind]
            for step in KINDS:
                assert self.count(step, kind=kind) == of_kind.count(step)
            holds = sum(one in ENDS for one in of_kind)
            waits = sum(one in ("held", "gave_up") for one in of_kind)
            assert self.value("holdfast_lease_held_seconds_count", kind=kind) == holds
            assert self.value("holdfast_lease_wait_seconds_count", kind=kind) == waits
            assert len(self.finished(f"hold {kind}")) == holds
            assert len(self.finished(f"wait {kind}")) == waits
        assert {point.value for point in self.points("holdfast.lease.count")} <= {0}
        assert sum(point.value for point in self.points("holdfast.lease.events")) == len(self.events)


def observed_run(face: Face, scenario: Callable[[Any], Coroutine[Any, Any, None]], **options: Any) -> Observed:
    observed = Observed(**options)
    face.run(scenario, hooks=observed.hooks)
    observed.assert_nothing_is_left()
    return observed
