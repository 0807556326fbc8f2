"""Who is alive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Self

from ..core import group as groups
from ..core.group import HealthBase
from ..core.health import THRESHOLD
from ..core.roster import Member, MemberEvent
from ..model import Turnstile
from .lease import Lease
from .watch import follow

if TYPE_CHECKING:
    from .client import Client


class Group:
    """A named set of live members."""

    __slots__ = ("_client", "_turnstile")

    def __init__(self, client: Client, turnstile: Turnstile) -> None:
        self._client, self._turnstile = client, turnstile

    async def join(self, payload: bytes = b"", ttl_s: float | None = None) -> Lease:
        """Become a member until the lease is released or lost.

        Others notice a crash after ``ttl_s`` at most: 15 s, or the engine's session.
        """
        session = self._client.session
        tenure = groups.new_member(session, self._turnstile, payload, ttl_s)
        lease = Lease(session, tenure)
        await groups.join(session, tenure)
        return lease

    async def members(self) -> list[Member]:
        """Who is in now, senior first."""
        return await groups.members(self._client.session, self._turnstile)

    def watch(self, timeout_s: float | None = None) -> AsyncIterator[list[Member]]:
        """The members now, and again after each change; ends once nothing changed for ``timeout_s``.

        Never misses the last state; may skip ones in between. Goes on when the engine comes back; raises `Unavailable`
        where it is out of reach at the end.
        """
        session = self._client.session
        return follow(session, groups.watch(session, self._turnstile), timeout_s)

    def events(self, timeout_s: float | None = None, *, threshold: float = THRESHOLD) -> AsyncIterator[MemberEvent]:
        """What happens to members, beginning with a JOINED for each who is there; ends as `watch` does.

        ``kind``: JOINED, SUSPECT (silent for unlikely long: its phi reached ``threshold``), ALIVE (heard of again), and
        at last LEFT (before its lease could have ended) or GONE (it ended). A hint, for routing: nothing that must have
        one owner hangs on it. Looks as often as `health` does.
        """
        session = self._client.session
        return follow(session, groups.Events(session, self._turnstile, threshold), timeout_s)

    async def health(self, *, threshold: float = THRESHOLD) -> Health:
        """Who is well, kept up to date in the background until it is closed. Raises `Unavailable` at the start only.

        Looks about six times in the shortest lease of a member, and at once when one comes or leaves.
        """
        health = Health(self._client.session, self._turnstile, threshold)
        await health._open()  # pyright: ignore[reportPrivateUsage]
        return health


class Health(HealthBase):
    """What a router asks before each request: who is alive. A context manager that closes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
