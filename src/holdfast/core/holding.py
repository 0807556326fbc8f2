"""What the running thread or task holds through lock objects, which are shared and keep nothing themselves."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class Holdings:
    """The leases of one session, per thread or task and per recipe's key, innermost last.

    Kept under the thread or task itself, weakly: when that is gone, so are its leases, and the renewer gives them back.
    """

    def __init__(self, actor: Callable[[], Any]) -> None:
        self._actor = actor
        self._by_actor: weakref.WeakKeyDictionary[Any, dict[str, list[Any]]] = weakref.WeakKeyDictionary()

    def depth(self, key: str) -> int:
        """How many the running thread or task holds."""
        return len(self._mine().get(key, ()))

    def top(self, key: str) -> Any:
        """The innermost, or None."""
        leases = self._mine().get(key)
        return leases[-1] if leases else None

    def push(self, key: str, lease: Any) -> None:
        self._mine().setdefault(key, []).append(lease)

    def pop(self, key: str) -> Any:
        """Take the innermost out. Raises KeyError where there is none."""
        held = self._mine()
        lease = held[key].pop()
        if not held[key]:
            del held[key]
        return lease

    def _mine(self) -> dict[str, list[Any]]:
        actor = self._actor()
        held = self._by_actor.get(actor)
        if held is None:
            held = self._by_actor[actor] = {}
        return held
