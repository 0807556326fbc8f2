"""A monkey-patched process: greenlets take turns, and its one thread renews in between."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.live

PROGRAM = """
from gevent import monkey
monkey.patch_all()

import sys, time
import gevent
import holdfast

url = sys.argv[1]
inside, most, entered = 0, 0, []


def work(number):
    global inside, most
    for _ in range(5):
        with lock as lease:
            inside += 1
            most = max(most, inside)
            opened = cell.open(lease)
            gevent.sleep(0.002)
            opened.put(str(int(opened.value or 0) + 1).encode())
            entered.append(lease.token)
            inside -= 1


hf, other = holdfast.connect(url), holdfast.connect(url)
lock, cell = hf.lock("x", ttl_s=15.0, timeout_s=40), hf.cell("count")
kept = hf.lock("kept", ttl_s=2.0).acquire()
gevent.joinall([gevent.spawn(work, number) for number in range(10)], raise_error=True)
assert most == 1, most
assert entered == sorted(entered) and len(entered) == 50, entered
assert cell.read().value == b"50"

held = lock.acquire()
waiting = gevent.spawn(other.lock("x").acquire)  # across two clients: told by a signal
while not held.wanted:
    gevent.sleep(0.005)
held.release()
waiting.get(timeout=4).release()  # before its first renewal would have found out

began = time.monotonic()
while time.monotonic() < began + 2.2:
    gevent.sleep(0.05)
assert kept.state == "HELD", kept.state  # renewed all the while
kept.release()
hf.close()
other.close()
print("done")
"""


def test_greenlets_take_turns_while_their_leases_are_renewed(url: str) -> None:
    pytest.importorskip("gevent")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr == ""


STARVED = """
from gevent import monkey
monkey.patch_all()

import ctypes, sys
import holdfast

hf = holdfast.connect(sys.argv[1], renewer="process")
lease = hf.lock("x", ttl_s=2.0).acquire()
ctypes.PyDLL(None).usleep(4_000_000)
assert lease.state == "HELD", lease.state
lease.release()
hf.close()
print("done")
"""


def test_a_second_renewer_keeps_a_lease_while_no_greenlet_runs(url: str) -> None:
    """Its process must not be forked as gevent forks those of `subprocess`: what runs after forks lets go of all."""
    pytest.importorskip("gevent")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", STARVED, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert done.stderr == ""
