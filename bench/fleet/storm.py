"""Many minutes of kills, pauses, cuts and restarts, and what the journals say of them.

``python -m bench.fleet.storm [--minutes 10] [--engine redis]``; `make storm`. Exits with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from live.proxy import TcpProxy
from servers import Server

from . import history
from .crew import Crew, Hand, crew
from .journal import now
from .places import PLACES, Place, url_of

MEMBERS, COUNT = 10, 100
TTL_S = 2.0
EVERY_S = (0.2, 1.2)
AWAY_AT_ONCE = 4
FAULTS = {"kill": 6, "leave": 2, "pause": 6, "silence": 4, "cut": 4, "restart": 1}
"""How often each, of all."""


class Storm(NamedTuple):
    """What was done, and what came of it."""

    minutes: float
    faults: Counter[str]
    holdings: int
    overlaps: list[tuple[history.Holding, history.Holding]]
    fallen_tokens: list[tuple[history.Holding, history.Holding]]
    stale_saves: list[tuple[history.Entry, history.Entry]]
    saves: int
    refused: int
    gaps_s: list[float]
    """For how long a partition had no owner, each time, in order."""
    leaderless_s: list[float]

    @property
    def wrong(self) -> int:
        return len(self.overlaps) + len(self.fallen_tokens) + len(self.stale_saves)

    def __str__(self) -> str:
        faults = ", ".join(f"{number} {name}" for name, number in self.faults.most_common())
        return (
            f"{self.minutes:.0f} minutes, {self.faults.total()} faults ({faults}); "
            f"{self.holdings} times something came to have an owner\n"
            f"two owners at once: {len(self.overlaps)}; tokens that did not rise: {len(self.fallen_tokens)}; "
            f"of {self.saves} checkpoints stale ones accepted: {len(self.stale_saves)} ({self.refused} refused)\n"
            f"without an owner: a partition {_spread(self.gaps_s)}; without a leader: {_spread(self.leaderless_s)}"
        )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "never"
    return f"{len(values)} times, median {values[len(values) // 2]:.2f} s, longest {values[-1]:.2f} s"


class Weather:
    """One storm. A member has one fault at a time, and some time to see that it is over."""

    def __init__(self, place: Place, url: str, server: Server | None, all_: Crew, seed: int | None) -> None:
        self.place, self.url, self.server, self.all = place, url, server, all_
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self._proxies: dict[str, TcpProxy] = {}
        self._later: list[tuple[float, str, Callable[[], None]]] = []  # when, of whom
        self._rests_until: dict[str, float] = {}

    def join(self) -> None:
        """One more member, over a network of its own."""
        if self.server is None:
            (hand,) = self.all.start(1, self.url)
        else:
            proxy = TcpProxy(self.server.port)
            (hand,) = self.all.start(1, self.url.replace(f":{self.server.port}", f":{proxy.port}"))
            self._proxies[hand.name] = proxy
        self.all.tell([hand], "join")

    def blow(self, minutes: float) -> None:
        until = time.monotonic() + minutes * 60
        next_at = 0.0
        while (at := time.monotonic()) < until:
            self._do_what_is_due(at)
            if at >= next_at:
                next_at = at + self.chance.uniform(*EVERY_S)
                self._do_harm()
            time.sleep(0.02)

    def _do_harm(self) -> None:
        names = [name for name in FAULTS if self.server is not None or name not in ("silence", "cut", "restart")]
        (fault,) = self.chance.choices(names, [FAULTS[name] for name in names])
        away = {name for _, name, _ in self._later}
        free = [hand for hand in self.all.hands if hand.name not in away and self._is_rested(hand)]
        if free and (len(away) < AWAY_AT_ONCE or fault == "cut"):
            hand = self.chance.choice(free)
            self.faults[fault] += 1
            self.all.journal("fault", kind=fault, of=hand.name)
            getattr(self, f"_{fault}")(hand)

    def calm(self) -> None:
        """Everything that is to follow follows now."""
        self._do_what_is_due(float("inf"))

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()

    def _do_what_is_due(self, at: float) -> None:
        for step in sorted(self._later, key=lambda step: step[0]):
            if step[0] <= at:
                self._later.remove(step)
                step[2]()

    def _after(self, delay_s: float, hand: Hand, step: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + delay_s, hand.name, step))

    def _rest(self, hand: Hand) -> None:
        """Time to see what became of what it had: a kill before that would leave open when it had ended."""
        self._rests_until[hand.name] = time.monotonic() + self.place.stands_s(TTL_S)

    def _is_rested(self, hand: Hand) -> bool:
        return self._rests_until.get(hand.name, 0.0) < time.monotonic()

    def _away_s(self) -> float:
        """Past the end of its leases, mostly."""
        return self.chance.uniform(0.5, 2.0) * self.place.stands_s(TTL_S)

    # -- faults

    def _kill(self, hand: Hand) -> None:
        self.all.kill(hand)
        if hand.name in self._proxies:
            self._proxies.pop(hand.name).close()
        self._after(self.chance.uniform(0.1, 3.0), hand, self.join)

    def _leave(self, hand: Hand) -> None:
        """It lets go of everything, which takes as long as it takes, and is gone."""
        hand.say("leave")
        self._after(self.place.stands_s(TTL_S), hand, lambda: self._kill(hand))

    def _pause(self, hand: Hand) -> None:
        hand.signal(signal.SIGSTOP)
        self._after(self._away_s(), hand, lambda: self._resume(hand))

    def _resume(self, hand: Hand) -> None:
        hand.signal(signal.SIGCONT)
        self.all.journal("fault", kind="resume", of=hand.name)
        self._rest(hand)

    def _silence(self, hand: Hand) -> None:
        proxy = self._proxies[hand.name]
        proxy.silence()
        self._after(self._away_s(), hand, lambda: self._heal(hand))

    def _heal(self, hand: Hand) -> None:
        self._proxies[hand.name].heal()
        self._rest(hand)

    def _cut(self, hand: Hand) -> None:
        self._proxies[hand.name].cut()
        self._rest(hand)

    def _restart(self, hand: Hand) -> None:
        """Of the server: it is killed and comes back with what it had written down."""
        assert self.server is not None
        self.server.kill()
        time.sleep(self.chance.uniform(0.0, 1.0))
        self.server.start()
        for one in self.all.hands:
            self._rest(one)


def run(place: Place, minutes: float, members: int = MEMBERS, count: int = COUNT, seed: int | None = None) -> Storm:
    with place.serve() as (bare, server), crew("stormy", "", count=count, ttl_s=TTL_S) as all_:
        weather = Weather(place, url_of(bare, TTL_S), server, all_, seed)
        try:
            for _ in range(members):
                weather.join()
            all_.until(lambda: len(_owned(all_)) == count + 1, "all is owned")
            began = now()
            weather.blow(minutes)
            weather.calm()
            all_.until(lambda: len(_owned(all_)) == count + 1, "all is owned again")
            ended = now()
            for hand in all_.hands:
                all_.tell([hand], "leave")
        finally:
            weather.close()
        found = all_.holdings()
        entries = all_.journals.entries
    gaps = history.gaps(found, range(count), began, ended)
    leaderless = history.gaps(found, ["leader"], began, ended)
    whats = Counter(entry["what"] for entry in entries)
    return Storm(
        (ended - began) / 60,
        weather.faults,
        len(found),
        history.overlaps(found),
        history.fallen_tokens(found),
        history.stale_saves(entries),
        whats["saved"],
        whats["refused"],
        sorted(gap.length_s for gap in gaps),
        sorted(gap.length_s for gap in leaderless),
    )


def _owned(all_: Crew) -> dict[history.Key, str]:
    return history.owners_at(all_.holdings(), now())


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.fleet.storm", description="Faults for minutes; two owners at once?")
    parser.add_argument("--engine", action="append", choices=[*PLACES], help="only this one (repeatable)")
    parser.add_argument("--minutes", type=float, default=10.0, help="on each engine")
    parser.add_argument("--members", type=int, default=MEMBERS)
    parser.add_argument("--partitions", type=int, default=COUNT)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    wrong = 0
    for name in given.engine or ("redis", "sqlite"):
        found = run(PLACES[name], given.minutes, given.members, given.partitions, given.seed)
        wrong += found.wrong
        print(f"{PLACES[name].title}: {found}", flush=True)
        for pair in [*found.overlaps, *found.fallen_tokens, *found.stale_saves][:20]:
            print(f"  {pair}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
