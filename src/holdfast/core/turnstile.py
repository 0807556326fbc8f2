"""The rule of admission, pure. Every engine decides by it, in its own language.

    A claim is admitted when the weight of every live claim ahead of it, plus its own, fits the capacity.

Weights are >= 0, so the admitted are always a prefix of the token order, and who is admitted stays admitted as long
as the capacity is fixed and claims only go by leave, eviction or expiry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import Misuse
from ..model import Turnstile


def admitted(weights: Iterable[int], capacity: int) -> int:
    """How many claims at the head of the queue are admitted, given their weights in token order."""
    count = load = 0
    for weight in weights:
        load += weight
        if load > capacity:
            break
        count += 1
    return count


def blockers(ahead: Sequence[int], weight: int, capacity: int) -> int:
    """How many claims just ahead a waiter must watch: until one of those goes, it cannot fit.

    The shortest run just ahead whose weight exceeds what the waiter leaves free: a mutex watches one, a reader the
    nearest writer. 0 where nothing ahead can block it.
    """
    free = capacity - weight
    for count, one in enumerate(reversed(ahead), start=1):
        free -= one
        if free < 0:
            return count
    return 0


def check_capacity(turnstile: Turnstile, stands: int) -> None:
    """Refuse a claim that came with another capacity than the turnstile stands with."""
    if stands != turnstile.capacity:
        raise Misuse(
            f"{turnstile.address} stands with capacity {stands}; this call asked for {turnstile.capacity}: "
            "all users of one name give the same capacity, or wait until nobody uses it"
        )


def next_token(last: int, now_us: float) -> int:
    """Above every token before, and after a loss of data as far as clocks agree."""
    return max(last + 1, int(now_us))
