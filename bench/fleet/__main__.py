"""Measure a fleet of ten processes: ``python -m bench.fleet [--engine NAME] [--part NAME]``; `make bench-fleet`.

The full run writes docs/measured-fleet.md; a part of it only prints.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from ..common import machine
from . import elections, page, peers, sale, sharing, storm
from .elections import Election
from .places import PLACES
from .sharing import Round

PAGE = Path(__file__).parents[2] / "docs" / "measured-fleet.md"
PARTS = ("elections", "partitions", "sale", "storm")
MEMBERS, COUNT, SHARING_TTL_S = 10, 1000, 3.0
ROUNDS = 2
SALES = ("redis", "postgres", "sqlite")
"""Where a dead seller's lease is short; it is what a sale with a kill every second waits for."""
STORMS = ("redis", "sqlite")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.fleet", description="Measure leaders, partitions and a sale.")
    parser.add_argument("--engine", action="append", choices=[*PLACES], help="only this one (repeatable)")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one (repeatable)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of partitions ({ROUNDS})")
    parser.add_argument("--minutes", type=float, default=10.0, help="of storm on each engine")
    parser.add_argument("--page", type=Path, help="write the page to this file")
    given = parser.parse_args()
    names, parts = given.engine or [*PLACES], given.part or PARTS
    began = time.monotonic()
    left_out: list[str] = []

    def say(line: str) -> None:
        print(f"  {time.monotonic() - began:5.0f} s  {line}", file=sys.stderr, flush=True)

    def on_each(part: str, some: tuple[str, ...], measure: Callable[[str], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in [name for name in names if name in some] if part in parts else []:
            say(f"{part}: {PLACES[name].title}")
            try:
                found[name] = measure(name)
            except (FileNotFoundError, TimeoutError) as trouble:
                say(f"{part}: {PLACES[name].title}: {trouble}")
                left_out.append(f"{part} on {PLACES[name].title}: {str(trouble).partition(chr(10))[0]}")
        return found

    found = page.Found(
        on_each("elections", tuple(PLACES), _elections),
        on_each("partitions", tuple(PLACES), lambda name: _partitions(name, given.rounds)),
        on_each("sale", SALES, _sale),
        on_each("storm", STORMS, lambda name: storm.run(PLACES[name], given.minutes)),
    )
    lines = [head((time.monotonic() - began) / 60), "## Targets\n", page.targets(found, SHARING_TTL_S)]
    lines += page.details(found)
    lines += ["## Left out\n", *(f"- {line}" for line in left_out), ""] if left_out else []
    text = "\n".join(lines)
    print(text)
    if target := given.page or (None if given.engine or given.part else PAGE):
        target.write_text(text)


def _elections(name: str) -> Election:
    with PLACES[name].serve() as (url, _):
        return elections.measure(PLACES[name], url, MEMBERS)


def _partitions(name: str, rounds: int) -> dict[str, list[Round]]:
    """All kinds take turns; each has a server that nobody used before."""
    found: dict[str, list[Round]] = {kind: [] for kind in ("owner", *peers.ON.get(name, ()))}
    for _ in range(rounds):
        for kind, some in found.items():
            with PLACES[name].serve() as (url, _server):
                some.append(sharing.measure(PLACES[name], url, kind, MEMBERS, COUNT, SHARING_TTL_S))
    return found


def _sale(name: str) -> sale.Sale:
    with PLACES[name].serve() as (url, _):
        return sale.measure(url)


def head(minutes: float) -> str:
    return f"""# A fleet, measured

Made by `make bench-fleet` in {minutes:.0f} minutes: {machine()}.

{", ".join(_versions())}. The servers run beside the {MEMBERS} members on the same few cores.

- Members are processes. Each writes down what it owns from when on and until when, by one clock of the machine; who
  kills writes down when. All figures are read from that. Times: the median, and the least and the most of all rounds.
- *Elections*: {MEMBERS} candidates. The leader is SIGKILLed {elections.KILLS} times, at different times between its
  renewals, and resigns {elections.RESIGNATIONS} times. The next leads when its `campaign` has returned.
- *Partitions*: {COUNT:,} over {MEMBERS} members, TTL {SHARING_TTL_S:g} s. All are told to join once they are
  connected; then one is SIGKILLed; then another joins. It has settled when each partition has one owner, and (ours)
  each member its share, rounded up or down, for good. What was *claimed twice* was two members' own at once, in their
  own views.
- The others do not say who owns one partition; measured is each member's own view. kazoo's locks all that it owns and
  lets go of all of it at every change, so everything is without an owner meanwhile, and most of it moves; its party
  is shared out once it was stable for {peers.STABLE_S:g} s (30 s by default). tooz's is a hash ring of the members that
  one has seen, looked at every {peers.POLL_S:g} s as its user has to; nothing keeps two from claiming one partition,
  and members that start at once may never learn of each other: that is the *not in {sharing.SETTLES_WITHIN_S:.0f} s*.
  Both have sessions, or memberships, as long as a claim of ours stands there once its process is dead.
- *Flash sale*: `examples/flash_sale.py` with {sale.WORKERS} workers, {sale.AT_ONCE} orders at a time, and one of them
  SIGKILLed every second. Nothing is wrong where every order that was confirmed is in the books, once, and no more was
  sold than there was.
- *Storm*: {storm.MEMBERS} members own {storm.COUNT} partitions, save checkpoints in them and stand for election, TTL
  {storm.TTL_S:g} s. Some are killed, leave, are stopped for longer than their leases last, and, where there is a
  network, cut off by silence or a reset; the server is killed and comes back. An owner's time ends when it knew that it
  had, or when its lease's deadline came.
"""


def _versions() -> list[str]:
    found = []
    for name in ("kazoo", "tooz", "redis", "psycopg", "etcd3gw"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


if __name__ == "__main__":
    main()
