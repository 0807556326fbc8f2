"""The little of SVG that `picture` needs: colours for light and dark, text that fits, arcs of a ring, bars, ribbons."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

WIDTH = 960
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
STYLE = f"""\
text {{ font-family: {FONT}; font-size: 13px; fill: #1f2328 }}
.title {{ font-size: 20px; font-weight: 600 }}
.big {{ font-size: 34px; font-weight: 600 }}
.small {{ font-size: 11px }}
.soft {{ fill: #59636e }}
.paper {{ fill: #ffffff }}
.track {{ fill: #eaeef2; stroke: #eaeef2 }}
.stays {{ fill: #d0d7de; stroke: #d0d7de }}
.was {{ fill: #afb8c1 }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3 }}
.soft {{ fill: #9198a1 }}
.paper {{ fill: #0d1117 }}
.track {{ fill: #1c2229; stroke: #1c2229 }}
.stays {{ fill: #3d444d; stroke: #3d444d }}
.was {{ fill: #656c76 }}
}}
"""

# Seven colours of Okabe and Ito's set for all kinds of colour vision (yellow darkened for white paper), then the same
# darker and lighter: lightness is what everybody sees.
_BASE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#c9b72c")
_INVALID = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[]-/ "), frozenset("mwMW@%—…")


def _mixed(colour: str, with_: int, part: float) -> str:
    channels = (int(colour[index : index + 2], 16) for index in (1, 3, 5))
    return "#" + "".join(f"{round(channel * (1 - part) + with_ * part):02x}" for channel in channels)


PALETTE = (*_BASE, *(_mixed(colour, 0, 0.4) for colour in _BASE), *(_mixed(colour, 255, 0.45) for colour in _BASE))


def safe(text: str) -> str:
    """Text for XML: what XML cannot hold, and what would break a line, is shown as a replacement character."""
    return escape(_INVALID.sub("\ufffd", re.sub(r"[\t\n\r]", "\ufffd", text)))


def text_width(text: str, size: float = 13) -> float:
    """About how wide a text is, rather too much than too little."""
    ems = 0.0
    for mark in text:
        if unicodedata.combining(mark):
            continue
        if unicodedata.east_asian_width(mark) in "WF" or mark in _WIDE:
            ems += 1.02
        elif mark in _NARROW:
            ems += 0.4
        else:
            ems += 0.72 if mark.isupper() else 0.64
    return ems * size


def _cut(text: str, width: float, size: float, head: float) -> str:
    """``text``, or as much of it as fits: ``head`` is how much of that is its beginning, the rest is its end."""
    for length in range(len(text), 0, -1):
        first = round(length * head)
        shown = text if length == len(text) else f"{text[:first]}…{text[len(text) - length + first :]}"
        if text_width(shown, size) <= width:
            return shown
    return "…" if text else ""


def fitted(names: Iterable[str], width: float, size: float = 13) -> dict[str, str]:
    """Each name as it fits into ``width``, cut at the end, in the middle or in front: where most of them stay apart."""
    whole = list(names)
    ways = [{name: _cut(name, width, size, head) for name in whole} for head in (1.0, 0.5, 0.0)]
    return max(ways, key=lambda way: len(set(way.values())))


def wrapped(text: str, width: float, size: float = 13) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        word = _cut(word, width, size, 0.5)
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


class Canvas:
    """Elements, in the order in which they are painted."""

    def __init__(self, title: str, described: str) -> None:
        self._title = title
        self._described = described
        self._parts: list[str] = []

    def add(self, part: str) -> None:
        self._parts.append(part)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", hover: str = "") -> None:
        kinds = f" class={quoteattr(kind)}" if kind else ""
        anchors = f' text-anchor="{anchor}"' if anchor != "start" else ""
        told = f"<title>{safe(hover)}</title>" if hover else ""
        self.add(f'<text x="{x:.6g}" y="{y:.6g}"{kinds}{anchors}>{told}{safe(text)}</text>')

    def bar(self, x: float, y: float, width: float, height: float, paint: str, hover: str = "") -> None:
        told = f"<title>{safe(hover)}</title>" if hover else ""
        size = f'width="{max(0.0, width):.6g}" height="{height:.6g}" rx="{min(2.0, height / 3):.3g}"'
        self.add(f'<rect x="{x:.6g}" y="{y:.6g}" {size} {paint}>{told}</rect>')

    def arcs(
        self, centre: tuple[float, float], radius: float, width: float, spans: Iterable[tuple[float, float]],
        paint: str, hover: str,
    ) -> None:  # fmt: skip
        """Pieces of a ring; ``spans`` are parts of the circle, from 0 to 1, clockwise from the top."""
        path = "".join(_piece(centre, radius - width / 2, radius + width / 2, start, stop) for start, stop in spans)
        if path:
            self.add(f'<path d="{path}" {paint}><title>{safe(hover)}</title></path>')

    def circle(self, centre: tuple[float, float], radius: float, width: float, kind: str) -> None:
        ring = f'cx="{centre[0]:.6g}" cy="{centre[1]:.6g}" r="{radius:.6g}"'
        self.add(f'<circle {ring} class="{kind}" style="fill: none" stroke-width="{width:.4g}"/>')

    def ribbon(
        self, left: tuple[float, float], right: tuple[float, float], height: float, paint: str, hover: str
    ) -> None:
        """A band of equal height from a point on the left to one on the right, both its upper ends."""
        (x, y), (x2, y2) = left, right
        middle = (x + x2) / 2
        path = (
            f"M{x:.5g} {y:.5g}C{middle:.5g} {y:.5g} {middle:.5g} {y2:.5g} {x2:.5g} {y2:.5g}V{y2 + height:.5g}"
            f"C{middle:.5g} {y2 + height:.5g} {middle:.5g} {y + height:.5g} {x:.5g} {y + height:.5g}Z"
        )
        self.add(f'<path d="{path}" {paint}><title>{safe(hover)}</title></path>')

    def svg(self, height: float) -> str:
        size = f'viewBox="0 0 {WIDTH} {height:.6g}" width="{WIDTH}" height="{height:.6g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc">'
        told = f'<title id="title">{safe(self._title)}</title>\n<desc id="desc">{safe(self._described)}</desc>'
        paper = f'<rect class="paper" width="{WIDTH}" height="{height:.6g}"/>'
        return "\n".join([head, told, f"<style>\n{STYLE}</style>", paper, *self._parts, "</svg>", ""])


def _piece(centre: tuple[float, float], inner: float, outer: float, start: float, stop: float) -> str:
    if stop - start > 0.5:  # an arc to its own beginning would be none
        middle = (start + stop) / 2
        return _piece(centre, inner, outer, start, middle) + _piece(centre, inner, outer, middle, stop)

    def at(radius: float, part: float) -> str:
        angle = 2 * math.pi * part
        return f"{centre[0] + radius * math.sin(angle):.2f} {centre[1] - radius * math.cos(angle):.2f}"

    if stop - start < 1 / 360:  # straight lines will do
        return f"M{at(outer, start)}L{at(outer, stop)} {at(inner, stop)} {at(inner, start)}Z"
    out, back = (f"A{radius:.4g} {radius:.4g} 0 0" for radius in (outer, inner))
    return f"M{at(outer, start)}{out} 1 {at(outer, stop)}L{at(inner, stop)}{back} 0 {at(inner, start)}Z"
