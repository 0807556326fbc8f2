"""Partitions, shared among members."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..core import assigner
from ..core import cell as cells
from ..core import partitions as sharing
from ..core.assignment import Assignment
from ..core.handover import Handover
from ..core.partitions import REVOKE_TIMEOUT_S, Participant
from ..core.session import Session
from ..core.tenure import Tenure
from ..model import NEVER_S, Turnstile
from ..worlds.threads import drive
from .lease import Lease

if TYPE_CHECKING:
    from .client import Client


class Partitions:
    """A number of partitions, each owned by one of the members of one name at most."""

    __slots__ = ("_client", "_ttl_s", "_turnstile")

    def __init__(self, client: Client, turnstile: Turnstile, ttl_s: float) -> None:
        self._client, self._turnstile, self._ttl_s = client, turnstile, ttl_s

    def join(
        self,
        payload: bytes = b"",
        on_assigned: Callable[[int, PartitionLease], Any] | None = None,
        on_revoked: Callable[[int], Any] | None = None,
        *,
        name: str | None = None,
        weight: int = 1,
        zone: str = "",
        grace_s: float = 0.0,
        revoke_timeout_s: float = REVOKE_TIMEOUT_S,
    ) -> Share:
        """Take part; the share is kept in the background until `Share.leave`.

        ``on_assigned(partition, lease)`` after a partition became ours. ``on_revoked(partition)`` before it is handed
        over, which is done when it returns, or after it was lost. Each runs in a thread of its own, many at once, yet
        never both for one partition. One that has not returned ``revoke_timeout_s`` seconds after its partition
        was to go is waited for no longer: the lease is given back, and what `PartitionLease.save` still writes refused.

        ``weight``: our share beside the others'. ``zone``: what a member loses goes to others in its zone first.
        ``name``, which no other live member has, and ``grace_s``: when we are gone, by will or not, our partitions wait
        for us so long, and are ours again if we come back under this name.

        Raises `Misuse` where other members give another count, or one has our name.
        """
        session = self._client.session
        share = sharing.Share[PartitionLease](
            session,
            self._turnstile,
            self._ttl_s,
            sharing.seat(name, weight, zone, grace_s, payload),
            functools.partial(PartitionLease, session),
            on_assigned,
            on_revoked,
            revoke_timeout_s,
        )
        drive(share.start())
        return Share(session, share)

    def members(self) -> list[Participant]:
        """Who takes part now, senior first."""
        return drive(sharing.members(self._client.session, self._turnstile))

    def owners(self) -> dict[int, str]:
        """Who owns each partition now; those that are between two owners are left out."""
        return drive(sharing.owners(self._client.session, self._turnstile.name, self._turnstile.capacity))

    def assignment(self) -> Assignment:
        """Who should own each partition, and what moved of late, why, and how long it took."""
        return drive(assigner.read(self._client.session, self._turnstile.name, self._turnstile.capacity))

    def rebalance(self) -> Assignment:
        """Share everything out among those who are there now, and wait no longer for who is away."""
        return drive(sharing.rebalance(self._client.session, self._turnstile, self._ttl_s))


class PartitionLease(Lease):
    """An owned partition, with its checkpoint: bytes that only its owner writes, and the next one finds."""

    __slots__ = ("_lock", "_opened", "partition")

    def __init__(self, session: Session, partition: int, tenure: Tenure) -> None:
        super().__init__(session, tenure)
        self.partition = partition
        self._opened: cells.Opening | None = None
        self._lock = threading.Lock()

    def load(self) -> bytes | None:
        """The checkpoint; None before the first. Raises `StaleToken`, `LeaseLost` where another owns the partition."""
        with self._lock:
            return drive(self._open()).value

    def save(self, checkpoint: bytes) -> None:
        """Write it. Raises `StaleToken`, `LeaseLost` where another owns the partition, and as `OpenCell.put`."""
        with self._lock:
            drive(self._put(checkpoint))

    async def _put(self, checkpoint: bytes) -> None:
        await cells.put(self._session, await self._open(), checkpoint, [])

    async def _open(self) -> cells.Opening:
        self._session.refuse_fork()
        if self._opened is None:
            self._opened = await cells.open_cell(self._session, self._tenure.turnstile.address, self._own())
        return self._opened


class Share:
    """What one member owns. A context manager that leaves at its end."""

    __slots__ = ("_session", "_share")

    def __init__(self, session: Session, share: sharing.Share[PartitionLease]) -> None:
        self._session, self._share = session, share

    @property
    def owned(self) -> Mapping[int, PartitionLease]:
        """Our partitions now, each with its lease (which keeps its checkpoint, and opens cells)."""
        return self._share.owned

    @property
    def member_id(self) -> str:
        """Our id among the members; empty while we are none."""
        return self._share.member_id

    def wait_change(self, timeout_s: float | None = None) -> bool:
        """Wait until `owned` changed; False after ``timeout_s``."""
        return drive(self._share.wait_change(self._until(timeout_s)))

    def events(self, timeout_s: float | None = None) -> Iterator[Handover[PartitionLease]]:
        """What comes and goes, beginning with what is ours: kind (ASSIGNED or REVOKED), partition, lease.

        Instead of callbacks: a revoked partition is handed over when the next event is asked for. Ends after `leave`,
        or once nothing came for ``timeout_s``.
        """
        self._share.start_stream()
        while (event := drive(self._share.read(self._until(timeout_s)))) is not None:
            yield event

    def leave(self) -> None:
        """Hand everything over at once, and go."""
        drive(self._share.leave())

    def _until(self, timeout_s: float | None) -> float:
        return NEVER_S if timeout_s is None else self._session.world.now() + timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
