"""What both kinds of metrics share: bucket bounds, and a bound on how many series there are."""

from __future__ import annotations

from collections.abc import Callable

from .event import Event

BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
"""From an uncontended take beside its server to a job: what a wait and a hold may last."""

MOST_LABELS = 200
OTHER = "other"

Label = Callable[[str], str]
"""From a lock's name to one of few words, the same for the same name: ``lambda name: name.partition(":")[0]``."""

Key = tuple[str, ...]


class Keys:
    """Which series an event belongs to: engine and kind, and a label of its name where the user gives a way to it.

    Never the name itself: names are often made from ids (``invoice:42``), and a series stays for as long as the process
    and the server of metrics remember. Labels beyond the first 200 are counted as ``other``, so that a way to a label
    that is no good costs detail and not memory.
    """

    def __init__(self, label: Label | None) -> None:
        self._label = label
        self._labels: set[str] = set()

    def __call__(self, event: Event) -> Key:
        turnstile = event.turnstile
        if self._label is None:
            return event.engine, turnstile.kind
        label = self._label(turnstile.name)
        if label not in self._labels:
            if len(self._labels) < MOST_LABELS:
                self._labels.add(label)
            else:
                label = OTHER
        return event.engine, turnstile.kind, label
