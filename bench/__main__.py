"""Measure locks beside their peers: ``python -m bench [--engine NAME] [--quick]``; `make bench` runs it.

The full run writes docs/measured-locks.md. One engine (``--engine redis``), or ``--quick``, only prints.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from importlib import metadata
from pathlib import Path

from . import leases, report, targets
from .common import machine
from .peers import ENGINES, NOT_HERE, engine, java
from .workloads import QUICK, Effort, Say, available, contests, pairs, round_trips

PAGE = Path(__file__).parents[1] / "docs" / "measured-locks.md"
LEASES = "leases"
LIBRARIES = (
    "redis", "python-redis-lock", "pottery", "sherlock", "tooz", "kazoo", "etcd3gw", "psycopg", "filelock",
    "portalocker", "fasteners",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure locks beside their peers.")
    parser.add_argument("--engine", action="append", choices=[*ENGINES, LEASES], help="only this one (repeatable)")
    parser.add_argument("--quick", action="store_true", help="about a minute an engine: a first look, no more")
    parser.add_argument("--rounds", type=int, help="of contests (3), and a fifth of those of free locks")
    parser.add_argument("--page", type=Path, help="write the page to this file")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort()
    if options.rounds:
        effort = effort._replace(rounds=options.rounds, pair_rounds=5 * options.rounds)
    started = time.monotonic()
    left_out: list[str] = []

    def say(line: str) -> None:
        print(f"  {time.monotonic() - started:5.0f} s  {line}", file=sys.stderr, flush=True)

    def leave_out(line: str) -> None:
        say(line)
        left_out.append(line)

    chosen = options.engine or [*ENGINES, LEASES]
    found = [measure(name, effort, say, leave_out) for name in ENGINES if name in chosen]
    parts = [report.section(one) for one in found]
    if LEASES in chosen:
        parts.append(leases.main())
    aims = [f"### {one.engine.title}\n\n{rows}" for one in found if (rows := targets.targets(one))]
    minutes = (time.monotonic() - started) / 60
    page = "\n".join([head(effort, minutes), *(["## Targets\n", *aims] if aims else []), *parts, *without(left_out)])
    print(page)
    target = options.page or (None if options.engine or options.quick else PAGE)
    if target:
        target.write_text(page)


def measure(name: str, effort: Effort, say: Say, leave_out: Say) -> report.Found:
    of = engine(name)
    with contextlib.ExitStack() as stack:
        urls = {}
        for one in dict.fromkeys([name, *(peer.at for peer in of.peers if peer.at)]):
            with contextlib.suppress(*NOT_HERE):
                urls[one] = stack.enter_context(engine(one).serve())
        if name not in urls:
            leave_out(f"{of.title}: its server is not installed (make servers)")
            return report.Found(of, "Not measured", [], {}, {}, {})
        peers = available(of, urls, leave_out)
        free = [peer for peer in peers if peer.use != "contended"]
        wanted = [peer for peer in peers if peer.use != "pair"]
        trips = {peer.name: round_trips(urls[name], peer) for peer in free}
        say(f"{of.title}: free locks")
        times = pairs(of, urls[name], free, effort)
        contended = contests(of, urls, wanted, effort, say, leave_out)
        return report.Found(of, of.version(urls[name]), peers, times, trips, contended)


def head(effort: Effort, minutes: float) -> str:
    return f"""# Locks, measured

Made by `make bench` in {minutes:.0f} minutes: {machine()}.

{", ".join(versions())}.

- A cell is the median of all rounds, in brackets the least and the most. Rounds are interleaved: in each, all peers
  take their turns. A ratio is taken within each round. The machine is small and shared: trust ratios above about 1.5.
- *A free lock*: {effort.pair_rounds} rounds of {effort.pairs} pairs by one process. Client and server sleep and wake on
  the same few cores, which makes a round trip one of two lengths. Round trips are counted by a relay on the way.
- *One key*: each process takes the lock again and again, {effort.rounds} × {effort.seconds:g} s. **Hand-overs** are
  acquisitions by another process than the last. A lock that polls is mostly taken again by the process that just gave
  it back: its acquisitions per second say little, and stand last; so do its percentiles: see the longest wait. Waits
  include the last one of every process, however late it ended.
- Jain's index is 1 where all processes got the same, 1/n where one got everything.
- Commands are what clients sent: on Redis by MONITOR, PostgreSQL's statements (both in one run of their own, since
  counting slows the server down), ZooKeeper's packets, etcd's messages. CPU is that of all threads of the clients.
- A peer is *fair* if its waiters stand in a queue, and if Jain's index was {report.FAIR} or more. Ratios are to the
  best fair peer of that engine, figure by figure.
- On asyncio each process has a loop with one task. In Java it is {java.JVMS} warm JVMs whose threads contend instead.
"""


def versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    java_names = re.findall(r"<artifactId>(redisson|curator)\S*</artifactId>\s*<version>(.*?)<", java.POM.read_text())
    return [*found, *(" ".join(one) for one in java_names)]


def without(left_out: list[str]) -> list[str]:
    return ["## Left out\n", *(f"- {line}" for line in left_out), ""] if left_out else []


if __name__ == "__main__":
    main()
