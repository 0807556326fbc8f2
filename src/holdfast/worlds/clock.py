"""The clock of leases: seconds that only go forward and go on while the machine is suspended, where it has such."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

now: Callable[[], float] = time.monotonic

if hasattr(time, "CLOCK_BOOTTIME"):  # Linux
    now = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)
elif hasattr(time, "CLOCK_MONOTONIC"):  # macOS: it goes on in sleep there
    now = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
