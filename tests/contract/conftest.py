"""One suite, every engine, both kinds of link: each test is written once, against `Desk`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from engines import ASKING, ENGINES, EXCLUSIVE, ON_SESSIONS
from servers import eventually

from holdfast.contract import AsyncLink, BlockingLink, Engine, Request
from holdfast.engines import engine_for
from holdfast.model import (
    ADMITTED,
    WANTED,
    CellReply,
    Change,
    Claim,
    Fence,
    Signal,
    Snapshot,
    Standing,
    State,
    Turnstile,
)

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own, to drive asyncio links from plain tests."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, task: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(task, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Seat:
    """One client's link to the engine under test, blocking or asyncio, and the signals that reached its inbox."""

    def __init__(self, engine: Engine, loop: Loop | None) -> None:
        self.engine = engine
        self.loop = loop
        self.signals: list[Signal] = []
        self.looks = 0
        self.link: BlockingLink | AsyncLink
        self.link = engine.blocking_link() if loop is None else loop.run(self._make())

    async def _make(self) -> AsyncLink:
        return self.engine.async_link()

    def _do(self, result: Any) -> Any:
        return result if self.loop is None else self.loop.run(result)

    def call(self, request: Request[T]) -> T:
        return self._do(self.link.call(request, 5.0))  # type: ignore[no-any-return]

    def call_many(self, requests: Sequence[Request[T]]) -> list[T | Exception]:
        return self._do(self.link.call_many(requests, 5.0))  # type: ignore[no-any-return]

    def listen(self) -> bool:
        def look_again() -> None:
            self.looks += 1

        return self._do(self.link.listen(self.signals.append, look_again))  # type: ignore[no-any-return]

    def watch(self, turnstile: Turnstile) -> None:
        self._do(self.link.watch(turnstile))

    def unwatch(self, turnstile: Turnstile) -> None:
        self._do(self.link.unwatch(turnstile))

    def close(self) -> None:
        self._do(self.link.close())

    # -- the contract in a test's words

    def claim(self, id: str, weight: int = 1, ttl_s: float = 30.0, **more: Any) -> Claim:
        return Claim(id, weight, ttl_s, self.link.inbox, **{"owner": "me", **more})

    def enter(self, turnstile: Turnstile, claim: Claim | str, nowait: bool = False) -> Standing:
        claim = self.claim(claim) if isinstance(claim, str) else claim
        return self.call(self.engine.enter(turnstile, claim, nowait))

    def leave(self, turnstile: Turnstile, claim: Claim | str, bury: bool = False) -> bool:
        return self.call(self.engine.leave(turnstile, claim if isinstance(claim, str) else claim.id, bury))

    def renew(self, turnstile: Turnstile, claim: Claim | str) -> Standing:
        claim = self.claim(claim) if isinstance(claim, str) else claim
        replies = self.call_many(list(self.engine.renew([(turnstile, claim)])))
        (reply,) = replies
        assert isinstance(reply, dict), reply
        return reply[claim.id]

    def state(self, turnstile: Turnstile, claim: Claim | str) -> State:
        return self.renew(turnstile, claim).state

    def look(self, turnstile: Turnstile) -> Snapshot:
        return self.call(self.engine.look(turnstile))

    def admitted(self, turnstile: Turnstile) -> list[str]:
        return [claim.id for claim in self.look(turnstile).admitted]

    def waiting(self, turnstile: Turnstile) -> list[str]:
        return [claim.id for claim in self.look(turnstile).waiting]

    def list(self, prefix: str = "") -> Sequence[Turnstile]:
        return self.call(self.engine.list(prefix))

    def open(self, cell: str, fence: Fence) -> CellReply:
        return self.call(self.engine.open(cell, fence))

    def put(
        self,
        cell: str,
        fence: Fence,
        version: int,
        op_id: str,
        value: bytes | None = None,
        changes: Sequence[Change] = (),
    ) -> CellReply:
        return self.call(self.engine.put(cell, fence, version, op_id, value, changes))

    def read(self, cell: str, keys: Sequence[str] | None = None) -> Any:
        return self.call(self.engine.read(cell, keys))

    def hears(self, kind: str, key: str) -> None:
        eventually(lambda: Signal(kind, key) in self.signals, what=f"no {kind} {key} among {self.signals}")

    def is_admitted_and_knows_that_it_is_wanted(self, turnstile: Turnstile, id: str) -> bool:
        """Whoever goes on when it hears ADMITTED must already know, without asking."""
        self.hears(ADMITTED, id)
        if self.engine.capabilities.engine in ASKING:
            return self.renew(turnstile, id).wanted
        told = [signal.kind for signal in self.signals if signal.key == id]
        return WANTED in told[: told.index(ADMITTED)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "new_engine" in metafunc.fixturenames:
        own_ttl = metafunc.definition.get_closest_marker("own_ttl")
        queue = metafunc.definition.get_closest_marker("queue")
        engines = [engine for engine in ENGINES if not (own_ttl and engine in ON_SESSIONS)]
        engines = [engine for engine in engines if not (queue and engine in EXCLUSIVE)]
        metafunc.parametrize("new_engine", engines, indirect=True)


@pytest.fixture
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Engine]:
    """Makes engines that share one state, as the processes of one application do."""
    if request.param == "memory":
        name = f"{request.node.nodeid}{tmp_path}"
        return lambda namespace="": engine_for(f"memory://{name}", namespace)
    url: str = request.getfixturevalue(f"{request.param}_url")
    return lambda namespace="": engine_for(url, namespace)


@pytest.fixture(params=["blocking", "asyncio"])
def seats(request: pytest.FixtureRequest, new_engine: Callable[..., Engine]) -> Iterator[Callable[..., Seat]]:
    """Makes clients of the engine under test."""
    loop = Loop() if request.param == "asyncio" else None
    made: list[Seat] = []

    def seat(namespace: str = "") -> Seat:
        made.append(Seat(new_engine(namespace), loop))
        return made[-1]

    yield seat
    for one in made:
        one.close()
    if loop is not None:
        loop.close()


@pytest.fixture
def seat(seats: Callable[..., Seat]) -> Seat:
    return seats()
