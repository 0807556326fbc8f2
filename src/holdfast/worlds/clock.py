"""The clock of leases: seconds that only go forward and go on while the machine is suspended, where it has such."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):  # Linux
    _CLOCK = time.CLOCK_BOOTTIME

    def now() -> float:
        return time.clock_gettime(_CLOCK)

elif hasattr(time, "CLOCK_MONOTONIC"):  # macOS: CLOCK_MONOTONIC goes on in sleep there

    def now() -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:
    now = time.monotonic
