"""Members as processes of ours: started together, told what to do, killed, paused, and counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .history import Holding, holdings
from .journal import Journal, Journals, now

PATIENCE_S = 60.0


class Hand:
    """One member, as its crew holds it."""

    def __init__(self, kind: str, url: str, name: str, folder: Path, options: Mapping[str, Any]) -> None:
        self.name = name
        words = [sys.executable, "-m", "bench.fleet.member", kind, url, name, str(folder), json.dumps(options)]
        with (folder / "stderr").open("ab") as errors:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    def hears(self, word: str) -> None:
        """Wait until it says this."""
        out = self.process.stdout
        assert out is not None
        if not select.select([out], [], [], PATIENCE_S)[0]:
            raise TimeoutError(f"{self.name} does not say {word!r}")
        said = out.readline().decode().strip()
        if said != word:
            raise RuntimeError(f"{self.name} ended, or said {said!r} instead of {word!r}")

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Crew:
    """All members of one kind on one engine, and what they wrote down."""

    def __init__(self, kind: str, url: str, folder: Path, options: Mapping[str, Any]) -> None:
        self.kind, self.url, self.folder, self.options = kind, url, folder, options
        self.hands: list[Hand] = []
        self.journal = Journal(folder, "crew")
        self.journals = Journals(folder)
        self._numbers = itertools.count(1)

    def start(self, count: int = 1, url: str | None = None) -> list[Hand]:
        """They are connected when this returns."""
        names = [f"m{next(self._numbers)}" for _ in range(count)]
        new = [Hand(self.kind, url or self.url, name, self.folder, self.options) for name in names]
        self.hands += new
        for hand in new:
            hand.hears("ready")
        return new

    def tell(self, hands: list[Hand], word: str) -> float:
        """From when on they knew."""
        at = now()
        for hand in hands:
            hand.say(word)
        for hand in hands:
            hand.hears("done")
        return at

    def kill(self, hand: Hand) -> float:
        """SIGKILL. What it owned was its own until then."""
        self.hands.remove(hand)
        at = now()
        hand.signal(signal.SIGKILL)
        self.journal("killed", at=at, who=hand.name)
        hand.end()
        return at

    def holdings(self) -> list[Holding]:
        self.journals.news()
        return holdings(self.journals.entries)

    def holder(self, key: int | str) -> Hand | None:
        """Who owns this now."""
        last = [one for one in self.holdings() if one.key == key and one.end == float("inf")]
        return next((hand for hand in self.hands if last and hand.name == last[-1].who), None)

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        """Look again and again, seldom enough to disturb nobody."""
        until = time.monotonic() + patience_s
        while not (found := condition()):
            if time.monotonic() > until:
                raise TimeoutError(f"{what}: not within {patience_s:.0f} s\n{self.errors()}")
            time.sleep(0.05)
        return found

    def errors(self) -> str:
        return (self.folder / "stderr").read_text()[-3000:]

    def end(self) -> None:
        for hand in self.hands:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hand.process.pid, signal.SIGCONT)
            hand.end()


@contextlib.contextmanager
def crew(kind: str, url: str, **options: Any) -> Iterator[Crew]:
    with tempfile.TemporaryDirectory() as folder:
        found = Crew(kind, url, Path(folder), options)
        try:
            yield found
        finally:
            found.end()
