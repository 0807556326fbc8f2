"""``holdfast lead``: a command on exactly one machine."""

from __future__ import annotations

import sys
from typing import Literal

import click

from ..fleet import lead as fleet
from ..sync import Client
from .output import engine_options, say

HELP = """\
Keep CMD running on exactly one of the machines that run this.

\b
  holdfast lead scheduler -- ./scheduler
  holdfast lead db --ready-timeout 30 --hold-off 5 -- postgres -D data
  holdfast lead feed -- sh -c 'echo READY=1 >&$HOLDFAST_READY_FD; exec feed --fence $HOLDFAST_TOKEN'

The others stand by, in the order they came; the next one leads when this one stops, dies, or cannot reach the engine.
CMD finds its fencing token in HOLDFAST_TOKEN and NAME in HOLDFAST_NAME. It tells that it is ready as to systemd
(NOTIFY_SOCKET), or by a line on the descriptor HOLDFAST_READY_FD. A CMD that ends is started again, whatever its code
is; --once ends with it instead.

CMD and all that it started get SIGTERM, and SIGKILL after --grace, or when the lease is over if that is sooner. SIGTERM
to this process stops CMD and hands over; HUP, USR1 and USR2 go to CMD.

\b
Exit codes: 0 stopped by SIGTERM; 130 by Ctrl-C; 126 CMD cannot run; 127 no such CMD; with --once CMD's own.
"""


@click.command("lead", help=HELP, short_help="Keep CMD running on exactly one machine.")
@click.argument("name")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=float, help="Seconds until a dead one is replaced.  [default: 15, or the engine's session]")
@click.option("--grace", type=float, default=10.0, show_default=True, help="Seconds between SIGTERM and SIGKILL.")
@click.option(
    "--on-unsure",
    type=click.Choice(["stop", "keep"]),
    default="stop",
    show_default=True,
    help="When a renewal fails: stop CMD at once, or while --grace is left of the lease.",
)
@click.option("--ready-timeout", type=float, metavar="S", help="CMD must say READY=1 within S seconds.")
@click.option("--watchdog", type=float, metavar="S", help="Once ready, CMD must say WATCHDOG=1 every S seconds.")
@click.option("--restarts", type=int, default=5, show_default=True, help="So often CMD is started again, within...")
@click.option("--window", type=float, default=300.0, show_default=True, help="...so many seconds.")
@click.option("--sit-out", type=float, default=30.0, show_default=True, help="Then others lead for S seconds at least.")
@click.option("--hold-off", type=float, default=0.0, help="Wait S seconds where the last leader went without a word.")
@click.option("--once", is_flag=True, help="End when CMD ends, with its code; another machine then leads.")
@engine_options
def command(
    client: Client,
    name: str,
    cmd: tuple[str, ...],
    ttl: float | None,
    grace: float,
    on_unsure: Literal["stop", "keep"],
    ready_timeout: float | None,
    watchdog: float | None,
    restarts: int,
    window: float,
    sit_out: float,
    hold_off: float,
    once: bool,
) -> None:
    policy = fleet.Policy(
        on_unsure=on_unsure,
        grace_s=grace,
        ready_timeout_s=ready_timeout,
        watchdog_s=watchdog,
        restarts=restarts,
        window_s=window,
        sit_out_s=sit_out,
        hold_off_s=hold_off,
        once=once,
    )
    try:
        code = fleet.Lead(client, name, cmd, policy, say, ttl_s=ttl).run()
    except fleet.CannotStart as trouble:
        say(str(trouble))
        sys.exit(trouble.code)
    sys.exit(code)
