"""What is held, and how it is given back."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from ..core import lease as leases
from ..core.session import Session, lost_message
from ..core.sticky import StickyBase, Turn
from ..errors import LeaseLost


class Lease(leases.LeaseBase):
    """A held lock, semaphore permit or membership. ``async with`` releases it at the end."""

    __slots__ = ("_cancels",)

    def __init__(self, session: Session, tenure: Any, on_unsure: str = "pass") -> None:
        super().__init__(session, tenure, on_unsure)
        self._cancels: _CancelOnLost | None = None

    async def release(self) -> None:
        """Give it back, from any task. Raises `LeaseLost` if it was lost; releasing twice does nothing."""
        await self._session.release(self._tenure)

    async def detach(self) -> str:
        """Let go without releasing: what is returned, `Client.attach` takes over elsewhere before the lease ends."""
        return await leases.detach(self._session, self._tenure)

    async def wait_lost(self, timeout_s: float | None = None) -> bool:
        """Wait until it is lost (True), or released or ``timeout_s`` over (False)."""
        return await leases.wait_lost(self._session, self._tenure, timeout_s)

    def _cancel_task_on_lost(self) -> None:
        """Cancel the running task if the lease is lost before the ``async with`` that it is used in ends."""
        if self._cancels is None:  # once, though it was taken again within
            self._cancels = _CancelOnLost(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cancels, self._cancels = self._cancels, None
        ours = cancels is not None and cancels.disarm(error)
        try:
            await self.release()
        except LeaseLost as lost:
            if error is None or ours:
                raise lost from error
            error.add_note(str(lost))
        if ours:
            raise LeaseLost(lost_message(self._tenure)) from error


class StickyLease(StickyBase, Lease):
    """One taking of a sticky lock."""

    __slots__ = ()

    def __init__(self, session: Session, turn: Turn, on_unsure: str = "pass") -> None:
        super().__init__(session, turn, on_unsure)
        self._cancels = None

    async def release(self) -> None:
        """End this taking; the lease goes back to the engine only if others want it. Raises `LeaseLost`."""
        tenure = self._end_turn()
        if tenure is not None:
            await self._session.release(tenure)


class _CancelOnLost:
    """Cancels one task once, and tells that cancellation from others, as `asyncio.timeout` does."""

    def __init__(self, lease: Lease) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._armed = True
        self._fired = False
        lease.on_lost(self._fire)

    def _fire(self) -> None:
        if self._armed:
            self._fired = True
            self._task.cancel("the lease was lost")

    def disarm(self, error: BaseException | None) -> bool:
        """True if ``error`` is the cancellation that we caused, and no other is pending."""
        self._armed = False
        if not self._fired:
            return False
        return self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)
