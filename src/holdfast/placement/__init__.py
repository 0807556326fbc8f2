"""Where things live: pure functions from a key to the nodes that keep it."""

from .hashing import hash_key
from .ring import HashRing
from .table import Node

__all__ = ["HashRing", "Node", "hash_key"]
