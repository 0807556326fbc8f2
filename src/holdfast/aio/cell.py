"""Fenced registers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..core import cell as cells
from ..core import lease as leases
from ..core.session import Session
from ..model import CellSnapshot, Change
from .lease import Lease

if TYPE_CHECKING:
    from .client import Client


class Cell:
    """A fenced, versioned register: bytes, and small keyed entries of bytes."""

    __slots__ = ("_client", "_name")

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name

    async def open(self, lease: Lease) -> OpenCell:
        """Raise the fence to this exclusive lease's token: earlier holders can write no more.

        Raises `StaleToken` if a later holder opened it, `Misuse` if it belongs to another lock.
        """
        session = self._client.session
        return OpenCell(session, await cells.open_cell(session, self._name, leases.own(session, lease)))

    async def read(self, keys: Sequence[str] | None = None) -> CellSnapshot:
        """The value and entries (all, or those named), unfenced: a look, not a right."""
        return await cells.read(self._client.session, self._name, keys)

    async def drop(self) -> bool:
        """Remove the cell and its fence, unfenced: for what is known to be finished. True if it stood."""
        session = self._client.session
        return await session.ask(session.engine.drop(self._name))


class OpenCell:
    """A cell opened under a lease. Every write is refused with `StaleToken` once a newer holder opened it."""

    __slots__ = ("_lock", "_opening", "_session")

    def __init__(self, session: Session, opening: cells.Opening) -> None:
        self._session, self._opening, self._lock = session, opening, asyncio.Lock()

    @property
    def value(self) -> bytes | None:
        """What stood there at the opening, or what this opening put since; None before the first put."""
        return self._opening.value

    @property
    def version(self) -> int:
        """Rises with every open and put."""
        return self._opening.version

    @property
    def token(self) -> int:
        return self._opening.fence.token

    async def put(self, value: bytes | None = None, changes: Sequence[Change] = ()) -> tuple[bool, ...]:
        """Write the value (None leaves it as it is) and changes of entries, all or nothing.

        Says of each change whether it took place: a create-only one does not where the entry exists.
        Raises `StaleToken`, and `OutcomeUnknown` where no reply came in ``patience_s``: it may have landed, and what is
        put next under this opening lands after it.
        """
        self._session.refuse_fork()
        async with self._lock:
            return await cells.put(self._session, self._opening, value, changes)

    async def set(self, key: str, value: bytes, create: bool = False) -> bool:
        """Write one entry; with ``create`` only if there is none, False if there is."""
        return (await self.put(changes=[cells.entry(key, value, create)]))[0]

    async def delete(self, key: str) -> bool:
        """Remove one entry; False if there was none."""
        return (await self.put(changes=[Change(key, None)]))[0]

    async def __getitem__(self, key: str) -> bytes:
        """One entry, as ``await opened[key]``. Raises KeyError, `StaleToken`."""
        return (await self.entries([key]))[key]

    async def entries(self, keys: Sequence[str] | None = None) -> Mapping[str, bytes]:
        """The entries (all, or those named). Raises `StaleToken`."""
        self._session.refuse_fork()
        async with self._lock:
            return (await cells.read_own(self._session, self._opening, keys)).entries
