"""What all verbs share: which engine, how to speak, and the exit codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ..engines import without_password
from ..errors import AcquireTimeout, HoldfastError, LeaseLost, Misuse, OutcomeUnknown, Unavailable, Unsupported
from ..sync import connect

UNAVAILABLE = 69
NOT_ACQUIRED = 75
LEASE_LOST = 76

EXIT_CODES = (
    (0, "all is well"),
    (1, "what was asked for failed (a demo's audit, an item of each, nothing to evict)"),
    (2, "the command line is wrong, or the engine cannot do that"),
    (UNAVAILABLE, "the engine cannot be reached"),
    (NOT_ACQUIRED, "run: the lock was not ours within --timeout"),
    (LEASE_LOST, "run: the lease was lost, and CMD was stopped"),
    (126, "CMD cannot be executed"),
    (127, "CMD does not exist"),
    (130, "interrupted (128 + the signal's number)"),
)


def exit_code(error: HoldfastError) -> int:
    if isinstance(error, AcquireTimeout):
        return NOT_ACQUIRED
    if isinstance(error, LeaseLost):
        return LEASE_LOST
    if isinstance(error, (Misuse, Unsupported)):
        return 2
    return UNAVAILABLE if isinstance(error, (Unavailable, OutcomeUnknown)) else 1


def say(line: str) -> None:
    """One line for people, on stderr."""
    click.echo(f"holdfast: {printable(line)}", err=True)


def printable(text: str) -> str:
    """On one line, and harmless to a terminal: names and owners are whatever somebody chose."""
    return "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text)


def show_table(table: Any) -> None:
    """A table of rich's on stdout."""
    console_for_results().print(table)


def console_for_results() -> Any:
    """Rich's, for stdout; to a file or a pipe in full width, so that a program may read it."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    return console


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--engine`` and ``--namespace``, and give the command its ``client``, closed at its end."""

    @click.option(
        "--engine", metavar="URL", envvar="HOLDFAST_URL", help="redis://host, sqlite:///path; or HOLDFAST_URL."
    )
    @click.option("--namespace", default="", metavar="NAME", help="Keeps applications on one engine apart.")
    @functools.wraps(command)
    def with_client(*args: Any, engine: str | None, namespace: str, **options: Any) -> Any:
        where = "sqlite://" if engine is None else engine
        with connect(where, namespace=namespace, scope="machine") as client:  # a lock of one process excludes nobody
            name_engine(engine, client.capabilities.scope)
            return command(*args, client=client, **options)

    return with_client


def name_engine(url: str | None, scope: str) -> None:
    """The first line on stderr: where the state lives, and how far that reaches."""
    say(f"{'the embedded engine' if url is None else without_password(url)} ({scope})")
