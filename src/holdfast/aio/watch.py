"""Watching, as an iterator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from ..core.recipe import check_timeout
from ..core.session import Session
from ..core.watch import Changing
from ..model import NEVER_S

T = TypeVar("T")


async def follow(session: Session, watch: Changing[T], timeout_s: float | None) -> AsyncIterator[T]:
    """What is watched, now and after each change, until nothing changed for ``timeout_s``."""
    check_timeout(timeout_s)
    try:
        while found := await watch.changed(NEVER_S if timeout_s is None else session.world.now() + timeout_s):
            yield found[0]
    finally:
        await watch.stop()
