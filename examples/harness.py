"""What the examples share: options, and processes that are killed every so often while others take their place."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from typing import Any

import holdfast

FAILURES = 100
FOREVER_S = 1e6


def options(doc: str | None, **defaults: float) -> argparse.Namespace:
    """The command line: ``--engine URL``, and a number for each of these."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--engine", metavar="URL", help="HOLDFAST_URL by default, or else the embedded engine")
    for name, default in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default, help=f"{default}")
    return parser.parse_args()


def _tell_failure(target: Callable[..., None], *arguments: Any) -> None:
    try:
        target(*arguments)
    except holdfast.HoldfastError as failure:  # such as a lease that was lost on a busy machine
        raise SystemExit(f"{failure}; another takes over") from None


def through_kills(
    target: Callable[..., None],
    arguments: Callable[[int, int], tuple[Any, ...]],
    count: int,
    kill_every_s: float = FOREVER_S,
    most_kills: int = 1000,
    victim: Callable[[dict[int, int]], int | None] | None = None,
) -> int:
    """Run ``target`` in ``count`` processes until all ended well; SIGKILL one every so often. How many were.

    ``arguments(number, start)`` are those of process ``number``; whoever was killed or failed is started again. Who is
    killed is chance, or what ``victim`` picks (None: nobody) from their numbers and process ids.
    """
    running: dict[int, SpawnProcess] = {}
    starts = kills = 0

    def start(number: int) -> None:
        nonlocal starts
        starts += 1
        running[number] = get_context("spawn").Process(
            target=_tell_failure, args=(target, *arguments(number, starts)), daemon=True
        )
        running[number].start()

    for number in range(count):
        start(number)
    kill_at = time.monotonic() + kill_every_s
    while running:
        kill_in_s = kill_at - time.monotonic() if kills < most_kills else FOREVER_S
        if not connection.wait([process.sentinel for process in running.values()], max(0.0, kill_in_s)):
            kill_at = time.monotonic() + kill_every_s
            pids = {number: process.pid or 0 for number, process in running.items() if process.is_alive()}
            chosen = (victim or (lambda pids: random.choice(list(pids) or [None])))(pids)
            if chosen is not None:
                running[chosen].kill()
                running[chosen].join()
                kills += running[chosen].exitcode != 0
        for number, process in list(running.items()):
            code = process.exitcode
            if code == 0:
                del running[number]
            elif code is not None:
                if starts > count + kills + FAILURES:
                    raise SystemExit("giving up: processes fail again and again")
                start(number)
    return kills
