"""What happened, for people: who noticed what, when, what was done about it, and how long each step took.

Such a record stands beside the state that it tells of (a leader's, an assignment's), is written under the same fence in
the same put, and decides nothing: its times are of the writer's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

KEPT = 20
"""How many changes are kept."""


class Step(NamedTuple):
    """One thing that was noticed or done, ``at`` seconds since 1970."""

    what: str
    at: float


class Change(NamedTuple):
    """One fail-over or hand-over. ``what`` in a line, ``why``, ``by`` whom (host:process), and its steps in order."""

    what: str
    why: str
    by: str
    steps: tuple[Step, ...]

    @property
    def took_s(self) -> float:
        """From the first step to the last."""
        return self.steps[-1].at - self.steps[0].at if self.steps else 0.0


def dump(changes: Sequence[Change]) -> list[Any]:
    """As JSON can hold it; the last `KEPT`."""
    return [
        [one.what, one.why, one.by, [[step.what, round(step.at, 3)] for step in one.steps]] for one in changes[-KEPT:]
    ]


def load(data: Sequence[Any]) -> list[Change]:
    return [Change(what, why, by, tuple(Step(*step) for step in steps)) for what, why, by, steps in data]
