"""``holdfast plan``: what moves when nodes change."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import click

from ..placement.balance import counted
from ..placement.base import Placement
from ..placement.hashing import Key, key_bytes
from ..placement.moves import CHUNK, Move, check_pair, key_moves
from ..placement.nodes_file import load
from ..placement.plan import KeyStep, Plan, Step
from ..placement.words import in_words
from .keys import bar, check_separators, placement_options, save_svg, stdin_keys, svg_option
from .output import printable, say, show_table

SHOWN = 20
"""How many pairs of nodes the table shows; --json has all."""

HELP = """\
Say what moves when the nodes of BEFORE become those of AFTER: who must copy from whom, and how much.

\b
  holdfast plan --before a,b,c --after a,b,c,d
  holdfast plan --before old.toml --after new.toml --json > plan.json    # every range of hashes, in steps
  holdfast plan --before old.toml --after new.toml < keys                # the keys that move: KEY, FROM, TO
  holdfast plan --before old.toml --after new.toml --replicas 3 < keys   # …of three copies: KEY, FROM, TO, DROP
  holdfast plan --before old.toml --after new.toml --svg change.svg      # a picture

Nodes are given as for `holdfast place`. Both sides must place by the same rules (algorithm, hash, points): a plan
between others is refused, for nearly everything would move. Only a ring has ranges; with any other algorithm give keys.

With copies, FROM is a node that has the key and keeps it, if there is one, and DROP the one that may forget it when TO
has it. Where a node's place depends on what came before it (anchor, choose), give files ending in .json with what
to_dict() gave before and after the change.

The JSON can be carried out from Python, step by step, and resumed: holdfast.placement.plan.Plan.from_dict(…).apply(…).
"""


@click.command("plan", help=HELP, short_help="What moves when nodes change.")
@click.option("--before", required=True, metavar="FILE|a,b,c", help="The nodes that are.")
@click.option("--after", required=True, metavar="FILE|a,b,c", help="The nodes that shall be.")
@placement_options
@click.option("--replicas", "-r", type=click.IntRange(1), default=1, show_default=True, help="Copies of each key.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole plan as JSON.")
@svg_option
def command(
    before: str,
    after: str,
    algorithm: str | None,
    points: int | None,
    hash: str | None,
    replicas: int,
    as_json: bool,
    svg: str | None,
) -> None:
    old, new = (load(given, algorithm=algorithm, points=points, hash=hash) for given in (before, after))
    check_pair(old, new, replicas)
    keys = all_keys()
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    loads = None
    if keys is None:
        plan = old.plan(new, replicas=replicas)
    elif as_json or svg:
        plan = old.plan(new, keys=counting(map(as_text, keys), old, new, replicas, counts), replicas=replicas)
        loads = counted(old, counts[0], replicas), counted(new, counts[1], replicas)
    else:
        print_moves(old, new, key_moves(old, new, keys, replicas), replicas)
        return
    if as_json:
        click.echo(json.dumps(plan.to_dict()))
    elif plan.keys is None:
        print_table(plan)
        click.echo(printable(in_words(old, new, plan)))
    else:
        moving = [(key, Move(step.source, step.target, step.drop)) for step in plan.steps for key in keys_of(step)]
        print_moves(old, new, [(plan.keys, moving)], replicas)
    if svg:
        from ..placement.picture import change_picture

        save_svg(svg, change_picture(old, new, plan, loads))


def all_keys() -> Iterator[bytes] | None:
    """Stdin's keys one by one; None where there are none at all."""
    chunks = stdin_keys()
    first = next(chunks, None)
    return None if first is None else chain.from_iterable(chain([first], chunks))


def as_text(key: bytes) -> Key:
    """As JSON can show it, if it is text."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def counting(
    keys: Iterable[Key], old: Placement, new: Placement, replicas: int, counts: tuple[Counter[str], Counter[str]]
) -> Iterator[Key]:
    """Pass keys on, and count whom they belong to before and after."""
    keys = iter(keys)
    while chunk := list(islice(keys, CHUNK)):
        for placement, count in zip((old, new), counts, strict=True):
            n = min(replicas, len(placement))
            if n == 1:
                count.update(placement.locate(chunk))
            else:
                count.update(chain.from_iterable(placement.get_nodes(key, n) for key in chunk))
        yield from chunk


def keys_of(step: Step) -> Iterator[bytes]:
    assert isinstance(step, KeyStep)
    return map(key_bytes, step.keys)


def print_moves(
    old: Placement, new: Placement, chunks: Iterable[tuple[int, list[tuple[bytes, Move]]]], replicas: int
) -> None:
    """A line for each key, or copy, that moves."""
    check_separators([*old.nodes, *new.nodes])
    out = sys.stdout.buffer
    keys = moved = 0
    fields = {name: b"\t" + name.encode() for name in (*old.nodes, *new.nodes)}
    for size, moving in chunks:
        keys, moved = keys + size, moved + len(moving)
        for key, move in moving:
            names = (*move[:2], move.drop) if replicas > 1 else move[:2]
            out.write(key + b"".join([b"\t" if name is None else fields[name] for name in names]) + b"\n")
        out.flush()
    copies = keys * min(replicas, len(new))
    unit = "keys" if replicas == 1 else f"copies ({copies // keys} of each of {keys:,} keys)" if keys else "copies"
    say(f"{moved:,} of {copies:,} {unit} move" + (f" ({moved / copies:.1%})" if copies else ""))


def print_table(plan: Plan) -> None:
    from rich.table import Table

    shares = plan.shares()
    table = Table("from", "to", "share", "", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    largest = max(shares.values(), default=0.0)
    shown = list(shares.items()) if len(shares) <= SHOWN else list(shares.items())[: SHOWN - 1]
    for (source, target), share in shown:
        table.add_row(printable(source), printable(target), f"{share:.2%}", bar(share / largest))
    if rest := list(shares.values())[len(shown) :]:
        table.add_row(f"… {len(rest):,} more", "", f"{sum(rest):.2%}")
    if shares:
        show_table(table)
        click.echo(f"{len(plan.steps):,} steps; --json lists them")
