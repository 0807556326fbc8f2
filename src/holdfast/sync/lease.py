"""What is held, and how it is given back."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ..core import lease as leases
from ..core.sticky import StickyBase
from ..errors import LeaseLost
from ..worlds.threads import drive


class Lease(leases.LeaseBase):
    """A held lock, semaphore permit or membership. ``with`` releases it at the end."""

    __slots__ = ()

    def release(self) -> None:
        """Give it back, from any thread. Raises `LeaseLost` if it was lost; releasing twice does nothing."""
        drive(self._session.release(self._tenure))

    def detach(self) -> str:
        """Let go without releasing: what is returned, `Client.attach` takes over elsewhere before the lease ends."""
        return drive(leases.detach(self._session, self._tenure))

    def wait_lost(self, timeout_s: float | None = None) -> bool:
        """Wait until it is lost (True), or released or ``timeout_s`` over (False)."""
        return drive(leases.wait_lost(self._session, self._tenure, timeout_s))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LeaseLost as lost:
            if error is None:
                raise
            error.add_note(str(lost))


class StickyLease(StickyBase, Lease):
    """One taking of a sticky lock."""

    __slots__ = ()

    def release(self) -> None:
        """End this taking; the lease goes back to the engine only if others want it. Raises `LeaseLost`."""
        tenure = self._end_turn()
        if tenure is not None:
            drive(self._session.release(tenure))
