"""Where things live: pure functions from a key to the nodes that keep it."""

from . import _kernel
from ._kernel import hash_key
from .base import Node, Placement
from .ring import HashRing


def kernel() -> str:
    """Which kernel is in use: ``"c"``, or ``"python"`` where it could not be compiled."""
    return _kernel.NAME


__all__ = ["HashRing", "Node", "Placement", "hash_key", "kernel"]
