"""Signals from the nodes of a quorum. Each tells whoever waits first there when it becomes free: what a majority says
is worth a try; a single node may be one that missed the holder."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from ... import model
from ...contract import Deliver
from ...errors import HoldfastError, Misuse, Unavailable
from ...model import Signal
from ..redis.pipes import Wire, dial
from ..redis.signals import AsyncEar, Ear
from ..redis.wire import CHANNELS, Target
from .protocol import majority

log = logging.getLogger("holdfast.quorum")

MANY = 4096
"""Claims whose nudges are counted at once; beyond that counting begins anew, and waiters look by themselves."""


class Nudges:
    """Counts which nodes say that a claim may try: passes it on when a majority has."""

    def __init__(self, size: int, deliver: Deliver) -> None:
        self.deliver = deliver
        self._majority = majority(size)
        self._said: dict[str, set[int]] = {}

    def hear(self, node: int, signal: Signal) -> None:
        """From the one thread, or the one loop, of that node."""
        if signal.kind != model.ADMITTED:
            self.deliver(signal)
            return
        if len(self._said) > MANY:
            self._said.clear()
        said = self._said.setdefault(signal.key, set())
        said.add(node)
        if len(said) >= self._majority:
            self._said.pop(signal.key, None)
            self.deliver(Signal(model.NUDGE, signal.key))


class Ears:
    """For threads: one `Ear` per node, each in a thread of its own."""

    def __init__(self, targets: list[Target], inbox: str) -> None:
        self._targets = targets
        self._channel = f"{CHANNELS}{inbox}".encode()
        self._lock = threading.Lock()
        self._ears: list[Ear] = []
        self._nudges: Nudges | None = None
        self._look_again: Callable[[], None] = _nothing
        self._up = 0
        self._flows = False
        self._refusal: Misuse | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        need = majority(len(self._targets))
        with self._lock:
            self._look_again = look_again
            if self._nudges is None:
                self._nudges = Nudges(len(self._targets), deliver)
                for node, target in enumerate(self._targets):
                    channels = {self._channel: ""}
                    hear = partial(self._nudges.hear, node)
                    ear = Ear(partial(Wire, target), target.where, channels, _no_wake, hear, self._again)
                    self._ears.append(ear)
                    threading.Thread(target=self._run, args=(ear,), name="holdfast-signals", daemon=True).start()
            else:
                self._nudges.deliver = deliver
            with self._changed:
                self._changed.wait_for(lambda: self._up >= need or self._refusal, max(0.0, until - time.monotonic()))
                if self._up >= need:
                    flowed, self._flows = self._flows, True
                    return not flowed
                if self._refusal is not None:
                    raise self._refusal
                raise Unavailable(f"no signals from a majority of the quorum within {timeout_s:.1f} s")

    def _again(self) -> None:
        self._look_again()

    def _run(self, ear: Ear) -> None:
        pause_s = 0.02
        while not self._closing.is_set():
            try:
                ear.connect()
                break
            except HoldfastError as trouble:
                log.debug("signals are not connected yet: %s", trouble)
                with self._changed:
                    if isinstance(trouble, Misuse):
                        self._refusal = trouble
                        self._changed.notify_all()
                self._closing.wait(pause_s)
                pause_s = min(2.0, pause_s * 2)
        else:
            return
        with self._changed:
            self._up += 1
            self._changed.notify_all()
        if self._closing.is_set():
            ear.close()
        else:
            self._again()
        ear.run()

    def close(self) -> None:
        self._closing.set()
        for ear in self._ears:
            ear.close()

    def abandon(self) -> None:
        for ear in self._ears:
            if ear.wire is not None:
                ear.wire.close()


class AsyncEars:
    """For an event loop: one `AsyncEar` per node, each in a task of its own."""

    def __init__(self, targets: list[Target], inbox: str) -> None:
        self._targets = targets
        self._channel = f"{CHANNELS}{inbox}".encode()
        self._ears: list[AsyncEar] = []
        self._nudges: Nudges | None = None
        self._look_again: Callable[[], None] = _nothing
        self._up = 0
        self._flows = False
        self._refusal: Misuse | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float) -> bool:
        need = majority(len(self._targets))
        self._look_again = look_again
        if self._nudges is None:
            self._nudges = Nudges(len(self._targets), deliver)
            for node, target in enumerate(self._targets):
                channels = {self._channel: ""}
                hear = partial(self._nudges.hear, node)
                ear = AsyncEar(partial(dial, target), target.where, channels, hear, self._again)
                self._ears.append(ear)
                self._tasks.append(asyncio.create_task(self._run(ear), name="holdfast-signals"))
        else:
            self._nudges.deliver = deliver
        try:
            async with asyncio.timeout(timeout_s):
                while self._up < need and self._refusal is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Unavailable(f"no signals from a majority of the quorum within {timeout_s:.1f} s") from None
        if self._up < need and self._refusal is not None:
            raise self._refusal
        flowed, self._flows = self._flows, True
        return not flowed

    def _again(self) -> None:
        self._look_again()

    async def _run(self, ear: AsyncEar) -> None:
        pause_s = 0.02
        while True:
            try:
                await ear.connect()
                break
            except HoldfastError as trouble:
                log.debug("signals are not connected yet: %s", trouble)
                if isinstance(trouble, Misuse):
                    self._refusal = trouble
                    self._changed.set()
            await asyncio.sleep(pause_s)
            pause_s = min(2.0, pause_s * 2)
        self._up += 1
        self._changed.set()
        self._again()
        await ear.run()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for ear in self._ears:
            await ear.close()

    def abandon(self) -> None:
        for ear in self._ears:
            if ear.pipe is not None and not ear.pipe.closed:
                ear.pipe.abandon()


def _no_wake(timeout_s: float) -> None:
    raise AssertionError("no channel is ever added: a quorum announces no changes")


def _nothing() -> None:
    return
