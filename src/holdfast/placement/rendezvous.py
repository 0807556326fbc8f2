"""Rendezvous: each key asks every node for a score, and takes the best. How scores come about: see `scores`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, cast

from ._kernel import Finder, Table
from .base import Change, Node, Placement, scores_of
from .scores import Scores


class Rendezvous(Placement):
    """Highest random weight: the shares follow the weights exactly, and a lookup looks at every node.

    The least movement, weights of any size, no state but the names, replicas that cost nothing more. For tens of nodes,
    not for thousands.
    """

    algorithm: ClassVar[str] = "rendezvous"

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        return scores_of(names, nodes)

    def _next(self, names: tuple[str | None, ...], nodes: Mapping[str, Node], old: Table, change: Change) -> Finder:
        return scores_of(names, nodes, cast(Scores, old.finder).seeds)

    def _scores(self, table: Table) -> Scores:
        return cast(Scores, table.finder)

    def _order(self, table: Table, place: int) -> Iterator[str]:
        return (cast(str, table.names[slot]) for slot in self._scores(table).walk(place))

    def _shares(self, nodes: Mapping[str, Node]) -> Iterable[object]:
        """Equal weights are as good as 1, and twice all weights as good as they: a division by 2 rounds nothing."""
        weights = [node.weight for node in nodes.values()]
        if len(set(weights)) <= 1:
            return [1.0] * len(weights)
        parts = [math.frexp(weight) for weight in weights]
        largest = max(exponent for _, exponent in parts)
        return [(fraction, exponent - largest) for fraction, exponent in parts]
