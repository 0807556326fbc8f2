"""The asyncio world: one event loop over one link."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import inspect
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ..contract import AsyncLink, Deliver, Request
from ..model import NEVER_S, Signal, Turnstile
from . import clock

T = TypeVar("T")


class TaskMailbox:
    """Signals for one waiter of a loop; posted from any thread."""

    __slots__ = ("_loop", "_signals", "_thread_id", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        self._loop = loop
        self._thread_id = thread_id
        self._signals: collections.deque[Signal] = collections.deque()
        self._waiter: asyncio.Future[None] | None = None

    def post(self, signal: Signal) -> None:
        self._signals.append(signal)
        if threading.get_ident() == self._thread_id:
            self._wake()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, timeout_s: float | None) -> Signal | None:
        if not self._signals:
            self._waiter = self._loop.create_future()
            timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._wake)
            try:
                if not self._signals:
                    await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        return self._signals.popleft() if self._signals else None


class _Belongings(dict[Any, Any]):
    """Of one task; held by nobody else."""

    __slots__ = ("__weakref__",)


class Tasks:
    """The running event loop over one link. Made inside the loop."""

    def __init__(self, link: AsyncLink, now: Callable[[], float] = clock.now) -> None:
        self.link = link
        self.inbox = link.inbox
        self.now = now
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._background: set[asyncio.Task[None]] = set()
        self._belongings: weakref.WeakKeyDictionary[asyncio.Task[Any], _Belongings] = weakref.WeakKeyDictionary()
        self._last: tuple[Callable[[], Any], Callable[[], _Belongings | None]] = (lambda: None, lambda: None)

    wall = staticmethod(time.time)
    random = staticmethod(random.random)
    mutex = staticmethod(threading.Lock)

    def belongings(self) -> dict[Any, Any]:
        task = asyncio.current_task(self._loop)
        assert task is not None
        last_task, last = self._last  # a task asks several times in a row
        if last_task() is task and (mine := last()) is not None:
            return mine
        mine = self._belongings.get(task)
        if mine is None:
            mine = self._belongings[task] = _Belongings()
        self._last = weakref.ref(task), weakref.ref(mine)
        return mine

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    async def call(self, request: Request[T], timeout_s: float) -> T:
        return await self.link.call(request, timeout_s)

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        return await self.link.call_many(requests, timeout_s)

    def mailbox(self) -> TaskMailbox:
        return TaskMailbox(self._loop, self._thread_id)

    async def wait_signal(self, mailbox: TaskMailbox, deadline: float) -> Signal | None:
        if deadline == NEVER_S:
            return await mailbox.get(None)
        return await mailbox.get(max(0.0, deadline - self.now()))

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool:
        return await self.link.listen(deliver, look_again, timeout_s)

    async def watch(self, turnstile: Turnstile, timeout_s: float) -> None:
        await self.link.watch(turnstile, timeout_s)

    async def unwatch(self, turnstile: Turnstile) -> None:
        await self.link.unwatch(turnstile)

    async def shield(self, cleanup: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """As a task of its own; a cancellation that hits the waiting caller is raised after it."""
        task = self.spawn(cleanup, "holdfast-cleanup")
        until = self.now() + timeout_s
        cancelled: asyncio.CancelledError | None = None
        while not task.done() and self.now() < until:
            try:
                await asyncio.wait({task}, timeout=max(0.0, until - self.now()))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def spawn(self, protocol: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(protocol, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def notify(self, callback: Callable[..., Any], *args: Any) -> None:
        """On the loop; a coroutine function becomes a task."""
        self._loop.call_soon_threadsafe(self._notify, callback, args)

    def _notify(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        result = callback(*args)
        if inspect.iscoroutine(result):
            self.spawn(result, "holdfast-callback")

    async def stop(self) -> None:
        """Cancel what still runs in the background."""
        tasks = [task for task in self._background if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
