"""What a member of a job is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import Misuse

LISTED = 20


@dataclass(frozen=True)
class Settings:
    """How one member takes part. ``workers``: how many CMDs at once; ``retry``: further tries after the first."""

    workers: int
    partitions: int | None = None
    retry: int = 2
    keep_going: bool = False
    again: bool = False
    retry_dead: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise Misuse(f"a member has 1 worker or more, not {self.workers}")
        if self.retry < 0:
            raise Misuse(f"retry is 0 or more, not {self.retry}")
        if self.again and self.retry_dead:
            raise Misuse("a job is run again, or its dead letters are: not both at once")


@dataclass(frozen=True)
class Progress:
    """The job at one look."""

    items: int
    done: int
    failed: int
    running: int
    partitions: int


@dataclass
class Summary:
    """What came of it. ``status``: finished, finished before, failed, stopped (another member gave up), interrupted,
    nothing to do. ``done`` by this member, ``done_by_others`` since it came, ``done_before`` it came; ``items_per_s``:
    of the first two. ``dead``: those of the ``failed`` that are on the dead-letter list; ``failures``: the first
    `LISTED` of all."""

    job: str
    status: str
    items: int = 0
    done: int = 0
    done_by_others: int = 0
    done_before: int = 0
    taken_over: int = 0
    refused: int = 0
    failed: int = 0
    dead: int = 0
    seconds: float = 0.0
    items_per_s: float = 0.0
    generation: int = 0
    session: int = 0
    member: str = ""
    why: str = ""
    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    signal: int = 0
