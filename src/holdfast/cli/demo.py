"""``holdfast demo``: the tour, told and tabled for people."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ..fleet import demo
from ..sync import connect
from .output import name_engine, say

HELP = """\
A minute's tour: hash the Python standard library with four workers, harm two of them, and check the books.

\b
  holdfast demo
  holdfast demo --engine redis://localhost

Four `holdfast each` processes share a few thousand real files. When a fifth of them is recorded one worker is killed
with work in hand; at two fifths another is paused until long after its lease. The others take over. When the paused one
wakes, its late results are refused. Then every record is compared with a plain sequential computation.

The default is an embedded engine in a temporary folder; nothing is left behind. Exit code 1 if anything does not hold.
"""


@click.command("demo", help=HELP, short_help="A minute's tour, with a worker killed and another paused.")
@click.option("--spoil", is_flag=True, help="Plant a wrong digest before the audit, to see that it is found.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@click.option("--engine", metavar="URL", help="Where to keep the state; a temporary embedded one by default.")
def command(engine: str | None, spoil: bool, as_json: bool) -> None:
    if engine is None:
        say("an embedded engine in a temporary folder (machine)")
    else:
        name_engine(engine, connect(engine).capabilities.scope)
    report = demo.run(engine, silent if as_json else told, spoil)
    if as_json:
        click.echo(json.dumps({"events": report.events, "files": report.files, "workers": report.workers,
                               "checks": report.checks, "seconds": report.seconds, "wrong": report.wrong}))  # fmt: skip
    else:
        print_report(report)
    sys.exit(1 if report.wrong else 0)


def told(seconds: float, recorded: int, what: str) -> None:
    click.echo(f"{seconds:5.1f} s  {recorded:6,} recorded  {what}")
    sys.stdout.flush()


def silent(seconds: float, recorded: int, what: str) -> None:
    """With --json the events are in the report."""


def print_report(report: demo.Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    workers = Table("worker", "what happened to it", "recorded", "of those, taken over", "refused")
    for column in workers.columns[2:]:
        column.justify = "right"
    fates = {demo.KILLED: "killed", demo.PAUSED: "paused past its lease, woke"}
    for number, account in report.workers.items():
        counts = [str(account.get(name, "")) for name in ("done", "taken_over", "refused")]
        if number == demo.KILLED:
            counts = [str(killed_recorded(report)), "", ""]
        workers.add_row(str(number), fates.get(number, "worked to the end"), *counts)
    checks = Table("what must hold", "found", "")
    for what, found, holds in report.checks:
        checks.add_row(what, found, "[green]holds[/green]" if holds else "[red]BROKEN[/red]")
    console.print()
    console.print(workers)
    console.print(checks)
    if report.wrong:
        console.print(f"[red]The audit failed[/red] after {report.seconds:.1f} s: {'; '.join(report.wrong)}")
    else:
        console.print(f"All of it held, in {report.seconds:.1f} s.")


def killed_recorded(report: demo.Report) -> int:
    """It cannot say itself any more: what stands and nobody else claims."""
    others: list[dict[str, Any]] = [one for number, one in report.workers.items() if number != demo.KILLED]
    return report.recorded - sum(int(one.get("done", 0)) for one in others)
