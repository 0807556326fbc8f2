"""What `place` and `plan` share: keys from stdin, options of placements, bars, pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from typing import Any, cast

import click

from ..errors import Misuse
from .output import say

BLOCK_BYTES = 1 << 20
BAR = 24


def no_stdin() -> bool:
    """Whether stdin is a terminal or closed, so that there are no keys."""
    return sys.stdin is None or sys.stdin.isatty()  # pyright: ignore[reportUnnecessaryComparison]


def stdin_keys() -> Iterator[list[bytes]]:
    """Stdin's lines as they come, many at once."""
    return iter(()) if no_stdin() else read_keys(cast(BufferedReader, sys.stdin.buffer))


def read_keys(stream: BufferedReader) -> Iterator[list[bytes]]:
    """A key is a line's bytes without the newline, and a carriage return before it; empty lines are none."""
    parts: list[bytes] = []
    while block := stream.read1(BLOCK_BYTES):
        whole, newline, rest = block.rpartition(b"\n")
        if newline:
            if keys := _keys(b"".join([*parts, whole])):
                yield keys
            parts = []
        parts.append(rest)
    if keys := _keys(b"".join(parts)):
        yield keys


def _keys(text: bytes) -> list[bytes]:
    lines = text.split(b"\n")
    if b"\r" in text:
        lines = [line.removesuffix(b"\r") for line in lines]
    return [line for line in lines if line]


def placement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--algorithm``, ``--points`` and ``--hash``, which count more than what a nodes file says."""
    for option in (
        click.option("--hash", metavar="NAME", help="xxh64 (if not given), xxh3_64, md5, sha1, sha256, …"),
        click.option("--points", type=int, metavar="N", help="ring: points of a node of weight 1.  [default: 160]"),
        click.option("--algorithm", metavar="NAME", help="ring (if not given), rendezvous, jump, maglev, choose, …"),
    ):
        command = option(command)
    return command


def check_separators(names: Iterable[str]) -> None:
    """Refuse names that would break lines of fields in two."""
    for name in names:
        if "\t" in name or "\n" in name:
            raise Misuse(f"the name {name!r} has a tab or a newline in it, which lines cannot show: use --json")


def svg_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--svg", type=click.Path(dir_okay=False), metavar="FILE", help="Draw a picture, too.")(command)


def save_svg(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    say(f"drawn: {path}")


def bar(part: float, width: int = BAR) -> str:
    """A bar of ``part`` (0 to 1) of ``width`` characters, in eighths of one."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    try:
        "█".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
