"""``holdfast bench``: measured here, on your machine and your engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import FrameType

import click

from ..errors import Misuse
from ..lab.waiting import STRATEGIES, Row, measure
from ..sync import connect
from .keys import save_svg
from .output import name_engine, say, show_table

WAITERS = (1, 2, 4, 8, 16, 32)
MOST_WAITERS = 256

HELP = """\
Measure, on this machine and your engine, what people otherwise argue about.

\b
  holdfast bench waiting                              # the embedded engine, in a temporary folder
  holdfast bench waiting --engine redis://localhost --chart waiting.svg
"""

WAITING = """\
Measure what each way of waiting for a lock costs: Spin, Poll, Backoff, Adaptive, Queue.

\b
  holdfast bench waiting                                            # the embedded engine, in a temporary folder
  holdfast bench waiting --engine redis://localhost --chart waiting.svg
  holdfast bench waiting --waiters 1,8 --strategies Spin,Queue --inside-ms 0 --seconds 5
  holdfast bench waiting --json > waiting.json

With N waiters, N + 1 processes take one lock again and again for --seconds, and keep it for --inside-ms each time.
A hand-over is an acquisition by another process than the last: what a process takes from itself again is not counted,
since that is what a lock without an order is good at. Waits are those of all acquisitions, also of what still waited
at the end. Jain's index says how evenly the turns were spread: 1 is evenly, 1/n is one for all. Calls are requests to
the engine (on Redis each is one command), CPU is that of all N + 1 processes.

Then one holds the lock for a second while the N others only wait: what they use of a core, and how often they ask.

On a machine that does other things as well, give some --rounds: the strategies take turns.

It keeps this machine busy meanwhile, by default for two minutes or three, and the engine as well. It touches
no locks but its own.
"""


@click.group("bench", help=HELP, short_help="What waiting costs, measured here.")
def command() -> None: ...


class Names(click.ParamType[list[str]]):
    """Several of ``known``, separated by commas, each once."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = {name.lower(): name for name in known}

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [name.strip().lower() for name in value.split(",")]
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is none of {', '.join(self.known.values())}", param, ctx)
        return [self.known[name] for name in dict.fromkeys(names)]


class Numbers(click.ParamType[list[int]]):
    """Whole numbers from 1 up, separated by commas."""

    name = "numbers"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        try:
            numbers = sorted({int(number) for number in value.split(",")})
        except ValueError:
            self.fail(f"{value!r} are not whole numbers with commas between them", param, ctx)
        if not 1 <= numbers[0] <= numbers[-1] <= MOST_WAITERS:
            self.fail(f"each is from 1 to {MOST_WAITERS}, not {value!r}", param, ctx)
        return numbers


@command.command("waiting", help=WAITING, short_help="What each way of waiting for a lock costs.")
@click.option("--engine", metavar="URL", help="Which engine; by default an embedded one in a temporary folder.")
@click.option("--waiters", type=Numbers(), default=",".join(map(str, WAITERS)), show_default=True,
              help="How many wait while one holds.")  # fmt: skip
@click.option("--strategies", type=Names(tuple(STRATEGIES)), default=",".join(STRATEGIES), show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=2.0, show_default=True, help="For each figure.")
@click.option("--rounds", type=click.IntRange(1, 99), default=1, show_default=True, help="Of which the median counts.")
@click.option("--inside-ms", type=click.FloatRange(0, 1000), default=1.0, show_default=True,
              help="How long each keeps the lock.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, times in seconds.")
@click.option("--chart", type=click.Path(dir_okay=False), metavar="FILE.svg", help="Draw them, too.")
def waiting(
    engine: str | None,
    waiters: list[int],
    strategies: list[str],
    seconds: float,
    rounds: int,
    inside_ms: float,
    as_json: bool,
    chart: str | None,
) -> None:
    for name, value in (("--seconds", seconds), ("--inside-ms", inside_ms)):
        if not math.isfinite(value):
            raise Misuse(f"{name} is a number, not {value}")
    if chart:
        check_writable(chart)
    steps = len(waiters) * len(strategies) * rounds
    with ended_in_order(), engine_for(engine) as (url, what), progress(steps) as step:
        rows = measure(url, strategies, waiters, seconds, inside_ms / 1000, rounds, step)
    times = f"{seconds:g} s each" if rounds == 1 else f"the median of {rounds} rounds of {seconds:g} s"
    caption = f"{what}: one lock, {inside_ms:g} ms inside, {times}; {machine()}"
    if as_json:
        told = {"engine": what, "machine": machine(), "seconds": seconds, "rounds": rounds, "inside_ms": inside_ms}
        click.echo(json.dumps({**told, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        print_table(rows)
        click.echo(caption)
    if chart:
        from ..lab.chart import chart as draw

        save_svg(chart, draw(rows, caption))


def check_writable(path: str) -> None:
    """Before minutes are spent on what could not be saved."""
    with open(path, "a", encoding="utf-8"):
        pass


@contextlib.contextmanager
def engine_for(url: str | None) -> Generator[tuple[str, str]]:
    """The URL, and what to call it. Raises what is wrong with it before a process is started."""
    with contextlib.ExitStack() as stack:
        if url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-"))
            url = f"sqlite://{Path(folder).as_posix()}/bench.db"
            say("an embedded engine in a temporary folder (machine)")
        with connect(url, scope="machine") as client:
            if not url.startswith("sqlite:"):
                name_engine(url, client.capabilities.scope)
            client.ping()
            name = client.capabilities.engine
        yield url, name


@contextlib.contextmanager
def ended_in_order() -> Generator[None]:
    """SIGTERM and SIGHUP end our processes as Ctrl-C does."""

    def end(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    found = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {one: signal.getsignal(one) for one in found}
    heard = [one for one in found if before[one] is not signal.SIG_IGN]
    for one in heard:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in heard:
            signal.signal(one, before[one])


@contextlib.contextmanager
def progress(total: int) -> Generator[Callable[[Row], None]]:
    """A progress bar on stderr, where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        yield lambda row: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting processes", total=total)

        def step(row: Row) -> None:
            told = f"{row.strategy}, {row.waiters} waiting: {row.handovers_per_s:,.0f} hand-overs a second"
            bar.update(task, advance=1, description=told)

        yield step


def machine() -> str:
    system = f"{platform.system()} {platform.machine()}"
    return f"Python {platform.python_version()}, {system}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"


COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("hand-\novers/s", lambda row: f"{row.handovers_per_s:,.0f}"),
    ("wait\np50 ms", lambda row: milliseconds(row.wait_p50_s)),
    ("\np99 ms", lambda row: milliseconds(row.wait_p99_s)),
    ("\nmax ms", lambda row: milliseconds(row.wait_max_s)),
    ("\nJain", lambda row: f"{row.jain:.3f}"),
    ("each\ncalls", lambda row: f"{row.calls_per_handover:,.1f}"),
    ("each\nCPU µs", lambda row: f"{row.cpu_per_handover_s * 1e6:,.0f}"),
    ("idle\ncalls/s", lambda row: f"{row.waiting_calls_per_s:,.0f}"),
    ("idle\nCPU %", lambda row: f"{row.waiting_cpu_share * 100:.1f}"),
)
LEGEND = (
    "N: how many wait; each: for one hand-over, all clients together; idle: of all who wait, while one holds it and "
    "nothing happens, in % of one core"
)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}" if seconds < 0.01 else f"{seconds * 1e3:,.0f}"


def print_table(rows: Sequence[Row]) -> None:
    from rich.table import Table

    table = Table("\nN", "\nstrategy", *(title for title, _ in COLUMNS), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.justify = "left" if column.header == "\nstrategy" else "right"
        column.no_wrap = True
    before = 0
    for row in rows:
        if before and before != row.waiters:
            table.add_row()
        number = "" if before == row.waiters else str(row.waiters)
        table.add_row(number, row.strategy, *(shown(row) for _, shown in COLUMNS))
        before = row.waiters
    show_table(table)
    click.echo(LEGEND)
