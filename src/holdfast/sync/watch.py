"""Watching, as an iterator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from ..core.recipe import check_timeout
from ..core.session import Session
from ..core.watch import Changing
from ..model import NEVER_S
from ..worlds.threads import drive

T = TypeVar("T")


def follow(session: Session, watch: Changing[T], timeout_s: float | None) -> Iterator[T]:
    """What is watched, now and after each change, until nothing changed for ``timeout_s``."""
    check_timeout(timeout_s)
    try:
        while found := drive(watch.changed(NEVER_S if timeout_s is None else session.world.now() + timeout_s)):
            yield found[0]
    finally:
        drive(watch.stop())
