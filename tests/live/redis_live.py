"""A Redis of a test's own, and what stands on it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import redis
from onlooker import Onlooker
from servers import RedisServer, eventually


class LiveRedis(RedisServer, Onlooker):
    """Started; looked at through a link of its own, a new one after each start."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        RedisServer.__init__(self, folder, *arguments)
        self.start()

    def start(self) -> None:
        super().start()
        Onlooker.__init__(self, self.url)
        self.client: Any = redis.Redis(port=self.port)

    def kill(self) -> None:
        if self.process is not None:
            Onlooker.close(self)
            self.client.close()
        super().kill()

    def close(self) -> None:
        self.__exit__(None, None, None)


class Waiter:
    """Someone who waits for the lock ``x`` in a thread."""

    def __init__(self, server: Onlooker, client: Any, ttl_s: float = 1.0, timeout_s: float = 15.0) -> None:
        self.lease: Any = None
        self._lock = client.lock("x", ttl_s=ttl_s)
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._wait)
        before = server.waiters("x")
        self._thread.start()
        eventually(lambda: server.waiters("x") == before + 1)

    def _wait(self) -> None:
        self.lease = self._lock.acquire(timeout_s=self._timeout_s)

    def entered(self) -> Any:
        self._thread.join(self._timeout_s + 5)
        return self.lease


def gone(server: Onlooker, name: str, within_s: float = 10.0) -> None:
    """Wait until no claim stands on that lock."""
    eventually(lambda: not server.claims(name), within_s, f"a claim stands on {name}")


def renewed(lease: Any) -> None:
    """Wait until the lease is extended once more: of what remains there is suddenly more."""
    last_s = [lease.remaining_s]

    def rose() -> bool:
        last_s.append(lease.remaining_s)
        return last_s[-1] > last_s[-2]

    eventually(rose)
