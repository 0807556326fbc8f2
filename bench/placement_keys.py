"""Keys as they are in life: paths of the files under this Python, lines of them for millions, and numeric ids."""

from __future__ import annotations

import os
import random
import sysconfig
from collections.abc import Iterator
from functools import cache
from itertools import islice


@cache
def paths() -> list[str]:
    """Every file under the Python installation and its packages, shuffled."""
    found = {
        os.path.join(folder, file)
        for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
        for folder, _, files in os.walk(root)
        for file in files
    }
    keys = sorted(path for path in found if path.isascii())
    random.Random(1).shuffle(keys)
    return keys


def lines(count: int) -> list[str]:
    """``count`` keys such as ``…/json/decoder.py:123``, one for each line of Python there is, shuffled."""
    keys = list(islice(_lines(), count))
    if len(keys) < count:
        raise SystemExit(f"there are only {len(keys)} lines of Python under this installation, not {count}")
    random.Random(2).shuffle(keys)
    return keys


def _lines() -> Iterator[str]:
    for path in paths():
        if path.endswith(".py"):
            with open(path, "rb") as file:
                for number, _ in enumerate(file, 1):
                    yield f"{path}:{number}"


def ids(count: int) -> list[str]:
    """Numeric ids as text, as they stand in URLs and cache keys: different, of 8 digits."""
    return [str(number) for number in random.Random(3).sample(range(10**7, 10**8), count)]


def node_names(count: int) -> list[str]:
    return [f"node-{number}.example.net" for number in range(count)]
