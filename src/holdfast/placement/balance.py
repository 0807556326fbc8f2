"""How evenly keys are spread: each node's share beside its fair one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from .base import Node, Placement
from .moves import CIRCLE, fair_copies
from .ring import HashRing

SAMPLE = 1 << 16


class Load(NamedTuple):
    """Shares of all copies: what a node has, and what it would have if weights alone decided."""

    share: float
    fair: float

    @property
    def excess(self) -> float:
        """How many times its fair share it has."""
        return self.share / self.fair if self.fair else 0.0


class Balance(NamedTuple):
    """The loads of all nodes, by name, and where they come from: ``exact``, ``sample`` or ``keys``."""

    loads: dict[str, Load]
    source: str
    copies: int

    @property
    def busiest(self) -> str:
        """The node that has the most beside its fair share."""
        return max(self.loads, key=lambda name: self.loads[name].excess)


def balance(placement: Placement, replicas: int = 1) -> Balance:
    """By the lengths of a ring's arcs, exactly; from an algorithm without arcs a sample of 65,536 keys.

    Asks for ``replicas`` copies, or one on each node where there are fewer.
    """
    placement = placement.copy()
    n = min(replicas, len(placement))
    if isinstance(placement, HashRing):
        sizes: Counter[str] = Counter()
        end = -1
        for last, names in placement.arcs(n):
            for name in names:
                sizes[name] += last - end
            end = last
        return _balance(placement.nodes, n, sizes, CIRCLE * n, "exact")
    keys = range(SAMPLE)
    found: Iterable[str] = placement.locate(keys)
    if n > 1:
        found = chain.from_iterable(placement.get_nodes(key, n) for key in keys)
    return _balance(placement.nodes, n, Counter(found), SAMPLE * n, "sample")


def counted(
    placement: Placement, counts: Mapping[str, int], replicas: int = 1, exclude: Container[str] = ()
) -> Balance:
    """By how many copies each node was found to have; without those in ``exclude``, which take no part."""
    nodes = {name: node for name, node in placement.nodes.items() if name not in exclude}
    return _balance(nodes, min(replicas, len(nodes)), counts, sum(counts.values()), "keys")


def _balance(nodes: Mapping[str, Node], n: int, sizes: Mapping[str, int], total: int, source: str) -> Balance:
    fair = fair_copies(nodes, n)
    loads = {name: Load(sizes.get(name, 0) / total if total else 0.0, fair[name] / n) for name in nodes}
    return Balance(loads, source, n)
