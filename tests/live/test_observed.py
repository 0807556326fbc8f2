"""What the ready hooks show of real faults."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from proxy import TcpProxy
from redis_live import LiveRedis
from servers import eventually

import holdfast
from holdfast import LeaseLost, hooks
from holdfast.hooks import Event

pytestmark = pytest.mark.live

Connect = Callable[..., Any]


class Watched:
    """A client's hooks, and what they show."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.registry = CollectorRegistry()
        self.spans = InMemorySpanExporter()
        tracing = TracerProvider()
        tracing.add_span_processor(SimpleSpanProcessor(self.spans))
        self.opentelemetry: Any = hooks.opentelemetry(tracing)
        self.hooks = [self.events.append, hooks.prometheus(self.registry), self.opentelemetry]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"engine": "redis", "kind": "lock", **labels})

    def hold(self) -> Any:
        (span,) = [span for span in self.spans.get_finished_spans() if span.name == "hold lock"]
        return span


def test_a_killed_connection_that_comes_back_shows_unsure_and_then_renewed(proxy: TcpProxy, connect: Connect) -> None:
    watched = Watched()
    lease = connect(proxy.url, hooks=watched.hooks).lock("x", ttl_s=6.0).acquire()
    proxy.silence()
    proxy.cut()
    eventually(lambda: "unsure" in watched.kinds())
    proxy.heal()
    eventually(lambda: watched.kinds()[-1] == "renewed")
    assert watched.value("holdfast_leases_held") == 1
    lease.release()
    steps = [event.name for event in watched.hold().events]
    assert steps[steps.index("unsure") :][:2] == ["unsure", "renewed"]
    assert watched.value("holdfast_lease_events_total", event="unsure") == 1
    assert watched.value("holdfast_lease_events_total", event="released") == 1
    assert watched.value("holdfast_leases_held") == 0


def test_a_server_that_stays_away_shows_unsure_and_then_lost(server: LiveRedis, connect: Connect) -> None:
    watched = Watched()
    lease = connect(server.url, hooks=watched.hooks).lock("x", ttl_s=1.5).acquire()
    server.kill()
    assert lease.wait_lost(20)
    with pytest.raises(LeaseLost):
        lease.release()
    assert watched.kinds()[-2:] == ["unsure", "lost"]
    assert watched.hold().attributes["error.type"] == "lost"
    assert watched.value("holdfast_lease_events_total", event="lost") == 1
    assert watched.value("holdfast_leases_held") == 0


def test_a_hand_over_is_seen_on_both_sides(server: LiveRedis, connect: Connect) -> None:
    first, second = Watched(), Watched()
    holder, waiter = connect(server.url, hooks=first.hooks), connect(server.url, hooks=second.hooks)
    lease = holder.lock("x", ttl_s=1.5).acquire()
    with pytest.raises(holdfast.AcquireTimeout):
        waiter.lock("x").acquire(timeout_s=0.05)
    eventually(lambda: "wanted" in first.kinds())
    lease.release()
    assert first.kinds()[-1] == "handed_over"
    assert second.kinds() == ["waiting", "gave_up"]
    assert second.value("holdfast_leases_waiting") == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_tells_nothing_of_its_parents_leases(server: LiveRedis) -> None:
    watched = Watched()
    with holdfast.connect(server.url, hooks=watched.hooks) as hf:
        lease = hf.lock("x").acquire()
        assert len(watched.opentelemetry._holds) == 1
        child = os.fork()
        if child == 0:
            try:
                assert watched.opentelemetry._holds == {}
                with pytest.raises(LeaseLost):
                    lease.release()
                assert watched.kinds() == ["held"]
                with hf.lock("y"):
                    assert watched.kinds() == ["held", "held"]
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        lease.release()
    assert watched.kinds()[-1] == "released"
    assert watched.spans.get_finished_spans()[-1].name == "hold lock"
