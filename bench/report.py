"""The page of `make bench`: per engine and workload the figures with their spread, and ratios taken within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from .peers import Engine, Peer
from .placement_timing import table
from .workloads import Contests, Figures

FAIR = 0.5
"""Jain's index below which a peer was not fair, whatever it says."""
MORE_IS_BETTER = ("hand-overs/s", "acquisitions/s", "Jain")


class Found(NamedTuple):
    """What was measured on one engine."""

    engine: Engine
    version: str
    peers: list[Peer]
    pairs: Figures
    trips: dict[str, float | None]
    contests: Contests


class Spread(NamedTuple):
    """The median of some rounds, and the least and the most."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        if brief(self.least) == brief(self.most):
            return brief(self.median)
        return f"{brief(self.median)} ({brief(self.least)} … {brief(self.most)})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Of what belongs to the same round."""
    return spread([one / other if other else float("inf") for one, other in zip(values, base, strict=False)])


def brief(value: float) -> str:
    """Three digits that count."""
    if value == float("inf"):
        return "∞"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def best(figures: dict[str, list[float]], names: Sequence[str], *, more: bool = False) -> str:
    """Whose median is the best of them."""
    return (max if more else min)(names, key=lambda name: statistics.median(figures[name]))


def section(found: Found) -> str:
    parts = [f"## {found.engine.title}\n", f"{found.version}.\n", *_pairs(found)]
    for (processes, inside_s), rows in found.contests.items():
        parts += _contest(found, f"### One key, {processes} processes, {inside_s * 1e3:.0f} ms inside\n", rows)
    return "\n".join(parts)


def _pairs(found: Found) -> list[str]:
    if not found.pairs:
        return []
    rival = best_rival(found)
    head = ["", "µs", f"× {found.engine.floor}", *([f"× {rival}"] if rival else []), "round trips"]
    rows = [
        [
            name,
            spread(times),
            ratio(times, found.pairs[found.engine.floor]),
            *([ratio(times, found.pairs[rival])] if rival else []),
            "–" if (trips := found.trips[name]) is None else f"{trips:.1f}",
        ]
        for name, times in found.pairs.items()
    ]
    note = f"*{found.engine.floor}*: {found.engine.floor_note}.\n"
    return ["### A free lock: acquire + release\n", note, table(head, rows)]


def best_rival(found: Found, *faces: str) -> str:
    """The peer with the quickest pair, on any face or one of those."""
    rivals = [peer for peer in found.peers if peer.name in found.pairs and peer.rival]
    names = [peer.name for peer in rivals if not faces or peer.face in faces]
    return best(found.pairs, names) if names else ""


def best_fair(found: Found, rows: dict[str, Figures], figure: str) -> str:
    """The peer to be measured by, for one figure: of those on this engine that queue, or of all where none does."""
    rivals = [peer for peer in found.peers if peer.rival and figure in rows.get(peer.name, ())]
    rivals = [peer for peer in rivals if peer.fair and statistics.median(rows[peer.name]["Jain"]) >= FAIR] or rivals
    figures = {peer.name: rows[peer.name][figure] for peer in rivals}
    return best(figures, [peer.name for peer in rivals], more=figure in MORE_IS_BETTER) if rivals else ""


def _contest(found: Found, title: str, rows: dict[str, Figures]) -> list[str]:
    figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    figures.sort(key=COLUMNS.index)
    cells = [[name, *(spread(row[f]) if f in row else "–" for f in figures)] for name, row in rows.items()]
    fair = any(peer.fair for peer in found.peers if peer.rival)
    compared = [figure for figure in figures if figure in (COMPARED if fair else COMPARED_TO_UNFAIR)]
    rivals = {figure: rival for figure in compared if (rival := best_fair(found, rows, figure))}
    ratios: list[list[object]] = [["*the best*", *(f"*{rival}*" for rival in rivals.values())]]
    ratios += [
        [name, *(ratio(row[f], rows[rival][f]) if f in row else "–" for f, rival in rivals.items())]
        for name, row in rows.items()
    ]
    note = f"Ratios to the {'fair ' if fair else ''}peer that is best in each figure:\n"
    return [title, table(["", *figures], cells), *([note, table(["", *rivals], ratios)] if rivals else [])]


COLUMNS = (
    "hand-overs/s", "p50 ms", "p99 ms", "max ms", "Jain", "commands/acquisition", "commands/hand-over",
    "CPU µs/acquisition", "CPU µs/hand-over", "acquisitions/s",
)  # fmt: skip
COMPARED = frozenset(COLUMNS) - {"Jain", "acquisitions/s"}
COMPARED_TO_UNFAIR = {"hand-overs/s", "max ms", "commands/hand-over", "CPU µs/hand-over"}
"""Nothing that counts acquisitions: where nobody queues, nearly all are one process that takes it from itself."""
