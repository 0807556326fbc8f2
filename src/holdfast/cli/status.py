"""``holdfast status``: what stands on an engine."""

from __future__ import annotations

import json
from typing import Any

import click

from ..model import Snapshot
from ..sync import Client
from ..worlds.threads import drive
from .output import engine_options, printable, show_table

HELP = """\
Show every lock, semaphore, group and partition that somebody holds or waits for.

\b
  holdfast status
  holdfast status lock:invoice          # those whose kind:name, or name, starts like this
  holdfast status --json | jq '.[] | select(.waiting > 0)'

With --json: a list of {kind, name, capacity, holders, waiting, claims}, each claim being {owner, token, weight,
admitted, age_s, remaining_s, id}.
"""


@click.command("status", help=HELP, short_help="Who holds, who waits, since when.")
@click.argument("prefix", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@engine_options
def command(client: Client, prefix: str, as_json: bool) -> None:
    stands = [stand for stand in snapshots(client, prefix) if stand.claims]
    if as_json:
        click.echo(json.dumps([told(stand) for stand in stands], indent=2))
    elif stands:
        print_table(stands)
    else:
        click.echo("nobody holds anything" + (f" that starts with {prefix!r}" if prefix else ""))


def snapshots(client: Client, prefix: str) -> list[Snapshot]:
    """A look at each turnstile whose address or name starts with ``prefix``."""
    session = client.session
    found = [
        turnstile
        for turnstile in drive(session.ask(session.engine.list("")))
        if turnstile.address.startswith(prefix) or turnstile.name.startswith(prefix)
    ]
    replies = drive(
        session.world.call_many([session.engine.look(turnstile) for turnstile in found], session.patience_s)
    )
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return [reply for reply in replies if isinstance(reply, Snapshot)]


def told(stand: Snapshot) -> dict[str, Any]:
    claims = [
        {
            "owner": claim.owner,
            "token": claim.token,
            "weight": claim.weight,
            "admitted": claim.admitted,
            "age_s": round(claim.age_s, 3),
            "remaining_s": round(claim.remaining_s, 3),
            "id": claim.id,
        }
        for claim in stand.claims
    ]
    return {
        "kind": stand.kind,
        "name": stand.name,
        "capacity": stand.capacity,
        "holders": len(stand.admitted),
        "waiting": len(stand.waiting),
        "claims": claims,
    }


def print_table(stands: list[Snapshot]) -> None:
    from rich.table import Table

    table = Table("kind", "name", "who", "state", "since", "lease ends in", "token", box=None, pad_edge=False)
    for stand in stands:
        for claim in stand.claims:
            state = "holds" if claim.admitted else "waits"
            since, ends = f"{claim.age_s:.1f} s", f"{claim.remaining_s:.1f} s"
            table.add_row(
                stand.kind, printable(stand.name), printable(claim.owner), state, since, ends, str(claim.token)
            )
    show_table(table)
