"""The contenders: one function from a key to a node for each, and the plain twin of our own kernel."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import jump
import xxhash
from pymemcache.client.rendezvous import RendezvousHash
from tooz import hashring as tooz_ring
from uhashring import HashRing as Uhashring

import holdfast
from holdfast import placement

from .placement_floor import floor_of
from .placement_keys import node_names

POINTS = 160
"""Points a node, of every ring here: what holdfast and uhashring take by default."""

Get = Callable[[str], object]


class _Plain(MetaPathFinder):
    """Finds the kernel's twin where Python would find the compiled kernel first."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != "holdfast.placement._kernel":
            return None
        return spec_from_file_location(fullname, Path(placement.__file__).with_name("_kernel.py"))


def twin(*, with_xxhash: bool) -> Any:
    """`holdfast.placement` once more, on its kernel in plain Python, as on a machine without a compiler."""
    ours = {name: module for name, module in sys.modules.items() if name.startswith("holdfast.placement")}
    finder, log = _Plain(), logging.getLogger("holdfast.placement")
    sys.meta_path.insert(0, finder)
    log.disabled = True  # it would tell that the kernel in C is missing
    try:
        for name in ours:
            del sys.modules[name]
        if not with_xxhash:
            sys.modules["xxhash"] = None  # type: ignore[assignment]
        twin: Any = importlib.import_module("holdfast.placement")
        assert twin.kernel() == "python"
        twin.HashRing()  # tells it once, while nobody listens
        return twin
    finally:
        for name in [name for name in sys.modules if name.startswith("holdfast.placement")]:
            del sys.modules[name]
        sys.modules.update(ours, xxhash=xxhash)
        holdfast.placement = placement
        sys.meta_path.remove(finder)
        log.disabled = False


def ours(nodes: int) -> dict[str, Get]:
    names = node_names(nodes)
    ring = placement.HashRing(names, points=POINTS)
    return {
        "`len(key)`": len,
        "floor": floor_of(ring).get_node,
        "holdfast": ring.get_node,
        "holdfast, plain Python + xxhash": twin(with_xxhash=True).HashRing(names, points=POINTS).get_node,
        "holdfast, plain Python": twin(with_xxhash=False).HashRing(names, points=POINTS).get_node,
    }


def uhashrings(nodes: int) -> dict[str, Uhashring]:
    names, digest = node_names(nodes), xxhash.xxh3_64_intdigest
    return {
        "uhashring, xxh3": Uhashring(names, vnodes=POINTS, hash_fn=lambda key: digest(key.encode())),
        "uhashring, md5": Uhashring(names, vnodes=POINTS),
        "uhashring, ketama": Uhashring(names, hash_fn="ketama"),
    }


def peers(nodes: int) -> dict[str, Get]:
    names = node_names(nodes)
    tooz = tooz_ring.HashRing(names, partitions=POINTS)
    digest, bucket = xxhash.xxh3_64_intdigest, jump.hash
    rendezvous = RendezvousHash(list(names), hash_function=lambda text, seed: digest(text.encode(), seed))
    return {
        **{name: ring.get_node for name, ring in uhashrings(nodes).items()},
        "tooz": lambda key: tooz.get_nodes(key.encode()),
        "pymemcache rendezvous, xxh3": rendezvous.get_node,
        "jump-consistent-hash (C), xxh3": lambda key: names[bucket(digest(key.encode()), nodes)],
    }
