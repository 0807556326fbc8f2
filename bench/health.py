"""What a threshold of the failure detector costs, and what it is good for: false suspicions, and the time to suspect.

Measured first: by how much renewals are late, by leases that are really kept, by a program with a thread that computes,
on a machine whose cores are taken twice by others. Then simulated, with those delays, for as many renewals as are asked
for: one member that renews at a third of its lease, one tenth more or less, and one that watches it as `Group.health`
does. Stalls (a swapped or throttled process) are rarer than can be measured in a minute, so they are supposed: one
renewal in a thousand is late by one second or more, for s seconds or more with a chance of s ** -1.5.

``python -m bench.health [RENEWALS]`` prints the table of docs/groups.md, in some minutes.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import holdfast
from holdfast import LeaseLost
from holdfast.core.renewer import JITTER, RENEW_SHARE
from holdfast.core.roster import Roster
from holdfast.hooks import Event
from holdfast.model import ClaimView

from .common import machine

THRESHOLDS = (1, 3, 5, 8, 12, 16)
LENGTHS_S = (15.0, 3.0)
CLIENTS, MEASURED_TTL_S, MEASURED_S = 8, 0.9, 45.0
LAG_S = 0.025
"""How long after it is due a look tells: a pause at random, and a round trip."""
DEATHS = 200

Delay = Callable[[], float]


def busy() -> None:
    while True:
        pass


def late_by(seconds: float) -> list[float]:
    """How late each renewal of leases that were really kept was, on a machine with too much to do."""
    others = [multiprocessing.Process(target=busy, daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for other in others:
        other.start()
    threading.Thread(target=busy, daemon=True).start()
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        clients = [holdfast.connect(f"sqlite:///{folder}/db", hooks=[note(found)]) for _ in range(CLIENTS)]
        leases = [client.group("g").join(ttl_s=MEASURED_TTL_S) for client in clients]
        time.sleep(seconds)
        for lease, client in zip(leases, clients, strict=True):
            with contextlib.suppress(LeaseLost):  # late by two intervals: what it renewed before counts
                lease.release()
            client.close()
    for other in others:
        other.kill()
    return found


def note(found: list[float]) -> Callable[[Event], None]:
    """A hook for one lease. Between the client's own due times nothing but delay differs; the least stands for none."""
    times: list[float] = []

    def hear(event: Event) -> None:
        if event.kind == "renewed":
            times.append(time.monotonic())
        elif event.kind in ("released", "lost") and len(times) > 2:
            intervals = [later - earlier for earlier, later in itertools.pairwise(times)]
            usual_s = statistics.quantiles(intervals, n=10)[0]
            found.extend(max(0.0, one - usual_s) for one in intervals)

    return hear


class Life:
    """One member, renewing with such delays, as one watcher with this threshold sees it."""

    def __init__(self, ttl_s: float, threshold: float, delay: Delay) -> None:
        self.ttl_s, self.delay = ttl_s, delay
        self.every_s = ttl_s * RENEW_SHARE * random.uniform(1 - JITTER, 1 + JITTER)
        self.renewed_at, self.due_at = 0.0, self.every_s
        self.roster, self.now = Roster(threshold, beats=True), random.uniform(0, self.every_s)
        self.dies_at = float("inf")

    def look(self) -> list[str]:
        """The next look; the kinds of the events that it told."""
        while self.due_at <= min(self.now, self.dies_at):
            self.renewed_at = self.due_at
            self.due_at += self.every_s + self.delay()
        left_s = self.ttl_s - (self.now - self.renewed_at)
        claims = [ClaimView("a", 1, 0, True, "", b"", 0.0, left_s)] if left_s > 0 else []
        events = self.roster.see(claims, self.now)
        self.now += min(5.0, self.roster.look_in_s) + LAG_S
        return [event.kind for event in events]


def false_alarms(ttl_s: float, threshold: float, delay: Delay, renewals: int) -> float:
    """SUSPECT events a day of a member that lives."""
    told, until = 0, 0.0
    for _ in range(20):  # different members
        life = Life(ttl_s, threshold, delay)
        until += (end := renewals / 20 * life.every_s)
        while life.now < end:
            told += life.look().count("SUSPECT")
    return told / until * 86400


def times_to_suspect(ttl_s: float, threshold: float, delay: Delay) -> list[float]:
    """How long after its death each of some members was suspect (or gone, if that was sooner)."""
    found: list[float] = []
    for _ in range(DEATHS):
        life = Life(ttl_s, threshold, delay)
        life.dies_at = random.uniform(60, 61) * ttl_s / 3
        suspect = False
        while True:
            at, kinds = life.now, life.look()
            suspect = "ALIVE" not in kinds and (suspect or "SUSPECT" in kinds)
            if at > life.dies_at and (suspect or "GONE" in kinds or "LEFT" in kinds):
                found.append(at - life.dies_at)
                break
    return found


def per_day(rate: float, days: float) -> str:
    return f"none in {days:,.0f} days" if rate == 0 else f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"


def main(renewals: int) -> None:
    late = late_by(MEASURED_S)
    *_, last = statistics.quantiles(late, n=1000)
    print(f"{machine()}; {len(late)} renewals measured, late by {statistics.median(late) * 1000:.0f} ms in the median,")
    print(f"{last * 1000:.0f} ms or more one in a thousand, {max(late) * 1000:.0f} ms at most\n")

    def loaded() -> float:
        return random.choice(late)

    def stalling() -> float:
        return random.choice(late) + (random.paretovariate(1.5) if random.random() < 0.001 else 0.0)

    print("| lease | phi | false suspicions a day | with stalls | dead, then suspect after: median | at most |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for ttl_s in LENGTHS_S:
        for threshold in THRESHOLDS:
            days = renewals * ttl_s / 3 / 86400
            rates = [per_day(false_alarms(ttl_s, threshold, kind, renewals), days) for kind in (loaded, stalling)]
            times = times_to_suspect(ttl_s, threshold, loaded)
            print(f"| {ttl_s:g} s | {threshold} | {' | '.join(rates)} | {statistics.median(times):.1f} s "
                  f"| {max(times):.1f} s |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000)
