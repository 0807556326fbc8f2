"""Two containers on one SQLite file: process ids mean nothing there, the kernel's locks and the file's folder do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from onlooker import Onlooker
from peer import Peer
from servers import eventually

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has name spaces for process ids"),
]

OWN = ("--pid", "--fork", "--mount-proc", "--net", "--ipc", "--uts", "--kill-child")


@pytest.fixture
def start_container(start_peer: Callable[..., Peer], sqlite_url: str) -> Callable[[], Peer]:
    """Starts a peer in name spaces of its own, as in a container that has the file's folder as a volume."""
    for rights in ((), ("--user", "--map-root-user")):
        launcher = ("unshare", *rights, *OWN)
        if subprocess.run([*launcher, "true"], capture_output=True, check=False).returncode == 0:
            return lambda: start_peer(sqlite_url, launcher=launcher)
    pytest.skip("this user may make no name spaces")


def inner_pid(container: Peer) -> int:
    """The container's first process, as it is called out here."""
    outer = container.process.pid
    return int(Path(f"/proc/{outer}/task/{outer}/children").read_text())


def test_a_holder_killed_in_one_container_lets_the_waiter_of_another_in_at_once(
    sqlite_url: str, start_container: Callable[[], Peer], onlooker: Callable[[str], Onlooker]
) -> None:
    holder, waiter, view = start_container(), start_container(), onlooker(sqlite_url)
    assert holder.do("pid") == waiter.do("pid") == 1
    token = holder.do("acquire", "x", 600.0)
    waiter.order("acquire", "x", 600.0)
    eventually(lambda: view.waiters("x") == 1)
    os.kill(inner_pid(holder), signal.SIGKILL)
    entered = waiter.answer()  # or the test's time is over, long before the lease
    assert entered > token
    assert view.holders("x") == [entered]


def test_a_living_holder_of_another_container_is_never_taken_for_dead(
    sqlite_url: str, start_container: Callable[[], Peer], onlooker: Callable[[str], Onlooker]
) -> None:
    holder, waiter, view = start_container(), start_container(), onlooker(sqlite_url)
    token = holder.do("acquire", "x", 600.0)
    waiter.order("acquire", "x", 600.0)
    eventually(lambda: view.waiters("x") == 1)
    stranger = start_container()
    stranger.do("acquire", "another", 600.0)
    os.kill(inner_pid(stranger), signal.SIGKILL)  # another process 1 that dies is none of theirs
    stranger.process.wait()
    for _ in range(200):  # each look buries those who died
        assert view.holders("x") == [token]
    os.kill(inner_pid(holder), signal.SIGSTOP)
    for _ in range(200):
        assert view.holders("x") == [token]
    os.kill(inner_pid(holder), signal.SIGCONT)
    assert holder.do("state") == "HELD"
    holder.do("release")  # is told to the waiter, across the containers
    assert waiter.answer() > token
