"""Choose: any node may go, there are no virtual nodes, and how it came to be as it is does not matter.

Nodes stand in numbered slots, and a removed node leaves its slot empty. Each key has an order of its own of all slots
(see `jump.walk`) and lives on the first that has a node. Where no slot is empty that is jump consistent hashing, as
published.

*It is minimal.* A key's order of slots does not depend on which of them have nodes, and one slot more or less at the
end changes nothing among the others. So when a node goes, exactly its keys go on, each to the next in its own order: to
all others in even shares. A new node takes the first empty slot, or a new one at the end, and takes exactly the keys
that meet it first. The same holds for all copies of a key.

*It forgets.* All that counts is which node is in which slot: not in which order nodes went, nor which empty slots there
are at the end. With AnchorHash and MementoHash two programs that learn of the same removals in different orders
disagree: there a removed bucket points to what stood in for it at that time.

*It costs* one jump, about ln(slots) steps, for a key whose first slot has a node, whatever else is empty. Keys that go
on pay about ln(slots) steps for each further slot in their order (measured over all keys of 1000 slots: 6 jumps after
half the nodes went, 30 after nine tenths). Memento goes on by cheaper looks at its record of removals, so it is the
faster one in a fleet that has shrunk far, at the price of a history. DxHash draws slots until one has a node, from a
table of a power of two that has to be doubled when it is full, which moves keys between nodes that stay. A fleet that
shrank for good is best built anew, with a plan of what moves.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import ClassVar, cast

from ._kernel import Finder, Table, native
from .base import Node, Placement
from .jump import jump, walk


class Occupied:
    """A finder: which slots have a node."""

    __slots__ = ("_slots",)

    def __init__(self, names: tuple[str | None, ...]) -> None:
        self._slots = bytes(name is not None for name in names)

    def find(self, place: int) -> int:
        slots = self._slots
        slot = jump(place, len(slots))
        return slot if slots[slot] else next(self.walk(place))

    def native(self) -> Finder | None:
        return native("occupied", array("B", self._slots))

    def walk(self, place: int) -> Iterator[int]:
        return (slot for slot in walk(place, len(self._slots)) if self._slots[slot])


class Choose(Placement):
    """Perfectly even shares, any node may go, nothing to configure, little memory. There are no weights.

    Which node stands in which slot is a part of the state: nodes in the order given, a new one in the first empty slot.
    """

    algorithm: ClassVar[str] = "choose"
    weighted: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    history: ClassVar[tuple[str, ...]] = ("slots",)

    def _finder(self, names: tuple[str | None, ...], nodes: Mapping[str, Node]) -> Finder:
        return Occupied(names)

    def _order(self, table: Table, place: int) -> Iterator[str]:
        return (cast(str, table.names[slot]) for slot in cast(Occupied, table.finder).walk(place))
