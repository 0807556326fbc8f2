"""What a member writes down as it happens: a line of JSON each, in a file of its own, by one clock of the machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.worlds.clock import now as now

Entry = dict[str, Any]


class Journal:
    """Each line is handed to the system at once, so that a SIGKILL takes none that was written."""

    def __init__(self, folder: Path, writer: str) -> None:
        self.writer = writer
        self._file = os.open(folder / f"{writer}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, what: str, *, at: float | None = None, **fields: Any) -> None:
        entry = {"at": now() if at is None else at, "what": what, "who": self.writer, **fields}
        os.write(self._file, json.dumps(entry).encode() + b"\n")


class Journals:
    """All of a folder, read as far as they are written; by and by, without reading anything twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.entries: list[Entry] = []

    def news(self) -> list[Entry]:
        """What was written since this was last asked."""
        found = list(self._news())
        self.entries += found
        return found

    def _news(self) -> Iterator[Entry]:
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # it is being written, or its writer was killed
                    self._read[path] = self._read.get(path, 0) + len(line)
                    yield json.loads(line)
