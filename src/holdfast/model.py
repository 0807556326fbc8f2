"""What is passed around: turnstiles, claims and what engines say of them. Frozen; units in the names."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import Misuse

MAX_NAME_BYTES = 512
UNBOUNDED = 1 << 30
"""The capacity of a turnstile that everyone fits through (groups), and of a read-write lock."""

NEVER_S = float("inf")


def check_name(name: object, what: str = "name") -> str:
    """Give ``name`` back if it may name a thing, else raise `Misuse`.

    Any text of 1 to 512 bytes in UTF-8 will do, spaces and control characters included.
    """
    if not isinstance(name, str):
        raise Misuse(f"a {what} is text, not {type(name).__name__}: {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise Misuse(f"the {what} {name!r} holds half of a surrogate pair, which no engine can store") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise Misuse(f"a {what} has 1 to {MAX_NAME_BYTES} bytes in UTF-8, this one has {size}: {name[:40]!r}")
    return name


@dataclass(frozen=True, slots=True)
class Turnstile:
    """Where claims queue: a kind (its name space), a name, and how much weight fits at once.

    ``announces`` asks the engine to signal `CHANGED` to watchers whenever a claim comes or goes.
    """

    kind: str
    name: str
    capacity: int
    announces: bool = False

    address: str = field(init=False, repr=False, compare=False, default="")
    """``kind:name``, unique within a namespace."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", f"{self.kind}:{self.name}")


class Claim(NamedTuple):
    """One place in a turnstile's queue, as its owner describes it.

    ``inbox`` is where the engine sends this claim's signals, and on the embedded engine whose life
    the claim hangs on; an empty one means neither. ``owner`` and ``payload`` are for readers.
    """

    id: str
    weight: int
    ttl_s: float
    inbox: str = ""
    owner: str = ""
    payload: bytes = b""


class State(enum.IntEnum):
    """Where a claim stands, as an engine says it. The numbers travel on the wire: never reuse one."""

    ADMITTED = 1
    WAITING = 2
    BUSY = 3  # a nowait that did not fit: nothing was left behind
    GONE = 4  # no such claim: it expired, was evicted, or never came
    BURIED = 5  # a tombstone stands in its place: this id was given up


class Standing(NamedTuple):
    """The answer to enter and renew. ``look_in_s``: how soon a waiting claim should be renewed to see more.

    That is when what stands before it ends if dead: the admitted for the first who waits, else the one just ahead.
    """

    state: State
    token: int = 0
    wanted: bool = False
    look_in_s: float = NEVER_S


class ClaimView(NamedTuple):
    """One claim as others see it. ``age_s`` since it entered; ``remaining_s`` until its lease ends."""

    id: str
    token: int
    weight: int
    admitted: bool
    owner: str
    payload: bytes
    age_s: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A turnstile at one moment: its live claims in token order. A missing one has capacity 0 and no claims."""

    kind: str
    name: str
    capacity: int
    claims: tuple[ClaimView, ...] = ()

    @property
    def admitted(self) -> tuple[ClaimView, ...]:
        return tuple(claim for claim in self.claims if claim.admitted)

    @property
    def waiting(self) -> tuple[ClaimView, ...]:
        return tuple(claim for claim in self.claims if not claim.admitted)


class Fence(NamedTuple):
    """Who may write to a cell: a claim of one turnstile, its token, and which of its opens this is (1, 2, …)."""

    turnstile: str  # Turnstile.address
    token: int
    claim: str  # Claim.id
    opening: int


class Change(NamedTuple):
    """What a put does to one keyed entry. ``value=None`` deletes; ``create`` leaves an existing entry alone."""

    key: str
    value: bytes | None
    create: bool = False


class CellReply(NamedTuple):
    """The answer to open and put.

    ``accepted`` is false where a newer token, opening or version stands; ``foreign`` where the cell belongs
    to another turnstile, whose address is ``turnstile``. ``applied`` says of each change of a put whether it
    took place (a create-only one does not where the entry exists).
    """

    accepted: bool
    version: int = 0
    token: int = 0
    value: bytes | None = None
    applied: tuple[bool, ...] = ()
    foreign: bool = False
    turnstile: str = ""


@dataclass(frozen=True, slots=True)
class CellSnapshot:
    """A cell as an unfenced read saw it: a look, not a right. ``token`` 0 and ``version`` 0: never opened."""

    value: bytes | None = None
    version: int = 0
    token: int = 0
    claim: str = ""
    entries: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


class Signal(NamedTuple):
    """A hint that something may be different now. ``key`` is a claim's id, or a turnstile's address for CHANGED."""

    kind: str
    key: str = ""


ADMITTED = "admitted"
WANTED = "wanted"
CHANGED = "changed"
UNSURE = "unsure"  # from an engine with sessions: the connection broke
GONE = "gone"  # from the renewer, or an engine with sessions: the engine no longer knows the claim
LOST = "lost"  # from the renewer: the lease ended
NUDGE = "nudge"  # from anywhere in the process: look up, there is something to do
