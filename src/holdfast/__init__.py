"""holdfast: locks, fenced cells and consistent hashing for services that must stay up and stay right.

    import holdfast
    hf = holdfast.connect("redis://localhost")
    with hf.lock("invoice:42") as lease:
        ...

Names load on first use, so that importing holdfast costs next to nothing.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it; importing typing would double the cost of this module
if TYPE_CHECKING:
    from typing import Any

    from . import aio, testing
    from .compat import ConsistentHash, DistributedLock
    from .core.waiting import Adaptive, Backoff, Poll, Queue, Spin
    from .errors import (
        AcquireTimeout,
        HoldfastError,
        LeaseLost,
        Misuse,
        OutcomeUnknown,
        StaleToken,
        Unavailable,
        Unsupported,
    )
    from .model import Change
    from .placement import (
        Anchor,
        BoundedLoads,
        Choose,
        HashRing,
        Jump,
        Maglev,
        MultiProbe,
        Node,
        Rendezvous,
    )
    from .sync import connect

_HOMES = {
    "sync": "connect",
    "placement": "Anchor BoundedLoads Choose HashRing Jump Maglev MultiProbe Node Rendezvous",
    "model": "Change",
    "core.waiting": "Queue Adaptive Spin Poll Backoff",
    "compat": "ConsistentHash DistributedLock",
    "errors": "AcquireTimeout HoldfastError LeaseLost Misuse OutcomeUnknown StaleToken Unavailable Unsupported",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__version__ = "0.1.0.dev0"
__all__ = [
    "AcquireTimeout",
    "Adaptive",
    "Anchor",
    "Backoff",
    "BoundedLoads",
    "Change",
    "Choose",
    "ConsistentHash",
    "DistributedLock",
    "HashRing",
    "HoldfastError",
    "Jump",
    "LeaseLost",
    "Maglev",
    "Misuse",
    "MultiProbe",
    "Node",
    "OutcomeUnknown",
    "Poll",
    "Queue",
    "Rendezvous",
    "Spin",
    "StaleToken",
    "Unavailable",
    "Unsupported",
    "aio",
    "connect",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in ("aio", "testing"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
