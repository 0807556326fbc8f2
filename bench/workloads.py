"""What is measured, on every engine alike: a free lock's pair, and one lock that many processes want.

Rounds are interleaved: in each, all peers take their turns, so that a busy moment of the machine hits all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from holdfast.lab.figures import Contest
from holdfast.lab.team import Team

from .peers import NOT_HERE, Engine, Peer, engine
from .peers.java import WARM_UP, WARM_UP_S, JavaTeam
from .relay import Relay


class Effort(NamedTuple):
    """How much is measured."""

    pair_rounds: int = 15
    pairs: int = 100
    """In a round, at least."""
    rounds: int = 3
    """Of contests."""
    seconds: float = 1.5
    """Of one contest."""
    counting_s: float = 0.4
    """Of one in which commands are counted, where that disturbs."""
    sizes: tuple[int, ...] = (8, 32)
    """Processes."""
    insides_s: tuple[float, ...] = (0.0, 0.001)


SLICES = 10
"""A round's pairs are taken in so many parts, all peers in turn."""
SLICE_S = 0.001
"""A part of very short pairs is as long as this: the first ones find the processor's caches full of other peers."""

QUICK = Effort(pair_rounds=5, pairs=30, rounds=1, seconds=0.5, counting_s=0.2, sizes=(32,))

Say = Callable[[str], object]
Urls = Mapping[str, str]
"""The servers that run, by engine."""
Figures = dict[str, list[float]]
"""Of each figure by name, one number a round; the numbers of one round belong together."""


def available(of: Engine, urls: Urls, leave_out: Say) -> list[Peer]:
    """The peers that are here and do take and give back their lock. Says of the others why they are left out."""
    found = []
    for peer in of.peers:
        try:
            if peer.face == "java":
                peer.make("")
            else:
                with peer.blocking(urls[peer.at or of.name]) as lock, lock:
                    pass
        except KeyError as error:
            leave_out(f"{of.title}: without {peer.name}: no server for {error}")
        except NOT_HERE as error:
            leave_out(f"{of.title}: without {peer.name}: {error}")
        else:
            found.append(peer)
    return found


# -- a free lock


def pairs(of: Engine, url: str, peers: list[Peer], effort: Effort) -> Figures:
    """By peer: microseconds of acquire + release, each round's median."""
    found: Figures = {peer.name: [] for peer in peers}
    with contextlib.ExitStack() as stack:
        timers = {peer.name: stack.enter_context(_timer(peer, url)) for peer in peers}
        least = effort.pairs // SLICES
        counts = {name: max(least, int(SLICE_S / statistics.median(timer(20)))) for name, timer in timers.items()}
        for _ in range(effort.pair_rounds):
            times = defaultdict[str, list[float]](list)
            for _ in range(SLICES):  # so that all meet the same moods of the scheduler
                for name, timer in timers.items():
                    times[name] += timer(counts[name])
            for name, some in times.items():
                found[name].append(statistics.median(some) * 1e6)
    return found


@contextlib.contextmanager
def _timer(peer: Peer, url: str) -> Iterator[Callable[[int], list[float]]]:
    """Gives a function: the seconds of so many pairs."""
    if peer.face == "java":
        with JavaTeam(peer, url, jvms=1) as team:
            team.pair_times(WARM_UP)
            yield team.pair_times
    elif peer.face == "asyncio":
        with _loop() as run:
            made = peer.make(url)
            lock = run(made.__aenter__())
            run(_times_on_loop(lock, 20))
            yield lambda count: run(_times_on_loop(lock, count))
            run(made.__aexit__(None, None, None))
    else:
        with peer.make(url) as lock:
            _times(lock, 20)
            yield functools.partial(_times, lock)


@contextlib.contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop in a thread of its own, where it goes on between rounds."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _times(lock: Any, count: int) -> list[float]:
    clock, times = time.perf_counter, []
    for _ in range(count):
        started = clock()
        with lock:
            pass
        times.append(clock() - started)
    return times


async def _times_on_loop(lock: Any, count: int) -> list[float]:
    clock, times = time.perf_counter, []
    for _ in range(count):
        started = clock()
        async with lock:
            pass
        times.append(clock() - started)
    return times


def round_trips(url: str, peer: Peer, count: int = 20) -> float | None:
    """Of one pair, as a relay on the way sees them; None where there is no one server."""
    where = urlsplit(url)
    if not where.hostname or "," in where.netloc:
        return None
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(Relay(where.port or 0))
        times = stack.enter_context(_timer(peer, url.replace(f":{where.port}", f":{relay.port}")))
        before = relay.trips
        times(count)
        return (relay.trips - before) / count


# -- one lock that many want


class Contender:
    """A peer's lock in a process of `holdfast.lab`'s, by names that can be sent there."""

    calls = 0

    def __init__(self, engine_name: str, peer_name: str, url: str) -> None:
        self._stack = contextlib.ExitStack()
        self._lock: Any = self._stack.enter_context(engine(engine_name).peer(peer_name).blocking(url))

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__(*exc)

    def close(self) -> None:
        self._stack.close()


Contests = dict[tuple[int, float], dict[str, Figures]]
"""By workload (processes, seconds inside) and peer."""


def contests(of: Engine, urls: Urls, peers: list[Peer], effort: Effort, say: Say, leave_out: Say) -> Contests:
    """Who fails on the way is left out of the rounds that follow."""
    found: Contests = {
        (size, inside_s): defaultdict(lambda: defaultdict(list))
        for size in effort.sizes
        for inside_s in effort.insides_s
    }
    if not peers:
        return {}
    with Teams(of, effort.sizes) as teams:
        for number in range(effort.rounds):
            first = number % len(peers) if peers else 0
            for peer in peers[first:] + peers[:first]:  # nobody always follows the same
                home = engine(peer.at) if peer.at else of
                url = urls[home.name]
                say(f"{of.title}, contests, round {number + 1} of {effort.rounds}: {peer.name}")
                try:
                    for size, contest in teams.crews(peer, url):
                        for inside_s in effort.insides_s:
                            taken = _measured(home, url, contest, effort, inside_s, counts=number == 0)
                            for figure, value in taken.items():
                                found[size, inside_s][peer.name][figure].append(value)
                except Exception as error:  # theirs may be any
                    leave_out(f"{of.title}: {peer.name} failed among {size} processes: {error!r}")
                    peers = [other for other in peers if other is not peer]
                    teams.renew()
    return found


Measure = Callable[[float, float], Contest]
"""A contest of so many seconds, so many of them inside."""


class Teams:
    """Processes for all peers: those of Python serve one after the other, each in Java has its own."""

    def __init__(self, of: Engine, sizes: tuple[int, ...]) -> None:
        self._of, self._sizes = of, sizes
        self._stack = contextlib.ExitStack()
        self._java: dict[str, JavaTeam] = {}

    def __enter__(self) -> Self:
        self._team = self._stack.enter_context(Team(max(self._sizes)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def renew(self) -> None:
        """One has failed, and nobody knows what the others are at."""
        self._team.close()
        self._team = self._stack.enter_context(Team(max(self._sizes)))

    def crews(self, peer: Peer, url: str) -> Iterator[tuple[int, Measure]]:
        if peer.face == "java":
            java = self._java.get(peer.name) or self._warm(peer, url)
            for size in self._sizes:
                yield size, functools.partial(java.contest, size)
            return
        for size in self._sizes:
            with self._team.hired(size, functools.partial(Contender, self._of.name, peer.name, url)) as crew:
                yield size, crew.contest

    def _warm(self, peer: Peer, url: str) -> JavaTeam:
        java = self._java[peer.name] = self._stack.enter_context(JavaTeam(peer, url))
        java.contest(max(self._sizes), WARM_UP_S, 0)
        return java


def _measured(
    of: Engine, url: str, contest: Measure, effort: Effort, inside_s: float, *, counts: bool
) -> dict[str, float]:
    """A round's figures. ``counts``: also those that take a run of their own."""
    if of.counter is None or of.disturbs:
        found = contest(effort.seconds, inside_s)
        commands = counted = None
    if of.counter is not None and (counts or not of.disturbs):
        with of.counter(url) as end:
            counted = contest(effort.counting_s if of.disturbs else effort.seconds, inside_s)
            commands = end()
        if not of.disturbs:
            found = counted
    turns = sum(map(len, found.waits))
    figures = {
        "hand-overs/s": found.handovers_per_s,
        "p50 ms": found.wait_s(0.5) * 1e3,
        "p99 ms": found.wait_s(0.99) * 1e3,
        "max ms": found.wait_s(1.0) * 1e3,
        "Jain": found.jain,
        "CPU µs/acquisition": found.cpu_s / turns * 1e6,
        "CPU µs/hand-over": found.cpu_per_handover_s * 1e6,
        "acquisitions/s": found.acquisitions_per_s,
    }
    if counted is not None and commands is not None:
        figures["commands/acquisition"] = commands / sum(map(len, counted.waits))
        figures["commands/hand-over"] = commands / max(1, counted.handovers)
    return figures
