"""Operations in steps, side by side: what all of them ask at a time goes out together.

Such an operation is a generator: it yields the requests that it has now, and is sent their replies.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ..errors import HoldfastError

T = TypeVar("T")
Talk = Generator[Sequence[Any], list[Any], Any]

AT_ONCE = 100


def in_rounds(requests: Sequence[T]) -> Iterator[Sequence[T]]:
    """The first alone, since what it may have to fetch first (a lease) serves all; then many at a time."""
    yield requests[:1]
    for start in range(1, len(requests), AT_ONCE):
        yield requests[start : start + AT_ONCE]


class Talks:
    """Several talks, in rounds. ``asked``: what is asked next, of all of them; nothing once all have ended."""

    def __init__(self, talks: Iterable[Talk]) -> None:
        self._talks = list(talks)
        self.outcomes: list[Any] = [None] * len(self._talks)
        self.asked: list[Any] = []
        self._shares: list[tuple[int, int]] = []  # which talk asked how much of it
        self._advance([(i, None) for i in range(len(self._talks))])

    def hear(self, replies: list[Any]) -> None:
        answers: list[tuple[int, list[Any] | None]] = []
        at = 0
        for i, count in self._shares:
            answers.append((i, replies[at : at + count]))
            at += count
        self._advance(answers)

    def _advance(self, answers: list[tuple[int, list[Any] | None]]) -> None:
        self.asked, self._shares = [], []
        for i, answer in answers:
            try:
                asked = self._talks[i].send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                self.outcomes[i] = end.value
            except HoldfastError as error:
                self.outcomes[i] = error
            else:
                self._take(i, asked)

    def _take(self, i: int, asked: Sequence[Any]) -> None:
        self.asked += asked
        self._shares.append((i, len(asked)))
