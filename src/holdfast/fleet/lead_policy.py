"""How `holdfast lead` keeps CMD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import Misuse


@dataclass(frozen=True)
class Policy:
    """How CMD is kept. Times are in seconds.

    ``on_unsure``: "stop" ends CMD at the first failed renewal, "keep" when ``grace_s`` is left of the lease.
    """

    on_unsure: Literal["stop", "keep"] = "stop"
    grace_s: float = 10.0
    ready_timeout_s: float | None = None
    watchdog_s: float | None = None
    restarts: int = 5
    window_s: float = 300.0
    sit_out_s: float = 30.0
    hold_off_s: float = 0.0
    once: bool = False

    def __post_init__(self) -> None:
        if self.on_unsure not in ("stop", "keep"):
            raise Misuse(f"on_unsure is 'stop' or 'keep', not {self.on_unsure!r}")
        if self.restarts < 0:
            raise Misuse(f"restarts is 0 or more, not {self.restarts!r}")
        for name in ("grace_s", "window_s", "sit_out_s", "hold_off_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise Misuse(f"{name} is 0 seconds or more and finite, not {getattr(self, name)!r}")
        for name in ("ready_timeout_s", "watchdog_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise Misuse(f"{name} is above 0 seconds and finite, not {value!r}")
