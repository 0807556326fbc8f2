"""The figures of waiting as a picture: a panel for each measure, a line for each strategy, by the number of waiters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..placement.svg import PALETTE, WIDTH, Canvas, text_width, wrapped
from .waiting import Row

COLUMNS, MARGIN, GAP = 3, 40, 26
LABELS = 46
"""Room for the labels of a panel's axis."""
PLOT_WIDTH = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS - LABELS
PLOT_HEIGHT, PANEL_HEIGHT, HEAD = 150, 248, 46
STYLE = """\
<style>
.grid { stroke: #d8dee4; stroke-width: 1 }
.line { fill: none; stroke-linejoin: round; stroke-linecap: round }
.name { font-weight: 600 }
@media (prefers-color-scheme: dark) { .grid { stroke: #2d333b } }
</style>"""

_BLUE, _ORANGE, _GREEN, _PINK, _, _RED, _ = PALETTE[:7]
PAINTS = {"Spin": _RED, "Poll": _PINK, "Backoff": _ORANGE, "Adaptive": _GREEN, "Queue": _BLUE}
Point = tuple[float, float]
SHAPES: dict[str, list[Point]] = {
    "Spin": [(-4, -4), (4, -4), (4, 4), (-4, 4)],
    "Poll": [(0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)],
    "Backoff": [(0, -5), (5, 4), (-5, 4)],
    "Adaptive": [(0, 5), (5, -4), (-5, -4)],
}
"""Around a point; what has none is a circle. Colour is never all there is."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What a panel shows. ``linear``: from 0 to 1; else the axis has decades, and 0 stands below them."""

    title: str
    better: str
    value: Callable[[Row], float]
    shown: Callable[[float], str]
    linear: bool = False


def number(value: float) -> str:
    """``1 200`` as 1.2k, so that it fits an axis."""
    for limit, mark in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{mark}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit * 0.9999:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-6:.3g} µs"


def percent(share: float) -> str:
    return f"{share * 100:,.0f} %" if share >= 1 else f"{share * 100:.3g} %"


MEASURES = (
    Measure("Hand-overs a second", "more is better", lambda row: row.handovers_per_s, number),
    Measure("Median wait", "a process's own re-taking counts, too", lambda row: row.wait_p50_s, duration),
    Measure("Wait of the slowest 1 %", "less is better", lambda row: row.wait_p99_s, duration),
    Measure("Longest wait", "less is better", lambda row: row.wait_max_s, duration),
    Measure("Fairness (Jain's index)", "1: all get the same", lambda row: row.jain, number, linear=True),
    Measure("Calls per hand-over", "less is better", lambda row: row.calls_per_handover, number),
    Measure("Clients' CPU per hand-over", "less is better", lambda row: row.cpu_per_handover_s, duration),
    Measure("CPU of all who only wait", "% of one core, less is better", lambda row: row.waiting_cpu_share, percent),
    Measure("Calls of all who only wait", "a second, less is better", lambda row: row.waiting_calls_per_s, number),
)


def chart(rows: Sequence[Row], caption: str) -> str:
    """All of `MEASURES` as one SVG that needs nothing else, for light and dark surroundings."""
    strategies = list(dict.fromkeys(row.strategy for row in rows))
    canvas = Canvas("What waiting costs", caption)
    canvas.add(STYLE)
    canvas.text(MARGIN, 44, "What waiting costs", "title")
    lines = wrapped(caption, WIDTH - 2 * MARGIN)
    for index, line in enumerate(lines):
        canvas.text(MARGIN, 68 + 18 * index, line, "soft")
    top = 68 + 18 * len(lines) + 12
    _legend(canvas, strategies, top)
    top += 40
    for index, measure in enumerate(MEASURES):
        left = MARGIN + index % COLUMNS * (LABELS + PLOT_WIDTH + GAP)
        _Panel(canvas, measure, rows, left, top + index // COLUMNS * PANEL_HEIGHT).draw(strategies)
    return canvas.svg(top + -(-len(MEASURES) // COLUMNS) * PANEL_HEIGHT + 6)


def _legend(canvas: Canvas, strategies: Sequence[str], y: float) -> None:
    x = float(MARGIN)
    for strategy in strategies:
        _path(canvas, [(x, y), (x + 30, y)], strategy)
        _mark(canvas, (x + 15, y), strategy, "")
        canvas.text(x + 38, y + 4.5, strategy, "name")
        x += 38 + text_width(strategy) + 28


class _Panel:
    """One measure. ``left`` and ``top`` are the corner of all of it, labels included."""

    def __init__(self, canvas: Canvas, measure: Measure, rows: Sequence[Row], left: float, top: float) -> None:
        self.canvas, self.measure, self.rows = canvas, measure, rows
        self.left, self.right = left + LABELS, left + LABELS + PLOT_WIDTH
        self.top, self.bottom = top + HEAD, top + HEAD + PLOT_HEIGHT
        self.waiters = sorted({row.waiters for row in rows})
        self.ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if measure.linear else decades(map(measure.value, rows))

    def draw(self, strategies: Sequence[str]) -> None:
        canvas, measure = self.canvas, self.measure
        canvas.text(self.left, self.top - 27, measure.title, "name")
        canvas.text(self.left, self.top - 12, measure.better, "small soft")
        for tick in self.ticks:
            y = self.y(tick)
            canvas.add(f'<path class="grid" d="M{self.left:.6g} {y:.6g}H{self.right:.6g}"/>')
            canvas.text(self.left - 7, y + 4, measure.shown(tick) if tick else "0", "small soft", "end")
        for waiters in self.waiters:
            canvas.text(self.x(waiters), self.bottom + 17, str(waiters), "small soft", "middle")
        canvas.text((self.left + self.right) / 2, self.bottom + 32, "waiters", "small soft", "middle")
        for strategy in sorted(strategies, key="Queue".__ne__):  # the thick line under the others
            rows = sorted((row for row in self.rows if row.strategy == strategy), key=lambda row: row.waiters)
            points = [(self.x(row.waiters), self.y(measure.value(row))) for row in rows]
            _path(canvas, points, strategy)
            for row, point in zip(rows, points, strict=True):
                told = f"{strategy}, {row.waiters} waiting: {measure.shown(measure.value(row))}"
                _mark(canvas, point, strategy, told)

    def x(self, waiters: int) -> float:
        least, most = math.log(self.waiters[0]), math.log(self.waiters[-1])
        part = (math.log(waiters) - least) / (most - least) if most > least else 0.5
        return self.left + 10 + part * (self.right - self.left - 20)

    def y(self, value: float) -> float:
        last = len(self.ticks) - 1
        if value <= self.ticks[0]:
            part = 0.0
        elif self.measure.linear:
            part = value
        else:
            index = next((index for index, tick in enumerate(self.ticks[1:], 1) if tick >= value), last)
            low, high = self.ticks[index - 1], self.ticks[index]
            low = low or high / 10  # the step from 0 is as high as a decade
            part = (index - 1 + max(0.0, math.log(value / low) / math.log(high / low))) / last
        return self.bottom - part * PLOT_HEIGHT


def decades(values: Iterable[float]) -> list[float]:
    """Powers of ten around all values, not too many; first a 0 if some are 0."""
    found = sorted(values)
    above = [value for value in found if value > 0]
    least, most = (above[0], above[-1]) if above else (1.0, 1.0)
    low, high = math.floor(math.log10(least) + 1e-9), math.ceil(math.log10(most) - 1e-9)
    step = -(-(high - low) // 6) or 1
    ticks = [10.0**power for power in range(low, max(high, low + 1) + step, step)]
    return [0.0, *ticks] if found[0] <= 0 else ticks


def _path(canvas: Canvas, points: Sequence[Point], strategy: str) -> None:
    way = "L".join(f"{x:.5g} {y:.5g}" for x, y in points)
    width = 3 if strategy == "Queue" else 1.8
    canvas.add(f'<path class="line" d="M{way}" stroke="{PAINTS[strategy]}" stroke-width="{width}"/>')


def _mark(canvas: Canvas, point: Point, strategy: str, told: str) -> None:
    x, y = point
    shape = SHAPES.get(strategy)
    hover = f"<title>{told}</title>" if told else ""
    if shape is None:
        canvas.add(f'<circle cx="{x:.5g}" cy="{y:.5g}" r="4.5" fill="{PAINTS[strategy]}">{hover}</circle>')
    else:
        way = "L".join(f"{x + dx:.5g} {y + dy:.5g}" for dx, dy in shape)
        canvas.add(f'<path d="M{way}Z" fill="{PAINTS[strategy]}">{hover}</path>')
