"""``holdfast evict``: drop a claim."""

from __future__ import annotations

import sys

import click

from ..fleet.overview import looks
from ..sync import Client
from ..worlds.threads import drive
from .output import engine_options, printable, say

HELP = """\
Drop the claim of whoever holds NAME, for a holder that hangs and goes on renewing.

\b
  holdfast evict nightly
  holdfast evict catalog --kind rwlock --token 1795487048451894
  holdfast evict nightly --all                   # those who wait, too (they queue again)

The next in the queue is admitted at once. The evicted holder is told at its next renewal, and until then may still act:
only cells, and resources that check tokens, refuse it before.

\b
Exit codes: 1 if nobody holds it.
"""


@click.command("evict", help=HELP, short_help="Drop a claim.")
@click.argument("name")
@click.option("--kind", default="lock", show_default=True, help="lock, rwlock, semaphore, group, partition, …")
@click.option("--token", type=int, help="Only the claim with this token.")
@click.option("--all", "everyone", is_flag=True, help="Those who wait as well.")
@engine_options
def command(client: Client, name: str, kind: str, token: int | None, everyone: bool) -> None:
    session = client.session
    found = [
        one for one in drive(session.ask(session.engine.list(f"{kind}:{name}"))) if (one.kind, one.name) == (kind, name)
    ]
    stands = drive(looks(session, found))
    claims = [claim for stand in stands for claim in (stand.claims if everyone or token else stand.admitted)]
    chosen = [claim for claim in claims if token in (None, claim.token)]
    if not chosen:
        say(f"nobody holds {kind}:{name}" + (f" with token {token}" if token else ""))
        sys.exit(1)
    for claim in reversed(chosen):  # the last first, so that nobody is admitted only to be evicted
        for bury in (False, True):  # the second finds nothing and keeps that as the answer: its owner lost it
            drive(session.ask(session.engine.leave(found[0], claim.id, bury)))
        click.echo(f"evicted {printable(claim.owner)} (token {claim.token})")
