"""What hooks cost: a pair on memory:// without their lines, with them unused, and with each ready hook at work.

*Without their lines* is the same code but for every ``if`` that asks whether there are hooks, taken out here; all are
compiled here in the same way. It runs twice in the same rounds: what differs between those is what cannot be told.

``python -m bench.hooks``
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry

from holdfast import aio, hooks, sync
from holdfast.core.renewer import Renewer
from holdfast.core.session import Session
from holdfast.engines.memory import MemoryEngine
from holdfast.hooks import Hook

from .common import machine
from .placement_timing import Batch, interleaved, table

UNUSED = "unused"
PAIRS = 100
"""In one round of each."""


class _Strip(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> Any:
        asks = {one.attr for one in ast.walk(node.test) if isinstance(one, ast.Attribute)}
        return None if asks & {"life", "hooks"} else self.generic_visit(node)


def compiled(kind: type, *, strip: bool) -> type:
    """A subclass with the methods that ask whether there are hooks, or (``strip``) with the same that do not."""
    methods: dict[str, Any] = {}
    for name, function in vars(kind).items():
        if not inspect.isfunction(function):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        stripped = ast.fix_missing_locations(_Strip().visit(ast.parse(ast.unparse(tree))))
        if ast.dump(stripped) != ast.dump(tree):
            space: dict[str, Any] = {}
            source = compile(stripped if strip else tree, inspect.getsourcefile(function) or "", "exec")
            exec(source, function.__globals__, space)
            methods[name] = space[name]
    return type(kind.__name__, (kind,), methods)


KINDS = {strip: (compiled(Session, strip=strip), compiled(Renewer, strip=strip)) for strip in (False, True)}


def made(client: Any, strip: bool = False) -> Any:
    session = client.session
    session.__class__, session.renewer.__class__ = KINDS[strip]
    return client


class Drops(SpanProcessor):
    """An exporter that costs nothing: what is left is ours and the SDK's."""


def tracing(**options: Any) -> TracerProvider:
    provider = TracerProvider(**options)
    provider.add_span_processor(Drops())
    return provider


def ready() -> dict[str, Sequence[Hook]]:
    meters = MeterProvider([InMemoryMetricReader()])
    return {
        "a hook that does nothing": [lambda event: None],
        "log_events, below its level": [hooks.log_events],
        "prometheus": [hooks.prometheus(CollectorRegistry())],
        "opentelemetry, no SDK": [hooks.opentelemetry()],
        "opentelemetry, metrics only": [hooks.opentelemetry(tracing(sampler=ALWAYS_OFF), meters)],
        "opentelemetry, spans and metrics": [hooks.opentelemetry(tracing(), meters)],
    }


def pairs(client: Any) -> Batch:
    lock = client.lock("bench")

    def run() -> None:
        for _ in range(PAIRS):
            lock.acquire()
            lock.release()

    return run, PAIRS


def async_pairs(client: Any, loop: asyncio.AbstractEventLoop) -> Batch:
    lock = client.lock("bench")

    async def run() -> None:
        for _ in range(PAIRS):
            await lock.acquire()
            await lock.release()

    return lambda: loop.run_until_complete(run()), PAIRS


def clients(client: Callable[..., Any]) -> dict[str, Any]:
    return {
        "without their lines": client((), strip=True),
        UNUSED: client(()),
        "without, again": client((), strip=True),
        **{name: client(of) for name, of in ready().items()},
    }


def measured(title: str, batches: dict[str, Batch]) -> str:
    times = interleaved(batches, rounds=61)
    rows = [[name, f"{times.least(name) / 1000:.1f}", times.ratio(name, UNUSED)] for name in batches]
    return f"### {title}\n\n{table(['', 'least µs of CPU', f'× {UNUSED} (middle half)'], rows)}"


def blocking() -> str:
    found = clients(lambda of, strip=False: made(sync.Client(MemoryEngine(), hooks=of), strip))
    try:
        return measured("A pair, threads", {name: pairs(one) for name, one in found.items()})
    finally:
        for one in found.values():
            one.close()


def tasks() -> str:
    loop = asyncio.new_event_loop()

    async def client(of: Sequence[Hook], strip: bool) -> Any:
        return made(aio.Client(MemoryEngine(), hooks=of), strip)

    found = clients(lambda of, strip=False: loop.run_until_complete(client(of, strip)))
    try:
        return measured("A pair, asyncio", {name: async_pairs(one, loop) for name, one in found.items()})
    finally:
        for one in found.values():
            loop.run_until_complete(one.aclose())
        loop.close()


def main() -> str:
    return f"## Hooks\n\n{blocking()}\n{tasks()}"


if __name__ == "__main__":
    print(machine() + "\n\n" + main())
