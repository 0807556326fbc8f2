"""What a lock object is made of: an immutable recipe, checked once, when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

from ..contract import Capabilities
from ..errors import Misuse, Unsupported
from ..model import UNBOUNDED, Turnstile, check_name
from .waiting import Queue, Strategy

QUEUE = Queue()
DEFAULT_TTL_S = 15.0
OnBusy = Literal["wait", "skip", "raise"]
OnUnsure = Literal["pass", "raise"]


class LockOptions(TypedDict, total=False):
    """The options that every kind of lock takes.

    timeout_s: how long ``with``, ``acquire()`` and the decorator wait; None waits for ever.
    ttl_s: the lease's length in seconds: how long others wait for a dead holder, and how long a holder that is cut
        off goes on. 15 by default; on an engine with sessions it is the client's, and another is `Unsupported`.
    renew: let the renewer extend it at a third of ``ttl_s``; without, it ends ``ttl_s`` after it was taken.
    max_hold_s: the lease is ended after this long even if it could be renewed, against holders that deadlocked.
    strategy: how to wait: `Queue` (the default), `Spin`, `Poll`, `Backoff`, `Adaptive`.
    reentrant: one thread or task may take it again while it holds it.
    on_busy: what a decorated function does when the lock is taken: ``wait``, ``skip`` (return None), ``raise``.
    on_unsure: what `Lease.ensure_held` does after a failed renewal: ``pass`` until the deadline, or ``raise``.
    cancel_on_lost: (asyncio) cancel the body of ``async with`` when the lease is lost. True by default.
    sticky: (`lock` only) keep the lease after its release, so that this client takes it again without a round trip,
        until someone else wants it. Its token is shared by all takings, so it fences nothing outside holdfast.
    batch_s: (sticky) once others want it, go on taking it here for so long; by default it is handed over at once.
    payload: bytes that `status` and ``members()`` show beside the claim.
    """

    timeout_s: float | None
    ttl_s: float
    renew: bool
    max_hold_s: float | None
    strategy: Strategy
    reentrant: bool
    on_busy: OnBusy
    on_unsure: OnUnsure
    cancel_on_lost: bool
    sticky: bool
    batch_s: float | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class Recipe:
    """A turnstile, a weight and the options of `LockOptions`."""

    turnstile: Turnstile
    weight: int = 1
    timeout_s: float | None = None
    ttl_s: float = DEFAULT_TTL_S
    renew: bool = True
    max_hold_s: float | None = None
    strategy: Strategy = QUEUE
    reentrant: bool = False
    on_busy: OnBusy = "wait"
    on_unsure: OnUnsure = "pass"
    cancel_on_lost: bool = True
    sticky: bool = False
    batch_s: float | None = None
    payload: bytes = b""

    key: str = field(init=False, default="", compare=False)
    """What a thread's leases of this recipe are kept under."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.weight} {self.turnstile.address}")

    @property
    def exclusive(self) -> bool:
        return self.weight == self.turnstile.capacity

    def named(self, name: str) -> Recipe:
        """The same for another name."""
        return replace(self, turnstile=replace(self.turnstile, name=check_name(name)))


def mutex(engine: Capabilities, name: str, options: dict[str, Any]) -> Recipe:
    return _checked(engine, Turnstile("lock", check_name(name), 1), 1, options)


def reader(engine: Capabilities, name: str, options: dict[str, Any]) -> Recipe:
    return _checked(engine, Turnstile("rwlock", check_name(name), UNBOUNDED), 1, options)


def writer(engine: Capabilities, name: str, options: dict[str, Any]) -> Recipe:
    return _checked(engine, Turnstile("rwlock", check_name(name), UNBOUNDED), UNBOUNDED, options)


def semaphore(engine: Capabilities, name: str, permits: int, weight: int, options: dict[str, Any]) -> Recipe:
    if not isinstance(permits, int) or not 1 <= permits < UNBOUNDED:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse(f"permits is a whole number from 1 to {UNBOUNDED - 1}, not {permits!r}")
    if not isinstance(weight, int) or not 1 <= weight <= permits:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse(f"weight is a whole number from 1 to permits={permits}, not {weight!r}")
    return _checked(engine, Turnstile("semaphore", check_name(name), permits), weight, options)


def _checked(engine: Capabilities, turnstile: Turnstile, weight: int, options: dict[str, Any]) -> Recipe:
    refuse_foreign_words(options)
    options.setdefault("ttl_s", ttl_of(engine, None))
    recipe = Recipe(turnstile, weight, **options)
    if turnstile.capacity > 1 and not engine.weighted:
        raise Unsupported(f"the {engine.engine} engine has exclusive locks only, no {turnstile.kind}")
    check_ttl(engine, recipe.ttl_s)
    check_timeout(recipe.timeout_s)
    if recipe.max_hold_s is not None and not (_is_number(recipe.max_hold_s) and 0 < recipe.max_hold_s < math.inf):
        raise Misuse(f"max_hold_s is above 0 seconds or None, not {recipe.max_hold_s!r}")
    if recipe.on_busy not in ("wait", "skip", "raise"):
        raise Misuse(f"on_busy is 'wait', 'skip' or 'raise', not {recipe.on_busy!r}")
    if recipe.on_unsure not in ("pass", "raise"):
        raise Misuse(f"on_unsure is 'pass' or 'raise', not {recipe.on_unsure!r}")
    if isinstance(recipe.strategy, type) or not hasattr(recipe.strategy, "take"):
        raise Misuse(f"strategy is Queue(), Adaptive(), Backoff(), Poll() or Spin(), not {recipe.strategy!r}")
    if recipe.sticky and turnstile.kind != "lock":
        raise Misuse(f"sticky is for lock(): a kept {turnstile.kind} would shut out who could go at the same time")
    batch_s = recipe.batch_s
    if batch_s is not None and not (recipe.sticky and _is_number(batch_s) and 0 <= batch_s < math.inf):
        raise Misuse(f"batch_s goes with sticky=True and is 0 seconds or more, not {batch_s!r}")
    check_payload(recipe.payload)
    return recipe


WORDS = {
    "blocking": "try_acquire(), which does not wait",
    "blocking_timeout": "timeout_s",
    "timeout": "timeout_s (how long to wait) or ttl_s (the lease)",
    "expire": "ttl_s",
    "ttl": "ttl_s",
}


def refuse_foreign_words(options: dict[str, Any]) -> None:
    """A TypeError that names ours, for the words that other libraries use."""
    for word in options:
        if word not in LockOptions.__annotations__:
            hint = (
                f": here it is {WORDS[word]}" if word in WORDS else f"; known: {', '.join(LockOptions.__annotations__)}"
            )
            raise TypeError(f"unexpected option {word!r}{hint}")


def refuse_words_of_acquire(words: Mapping[str, Any]) -> None:
    """The same for ``acquire()``, which takes ``timeout_s`` alone."""
    for word in words:
        ours = WORDS.get(word) or (f"hf.lock(name, {word}=…)" if word in LockOptions.__annotations__ else "timeout_s")
        raise TypeError(f"acquire() has no {word!r}: here it is {ours}")


def ttl_of(engine: Capabilities, ttl_s: float | None) -> float:
    """The length that is asked for, or else the engine's own, or else 15 seconds."""
    if ttl_s is None:
        return engine.ttl_s or DEFAULT_TTL_S
    check_ttl(engine, ttl_s)
    return ttl_s


def check_ttl(engine: Capabilities, ttl_s: float) -> None:
    if engine.ttl_s is not None and ttl_s != engine.ttl_s:
        raise Unsupported(
            f"on {engine.engine} all leases of a client hang on its session and have its ttl_s: {engine.ttl_s:g} here, "
            f"not {ttl_s!r}; leave it out, or connect with another: ?ttl_s=… in the URL"
        )
    if not _is_number(ttl_s) or not engine.min_ttl_s <= ttl_s <= 86_400 * 366:
        raise Misuse(
            f"ttl_s is {engine.min_ttl_s:g} seconds or more on {engine.engine} (and at most a year), not {ttl_s!r}"
        )


def check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not (_is_number(timeout_s) and timeout_s >= 0):
        raise Misuse(f"timeout_s is 0 seconds or more, or None to wait for ever, not {timeout_s!r}")


def check_patience(patience_s: float) -> float:
    if not (_is_number(patience_s) and 0 < patience_s < math.inf):
        raise Misuse(f"patience_s is above 0 seconds and finite, not {patience_s!r}")
    return patience_s


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_payload(payload: bytes) -> None:
    if not isinstance(payload, bytes) or len(payload) > 4096:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse("payload is at most 4096 bytes; put more into a cell")
