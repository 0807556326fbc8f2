"""What every bench needs: a server of its own, and the machine's name."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from servers import Server

S = TypeVar("S", bound=Server)


@contextlib.contextmanager
def serving(kind: Callable[[Path], S]) -> Iterator[S]:
    """A server of our own, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, kind(Path(folder)) as server:
        yield server


def machine() -> str:
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
        f"{_model()}, {time.strftime('%Y-%m-%d')}; a shared machine: trust ratios, not microseconds"
    )


def _model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f" of {line.partition(':')[2].strip()}"
    return ""
