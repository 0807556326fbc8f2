"""``holdfast status``: what stands on an engine, and what happened last."""

from __future__ import annotations

import json
from typing import Any

import click

from ..fleet.overview import Overview, gather
from ..fleet.portions import Partitions
from ..fleet.presence import Member
from ..model import ClaimView, Snapshot
from ..sync import Client
from ..worlds.threads import drive
from .output import console_for_results, engine_options

HELP = """\
Show who leads, who is there and how well, who owns which partitions, who holds and who waits for what, and the last
failovers.

\b
  holdfast status
  holdfast status lock:invoice          # those whose kind:name, or name, starts like this
  holdfast status --failovers           # what happened, step by step
  holdfast status --json | jq '.locks[] | select(.waiting > 0)'

An election or partitions that nobody takes part in any more are shown by their whole name (election:scheduler). The
form of --json is described in docs/command.md.
"""


@click.command("status", help=HELP, short_help="Who leads, owns, holds and waits; the last failovers.")
@click.argument("prefix", default="")
@click.option("--all", "everything", is_flag=True, help="Every row and every partition.")
@click.option("--failovers", is_flag=True, help="The recorded failovers only, step by step.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@engine_options
def command(client: Client, prefix: str, everything: bool, failovers: bool, as_json: bool) -> None:
    view = drive(gather(client.session, prefix))
    if as_json:
        click.echo(json.dumps(document(view, everything), indent=2))
    elif failovers:
        print_failovers(view, prefix)
    elif view.is_empty:
        click.echo("nobody holds anything" + named(prefix))
    else:
        print_overview(view, everything)


def named(prefix: str) -> str:
    return f" that starts with {prefix!r}" if prefix else ""


def print_overview(view: Overview, everything: bool) -> None:
    from .telling import ROWS, Teller

    console = console_for_results()
    for number, part in enumerate(Teller(console.width, None if everything else ROWS).tell(view)):
        if number:
            console.print()
        console.print(part)


def print_failovers(view: Overview, prefix: str) -> None:
    from .telling import story

    if not view.failovers:
        click.echo("no failover is recorded" + named(prefix))
    for number, failover in enumerate(view.failovers):
        click.echo(("\n" if number else "") + "\n".join(story(failover)))


# -- for programs


def document(view: Overview, everything: bool = False) -> dict[str, Any]:
    return {
        "elections": [
            {
                "name": one.name,
                "leader": one.leader
                and {
                    **of_member(one.leader),
                    "since_s": one.since_s and round(one.since_s, 3),
                    "state": one.state,
                    "payload": text(one.payload),
                },
                "candidates": [of_member(member) for member in one.candidates],
            }
            for one in view.elections
        ],
        "groups": [
            {"name": group.name, "members": [of_member(member) for member in group.members]} for group in view.groups
        ],
        "partitions": [of_partitions(one, everything) for one in view.partitions],
        "locks": [of_stand(stand) for stand in view.locks],
        "failovers": [
            {
                "kind": one.kind,
                "name": one.name,
                "at": round(one.at, 3),
                "what": one.change.what,
                "why": one.change.why,
                "by": one.change.by,
                "took_s": round(one.change.took_s, 3),
                "steps": [{"at": step.at, "what": step.what} for step in one.change.steps],
            }
            for one in view.failovers
        ],
    }


def of_claim(claim: ClaimView) -> dict[str, Any]:
    return {
        "owner": claim.owner,
        "token": claim.token,
        "weight": claim.weight,
        "admitted": claim.admitted,
        "age_s": round(claim.age_s, 3),
        "remaining_s": round(claim.remaining_s, 3),
        "id": claim.id,
    }


def of_member(member: Member) -> dict[str, Any]:
    return {**of_claim(member.claim), "health": member.health, "payload": text(member.claim.payload)}


def of_stand(stand: Snapshot) -> dict[str, Any]:
    return {
        "kind": stand.kind,
        "name": stand.name,
        "capacity": stand.capacity,
        "holders": len(stand.admitted),
        "waiting": len(stand.waiting),
        "claims": [of_claim(claim) for claim in stand.claims],
    }


def of_partitions(one: Partitions, everything: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": one.name,
        "count": one.count,
        "epoch": one.epoch,
        "members": [
            {
                "name": portion.name,
                "owner": portion.owner,
                "owned": portion.owned,
                "wanted": portion.wanted if one.epoch else None,
                "leaving": portion.leaving,
                "claim": portion.member and {**of_claim(portion.member.claim), "health": portion.member.health},
            }
            for portion in one.portions
        ],
        "handing_over": [place.partition for place in one.handed_over],
        "unowned": [place.partition for place in one.unowned],
    }
    if everything:
        told["places"] = [
            {
                "partition": place.partition,
                "owner": place.owner or None,
                "wanted": place.wanted or None,
                "token": place.claim.token if place.claim else None,
            }
            for place in one.places
        ]
    return told


def text(payload: bytes) -> str:
    return payload.decode(errors="backslashreplace")
