"""Both faces for one test: the asyncio one behind a loop in a thread, so that a test is written once, blocking."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Coroutine
from typing import Any

import holdfast
from holdfast import aio

FACES = ("sync", "aio")


class Loop:
    """An event loop in a thread of its own. A forked child that uses it gets a new one."""

    def __init__(self) -> None:
        self._pid = 0
        self._starting = threading.Lock()
        self._loop: Any = None
        self._thread: Any = None

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        with self._starting:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="test-loop", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        if self._pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Blocking:
    """An object of holdfast.aio, used from outside its loop: every attribute is read, every method run, inside it."""

    def __init__(self, inner: Any, loop: Loop) -> None:
        self._inner, self._loop = inner, loop

    def __getattr__(self, name: str) -> Any:
        if inspect.isfunction(getattr(type(self._inner), name, None)):
            return lambda *args, **options: self._call(name, args, options)
        return self._call("__getattribute__", (name,), {})

    def _call(self, name: str, args: Any, options: Any) -> Any:
        plain = [arg._inner if isinstance(arg, Blocking) else arg for arg in args]

        async def work() -> Any:
            result = getattr(self._inner, name)(*plain, **options)
            return await result if inspect.isawaitable(result) else result

        result = self._loop.run(work())
        return Blocking(result, self._loop) if type(result).__module__.startswith("holdfast.aio.") else result

    def close(self) -> None:
        self._call("aclose", (), {})
        self._loop.close()


def connect(face: str, url: str, **options: Any) -> Any:
    """A client to be used as one of `holdfast.connect`."""
    if face == "sync":
        return holdfast.connect(url, **options)
    return Blocking(aio.connect(url, **options), Loop())
