"""The ready hooks: what Prometheus, OpenTelemetry and logs are told, and under which names."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faces import Face, go, held
from lives import Observed, ended, observed_run
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry
from scripted import LOCK, World

from holdfast import AcquireTimeout, Misuse, hooks, sync
from holdfast.core import lease as leases
from holdfast.core.recipe import QUEUE, Recipe
from holdfast.engines.memory import MemoryEngine
from holdfast.hooks import KINDS
from holdfast.model import Claim
from holdfast.worlds.threads import drive


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Face:
    monkeypatch.setattr("holdfast.testing.tasks.REAL_S", 0.0)
    return Face(request.param)


# -- Prometheus


def test_names_are_no_labels_unless_a_way_from_them_to_few_words_is_given(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        for number in range(5):
            async with held(hf.lock(f"invoice:{number}")):
                pass

    plain = observed_run(face, scenario)
    names = {value for one in plain.registry.collect() for sample in one.samples for value in sample.labels.values()}
    assert not any("invoice" in name for name in names)
    assert plain.count("held") == 5

    observed = Observed(label=lambda name: name.partition(":")[0])
    face.run(scenario, hooks=observed.hooks)
    assert observed.count("held", name="invoice") == 5
    assert {point.attributes["holdfast.name"] for point in observed.points("holdfast.lease.events")} == {"invoice"}


def test_a_way_to_labels_that_is_no_good_costs_detail_and_not_memory() -> None:
    observed = Observed(label=lambda name: name)
    with sync.Client(MemoryEngine(), hooks=observed.hooks) as hf:
        for number in range(250):
            with hf.lock(f"{number}"):
                pass
    assert observed.count("held", name="199") == 1
    assert observed.count("held", name="200") is None
    assert observed.count("held", name="other") == 50
    assert observed.value("holdfast_leases_held", name="other") == 0


def test_a_loss_counts_as_an_increase_even_if_it_is_the_first(face: Face) -> None:
    observed = Observed()
    seen: list[float | None] = []

    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x").acquire())
        seen.append(observed.count("lost"))
        assert observed.value("holdfast_leases_held") == 1
        lease.lose()
        seen.append(observed.count("lost"))
        assert observed.value("holdfast_leases_held") == 0

    face.run(scenario, hooks=observed.hooks)
    assert seen == [0, 1]


def test_waiters_are_seen_while_they_wait_and_their_waits_are_measured() -> None:
    observed = Observed()

    async def scenario(hf: Any) -> None:
        lease = await hf.lock("x").acquire()
        task = asyncio.create_task(hf.other().lock("x").acquire())
        await hf.clock.advance(3)
        assert observed.value("holdfast_leases_waiting") == 1
        assert [
            p.value for p in observed.points("holdfast.lease.count") if p.attributes["holdfast.state"] == "waiting"
        ] == [1]
        await lease.release()
        other = await task
        assert observed.value("holdfast_leases_waiting") == 0
        await hf.clock.advance(7)
        await other.release()

    Face("aio").run(scenario, hooks=observed.hooks)
    observed.assert_nothing_is_left()
    assert observed.value("holdfast_lease_wait_seconds_sum") == pytest.approx(3, abs=0.1)
    assert observed.value("holdfast_lease_held_seconds_sum") == pytest.approx(3 + 7, abs=0.1)
    (waits,) = observed.points("holdfast.lease.wait.duration")
    (holds,) = observed.points("holdfast.lease.hold.duration")
    assert (waits.count, holds.count) == (2, 2)
    assert waits.sum == pytest.approx(3, abs=0.1)
    assert holds.sum == pytest.approx(10, abs=0.1)
    assert waits.explicit_bounds[0] == 0.0005


def test_a_registry_takes_one_hook_which_all_clients_share() -> None:
    registry = CollectorRegistry()
    hook = hooks.prometheus(registry)
    with pytest.raises(Misuse, match="give it to every client"):
        hooks.prometheus(registry)
    for _ in range(2):
        with sync.Client(MemoryEngine(), hooks=[hook]) as hf, hf.lock("x"):
            pass
    labels = {"engine": "memory", "kind": "lock", "event": "held"}
    assert registry.get_sample_value("holdfast_lease_events_total", labels) == 2


def test_processes_that_share_a_page_are_summed_while_they_live(tmp_path: Path) -> None:
    code = """
import subprocess, sys
from prometheus_client import CollectorRegistry, multiprocess
import holdfast
from holdfast import hooks
with holdfast.connect("memory://", hooks=[hooks.prometheus()]) as hf, hf.lock("x"):
    if sys.argv[1:]:
        subprocess.run([sys.executable, sys.argv[0]], check=True)
        page = CollectorRegistry()
        multiprocess.MultiProcessCollector(page)
        labels = {"engine": "memory", "kind": "lock"}
        print(page.get_sample_value("holdfast_leases_held", labels))
        print(page.get_sample_value("holdfast_lease_events_total", {**labels, "event": "held"}))
"""
    script = tmp_path / "page.py"
    script.write_text(code)
    (tmp_path / "figures").mkdir()
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "figures")}
    run = subprocess.run([sys.executable, str(script), "first"], capture_output=True, text=True, check=False, env=env)
    assert run.stdout.split() == ["1.0", "2.0"], run.stderr


# -- OpenTelemetry


def test_a_wait_and_a_hold_are_spans_of_who_asked(face: Face) -> None:
    observed = Observed()
    tracer = observed.tracing.get_tracer("test")
    tokens: list[int] = []

    async def scenario(hf: Any) -> None:
        with tracer.start_as_current_span("request"):
            async with held(hf.lock("x")) as lease:
                await go(hf.clock.advance(5))
                hf.engine.unavailable(op="renew", times=1)
                await go(hf.clock.advance(6))
                tokens.append(lease.token)

    face.run(scenario, hooks=observed.hooks)
    observed.assert_nothing_is_left()
    (request,), (wait,), (hold,) = (observed.finished(name) for name in ("request", "wait lock", "hold lock"))
    context: Any = request.get_span_context()
    for span in (wait, hold):
        assert span.parent is not None
        assert span.parent.span_id == context.span_id
        assert span.status.status_code is StatusCode.UNSET
        assert span.attributes is not None
        assert (span.attributes["holdfast.name"], span.attributes["holdfast.token"]) == ("x", *tokens)
    assert [event.name for event in hold.events] == ["renewed", "unsure", "renewed"]
    assert "unavailable" in str(hold.events[1].attributes)
    assert hold.attributes is not None
    assert hold.attributes["holdfast.end"] == "released"


def test_a_wait_begins_when_it_was_asked_for_and_a_hold_where_the_wait_ended() -> None:
    world = World()
    observed = Observed()
    world.session.hooks = tuple(observed.hooks)
    world.ask(world.engine.enter(LOCK, Claim("holder", 1, 600.0), False))
    world.at(7.0, lambda: world.ask(world.engine.leave(LOCK, "holder", False)))
    tenure = leases.new_tenure(world.session, Recipe(LOCK))
    drive(leases.acquire(world.session, tenure, QUEUE, None))
    drive(world.session.release(tenure))
    world.close()
    (wait,), (hold,) = observed.finished("wait lock"), observed.finished("hold lock")
    assert wait.start_time is not None
    assert wait.end_time is not None
    assert (wait.end_time - wait.start_time) / 1e9 == pytest.approx(7, abs=0.1)
    assert hold.start_time == wait.end_time


def test_what_was_lost_or_given_up_is_an_error_and_says_why(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x").acquire())
        with pytest.raises(AcquireTimeout):
            await go(hf.lock("x").acquire(timeout_s=1))
        lease.lose()

    observed = observed_run(face, scenario)
    (hold,) = observed.finished("hold lock")
    assert hold.status.status_code is StatusCode.ERROR
    assert hold.status.description == "the test took it away"
    taken, gave_up = observed.finished("wait lock")
    assert taken.status.status_code is StatusCode.UNSET
    assert gave_up.status.status_code is StatusCode.ERROR
    assert gave_up.attributes is not None
    assert gave_up.attributes["error.type"] == "gave_up"
    errors = [point.attributes.get("error.type") for point in observed.points("holdfast.lease.hold.duration")]
    assert errors == ["lost"]


def test_spans_that_nobody_samples_are_not_kept() -> None:
    observed = Observed(sampler=ALWAYS_OFF)
    with sync.Client(MemoryEngine(), hooks=observed.hooks) as hf, hf.lock("x"):
        assert observed.opentelemetry._holds == {}
    assert observed.spans.get_finished_spans() == ()
    assert len(ended(observed.events)) == 1


def test_a_hook_works_where_no_sdk_was_set_up() -> None:
    hook: Any = hooks.opentelemetry()
    with sync.Client(MemoryEngine(), hooks=[hook]) as hf, hf.lock("x"):
        pass
    assert hook._holds == {}


# -- logging


def test_a_log_handler_finds_the_event_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "holdfast.lease")
    with sync.Client(MemoryEngine(), hooks=[hooks.log_events]) as hf, hf.lock("x"):
        pass
    told = [getattr(record, "event", None) for record in caplog.records]
    assert ended([event for event in told if event]) == ["held released"]
    assert caplog.records[0].message.startswith("lock:x held token=")


# -- the page


def test_the_page_names_every_kind_of_event_and_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observing.md").read_text()
    observed = Observed()
    with sync.Client(MemoryEngine(), hooks=observed.hooks) as hf, hf.lock("x"):
        pass
    named = set(re.findall(r"^\| `([\w.]+)", page, re.MULTILINE))
    samples = {sample.name for metric in observed.registry.collect() for sample in metric.samples}
    assert set(KINDS) <= named
    assert {re.sub("_(bucket|sum|count|created)$", "", name) for name in samples} <= named | {"holdfast_lease_events"}
    assert observed.metrics() <= named
    for name in re.findall(r"holdfast_\w+", page[page.index("```promql") :]):
        assert name in samples


# -- what is not installed


@pytest.mark.parametrize(
    ("extra", "library"), [("prometheus", "prometheus_client"), ("opentelemetry", "opentelemetry")]
)
def test_a_missing_library_is_misuse_that_names_the_extra(extra: str, library: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
from holdfast import Misuse, hooks
try:
    hooks.{extra}()
except Misuse as wrong:
    print(wrong)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"hooks.{extra}() needs the package {library}: pip install 'holdfast[{extra}]'"


def test_hooks_load_no_library_that_is_not_used() -> None:
    code = "import sys, holdfast.hooks, holdfast.sync; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "holdfast.hooks" in loaded
    assert not {"prometheus_client", "opentelemetry"} & set(loaded)
