"""What members of partitions are told, checked as it is told: no two own one at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any


class Ledger:
    """Every assignment and revocation of all members, checked as they are told."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: dict[int, tuple[str, Any]] = {}
        self.tokens: dict[int, int] = defaultdict(int)
        self.events: list[tuple[str, str, int]] = []
        self.wrong: list[str] = []

    def callbacks(self, member: str, while_revoking: Callable[[int], Any] | None = None) -> dict[str, Any]:
        """For ``join``."""

        def assigned(partition: int, lease: Any) -> None:
            with self.lock:
                self.events.append(("+", member, partition))
                who, before = self.owner.get(partition, ("", None))
                if not lease.is_held:  # a client that was closed meanwhile
                    return
                if before is not None and (who == member or before.is_held) and lease.is_held:
                    self.wrong.append(f"{partition} came to {member} while it was {who}'s")
                if lease.token <= self.tokens[partition] and lease.is_held:
                    self.wrong.append(f"{partition} came to {member} under token {lease.token}, not above the last")
                self.owner[partition], self.tokens[partition] = (member, lease), lease.token

        def revoked(partition: int) -> None:
            with self.lock:
                if self.owner.get(partition, ("", None))[0] == member:
                    del self.owner[partition]
                elif ("+", member, partition) not in self.events:
                    self.wrong.append(f"{partition} was taken from {member}, who never had it")
                self.events.append(("-", member, partition))

        async def revoked_after(partition: int) -> None:
            assert while_revoking is not None
            await while_revoking(partition)
            revoked(partition)

        def revoked_after_blocking(partition: int) -> None:
            assert while_revoking is not None
            while_revoking(partition)
            revoked(partition)

        if while_revoking is not None:
            is_async = asyncio.iscoroutinefunction(while_revoking)
            return {"on_assigned": assigned, "on_revoked": revoked_after if is_async else revoked_after_blocking}
        return {"on_assigned": assigned, "on_revoked": revoked}

    def moved(self) -> set[int]:
        """The partitions that anybody was told of since this was last asked."""
        moved = {partition for _, _, partition in self.events}
        self.events.clear()
        return moved

    def alternates(self, member: str) -> bool:
        """Whether each partition of the member was assigned and revoked in turns."""
        kinds: dict[int, str] = defaultdict(str)
        for kind, who, partition in self.events:
            if who == member:
                kinds[partition] += kind
        return not any("++" in told or "--" in told or told.startswith("-") for told in kinds.values())


def owners_of(members: list[Any]) -> dict[int, str]:
    """Who owns what, as the members see it."""
    owned = [(partition, member.member_id) for member in members for partition in member.owned]
    assert len(owned) == len(dict(owned)), f"owned twice: {owned}"
    return dict(owned)


async def until(condition: Callable[[], object], what: Callable[[], Any] = lambda: "it never came true") -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at, what()
        await asyncio.sleep(0.005)


def moving(first: Any, second: Any, count: int) -> set[int]:
    """What the second member takes from the first one, which keeps the first half."""
    assert count % 2 == 0
    assert first.member_id != second.member_id
    return set(range(count // 2, count))


def is_even(owned: dict[int, str], members: list[Any], count: int) -> bool:
    """Whether each of these members owns its share, up to one."""
    counts = Counter(owned.values())
    return (
        owned.keys() == set(range(count))
        and counts.keys() == {member.member_id for member in members}
        and max(counts.values()) - min(counts.values()) <= 1
    )
