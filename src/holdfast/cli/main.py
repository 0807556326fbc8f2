"""Where the command starts: finds the verb, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click

from ..errors import HoldfastError
from .output import EXIT_CODES, exit_code, printable, say

VERBS = {
    "run": "Run CMD while holding a lock.",
    "lead": "Keep CMD running on exactly one machine.",
    "each": "Run CMD for each line of input, shared among machines.",
    "place": "On which node each key lives.",
    "plan": "What moves when nodes change.",
    "status": "Who leads, owns, holds and waits; the last failovers.",
    "watch": "The same as status, live.",
    "evict": "Drop a claim.",
    "demo": "A minute's tour, with a worker killed and another paused.",
    "bench": "What waiting costs, measured here.",
}

HELP = """\
Locks and shared work for services that must stay up and stay right.

\b
  holdfast run nightly -- ./backup.sh              # one at a time, wherever it is started
  find . -name '*.wav' | holdfast each encode -- flac -s {}
  find . -type f | holdfast place --nodes a,b,c    # which node keeps what
  holdfast status                                  # who holds, who waits
  holdfast demo                                    # see it work

State lives in the engine that --engine or HOLDFAST_URL names (redis://host, sqlite:///path); without either, in a file
of this user on this machine.

\b
Exit codes:
"""


class Verbs(click.Group):
    """Loads a verb's module when it is asked for, so that each starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f".{cmd_name}", __package__).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, help=HELP + "\n".join(f"  {code:3}  {meaning}" for code, meaning in EXIT_CODES))
@click.version_option(package_name="holdfast")
def holdfast() -> None: ...


def run() -> None:
    """Run the command line. Every error that is ours, click's or the system's is one line and a documented code."""
    _prepare()
    try:
        sys.exit(holdfast.main(prog_name="holdfast", standalone_mode=False))
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError as wanted:
        click.echo(wanted.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as wrong:
        usage = wrong.ctx.command_path if isinstance(wrong, click.UsageError) and wrong.ctx else "holdfast"
        say(f"{wrong.format_message()} ({usage} --help shows how)")
        sys.exit(wrong.exit_code)
    except HoldfastError as trouble:
        say(str(trouble))
        sys.exit(exit_code(trouble))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as trouble:  # a full disk, an input that cannot be read
        _give_up_output()
        say(f"{trouble.filename or 'input or output'}: {trouble.strerror or trouble}")
        sys.exit(1)


def _prepare() -> None:
    for fd in range(3):  # one that is closed would become a file of the engine's, and then CMD's
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # closed in CMD again
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    warnings = logging.StreamHandler()
    warnings.setFormatter(_OneLine())
    logging.basicConfig(handlers=[logging.NullHandler()])  # what a client library logs, our errors say
    logging.getLogger("holdfast.zookeeper.kazoo").disabled = True
    logging.getLogger("holdfast").addHandler(warnings)


class _OneLine(logging.Formatter):
    """What is logged while CMD goes on (an outage, a lost lease), said as everything else is."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"holdfast: {printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _give_up_output() -> None:
    """What is still to be written would fail again at the end, with a traceback."""
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
