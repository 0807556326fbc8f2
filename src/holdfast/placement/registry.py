"""Algorithms by name, as data and the command line name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import Misuse
from .anchor import Anchor
from .base import Node, Placement, told_algorithm
from .choose import Choose
from .jump import Jump
from .maglev import Maglev
from .multiprobe import MultiProbe
from .presets import EnvoyRing, Ketama
from .rendezvous import Rendezvous
from .ring import HashRing

ALGORITHMS: Mapping[str, type[Placement]] = {
    made.algorithm: made for made in (HashRing, Rendezvous, Jump, Maglev, MultiProbe, Anchor, Choose, Ketama, EnvoyRing)
}


def make(algorithm: str, nodes: Iterable[str] | Mapping[str, float | Node] = (), **options: Any) -> Placement:
    """A placement by its algorithm's name; ``options`` are its own, and ``hash``. Raises `Misuse`, `Unsupported`."""
    made = _named(algorithm)
    if unknown := options.keys() - {"hash", *made.options}:
        known = ", ".join(("hash", *made.options))
        raise Misuse(f"{algorithm} knows no option {', '.join(sorted(unknown))}; known: {known}")
    return made(nodes, **options)


def from_dict(data: Mapping[str, Any]) -> Placement:
    """What the `to_dict` of any placement described."""
    return _named(told_algorithm(data)).from_dict(data)


def _named(algorithm: object) -> type[Placement]:
    made = ALGORITHMS.get(algorithm) if isinstance(algorithm, str) else None
    if made is None:
        raise Misuse(f"no algorithm is called {algorithm!r}; known: {', '.join(ALGORITHMS)}")
    return made
