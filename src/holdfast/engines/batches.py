"""Renewals where an engine lists a queue to see where its claims stand: claims of one queue go together."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence

from ..model import Claim, Turnstile

AT_ONCE = 1000
"""Claims of one queue in one request: what becomes of its reply holds up an event loop."""


def by_turnstile(items: Sequence[tuple[Turnstile, Claim]], most: int) -> Iterator[list[tuple[Turnstile, Claim]]]:
    """Batches of at most so many queues. A member of a group counts as one, since it is looked for by itself."""
    queues: dict[Hashable, list[tuple[Turnstile, Claim]]] = {}
    for turnstile, claim in items:
        queues.setdefault(claim.id if turnstile.announces else turnstile, []).append((turnstile, claim))
    parts = (queue[start : start + AT_ONCE] for queue in queues.values() for start in range(0, len(queue), AT_ONCE))
    while some := list(itertools.islice(parts, most)):
        yield list(itertools.chain.from_iterable(some))
