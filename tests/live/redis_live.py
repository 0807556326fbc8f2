"""A Redis of a test's own, and what stands on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis
from servers import RedisServer, eventually

from holdfast.engines.redis import RedisEngine
from holdfast.model import ClaimView, Turnstile


class LiveRedis(RedisServer):
    """Started; looks at itself through a link of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        super().__init__(folder, *arguments)
        self.start()
        self.client: Any = redis.Redis(port=self.port)
        self._engine = RedisEngine(self.url)
        self._link: Any = self._engine.blocking_link()

    def close(self) -> None:
        self._link.close()
        self.client.close()
        self.__exit__(None, None, None)

    def claims(self, name: str, capacity: int = 1, kind: str = "lock") -> tuple[ClaimView, ...]:
        """Live claims in the order of their tokens."""
        return self._link.call(self._engine.look(Turnstile(kind, name, capacity)), 5.0).claims

    def holders(self, name: str) -> list[int]:
        """The tokens of those admitted."""
        return [claim.token for claim in self.claims(name) if claim.admitted]

    def waiters(self, name: str) -> int:
        return sum(not claim.admitted for claim in self.claims(name))

    def cell(self, name: str) -> Any:
        return self._link.call(self._engine.read(name, None), 5.0)


def gone(server: LiveRedis, name: str, within_s: float = 5.0) -> None:
    """Wait until no claim stands on that lock."""
    eventually(lambda: not server.claims(name), within_s, f"a claim stands on {name}")
