"""Partitions, shared among members."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from ..core import group as groups
from ..core import partitions as sharing
from ..core.group import Member
from ..core.session import Session
from ..model import NEVER_S, Turnstile
from ..worlds.threads import drive
from .lease import Lease

if TYPE_CHECKING:
    from .client import Client


class Partitions:
    """A number of partitions that the members of one name share by consistent hashing."""

    __slots__ = ("_client", "_ttl_s", "_turnstile")

    def __init__(self, client: Client, turnstile: Turnstile, ttl_s: float) -> None:
        self._client, self._turnstile, self._ttl_s = client, turnstile, ttl_s

    def join(
        self,
        payload: bytes = b"",
        on_assigned: Callable[[int, Lease], Any] | None = None,
        on_revoked: Callable[[int], Any] | None = None,
    ) -> Share:
        """Take part; the share is kept in the background until `Share.leave`.

        ``on_assigned(partition, lease)`` after a partition became ours; the rest waits for its return.
        ``on_revoked(partition)`` before it is handed over, which is done when it returns, or after it was lost; each
        in a thread of its own, so that one that takes long holds up no other partition.
        """
        session = self._client.session
        share = sharing.Share[Lease](
            session, self._turnstile, self._ttl_s, payload, functools.partial(Lease, session), on_assigned, on_revoked
        )
        drive(share.start())
        return Share(session, share)

    def members(self) -> list[Member]:
        """Who takes part now, senior first."""
        return drive(groups.members(self._client.session, self._turnstile))

    def owners(self) -> dict[int, str]:
        """Who owns each partition now; those that are between two owners are left out."""
        return drive(sharing.owners(self._client.session, self._turnstile.name, self._turnstile.capacity))


class Share:
    """What one member owns. A context manager that leaves at its end."""

    __slots__ = ("_session", "_share")

    def __init__(self, session: Session, share: sharing.Share[Lease]) -> None:
        self._session, self._share = session, share

    @property
    def owned(self) -> Mapping[int, Lease]:
        """Our partitions now, each with its lease (which opens cells)."""
        return self._share.owned

    @property
    def member_id(self) -> str:
        """Our id among the members; empty while we are none."""
        return self._share.member_id

    def wait_change(self, timeout_s: float | None = None) -> bool:
        """Wait until `owned` changed; False after ``timeout_s``."""
        until = NEVER_S if timeout_s is None else self._session.world.now() + timeout_s
        return drive(self._share.wait_change(until))

    def leave(self) -> None:
        """Hand everything over at once, and go."""
        drive(self._share.leave())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()
