"""A second renewer in a process of its own: it keeps leases while the program cannot run its own renewer.

Most of it is `__main__`: what that process does. `helper` is the program's end, `table` what both of them see.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args

from ..contract import Engine
from ..core.helping import Helper
from ..engines import named
from ..errors import Misuse, Unsupported

RenewerKind = Literal["here", "process"]

HANG_S = 30.0
"""How long a program may let nothing else run before it counts as hung, where nobody says otherwise."""


def helper_for(
    renewer: RenewerKind, target: Any, namespace: str, engine: Engine, hang_s: float
) -> Callable[[], Helper] | None:
    """What makes a session's helper; None where none was asked for. Raises `Misuse`, `Unsupported`."""
    if renewer not in get_args(RenewerKind):
        raise Misuse(f"renewer is 'here' or 'process', not {renewer!r}")
    if isinstance(hang_s, bool) or not isinstance(hang_s, int | float) or not 0 < hang_s < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise Misuse(f"hang_s is above 0 seconds, not {hang_s!r}")
    if renewer == "here":
        return None
    capabilities = engine.capabilities
    if capabilities.scope == "process":
        raise Unsupported("memory:// is in this process alone, so no other can renew its leases")
    if not capabilities.renewed_by_any:
        raise Unsupported(
            f"on {capabilities.engine} a lease hangs on its client's own connection or session: no other process can "
            "renew it"
        )
    url = named(target)
    if not isinstance(url, str):
        raise Misuse(
            f"renewer='process' needs the engine's URL, to connect from that process: {type(target).__name__} cannot "
            "go there"
        )
    if os.name != "posix" or not sys.executable or getattr(sys, "frozen", False):
        raise Unsupported("renewer='process' starts a second Python of the same kind, which cannot be done here")

    from .helper import Process

    return lambda: Process(url, namespace, engine.identity, hang_s)
