"""``holdfast run``: a command under a lock."""

from __future__ import annotations

import sys

import click

from ..fleet import run as fleet
from ..sync import Client
from .output import LEASE_LOST, NOT_ACQUIRED, engine_options, say

HELP = f"""\
Run CMD while holding the lock NAME: one at a time, on however many machines this is started.

\b
  holdfast run nightly -- ./backup.sh
  holdfast run nightly --timeout 0 -- ./backup.sh            # give up at once if another runs it
  holdfast run deploy --ttl 60 -- sh -c 'deploy --fence $HOLDFAST_TOKEN'

CMD finds its fencing token in HOLDFAST_TOKEN and the lock's name in HOLDFAST_NAME. Signals are forwarded to it. If the
lease is lost (the engine was out of reach for longer than --ttl, or someone evicted it), CMD gets SIGTERM, and SIGKILL
after --grace; where there is no terminal, so does all that it started. If this process is killed, Linux sends CMD a
SIGTERM; on the embedded engine the lock is kept until CMD has ended or the lease is over.

\b
Exit codes: CMD's own; {NOT_ACQUIRED} not acquired; {LEASE_LOST} lease lost; 126 CMD cannot run; 127 no such CMD.
"""


@click.command("run", help=HELP, short_help="Run CMD while holding a lock.")
@click.argument("name")
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--ttl", type=float, help="Seconds until a dead one is replaced.  [default: 15, or the engine's session]")
@click.option("--timeout", type=float, help="Wait at most so many seconds for the lock.  [default: for ever]")
@click.option("--grace", type=float, default=10.0, show_default=True, help="Seconds between SIGTERM and SIGKILL.")
@engine_options
def command(
    client: Client, name: str, cmd: tuple[str, ...], ttl: float | None, timeout: float | None, grace: float
) -> None:
    try:
        code = fleet.run(client, name, cmd, ttl_s=ttl, timeout_s=timeout, grace_s=grace)
    except fleet.CannotStart as trouble:
        say(str(trouble))
        sys.exit(trouble.code)
    sys.exit(code)
