"""Pictures of placements: a ring with the shares beside it, and before and after a change, what moves.

SVG by hand, for light and dark surroundings. Colour is never all there is: every node has its bar and its name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from .balance import Balance, balance
from .base import Placement
from .moves import CIRCLE
from .plan import Plan, RangeStep, Step
from .ring import HashRing
from .svg import PALETTE, WIDTH, Canvas, fitted, wrapped
from .words import in_words, loser

SLICES = 1440
"""Into so many pieces the circle is cut where it has more arcs: a quarter of a degree, less than a pixel."""
ROWS = 40
"""How many bars there are; of more nodes the others are summed up."""
COLUMN = 20
FLOWS = 12
LEFT, RIGHT, TOP = 40, 500, 64
CENTRE_X, OUTER = 240, 190
LINE = 19

Owner = TypeVar("Owner", bound=Hashable)
Span = tuple[float, float]
"""From where to where, in parts of the circle from 0 to 1."""


class Row(NamedTuple):
    """A bar: a name, its share before (None where there is one state only) and now. Others together: no paint."""

    name: str
    before: float | None
    now: float
    paint: str


def picture(placement: Placement, shares: Balance | None = None, caption: str = "") -> str:
    """The placement as SVG: for a ring the circle, each arc in its node's colour; for all the shares as bars."""
    placement = placement.copy()
    shares = shares or balance(placement)
    paints = _paints(placement.nodes)
    canvas = Canvas("Where keys live", caption or repr(placement))
    top = _head(canvas, "Where keys live", caption)
    rows = [Row(name, None, load.share, paints[name]) for name, load in shares.loads.items()]
    if not isinstance(placement, HashRing):
        return canvas.svg(_bars(canvas, rows, LEFT, top, WIDTH - 2 * LEFT) + 30)
    centre = (CENTRE_X, top + OUTER + 4)
    arcs = placement.arcs()
    canvas.circle(centre, OUTER - 30, 60, "track")
    for name, spans in _spans((last, names[0]) for last, names in arcs).items():
        hover = f"{name}: {shares.loads[name].share:.2%}" if name in shares.loads else name
        canvas.arcs(centre, OUTER - 30, 60, spans, paints[name], hover)
    _middle(canvas, centre, f"{len(placement):,}", "node" if len(placement) == 1 else "nodes")
    canvas.text(centre[0], centre[1] + OUTER + 26, "hashes from 0, clockwise from the top", "small soft", "middle")
    bottom = _bars(canvas, rows, RIGHT, top, WIDTH - RIGHT - LEFT, 2 * OUTER)
    return canvas.svg(max(bottom, centre[1] + OUTER + 26) + 30)


def change_picture(
    before: Placement, after: Placement, plan: Plan, loads: tuple[Balance, Balance] | None = None, caption: str = ""
) -> str:
    """What moves when ``before`` becomes ``after``, as SVG: on two rings, one in the other, or as a flow between bars.

    ``loads`` are the shares before and after, if they are to be others than `balance` finds.
    """
    before, after = before.copy(), after.copy()
    old, new = loads or (balance(before, plan.replicas), balance(after, plan.replicas))
    caption = caption or in_words(before, after, plan)
    paints = _paints({**before.nodes, **after.nodes})
    canvas = Canvas("What moves", caption)
    top = _head(canvas, "What moves", caption)
    shares = {name: (_share(old, name), _share(new, name)) for name in paints}
    rows = [Row(name, was, now, paints[name]) for name, (was, now) in shares.items()]
    drawn = _rings(canvas, plan, paints, top) if plan.keys is None else _flow(canvas, plan, shares, paints, top)
    return canvas.svg(max(drawn, _bars(canvas, rows, RIGHT, top, WIDTH - RIGHT - LEFT, 2 * OUTER)) + 30)


def _share(shares: Balance, name: str) -> float:
    return shares.loads[name].share if name in shares.loads else 0.0


def _paints(names: Iterable[str]) -> dict[str, str]:
    return {name: f'fill="{PALETTE[index % len(PALETTE)]}"' for index, name in enumerate(sorted(names))}


def _head(canvas: Canvas, title: str, caption: str) -> float:
    canvas.text(LEFT, 46, title, "title")
    y = TOP + 8
    for line in wrapped(caption, WIDTH - 2 * LEFT) if caption else ():
        canvas.text(LEFT, y, line, "soft")
        y += LINE
    return y + 16


def _middle(canvas: Canvas, centre: tuple[float, float], big: str, below: str) -> None:
    canvas.text(centre[0], centre[1] + 6, big, "big", "middle")
    canvas.text(centre[0], centre[1] + 30, below, "soft", "middle")


def _bars(canvas: Canvas, rows: Sequence[Row], x: float, top: float, width: float, beside: float = 0) -> float:
    """The shares, in the middle of what stands ``beside`` them so high; gives where they end."""
    rows = _summed(rows)
    columns = 1 if len(rows) <= COLUMN else 2
    lines = -(-len(rows) // columns)
    height = 34 if lines <= 6 else 26 if lines <= 15 else 22
    top += max(0.0, (beside - lines * height) / 2)
    size, kind = (13, "") if columns == 1 else (11, "small")
    change = columns == 1 and any(row.before is not None for row in rows)
    span = (width - 24 * (columns - 1)) / columns
    label, value = min(span * 0.42, 180), 118 if change else 56
    room = span - label - value
    largest = max([share for row in rows if row.paint for share in (row.now, row.before or 0.0)], default=0.0) or 1.0
    shown = fitted((row.name for row in rows), label - 10, size)
    for index, row in enumerate(rows):
        left, y = x + index // lines * (span + 24), top + index % lines * height
        base = y + height / 2 + size * 0.36
        told = f"{row.now:.1%}" if row.before is None else f"{row.before:.1%} → {row.now:.1%}"
        canvas.text(left, base, shown[row.name], kind, hover=row.name)
        canvas.text(left + span, base, told if change else f"{row.now:.1%}", f"{kind} soft".strip(), "end")
        if row.paint:
            _bar(canvas, row, left + label, y + 4, room, height - 8, largest, f"{row.name}: {told}")
    return top + lines * height


def _bar(canvas: Canvas, row: Row, x: float, y: float, width: float, height: float, largest: float, told: str) -> None:
    canvas.bar(x, y, width, height, 'class="track"')
    thin = 0.0
    if row.before is not None:
        thin = height / 3
        canvas.bar(x, y, width * row.before / largest, thin, 'class="was"', told)
    canvas.bar(x, y + thin, width * row.now / largest, height - thin, row.paint, told)


def _summed(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, or where there are too many, those that changed most or are largest, and one for the others."""
    if len(rows) <= ROWS:
        return rows
    ranked = sorted(rows, key=lambda row: (-abs(row.now - (row.before or 0.0)), -row.now, row.name))
    kept, rest = sorted(ranked[: ROWS - 1], key=lambda row: row.name), ranked[ROWS - 1 :]
    before = None if rows[0].before is None else sum(row.before or 0.0 for row in rest)
    return [*kept, Row(f"{len(rest)} others", before, sum(row.now for row in rest), "")]


def _rings(canvas: Canvas, plan: Plan, paints: Mapping[str, str], top: float) -> float:
    """Inside who has what before, outside after; what moves in colour."""
    centre = (CENTRE_X, top + OUTER + 4)
    inner, outer, width = OUTER - 56, OUTER - 18, 36
    canvas.circle(centre, inner, width, "stays")
    canvas.circle(centre, outer, width, "stays")
    olds: defaultdict[str, list[Span]] = defaultdict(list)
    news: defaultdict[str, list[Span]] = defaultdict(list)
    for move, spans in _spans(_moving(plan.steps)).items():
        if move is not None:
            olds[move[0]] += spans
            news[move[1]] += spans
    for radius, found, verb in ((inner, olds, "gives"), (outer, news, "gets")):
        for name, spans in sorted(found.items()):
            canvas.arcs(centre, radius, width, spans, paints[name], f"{name} {verb}")
    _middle(canvas, centre, f"{plan.moved:.1%}", "of the keys move" if plan.replicas == 1 else "of the copies move")
    y = centre[1] + OUTER + 26
    canvas.text(centre[0], y, "inner ring: before · outer ring: after", "small soft", "middle")
    canvas.text(centre[0], y + 16, "in colour: what moves, by its old and its new node", "small soft", "middle")
    return y + 16


def _moving(steps: Iterable[Step]) -> Iterator[tuple[int, tuple[str, str] | None]]:
    """The whole circle, piece by piece: its last hash, and who gives it to whom (None: it stays)."""
    end = -1
    for step in steps:
        if isinstance(step, RangeStep) and step.first > end:  # of several copies of one range the first is drawn
            if step.first > end + 1:
                yield step.first - 1, None
            yield step.last, (loser(step), step.target)
            end = step.last
    if end < CIRCLE - 1:
        yield CIRCLE - 1, None


def _spans(arcs: Iterable[tuple[int, Owner]]) -> dict[Owner, list[Span]]:
    """Each owner's pieces of the circle as parts of it, neighbours joined."""
    whole = list(arcs)
    spans: defaultdict[Owner, list[Span]] = defaultdict(list)
    start = 0.0
    for last, owner in whole if len(whole) <= SLICES else _sliced(whole):
        stop = (last + 1) / CIRCLE
        if spans[owner] and spans[owner][-1][1] == start:
            spans[owner][-1] = (spans[owner][-1][0], stop)
        else:
            spans[owner].append((start, stop))
        start = stop
    return spans


def _sliced(arcs: Sequence[tuple[int, Owner]]) -> Iterator[tuple[int, Owner]]:
    """Fewer pieces, each given whole to whom most is owed by then: so small shares are drawn in full, too."""
    owed: Counter[Owner] = Counter()
    index = start = 0
    for number in range(1, SLICES + 1):
        end = CIRCLE * number // SLICES - 1
        size = end - start + 1
        while start <= end:
            last, owner = arcs[index]
            owed[owner] += min(last, end) - start + 1
            start = min(last, end) + 1
            index += last <= end
        owner = max(owed, key=owed.__getitem__)
        owed[owner] -= size
        yield end, owner


def _flow(
    canvas: Canvas, plan: Plan, shares: Mapping[str, tuple[float, float]], paints: Mapping[str, str], top: float
) -> float:
    """Before on the left, after on the right; what moves in the colour of whom it goes to."""
    moves: Counter[tuple[str, str]] = Counter()
    for step in plan.steps:
        moves[loser(step), step.target] += step.size
    unit = plan.moved / moves.total() if moves else 0.0
    moving: Counter[str] = Counter()
    for (old, new), size in moves.items():
        moving.update({old: size, new: size})
    kept = sorted(shares, key=lambda name: (-moving[name], -max(shares[name]), name))
    kept = sorted(kept if len(kept) <= FLOWS else kept[: FLOWS - 1])
    others = f"{len(shares) - len(kept)} others"
    group = {name: name if name in kept else others for name in shares}
    flows: defaultdict[tuple[str, str], float] = defaultdict(float)
    stays = {name: was if now else 0.0 for name, (was, now) in shares.items()}
    for (old, new), size in moves.items():
        flows[group[old], group[new]] += size * unit
        stays[old] -= size * unit
    for name, share in stays.items():
        flows[group[name], group[name]] += max(0.0, share)
    order = [*kept, *[others] * (len(kept) < len(shares))]
    return _paint_flows(canvas, order, flows, {**paints, others: 'class="was"'}, top)


def _paint_flows(
    canvas: Canvas, order: Sequence[str], flows: Mapping[tuple[str, str], float], paints: Mapping[str, str], top: float
) -> float:
    gap, height, left, right = 5.0, 400.0, CENTRE_X - 100, CENTRE_X + 100
    scale = (height - gap * (len(order) - 1)) / (sum(flows.values()) or 1.0)
    sides = [
        {name: sum(size for pair, size in flows.items() if pair[side] == name) * scale for name in order}
        for side in (0, 1)
    ]
    tops: list[dict[str, float]] = []
    for sizes in sides:
        y, found = top + 20, dict[str, float]()
        for name in order:
            found[name] = y
            y += sizes[name] + (gap if sizes[name] else 0)
        tops.append(found)
    canvas.text(left + 7, top + 8, "before", "small soft", "middle")
    canvas.text(right - 7, top + 8, "after", "small soft", "middle")
    at = [dict(found) for found in tops]
    ribbons: list[tuple[bool, tuple[float, float], tuple[float, float], float, str, str]] = []
    for old in order:
        for new in order:
            size = flows.get((old, new), 0.0) * scale
            if size > 0:
                told = f"{old} → {new}: {flows[old, new]:.2%}" if old != new else f"{old} keeps {flows[old, new]:.2%}"
                ends = (left + 14, at[0][old]), (right - 14, at[1][new])
                ribbons.append((old != new, *ends, size, paints[new], told))
                at[0][old] += size
                at[1][new] += size
    for moving, start, stop, size, paint, told in sorted(ribbons, key=lambda ribbon: ribbon[0]):  # what moves on top
        canvas.ribbon(start, stop, size, f'{paint} fill-opacity="0.8"' if moving else 'class="track"', told)
    labels = fitted(order, left - 8 - LEFT / 2, 11)
    for side, x, label_x, anchor in ((0, left, left - 8, "end"), (1, right - 14, right + 8, "start")):
        shown = [name for name in order if sides[side][name] > 0]
        middles = apart([tops[side][name] + sides[side][name] / 2 for name in shown], 14, top + 20, top + 20 + height)
        for name, y in zip(shown, middles, strict=True):
            canvas.bar(x, tops[side][name], 14, sides[side][name], paints[name], name)
            canvas.text(label_x, y + 4, labels[name], "small", anchor, hover=name)
    return top + 20 + height


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """The sorted ``places``, moved so that each is at least ``least`` below the one above, and all between the ends."""
    found: list[float] = []
    for place in places:
        found.append(max(place, low, found[-1] + least if found else low))
    limit = high
    for index in reversed(range(len(found))):
        found[index] = min(found[index], limit)
        limit = found[index] - least
    return found
