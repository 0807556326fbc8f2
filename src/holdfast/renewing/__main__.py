"""The process: it renews what its program holds and has not renewed in time, for as long as the program beats.

``python -m holdfast.renewing``, with the table as descriptor 3 and a socket to the program as standard input: first a
line of settings, then a byte whenever there is something to see, and its end is the end of the program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any, NamedTuple

from ..contract import BlockingLink, Engine
from ..core.tenure import trusted_s
from ..engines import engine_for
from ..model import State
from ..worlds import clock
from .table import TABLE_FD, Kept, Table

AT = 1 / 2
"""Renewed when so much of what its holder trusts is over: later than the program's own renewer, which is the first."""

MANY_FDS = 1 << 16

LEAST_PAUSE_S, MOST_PAUSE_S = 0.002, 5.0
MOST_CALL_S = 5.0
ENDS_IN_S = 0.5
"""How long what is under way may take once the program ended."""


class Line(NamedTuple):
    number: int
    kept: Kept

    @property
    def due(self) -> float:
        return self.kept.deadline - trusted_s(self.kept.claim.ttl_s) * (1 - AT)


class Renewing:
    """The loop, and what it remembers."""

    def __init__(self, table: Table, engine: Engine, hang_s: float, program: int) -> None:
        self.table = table
        self.engine = engine
        self.hang_s = hang_s
        self.program = program
        self.ended = False
        self.bell = threading.Event()
        self._gone: dict[int, float] = {}  # what the engine does not know, by number: its deadline then

    def run(self, link: BlockingLink) -> None:
        while not self.ended and os.getppid() == self.program:
            self.bell.clear()
            self.bell.wait(self.look(link))

    def look(self, link: BlockingLink) -> float:
        """Once over the table. How long it may be left alone."""
        head = self.table.head()
        if head is None:
            return LEAST_PAUSE_S
        now = clock.now()
        lines = [Line(line, kept) for line in range(head.lines) if (kept := self.table.read(line))]
        numbers = {line.kept.number for line in lines}
        self._gone = {number: deadline for number, deadline in self._gone.items() if number in numbers}
        lines = [line for line in lines if self._is_renewed(line.kept, now)]
        if now < head.beat + self.hang_s:  # else it hangs, and must lose what it holds
            self._renew(link, [line for line in lines if line.due <= now + line.kept.claim.ttl_s / 12])
        next_due = min((line.due for line in lines if line.due > now), default=now + MOST_PAUSE_S)
        return max(LEAST_PAUSE_S, min(head.look_s, next_due - now, MOST_PAUSE_S))

    def _is_renewed(self, kept: Kept, now: float) -> bool:
        return now < kept.deadline and now < kept.until and kept.deadline > self._gone.get(kept.number, 0.0)

    def _renew(self, link: BlockingLink, due: list[Line]) -> None:
        if not due:
            return
        sent = clock.now()
        left_s = min(line.kept.deadline for line in due) - sent
        by_id = {line.kept.claim.id: line for line in due}
        requests = list(self.engine.renew([(line.kept.turnstile, line.kept.claim) for line in due]))
        for reply in link.call_many(requests, max(0.05, min(MOST_CALL_S, left_s / 2))):
            if isinstance(reply, Exception):  # it is tried again at the next look, until the lease is over
                continue
            for claim_id, standing in reply.items():
                line = by_id[claim_id]
                if standing.state is State.GONE:
                    self._gone[line.kept.number] = line.kept.deadline
                else:
                    deadline = sent + trusted_s(line.kept.claim.ttl_s)
                    self.table.write_answer(line.number, line.kept.number, deadline)

    def listen(self) -> None:
        """See the program's end, whatever else is under way."""
        while os.read(0, 4096):
            self.bell.set()
        self.ended = True
        self.bell.set()
        threading.Event().wait(ENDS_IN_S)
        os._exit(0)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to a group, they are the program's to answer
        signal.signal(number, signal.SIG_IGN)
    settings: dict[str, Any] = json.loads(sys.stdin.buffer.readline() or b"{}")
    os.closerange(TABLE_FD + 1, MANY_FDS)  # what libraries of the program let us inherit
    table = Table(TABLE_FD)
    table.close()
    try:
        engine = engine_for(settings["url"], settings["namespace"])
        if engine.identity != settings["identity"]:
            raise RuntimeError(f"this URL leads to {engine.identity} here and to {settings['identity']} there")
        renewing = Renewing(table, engine, settings["hang_s"], settings["program"])
        threading.Thread(target=renewing.listen, daemon=True).start()
        link = engine.blocking_link()
        renewing.run(link)
        link.close()
    except BaseException as error:
        table.write_last_words(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
