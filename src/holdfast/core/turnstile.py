"""The rule of admission, pure. Every engine decides by it, in its own language.

    A claim is admitted when the weight of every live claim ahead of it, plus its own, fits the capacity.

Weights are >= 0, so the admitted are always a prefix of the token order, and who is admitted stays admitted as long
as the capacity is fixed and claims only go by leave, eviction or expiry.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def blockers(ahead: Iterable[int], weight: int, capacity: int) -> list[int]:
    """Which of those ahead a waiter must watch, as few as do: until one of those goes, it cannot fit.

    ``ahead``: their weights, from the nearest on; what is returned are places in that order. Of the shortest run whose
    weight exceeds what the waiter leaves free, those are left out without whom it still does: a mutex watches one, a
    reader the nearest writer only. None where nothing ahead can block it.
    """
    spare = weight - capacity - 1
    run: list[tuple[int, int]] = []
    for place, one in enumerate(ahead):
        run.append((one, place))
        spare += one
        if spare >= 0:
            break
    else:
        return []
    found: list[int] = []
    for one, place in sorted(run):
        if one <= spare:
            spare -= one
        else:
            found.append(place)
    return found


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
