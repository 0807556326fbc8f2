"""A Redis that answers at once, in this process, so that what is left of a pair is Python. It has one lock."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from holdfast.engines.redis.engine import RedisEngine
from holdfast.engines.redis.links import AsyncRedisLink, RedisLink
from holdfast.engines.redis.wire import Target

ENTERED, LEFT = b"$23\r\n1 1764057600123456 0 -1\r\n", b":1\r\n"


class StubSocket:
    """Answers each request before it is asked for: an enter with a token, a leave with 1."""

    def __init__(self) -> None:
        self._next = itertools.cycle((ENTERED, LEFT)).__next__

    def sendall(self, payload: bytes) -> None: ...

    def recv(self, size: int) -> bytes:
        return self._next()

    def settimeout(self, timeout_s: float) -> None: ...

    def close(self) -> None: ...


class StubTransport:
    """The same for an event loop: the reply comes with the loop's next turn."""

    def __init__(self) -> None:
        self._next = itertools.cycle((ENTERED, LEFT)).__next__
        self._protocol: Any = asyncio.Protocol()
        self._call_soon = asyncio.get_running_loop().call_soon
        self.transport = self  # it is its own stream writer

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def write(self, payload: bytes) -> None:
        self._call_soon(self._protocol.data_received, self._next())

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self._call_soon(self._protocol.connection_lost, None)


class StubConnection:
    """What a link asks of the client library's connection."""

    def connect(self) -> None:
        self._sock = StubSocket()


class AsyncStubConnection:
    async def connect(self) -> None:
        self._writer = StubTransport()


class StubEngine(RedisEngine):
    """The engine over the stub."""

    def __init__(self) -> None:
        super().__init__("redis://localhost", "")

    def blocking_link(self) -> Any:
        return RedisLink(Target(StubConnection, {}, "stub", "stub", None), self.changed_channel)

    def async_link(self) -> Any:
        return AsyncRedisLink(Target(AsyncStubConnection, {}, "stub", "stub", None), self.changed_channel)
