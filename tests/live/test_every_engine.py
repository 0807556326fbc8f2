"""What stands on turnstiles and cells works on every engine that processes can share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import Commands
from engines import ON_SESSIONS, SHARED
from servers import eventually

import holdfast
from holdfast import AcquireTimeout, Adaptive, Backoff, Poll, Queue, Spin
from holdfast.errors import StaleToken, Unsupported

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.name == "nt", reason="the commands here are a Unix's")]

TTL_S = 2
"""Short, so that the dead are not waited for long."""


@pytest.fixture(params=SHARED)
def url(request: pytest.FixtureRequest) -> str:
    value = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(value, str)
    return f"{value}?ttl_s={TTL_S}" if request.param in ON_SESSIONS else value


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], holdfast.sync.Client]]:
    clients: list[holdfast.sync.Client] = []

    def connect() -> holdfast.sync.Client:
        clients.append(holdfast.connect(url))
        return clients[-1]

    yield connect
    for one in clients:
        one.close()


@pytest.fixture
def on(url: str, tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, url)
    yield commands
    commands.close()


def without_groups(client: holdfast.sync.Client) -> bool:
    """Whether this engine has none; then it must say so when one is asked for."""
    if client.capabilities.groups:
        return False
    with pytest.raises(Unsupported, match="group"):
        client.group("workers")
    return True


def test_run_hands_the_lock_to_who_waits(on: Commands) -> None:
    first = on.holding("x")
    second = on.start("run", "x", "--", "sh", "-c", 'echo "$HOLDFAST_TOKEN"')
    eventually(lambda: second.poll() is None and on.status("lock:x"))
    assert second.poll() is None
    on.open_gate()
    assert on.ended(first).code == 0
    done = on.ended(second)
    assert (done.code, int(done.out) > 0) == (0, True)


def test_each_does_every_item_once_though_a_worker_is_killed(
    on: Commands, connect: Callable[[], holdfast.sync.Client]
) -> None:
    if without_groups(connect()):
        done = on.run("each", "job", "--", "true", "{}", lines="a\n")
        assert (done.code != 0, "Traceback" in done.err) == (True, False)
        return
    lines = "".join(f"item {number}\n" for number in range(60))
    slow = 'sleep 0.02; echo "$1"'
    command = ("each", "job", "--batch", "2", "--ttl", str(TTL_S), "--collect", "--", "sh", "-c", slow, "sh", "{}")
    victim = on.start(*command, stdin=subprocess.PIPE)
    assert victim.stdin is not None
    victim.stdin.write(lines.encode())
    victim.stdin.close()
    victim.stdin = None
    eventually(lambda: on.run("each", "job", "--results").out.count("\n") > 2)
    victim.send_signal(signal.SIGKILL)
    assert on.run(*command, lines=lines).code == 0
    assert on.run("each", "job", "--results").out.count("\n") == 60


def test_a_member_that_leaves_is_seen_to_go(connect: Callable[[], holdfast.sync.Client]) -> None:
    ours, theirs = connect(), connect()
    if without_groups(ours):
        return
    with theirs.group("workers").join(b"here"):
        assert [member.payload for member in ours.group("workers").members()] == [b"here"]
    assert ours.group("workers").members() == []


def test_partitions_are_shared_out_and_move_when_one_leaves(connect: Callable[[], holdfast.sync.Client]) -> None:
    ours, theirs = connect(), connect()
    if without_groups(ours):
        with pytest.raises(Unsupported):
            ours.partitions("orders", count=32)
        return
    with ours.partitions("orders", count=32).join() as mine:
        eventually(lambda: len(mine.owned) == 32)
        with theirs.partitions("orders", count=32).join() as others:
            eventually(lambda: len(mine.owned) + len(others.owned) == 32 and mine.owned and others.owned)
            assert not set(mine.owned) & set(others.owned)
        eventually(lambda: len(mine.owned) == 32)


def test_a_cell_refuses_who_held_before(connect: Callable[[], holdfast.sync.Client]) -> None:
    ours, theirs = connect(), connect()
    with ours.lock("x") as first:
        stale = ours.cell("offset").open(first)
        stale.put(b"1")
    with theirs.lock("x") as second:
        assert second.token > first.token
        opened = theirs.cell("offset").open(second)
        assert opened.value == b"1"
        opened.put(b"2")
        with pytest.raises(StaleToken):
            stale.put(b"3")
    assert theirs.cell("offset").read().value == b"2"


def test_each_way_of_waiting_gets_the_lock_as_it_becomes_free_and_leaves_nothing_after_a_timeout(
    connect: Callable[[], holdfast.sync.Client],
) -> None:
    holder, waiter = connect(), connect()
    for strategy in (Queue(), Adaptive(), Spin(), Poll(0.02), Backoff(0.005, 0.05)):
        lock = waiter.lock("x", strategy=strategy)
        with holder.lock("x") as lease:
            with pytest.raises(AcquireTimeout):
                lock.acquire(timeout_s=0.1)
            with ThreadPoolExecutor(1) as pool:
                taken = pool.submit(lock.acquire)
                with pytest.raises(TimeoutError):
                    taken.result(timeout=0.1)
                lease.release()
                follower = taken.result(timeout=30)
        assert follower.token > lease.token
        follower.release()
        again = holder.lock("x").try_acquire()
        assert again is not None, f"{strategy} left something behind"
        again.release()
