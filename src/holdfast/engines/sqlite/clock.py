"""The clock that all processes of this machine share, and the boot that it counts from.

A lease's end is stored on it, so it must go on in suspend, and its values mean nothing after a reboot. A container
with a time name space of its own (rare) would read another clock: it must not share a file with others.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

from ...errors import Unsupported

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

if sys.platform == "linux":

    def now() -> float:
        """Seconds since this machine started, suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

elif sys.platform == "darwin":  # CLOCK_MONOTONIC goes on in sleep there

    def now() -> float:
        """Seconds since this machine started, sleep included."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)

else:
    now = time.time  # the one clock that is surely shared; a step of it moves the ends of leases


@functools.cache
def boot_id() -> str:
    """Changes when the clock starts anew; constant where `now` is the wall clock, which never does."""
    if sys.platform == "linux":
        try:
            return BOOT_ID.read_text().strip()
        except OSError as error:
            raise Unsupported(f"{BOOT_ID} cannot be read, so a reboot could not be noticed: mount /proc") from error
    if sys.platform == "darwin":
        import subprocess

        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return "wall clock"
