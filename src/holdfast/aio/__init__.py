"""The asyncio face. Assembly only: what happens is in `core`; `sync` has the same names and signatures."""

from __future__ import annotations

from .cell import Cell, OpenCell
from .client import Client, connect
from .election import Election, Leadership
from .group import Group, Health
from .lease import Lease, StickyLease
from .lock import Lock, RWLock
from .partitions import PartitionLease, Partitions, Share

__all__ = [
    "Cell",
    "Client",
    "Election",
    "Group",
    "Health",
    "Leadership",
    "Lease",
    "Lock",
    "OpenCell",
    "PartitionLease",
    "Partitions",
    "RWLock",
    "Share",
    "StickyLease",
    "connect",
]
