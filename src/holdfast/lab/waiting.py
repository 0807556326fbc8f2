"""What each way of waiting costs: one lock, a holder, and from one to many who wait for it."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.waiting import Adaptive, Backoff, Poll, Queue, Spin, Strategy
from .contender import HoldfastContender
from .team import Crew, Team

STRATEGIES: dict[str, Strategy] = {
    "Spin": Spin(),
    "Poll": Poll(),
    "Backoff": Backoff(),
    "Adaptive": Adaptive(),
    "Queue": Queue(),
}
WARM_S = 0.2
IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one strategy with so many waiters, that is, with one process more."""

    strategy: str
    waiters: int
    handovers_per_s: float
    acquisitions_per_s: float
    wait_p50_s: float
    wait_p99_s: float
    wait_max_s: float
    jain: float
    calls_per_handover: float
    cpu_per_handover_s: float
    waiting_cpu_share: float
    """Of one core, all waiters together, while nothing happens but waiting."""
    waiting_calls_per_s: float


def measure(
    url: str,
    strategies: Sequence[str],
    waiters: Sequence[int],
    seconds: float,
    inside_s: float,
    rounds: int = 1,
    done: Callable[[Row], object] = lambda row: None,
) -> list[Row]:
    """A row for each number of waiters and strategy: of its rounds the one that is the median by hand-overs.

    The strategies take turns in each round, so that what else the machine does falls on all of them. ``done`` hears of
    each as it is measured. The locks are in a namespace of their own on that engine.
    """
    namespace = f"holdfast-lab-{os.getpid()}"
    names = map("waiting-{}".format, itertools.count())
    rows: list[Row] = []
    with Team(max(waiters) + 1) as team:
        for number in waiters:
            taken: dict[str, list[Row]] = {strategy: [] for strategy in strategies}
            for strategy in rounds * list(strategies):
                make = functools.partial(HoldfastContender, url, namespace, next(names), STRATEGIES[strategy])
                with team.hired(number + 1, make) as crew:
                    taken[strategy].append(row(crew, strategy, number, seconds, inside_s))
                done(taken[strategy][-1])
            rows += [median(some) for some in taken.values()]
    return rows


def median(rounds: Sequence[Row]) -> Row:
    """The one in the middle by hand-overs: whole, so that its figures belong together."""
    return sorted(rounds, key=lambda row: row.handovers_per_s)[len(rounds) // 2]


def row(crew: Crew, strategy: str, waiters: int, seconds: float, inside_s: float) -> Row:
    crew.contest(WARM_S, inside_s)
    contest = crew.contest(seconds, inside_s)
    idle = crew.idle(min(IDLE_S, seconds))
    return Row(
        strategy=strategy,
        waiters=waiters,
        handovers_per_s=contest.handovers_per_s,
        acquisitions_per_s=contest.acquisitions_per_s,
        wait_p50_s=contest.wait_s(0.5),
        wait_p99_s=contest.wait_s(0.99),
        wait_max_s=contest.wait_s(1.0),
        jain=contest.jain,
        calls_per_handover=contest.calls_per_handover,
        cpu_per_handover_s=contest.cpu_per_handover_s,
        waiting_cpu_share=idle.cpu_share,
        waiting_calls_per_s=idle.calls_per_s,
    )
