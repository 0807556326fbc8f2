"""What an engine is: it builds requests and parses replies for one real system, and can open links to it.

Rules that every engine keeps (the contract suite holds them):

* Every operation is idempotent by the claim's id, or by the opening and operation id of a cell.
* `leave` with ``bury`` set, or one that finds nothing, leaves a tombstone for `TOMBSTONE_S`: an `enter` of that
  id is answered BURIED, a repeated leave gets the first outcome.
* Every operation on a turnstile sweeps it first: expired claims go, whoever fits is admitted and signalled.
* Tokens rise strictly within a turnstile, in admission order; where they start from a clock, also after the engine
  lost its data, as far as that clock is right.
* Signals are hints: they may be lost, doubled or late, and replies repeat what they said.
* ``wanted`` is a level and is told at once. Who comes to wait, or a refused ``nowait``, has WANTED signalled to every
  admitted claim that was not told; who is admitted while others wait hears WANTED and then ADMITTED. Every reply that
  finds such a claim admitted says it too. An engine that would have to ask for it (without scripts) may leave the
  signals out until a claim's first renewal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from .model import CellReply, CellSnapshot, Change, Claim, Fence, Signal, Snapshot, Standing, Turnstile

T = TypeVar("T")

LISTEN_S = 5.0
"""How long `listen` and `watch` may take where nobody says otherwise."""

Scope = Literal["process", "machine", "fleet"]

LAYOUT = 1
"""The version of the stored layout, kept inside every stored turnstile and cell. An unknown one is refused."""

TOMBSTONE_S = 900.0
"""How long a delayed copy of a request may still arrive: what TCP keeps retransmitting for."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine guarantees. What it lacks is refused when an object is made."""

    engine: str
    scope: Scope
    fair: bool
    weighted: bool
    signals: bool
    cells: bool
    groups: bool
    survives_restart: bool
    token_survives_failover: bool
    token_source: str
    min_ttl_s: float
    max_value_bytes: int
    ttl_s: float | None = None
    """The one length of all leases of a client, where they hang on its session with the engine; None: each its own.

    There a claim stands until it is left or the session is over, and the link says at once, as signals, that the
    session is in doubt (`UNSURE`) or over (`GONE`). Such a lease cannot be handed to another process.
    """
    tied: bool = False
    """Claims end with their client's connection for signals as well, whose loss the link says at once (`UNSURE`)."""
    renewed_by_any: bool = True
    """Any client of this engine can renew a claim; False: only the link that entered it, on which it hangs."""


class Request(Generic[T]):
    """One operation, ready to send: ``body`` is the engine's own, ``parse`` turns its raw reply into a ``T``."""

    __slots__ = ("body", "op", "parse")

    def __init__(self, op: str, body: Any, parse: Callable[[Any], T]) -> None:
        self.op = op
        self.body = body
        self.parse = parse


Deliver = Callable[[Signal], None]
"""Takes a signal from any thread, without blocking."""


class BlockingLink(Protocol):
    """An engine's connections as one process's threads use them. All methods may be called from any thread.

    ``call`` raises `Unavailable` where the request surely did nothing, `OutcomeUnknown` where it may have,
    and other `HoldfastError` where the engine refused it. An exception that is not ours (an interrupt) leaves
    the link usable.

    One may also have a ``reading``: how a thread that waits reads signals itself (`worlds.threads.Reading`).
    """

    @property
    def inbox(self) -> str: ...

    @property
    def lifeline(self) -> int | None:
        """A descriptor whose open copies keep this inbox's claims alive, for a child; None where leases alone do."""
        ...

    def call(self, request: Request[T], timeout_s: float) -> T: ...

    def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]:
        """All of them, pipelined where the engine can; a failed one is its exception."""
        ...

    def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool:
        """Let this inbox's signals flow; True if they did not before. Returns once none can be missed.

        ``look_again`` is called whenever signals may have been missed (after a reconnect). Raises as ``call`` does, and
        may be tried again.
        """
        ...

    def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None:
        """From now on also deliver CHANGED for this announcing turnstile. Needs `listen` first; may be repeated."""
        ...

    def unwatch(self, turnstile: Turnstile) -> None: ...

    def close(self) -> None:
        """Close what was opened here. Never called in a forked child: see `abandon`."""
        ...

    def abandon(self) -> None:
        """Forget inherited connections in a forked child without touching what the parent shares with it."""
        ...


class AsyncLink(Protocol):
    """The same on one asyncio event loop; ``deliver`` is called on that loop or from any thread."""

    @property
    def inbox(self) -> str: ...

    @property
    def lifeline(self) -> int | None: ...

    async def call(self, request: Request[T], timeout_s: float) -> T: ...

    async def call_many(self, requests: Sequence[Request[T]], timeout_s: float) -> list[T | Exception]: ...

    async def listen(self, deliver: Deliver, look_again: Callable[[], None], timeout_s: float = LISTEN_S) -> bool: ...

    async def watch(self, turnstile: Turnstile, timeout_s: float = LISTEN_S) -> None: ...

    async def unwatch(self, turnstile: Turnstile) -> None: ...

    async def close(self) -> None: ...

    def abandon(self) -> None: ...


class Engine(Protocol):
    """One engine, configured. Making it and building requests does no I/O."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def identity(self) -> str:
        """Equal for two engines that surely share their state; goes into detached leases."""
        ...

    def blocking_link(self) -> BlockingLink: ...

    def async_link(self) -> AsyncLink: ...

    def ping(self) -> Request[None]: ...

    def enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Request[Standing]:
        """Join the queue. Answers ADMITTED, WAITING, BUSY (nowait only) or BURIED; again for a known id: as it stands.

        `Misuse` where the turnstile stands with another capacity. A nowait that is refused raises ``wanted``.
        """
        ...

    def leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> Request[bool]:
        """Go, and admit and signal exactly those who now fit. True if the claim was there (or a tombstone says so)."""
        ...

    def renew(self, items: Sequence[tuple[Turnstile, Claim]]) -> Iterable[Request[dict[str, Standing]]]:
        """Extend leases to now + ttl, admitted or waiting, in bounded batches; by claim id: ADMITTED, WAITING or GONE.

        Never creates. A stored inbox that differs from the claim's is replaced (a lease changed hands).
        """
        ...

    def look(self, turnstile: Turnstile) -> Request[Snapshot]: ...

    def list(self, prefix: str) -> Request[Sequence[Turnstile]]:
        """Turnstiles that stand and whose address starts with ``prefix``, sorted by address."""
        ...

    def open(self, cell: str, fence: Fence) -> Request[CellReply]:
        """Raise the fence. Refused where (token, opening) is below what stands, or equal with another claim.

        The same fence again is a resend: the answer is as before, and the version is not bumped twice.
        """
        ...

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        """Write under exactly this fence and version; ``value=None`` leaves the value as it is. All or nothing.

        The ``op_id`` of the last accepted put again is a resend: the answer is as before.
        """
        ...

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        """The value and the named entries; every entry where ``keys`` is None."""
        ...

    def drop(self, cell: str) -> Request[bool]:
        """Remove a cell and its fence altogether; True if it stood. Unfenced: for things known to be finished."""
        ...
