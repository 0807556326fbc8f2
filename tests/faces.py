"""Both faces behind one: a test is written once, as a coroutine, and runs on the blocking face and on asyncio's."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from holdfast import aio, sync, testing


async def go(result: Any) -> Any:
    """What a method gave, awaited where it is asyncio's."""
    return await result if inspect.isawaitable(result) else result


@contextlib.asynccontextmanager
async def held(manager: Any) -> AsyncIterator[Any]:
    """``with`` or ``async with``."""
    if hasattr(manager, "__aenter__"):
        async with manager as entered:
            yield entered
    else:
        with manager as entered:
            yield entered


class Face:
    """One of the two, on memory in fake time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = sync if name == "sync" else aio

    def connect(self, *args: Any, **options: Any) -> Any:
        return self.module.connect(*args, **options)

    def client(self, **options: Any) -> Any:
        return testing.client(**options) if self.name == "sync" else testing.aio_client(**options)

    def function(self, body: Callable[..., Any]) -> Any:
        """``body`` as a function that this face decorates."""
        if self.name == "sync":
            return body

        async def call(*args: Any, **kwargs: Any) -> Any:
            return body(*args, **kwargs)

        call.__signature__ = inspect.signature(body)  # type: ignore[attr-defined]
        return call

    def run(self, scenario: Callable[[Any], Coroutine[Any, Any, None]], **options: Any) -> None:
        """Run ``scenario`` with a fresh client, which is closed after it."""

        async def main() -> None:
            hf = self.client(**options)
            try:
                await scenario(hf)
            finally:
                await go(hf.close() if self.name == "sync" else hf.aclose())

        asyncio.run(main())
