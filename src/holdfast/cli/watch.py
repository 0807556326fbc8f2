"""``holdfast watch``: what stands on an engine, live."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator
from typing import Any

import click

from ..fleet.follow import Event, Follower
from ..model import NUDGE, Signal
from ..sync import Client
from ..worlds.threads import drive
from .output import engine_options, printable
from .words import clock, span

HELP = """\
Follow who leads, who is there, who owns which partitions and who waits, live. q or Ctrl-C ends it.

\b
  holdfast watch
  holdfast watch partitions:orders      # those whose kind:name, or name, starts like this
  holdfast watch | tee fleet.log        # without a terminal: a line for each event
  holdfast watch --json                 # the same as JSON lines: {at, address, kind, text}

It looks again when something that announces its changes has changed, and at the interval; it goes on through an outage
of the engine, and says so.
"""

EVENTS = 6


@click.command("watch", help=HELP, short_help="The same as status, live.")
@click.argument("prefix", default="")
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="S",
              help="Look at least this often.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON document a line for each event, also on a terminal.")
@engine_options
def command(client: Client, prefix: str, interval: float, as_json: bool) -> None:
    follower = Follower(client.session, prefix, interval)
    if as_json or not sys.stdout.isatty():
        while True:
            for event in drive(follower.look()):
                click.echo(json.dumps(event._asdict()) if as_json else line(event))
            sys.stdout.flush()
            drive(follower.wait())
    show(follower)


def line(event: Event) -> str:
    where = f"{event.address}: " if event.address else ""
    return printable(f"{clock(event.at, date=True)}  {where}{event.text}")


def show(follower: Follower) -> None:
    """On the terminal, until q is pressed."""
    from rich.console import Console
    from rich.live import Live

    console = Console(markup=False, highlight=False)
    events: deque[Event] = deque(maxlen=EVENTS)
    with _ended_in_order(), _keys(follower) as stop, Live(console=console, screen=True, auto_refresh=False) as live:
        while not stop.is_set():
            events.extend(drive(follower.look()))
            live.update(screen(follower, list(events), console.width, console.height), refresh=True)
            drive(follower.wait())


def screen(follower: Follower, events: list[Event], width: int, height: int) -> Any:
    """What is to be seen now: a line of the state, what stands, and below it what happened."""
    from rich.console import Group
    from rich.layout import Layout
    from rich.text import Text

    from .telling import Teller

    parts: list[Any] = []
    view = follower.view
    if view is not None:
        for part in Teller(width, max(3, height // 2)).tell(view):
            parts += [part, Text("")]
        if view.is_empty:
            parts.append(Text("nobody holds anything"))
    layout = Layout()
    head = Layout(heading(follower), size=2)
    if events and height >= 12:
        tail = Text("\n".join(line(event) for event in events), no_wrap=True, overflow="ellipsis")
        layout.split_column(head, Layout(Group(*parts)), Layout(tail, size=min(len(events), EVENTS)))
    else:
        layout.split_column(head, Layout(Group(*parts)))
    return layout


def heading(follower: Follower) -> Any:
    from rich.text import Text

    if follower.out_since is None:
        at = f"as of {clock(follower.view.at)}" if follower.view else ""
        return Text(f"{at}; q ends", style="dim", no_wrap=True, overflow="ellipsis")
    seen = f"as of {clock(follower.view.at)}; " if follower.view else ""
    lasts = span(follower.now() - follower.out_since)
    text = f"{seen}the engine cannot be reached for {lasts}: {printable(follower.trouble)}"
    return Text(text, style="bold red", no_wrap=True, overflow="ellipsis")


@contextlib.contextmanager
def _keys(follower: Follower) -> Generator[threading.Event]:
    """Set once q is pressed, where keys can be read."""
    stop = threading.Event()
    if not sys.stdin.isatty() or os.name != "posix":
        yield stop
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    ours, theirs = os.pipe()

    def read() -> None:
        while ours not in select.select([fd, ours], [], [])[0]:
            pressed = os.read(fd, 64)
            if not pressed or b"q" in pressed.lower():
                stop.set()
                follower.mailbox.post(Signal(NUDGE))
                return

    reader = threading.Thread(target=read, name="holdfast-keys", daemon=True)
    tty.setcbreak(fd)
    try:
        reader.start()
        yield stop
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _ended_in_order() -> Generator[None]:
    """The terminal is put back, too, when it is a signal that ends us."""

    def end(signum: int, frame: object) -> None:
        sys.exit(128 + signum)

    heard = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {one: signal.signal(one, end) for one in heard if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for one, former in before.items():
            signal.signal(one, former)
