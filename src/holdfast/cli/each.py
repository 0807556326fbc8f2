"""``holdfast each``: spread lines of input over every process that runs the same job."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, Any

import click

from ..errors import HoldfastError, Misuse
from ..fleet.each_exec import CannotRun, Command
from ..fleet.each_input import Input
from ..fleet.each_report import Progress, Settings, Summary
from ..fleet.each_store import MAX_PARTITIONS, PARTITIONS, Store
from ..fleet.each_worker import Member
from ..sync import Client
from .output import engine_options, printable, say

HELP = """\
Run CMD once for each line of input, shared among all who run the same JOB.

\b
  find . -name '*.wav' | holdfast each encode -- flac -s {}
  holdfast each thumbs --input files.txt --workers 4 --batch 50 -- ./thumbs.sh {}
  holdfast each encode -- flac -s {}           # on another machine: join in, no input needed
  holdfast each encode --results               # what was recorded, as JSON lines; --dead: what failed for good

Start it in as many processes on as many machines as you like, at any time: each owns a share of the items, and who
comes, goes or dies only moves its own. Each item is a line and its how-many-th occurrence; empty lines are none. The
job's input is the union over its members: the same list given twice is run once. A terminal is no input.

An argument {} becomes the item; no shell is involved, so spaces and quotes are safe. With --batch N, {} becomes up to
N items of one partition at once, as with xargs, and a batch that fails is tried again item by item. CMD's input is
empty, and HOLDFAST_TOKEN in its environment is the fencing token of its items' owner.

Completions are recorded on the engine. So a member that dies is replaced, and after all were killed the same line
goes on where they stopped. An item that was running when its member crashed (or lost touch with the engine) is run
again: CMD runs AT LEAST ONCE for each item. EXACTLY ONE completion is recorded for each: the record is written once,
under the token of the item's owner, and a member that was paused past its lease is refused. A finished job run again
does nothing, unless there are new lines, or with --again.

An item that fails is tried again (--retry), and so is one that takes longer than --timeout. What still fails stops the
job, to be tried by the next run; or, with --keep-going, goes on the dead-letter list, and the others go on. --dead
prints that list, --retry-dead runs it again.

\b
Exit codes: 0 all done; 1 an item failed; 126, 127 CMD cannot be run, is not found; 130, 143 ended by Ctrl-C, SIGTERM.
"""


@click.command("each", help=HELP, short_help="Run CMD for each line of input, shared among machines.")
@click.argument("job")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
@click.option("--workers", "-w", type=click.IntRange(1, 1024), help="CMDs at once here.  [default: CPUs]")
@click.option("--batch", "-n", type=click.IntRange(1), default=1, show_default=True, help="Items per CMD, at most.")
@click.option(
    "--partitions", type=click.IntRange(1, MAX_PARTITIONS), help=f"Shares of a new job.  [default: {PARTITIONS}]"
)
@click.option("--ttl", type=float, help="Seconds until a dead one is replaced.  [default: 15, or the engine's session]")
@click.option("--retry", type=click.IntRange(0), default=2, show_default=True, help="Further tries of what fails.")
@click.option("--timeout", type=float, help="Seconds that a CMD may take; then it is ended (SIGTERM), and has failed.")
@click.option("--keep-going", "-k", is_flag=True, help="Go on after an item failed for good; without, the job stops.")
@click.option("--retry-dead", is_flag=True, help="Try once more what failed for good before.")
@click.option("--again", is_flag=True, help="Run a finished job afresh (an unfinished one is joined).")
@click.option("--input", "source", type=click.File("rb"), help="Read items from this file and not from stdin.")
@click.option("--collect", is_flag=True, help="Record what CMD prints (4 KiB an item; with --batch a line for each).")
@click.option("--results", is_flag=True, help="Print what was recorded as JSON lines; with CMD, --collect too.")
@click.option("--dead", is_flag=True, help="Print what failed for good as JSON lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
@engine_options
def command(
    client: Client,
    job: str,
    cmd: tuple[str, ...],
    workers: int | None,
    batch: int,
    partitions: int | None,
    ttl: float | None,
    retry: int,
    timeout: float | None,
    keep_going: bool,
    retry_dead: bool,
    again: bool,
    source: IO[bytes] | None,
    collect: bool,
    results: bool,
    dead: bool,
    as_json: bool,
) -> None:
    if results + dead + as_json > 1:
        raise Misuse("--results, --dead and --json print different things: give one of them")
    logging.getLogger("holdfast").setLevel(logging.ERROR)  # an outage is told once, not for each of many partitions
    store = Store(client, job, ttl)
    records = store.results() if results else store.dead() if dead else iter(())
    if not cmd and (results or dead):
        print_lines(records)
        return
    run = Command(cmd, batch, collect or results, timeout)
    settings = Settings(workers or os.cpu_count() or 1, partitions, retry, keep_going, again, retry_dead)
    try:
        run.check()  # before the input is read: that may take long
        with contextlib.closing(read_input(source)) as items, progress() as show:
            member = Member(store, run, settings, items, tell=say, show=show)
            with signals_to(member):
                summary = member.run()
    except CannotRun as trouble:
        say(str(trouble))
        sys.exit(trouble.code)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(summary)))
    else:
        print_summary(summary)
    print_lines(records)
    sys.exit(exit_code(summary))


def read_input(source: IO[bytes] | None) -> Input:
    """The items of ``source``, else of stdin; none where that is a terminal or closed."""
    lines: Iterable[bytes] = ()
    if source is not None:
        lines = source
    elif sys.stdin is not None and not sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        lines = sys.stdin.buffer
    try:
        return Input(lines)
    except OSError as error:
        raise HoldfastError(f"the input cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def signals_to(member: Member) -> Generator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the member in order, where they are not ignored (nohup, &)."""
    found = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {one: signal.getsignal(one) for one in found}
    heard = [one for one in found if before[one] is not signal.SIG_IGN]
    for one in heard:
        signal.signal(one, lambda signum, frame: member.interrupt(signum))
    try:
        yield
    finally:
        for one in heard:
            signal.signal(one, before[one])


@contextlib.contextmanager
def progress() -> Generator[Callable[[Progress], None] | None]:
    """A progress bar on stderr, where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():  # pyright: ignore[reportUnnecessaryComparison]
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    times = (TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), *times)
    with Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        joining = bar.add_task("joining", total=None)

        def show(seen: Progress) -> None:
            over = seen.done + seen.failed
            if bar.tasks[0].total is None:  # what was over before we came says nothing of how fast it goes
                bar.reset(joining, total=seen.items, completed=over)
            bar.update(joining, total=seen.items, completed=over, description=described(seen, bar.tasks[0].speed))

        yield show


def described(seen: Progress, per_s: float | None) -> str:
    rate = "" if per_s is None else f"{per_s:,.0f}/s, " if per_s >= 10 else f"{per_s:.1f}/s, "
    failed = f", {seen.failed} failed" if seen.failed else ""
    return f"{rate}{seen.running} running here, {seen.partitions} partitions ours{failed}"


def print_summary(summary: Summary) -> None:
    """To stderr: stdout is CMD's."""
    if summary.status == "nothing to do":
        say(f"{summary.job}: nothing to do: no items were given, here or before")
        return
    happened = {"stopped": "given up, since another member's item failed", "failed": "given up, since an item failed"}
    rate = f", {summary.items_per_s:,.0f} items/s" if summary.items_per_s >= 1 else ""
    say(f"{summary.job}: {happened.get(summary.status, summary.status)} ({summary.seconds:.1f} s{rate})")
    counts = {
        "items": summary.items,
        "done here": summary.done,
        "by others": summary.done_by_others,
        "before": summary.done_before,
        "taken over": summary.taken_over,
        "refused": summary.refused,
        "failed": summary.failed,
    }
    click.echo("  " + " · ".join(f"{name} {count}" for name, count in counts.items()), err=True)
    for failure in summary.failures:
        click.echo(f"  failed: {printable(shown(failure))}", err=True)
    if summary.failed > len(summary.failures):
        click.echo(f"  … and {summary.failed - len(summary.failures)} more: --dead prints all", err=True)
    if summary.dead:
        click.echo("  --retry-dead tries them once more", err=True)


def shown(failure: dict[str, Any]) -> str:
    nth = f" (occurrence {failure['occurrence']})" if failure["occurrence"] > 1 else ""
    note = f": {failure['note']}" if "note" in failure else ""
    return f"{failure['item']!r}{nth}, exit code {failure['code']} after {failure['attempts']} tries{note}"


def print_lines(records: Iterator[dict[str, Any]]) -> None:
    for one in records:
        click.echo(json.dumps(one))


def exit_code(summary: Summary) -> int:
    if summary.signal:
        return 128 + summary.signal
    return 1 if summary.failed or summary.status in ("failed", "stopped") else 0
