"""Where things live: pure functions from a key to the nodes that keep it."""

from . import _kernel
from ._kernel import hash_key
from .anchor import Anchor
from .base import Node, Placement
from .bounded import BoundedLoads
from .choose import Choose
from .jump import Jump
from .maglev import Maglev
from .multiprobe import MultiProbe
from .presets import EnvoyRing, Ketama, envoy_maglev, envoy_ring_hash, ketama_libmemcached, ketama_twemproxy
from .registry import ALGORITHMS, from_dict, make
from .rendezvous import Rendezvous
from .ring import HashRing


def kernel() -> str:
    """Which kernel is in use: ``"c"``, or ``"python"`` where it could not be compiled."""
    return _kernel.NAME


__all__ = [
    "ALGORITHMS",
    "Anchor",
    "BoundedLoads",
    "Choose",
    "EnvoyRing",
    "HashRing",
    "Jump",
    "Ketama",
    "Maglev",
    "MultiProbe",
    "Node",
    "Placement",
    "Rendezvous",
    "envoy_maglev",
    "envoy_ring_hash",
    "from_dict",
    "hash_key",
    "kernel",
    "ketama_libmemcached",
    "ketama_twemproxy",
    "make",
]
