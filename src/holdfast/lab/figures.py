"""What is made of many waits: percentiles, fairness, and what one hand-over costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def jain(counts: Sequence[int]) -> float:
    """Jain's fairness index: 1 where all got the same, 1/n where one got everything."""
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True)
class Contest:
    """What workers got of one lock that all of them took again and again.

    ``handovers`` are acquisitions by another worker than the last: the rest is one worker that took it from itself.
    Those until the clock stopped are ``handovers_in_time``: after that each still gets the turn that it waits for, so
    that the longest waits are not left out.
    """

    seconds: float
    handovers_in_time: int
    handovers: int
    waits: Sequence[Sequence[float]]
    """By worker: what each of its acquisitions waited."""
    cpu_s: float
    calls: int

    @property
    def handovers_per_s(self) -> float:
        return self.handovers_in_time / self.seconds

    @property
    def acquisitions_per_s(self) -> float:
        """Of what each worker got, all but the last, which came after the clock stopped."""
        return (sum(map(len, self.waits)) - len(self.waits)) / self.seconds

    @property
    def jain(self) -> float:
        return jain([len(waits) for waits in self.waits])

    def wait_s(self, share: float) -> float:
        return percentile([wait for waits in self.waits for wait in waits], share)

    @property
    def calls_per_handover(self) -> float:
        return self.calls / max(1, self.handovers)

    @property
    def cpu_per_handover_s(self) -> float:
        return self.cpu_s / max(1, self.handovers)


@dataclass(frozen=True, slots=True)
class Idle:
    """What all waiters together used while one held the lock and nothing happened."""

    cpu_share: float
    """Of one core: 2.0 are two of them."""
    calls_per_s: float
