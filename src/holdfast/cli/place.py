"""``holdfast place``: on which node each key lives, and how evenly they spread."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import click

from ..errors import Misuse
from ..placement.balance import SAMPLE, Balance, balance, counted
from ..placement.base import Placement
from ..placement.nodes_file import load
from .keys import bar, check_separators, no_stdin, placement_options, save_svg, stdin_keys, svg_option
from .output import printable, show_table

SHOWN = 40
"""Of more nodes than this a summary shows the ten busiest and the ten idlest."""

HELP = """\
Say on which node each key lives. A line of input is a key; KEY<tab>NODE comes out, in the same order.

\b
  find . -type f | holdfast place --nodes a,b,c
  holdfast place --nodes nodes.toml --replicas 3 < keys        # KEY, then its three nodes
  holdfast place --nodes nodes.toml --exclude cache-2 < keys   # while cache-2 is down
  holdfast place --nodes nodes.toml --summary < keys           # how evenly they spread
  holdfast place --nodes nodes.toml                            # no keys: the shares of all there can be
  holdfast place --nodes nodes.toml --svg ring.svg             # a picture of them

Keys are lines, kept as they are but for a carriage return at the end; empty ones are none. No engine is asked: the
answer depends on the nodes alone, and is the same on every machine.

\b
A nodes file has one node a line:           or is TOML, by its ending:
  cache-1                                     algorithm = "ring"     # needs not be said
  cache-2  weight=2.5                         [nodes]
  10.0.0.7:11211  weight=2 zone=eu-1          cache-1 = {}
                                              "10.0.0.7:11211" = { weight = 2, zone = "eu-1" }

A file that ends in .json holds what to_dict() gave.

With --json a line is {"key": …, "nodes": […]}, and the summary one document.
"""


@click.command("place", help=HELP, short_help="On which node each key lives.")
@click.option("--nodes", "-n", "given", required=True, metavar="FILE|a,b,c", help="Who the nodes are.")
@placement_options
@click.option("--replicas", "-r", type=click.IntRange(1), default=1, show_default=True, help="Nodes for each key.")
@click.option("--exclude", "-x", metavar="a,b", help="Nodes that are down: others stand in for them.")
@click.option("--summary", "-s", is_flag=True, help="How evenly the keys spread, instead of where each lives.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@svg_option
def command(
    given: str,
    algorithm: str | None,
    points: int | None,
    hash: str | None,
    replicas: int,
    exclude: str | None,
    summary: bool,
    as_json: bool,
    svg: str | None,
) -> None:
    placement = load(given, algorithm=algorithm, points=points, hash=hash)
    down = excluded(placement, exclude)
    if len(down) == len(placement):
        raise Misuse("--exclude: every node is excluded")
    if replicas > len(placement) - len(down):
        raise Misuse(f"--replicas {replicas} of {len(placement) - len(down)} nodes: there are not that many")
    if not summary and not as_json:
        check_separators(placement.nodes)
    finder = nodes_finder(placement, replicas, down)
    write = write_json if as_json else writer(placement)
    counts: Counter[str] = Counter()
    keys = 0
    for chunk in stdin_keys():
        found = finder(chunk)
        keys += len(chunk)
        if summary or svg:
            for column in found:
                counts.update(column)
        if not summary:
            write(chunk, found)
    if not keys and no_stdin():
        summary = True
    if not summary and not svg:
        return
    if down and not keys:
        raise Misuse("--exclude says where keys go while nodes are down, so it needs keys")
    shares = counted(placement, counts, replicas, down) if keys else balance(placement, replicas)
    if summary:
        (print_summary_json if as_json else print_summary)(placement, shares, keys, counts)
    if svg:
        from ..placement.picture import picture

        save_svg(svg, picture(placement, shares, in_words(placement, shares, keys)))


def excluded(placement: Placement, exclude: str | None) -> frozenset[str]:
    names = [name for part in (exclude or "").split(",") if (name := part.strip())]
    for name in names:
        if name not in placement:
            raise Misuse(f"--exclude: there is no node {name!r}")
    return frozenset(names)


Columns = list[list[str]]
"""For each rank the nodes of all keys: the primaries first."""


def nodes_finder(placement: Placement, replicas: int, down: frozenset[str]) -> Callable[[list[bytes]], Columns]:
    if replicas == 1 and not down:
        return lambda keys: [placement.locate(keys)]

    def find(keys: list[bytes]) -> Columns:
        rows = [placement.get_nodes(key, replicas, exclude=down) for key in keys]
        return [list(column) for column in zip(*rows, strict=True)]

    return find


def writer(placement: Placement) -> Callable[[list[bytes], Columns], None]:
    fields = {name: b"\t" + name.encode() for name in placement.nodes}
    lines = {name: field + b"\n" for name, field in fields.items()}
    out = sys.stdout.buffer

    def write(keys: list[bytes], found: Columns) -> None:
        if len(found) == 1:
            out.write(b"".join([key + lines[name] for key, name in zip(keys, found[0], strict=True)]))
        else:
            rows = zip(keys, *found, strict=True)
            out.write(b"".join([key + b"".join([fields[name] for name in names]) + b"\n" for key, *names in rows]))
        out.flush()  # whoever feeds keys slowly wants answers

    return write


def write_json(keys: list[bytes], found: Columns) -> None:
    rows: Iterator[tuple[str, ...]] = zip(*found, strict=True)
    texts = [
        json.dumps({"key": key.decode(errors="surrogateescape"), "nodes": names}) + "\n"
        for key, names in zip(keys, rows, strict=True)
    ]
    sys.stdout.write("".join(texts))
    sys.stdout.flush()


def print_summary_json(placement: Placement, shares: Balance, keys: int, counts: Counter[str]) -> None:
    nodes: list[dict[str, Any]] = [
        {
            "name": name,
            "weight": placement.nodes[name].weight,
            "zone": placement.nodes[name].zone,
            "share": load.share,
            "fair": load.fair,
            **({"keys": counts[name]} if keys else {}),
        }
        for name, load in shares.loads.items()
    ]
    told = {
        "algorithm": placement.algorithm,
        "hash": placement.hash,
        "fingerprint": placement.fingerprint(),
        "replicas": shares.copies,
        "shares": shares.source,
        "keys": keys,
        "busiest": {"name": shares.busiest, "times_fair": shares.loads[shares.busiest].excess},
        "nodes": nodes,
    }
    click.echo(json.dumps(told, indent=2))


def print_summary(placement: Placement, shares: Balance, keys: int, counts: Counter[str]) -> None:
    from rich.table import Table

    nodes, loads = placement.nodes, shares.loads
    ranked = sorted(loads, key=lambda name: -loads[name].excess) if len(loads) > SHOWN else list(loads)
    shown = ranked if len(ranked) <= SHOWN else [*ranked[:10], "", *ranked[-10:]]
    zones, weights = any(node.zone for node in nodes.values()), len({node.weight for node in nodes.values()}) > 1
    columns = [
        "node",
        *["zone"] * zones,
        *["weight"] * weights,
        *["keys"] * bool(keys),
        "share",
        "fair",
        "times fair",
        "",
    ]
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "left" if column.header in ("node", "zone", "") else "right"
        column.no_wrap = True
    largest = max(load.share for load in loads.values())
    for name in shown:
        if not name:
            table.add_row(f"… {len(ranked) - 20} between …")
            continue
        node, load = nodes[name], loads[name]
        cells = [printable(name)]
        cells += [printable(node.zone or "")] * zones + [f"{node.weight:g}"] * weights
        cells += [f"{counts[name]:,}"] * bool(keys)
        cells += [
            f"{load.share:.2%}",
            f"{load.fair:.2%}",
            f"{load.excess:.2f}",
            bar(load.share / largest if largest else 0),
        ]
        table.add_row(*cells)
    show_table(table)
    click.echo(in_words(placement, shares, keys))


def in_words(placement: Placement, shares: Balance, keys: int) -> str:
    of = {
        "exact": "exact, of all keys there can be",
        "sample": f"of a sample of {SAMPLE:,} keys",
        "keys": f"of {keys:,} keys",
    }
    busiest = shares.loads[shares.busiest]
    copies = "" if shares.copies == 1 else f", {shares.copies} copies each"
    return (
        f"{placement.algorithm}, {len(placement)} nodes, {placement.hash}: shares {of[shares.source]}{copies}; "
        f"the busiest node, {printable(shares.busiest)}, has {busiest.excess:.2f} times its fair share"
    )
