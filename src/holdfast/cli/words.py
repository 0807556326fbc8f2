"""How times, numbers and payloads are said to people."""

from __future__ import annotations

import time

from .output import printable


def span(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 12 s``, ``5 h 2 min``, ``4 d 3 h``."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    for unit, size, smaller, fraction in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // fraction} {smaller}"
    return f"{whole} s"


def exact(seconds: float) -> str:
    """A step's length: ``3 ms``, else as `span` says it, with hundredths below a minute."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 60 else span(seconds)


def clock(at: float, *, date: bool = False, millis: bool = False) -> str:
    """A moment since 1970, on the reader's clock."""
    text = time.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S", time.localtime(at))
    return f"{text}.{int(at % 1 * 1000):03}" if millis else text


def short(payload: bytes, most: int = 40) -> str:
    """What a payload says, on one line."""
    text = printable(payload[: 4 * most].decode(errors="replace"))
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def count(number: int, what: str, plural: str = "") -> str:
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
