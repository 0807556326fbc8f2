"""What the running thread or task holds through lock objects, which are shared and keep nothing themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Holdings:
    """The leases of one session, per thread or task and per recipe's key, innermost last.

    Each with whether a block opened it (``scoped``): that one stays until the block ends, which gives back its own and
    not what was taken within. The others are forgotten once they are over, since a lease may be released by its handle.

    Kept with the thread or task itself: when that is gone, so are its leases, and the renewer gives them back.
    """

    def __init__(self, mine: Callable[[], dict[str, list[tuple[Any, bool]]]]) -> None:
        self._mine = mine  # what the running thread or task keeps: `World.belongings`
        self.inherited: dict[str, list[tuple[Any, bool]]] = {}
        """In a forked child, what the thread that forked held: it leaves those blocks as well, holding nothing."""

    def bequest(self) -> dict[str, list[tuple[Any, bool]]]:
        """What a child inherits, said in it by the thread that forked."""
        return {**self.inherited, **self._mine()}

    def has(self, key: str) -> bool:
        """Whether the running thread or task took anything of this recipe."""
        return key in self._mine()

    def depth(self, key: str) -> int:
        """How many blocks the running thread or task is in."""
        leases = self._mine().get(key)
        return sum(scoped for _, scoped in leases) if leases else 0

    def top(self, key: str) -> Any:
        """The innermost, or None."""
        leases = self._mine().get(key)
        return leases[-1][0] if leases else None

    def push(self, key: str, lease: Any, scoped: bool) -> None:
        held = self._mine()
        before = held.get(key)
        kept = [one for one in before if one[1] or one[0].is_held] if before else ()
        held[key] = [*kept, (lease, scoped)]

    def pop(self, key: str, scoped: bool) -> tuple[Any, bool]:
        """Take out the innermost (the innermost that a block opened, if there is one), and say whether that was the
        last of this lease. Raises KeyError where there is none."""
        held = self._mine()
        if key not in held:
            held = self.inherited
        leases = held[key]
        if len(leases) == 1:
            del held[key]
            return leases[0][0], True
        blocks = [at for at, one in enumerate(leases) if one[1]] if scoped else []
        lease, _ = leases.pop(blocks[-1] if blocks else -1)
        return lease, all(one[0] is not lease for one in leases)
