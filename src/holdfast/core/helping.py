"""A helper that renews beside the renewer, where the program runs one (`renewing`): what the core asks of it."""

from __future__ import annotations

from typing import Protocol

from .tenure import Tenure


class Helper(Protocol):
    """Keeps leases while this process cannot. No method waits for anything; what goes wrong is logged, never raised."""

    def add(self, tenure: Tenure) -> None:
        """This is held from now on: set ``tenure.also``, which tells its deadline by what the helper renewed."""

    def update(self, tenure: Tenure) -> None:
        """We renewed it."""

    def drop(self, tenure: Tenure) -> None:
        """It is over, or not ours any more."""

    def beat(self) -> None:
        """This process runs."""

    def dismiss(self) -> None:
        """Let it end."""

    def has_ended(self, *, kill: bool) -> bool:
        """After `dismiss`; with ``kill`` it is made to."""
        ...

    def abandon(self) -> None:
        """In a forked child, whose helper it is not."""
