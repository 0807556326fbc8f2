"""The connection that all tasks of an event loop share: each sends at once and waits for its own reply.

A task that is cancelled in the middle leaves its reply to be read and forgotten; everybody else's calls go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ...errors import OutcomeUnknown, Unavailable
from .wire import Call, Wire

log = logging.getLogger("holdfast.postgres")


class Pipe:
    """A `Wire` on the running loop."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.heard_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(wire.fileno, self._readable)
        self._writes = False

    @property
    def closed(self) -> bool:
        return self.wire.closed

    async def exchange(self, calls: Sequence[Call], timeout_s: float, wraps: bool) -> list[Any]:
        """Send, and wait for the replies. Those that do not come are `OutcomeUnknown`."""
        if self.closed:
            gone = Unavailable(f"the connection to PostgreSQL at {self.wire.where} was lost before this was sent")
            return [gone] * len(calls)
        futures: list[asyncio.Future[Any]] = [self._loop.create_future() for _ in calls]
        try:
            for call, future in zip(calls, futures, strict=True):
                self.wire.send(call, future, wraps)
            self._writable()
        except OutcomeUnknown as trouble:
            self._fail(trouble, futures)
        timer = self._loop.call_later(timeout_s, self._expire, futures, self._loop.time(), timeout_s)
        try:
            return [await future for future in futures]
        finally:
            timer.cancel()

    def _writable(self) -> None:
        flushed = self.wire.flush()
        if not flushed and not self._writes:
            self._loop.add_writer(self.wire.fileno, self._write_on)
        elif flushed and self._writes:
            self._loop.remove_writer(self.wire.fileno)
        self._writes = not flushed

    def _write_on(self) -> None:
        try:
            self._writable()
        except OutcomeUnknown as trouble:
            self._fail(trouble)

    def _readable(self) -> None:
        self.heard_at = self._loop.time()
        try:
            for future, result in self.wire.receive():
                if future is not None and not future.done():
                    future.set_result(result)
            if self.wire.closed:
                raise OutcomeUnknown(f"PostgreSQL at {self.wire.where} closed the connection")
            self._writable()
        except OutcomeUnknown as trouble:
            self._fail(trouble)

    def _expire(self, futures: Sequence[asyncio.Future[Any]], since: float, timeout_s: float) -> None:
        why = OutcomeUnknown(
            f"PostgreSQL at {self.wire.where} may or may not have done it: no reply within {timeout_s:.1f} s"
        )
        for future in futures:
            if not future.done():
                future.set_result(why)
        if self.heard_at <= since:  # not one byte for anyone: the connection may be half open
            self._fail(why)

    def _fail(self, why: OutcomeUnknown, more: Sequence[asyncio.Future[Any]] = ()) -> None:
        """Give this connection up; every call that waits on it has an unknown outcome."""
        log.info("a connection to PostgreSQL at %s is given up: %s", self.wire.where, why)
        self.close()
        waits = [*self.wire.waits, *more]
        self.wire.waits.clear()
        for future in waits:
            if future is not None and not future.done():
                future.set_result(why)

    def close(self) -> None:
        self.wire.closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self.wire.fileno)
            self._loop.remove_writer(self.wire.fileno)
        self.wire.close()
