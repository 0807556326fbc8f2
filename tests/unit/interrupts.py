"""Interrupts at counted points: before and after each call that a protocol makes to its world."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from holdfast import aio, sync
from holdfast.core.session import Session
from holdfast.engines.memory import MemoryEngine
from holdfast.worlds.tasks import Tasks
from holdfast.worlds.threads import Threads


class Plan:
    """At which points to interrupt; and how far it came."""

    def __init__(self) -> None:
        self.at: frozenset[int] = frozenset()
        self.passed = 0
        self.raised: list[BaseException] = []
        self.armed = False
        self.meanwhile: Callable[[], object] | None = None  # what happens once the first wait has begun

    def arm(self, at: frozenset[int]) -> None:
        self.at, self.passed, self.armed = at, 0, True
        self.raised.clear()

    def disarm(self) -> None:
        self.armed = False

    def due(self) -> bool:
        """Whether to interrupt here."""
        if not self.armed:
            return False
        self.passed += 1
        return self.passed - 1 in self.at

    def wait_begins(self) -> None:
        if self.armed and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()


class InterruptedThreads(Threads):
    """The blocking world of one thread, the one that made it."""

    def __init__(self, engine: MemoryEngine, plan: Plan) -> None:
        super().__init__(engine.blocking_link(), self._now)
        self.plan = plan
        self._subject = threading.current_thread()

    def point(self) -> None:
        if threading.current_thread() is self._subject and self.plan.due():
            interrupt = KeyboardInterrupt()
            self.plan.raised.append(interrupt)
            raise interrupt

    def _now(self) -> float:
        self.point()
        return Threads(self.link).now()

    async def _between(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            self.point()
            result = await call
        finally:
            call.close()
        self.point()
        return result

    async def sleep(self, delay_s: float) -> None:
        await self._between(super().sleep(delay_s))

    async def call(self, request: Any, timeout_s: float) -> Any:
        return await self._between(super().call(request, timeout_s))

    async def wait_signal(self, mailbox: Any, deadline: float) -> Any:
        if threading.current_thread() is self._subject:
            self.plan.wait_begins()
        return await self._between(super().wait_signal(mailbox, deadline))

    async def listen(self, deliver: Any, look_again: Any, timeout_s: float) -> bool:
        return bool(await self._between(super().listen(deliver, look_again, timeout_s)))

    async def watch(self, turnstile: Any, timeout_s: float) -> None:
        await self._between(super().watch(turnstile, timeout_s))

    async def unwatch(self, turnstile: Any) -> None:
        await self._between(super().unwatch(turnstile))

    async def shield(self, cleanup: Coroutine[Any, Any, None], timeout_s: float) -> None:
        try:
            self.point()
            await super().shield(cleanup, timeout_s)
            self.point()
        finally:
            if inspect.getcoroutinestate(cleanup) == inspect.CORO_CREATED:
                cleanup.close()  # interrupted before it began

    def spawn(self, protocol: Coroutine[Any, Any, None], name: str) -> Any:
        try:
            self.point()
        except BaseException:
            protocol.close()
            raise
        thread = super().spawn(protocol, name)
        self.point()
        return thread


class InterruptedTasks(Tasks):
    """The asyncio world of one task, the one that made it. A cancellation comes at a suspension, as it does."""

    def __init__(self, engine: MemoryEngine, plan: Plan) -> None:
        super().__init__(engine.async_link())
        self.plan = plan
        self._subject = asyncio.current_task()

    async def point(self) -> None:
        if asyncio.current_task() is self._subject and self.plan.due():
            assert self._subject is not None
            self.plan.raised.append(asyncio.CancelledError())
            self._subject.cancel()
            await asyncio.sleep(0)

    async def _between(self, call: Coroutine[Any, Any, Any]) -> Any:
        try:
            await self.point()
            result = await call
        finally:
            call.close()
        await self.point()
        return result

    async def sleep(self, delay_s: float) -> None:
        await self._between(super().sleep(delay_s))

    async def call(self, request: Any, timeout_s: float) -> Any:
        return await self._between(super().call(request, timeout_s))

    async def wait_signal(self, mailbox: Any, deadline: float) -> Any:
        if asyncio.current_task() is self._subject:
            self.plan.wait_begins()
        return await self._between(super().wait_signal(mailbox, deadline))

    async def listen(self, deliver: Any, look_again: Any, timeout_s: float) -> bool:
        return bool(await self._between(super().listen(deliver, look_again, timeout_s)))

    async def watch(self, turnstile: Any, timeout_s: float) -> None:
        await self._between(super().watch(turnstile, timeout_s))

    async def unwatch(self, turnstile: Any) -> None:
        await self._between(super().unwatch(turnstile))

    async def shield(self, cleanup: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Interrupted while it waits: it holds off every cancellation until its end."""
        task = asyncio.current_task()
        if task is self._subject and self.plan.due():
            assert task is not None
            self.plan.raised.append(asyncio.CancelledError())
            task.get_loop().call_soon(task.cancel)
        await super().shield(cleanup, timeout_s)


class InterruptedClient(sync.Client):
    def __init__(self, engine: MemoryEngine, plan: Plan) -> None:
        super().__init__(engine)
        self.engine, self.plan = engine, plan

    def _new_session(self) -> Session:
        return Session(self.engine, InterruptedThreads(self.engine, self.plan), patience_s=5.0, owner="subject")


class InterruptedAsyncClient(aio.Client):
    def __init__(self, engine: MemoryEngine, plan: Plan) -> None:
        super().__init__(engine)
        self.engine, self.plan = engine, plan

    def _new_session(self) -> Session:
        return Session(self.engine, InterruptedTasks(self.engine, self.plan), patience_s=5.0, owner="subject")
