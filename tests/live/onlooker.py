"""What stands on an engine, seen by one who takes no part."""

from __future__ import annotations

from typing import Any

from holdfast.engines import resolve
from holdfast.model import ClaimView, Turnstile


class Onlooker:
    """Looks at the engine at ``url`` through a link of its own."""

    def __init__(self, url: str) -> None:
        self._engine = resolve(url, "", None)
        self._link = self._engine.blocking_link()

    def claims(self, name: str, kind: str = "lock") -> tuple[ClaimView, ...]:
        """Live claims in the order of their tokens."""
        return self._link.call(self._engine.look(Turnstile(kind, name, 1)), 5.0).claims

    def holders(self, name: str) -> list[int]:
        """The tokens of those admitted."""
        return [claim.token for claim in self.claims(name) if claim.admitted]

    def waiters(self, name: str) -> int:
        return sum(not claim.admitted for claim in self.claims(name))

    def cell(self, name: str) -> Any:
        return self._link.call(self._engine.read(name, None), 5.0)

    def close(self) -> None:
        self._link.close()
