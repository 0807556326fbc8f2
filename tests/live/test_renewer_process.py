"""``renewer="process"``: leases outlive calls that let nothing else run, and no program that hangs or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peer import Peer
from servers import RedisServer, eventually

import holdfast
from holdfast import LeaseLost, aio

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="it looks for processes in /proc"),
]

TTL_S = 2.0
CALL_S = 6.0
"""How long nothing of the program runs: three leases."""


def helpers_of(pid: int) -> list[int]:
    """The renewer processes that this process started and that have not ended."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z" and int(parent) == pid and b"holdfast.renewing" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def helper_of(pid: int) -> int:
    eventually(lambda: helpers_of(pid), what="no renewer process was started")
    (helper,) = helpers_of(pid)
    return helper


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


OFTEN = ("sqlite", "redis", "postgres")
SELDOM = ("sentinel", "cluster", "pgbouncer", "quorum")


@pytest.fixture(params=[*OFTEN, *(pytest.param(engine, marks=pytest.mark.slow) for engine in SELDOM)])
def any_url(request: pytest.FixtureRequest) -> str:
    value = request.getfixturevalue(f"{request.param}_url")
    assert isinstance(value, str)
    return value


Start = Callable[..., Peer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Programs to be held up and killed. Whatever happens to one, its helper ends."""
    peers: list[Peer] = []

    def start(url: str, *, face: str = "sync", **options: Any) -> Peer:
        peers.append(Peer(face, url, **{"renewer": "process", **options}))
        return peers[-1]

    yield start
    helpers = [helper for one in peers for helper in helpers_of(one.process.pid)]
    for one in peers:
        one.close()
    eventually(lambda: all(map(is_gone, helpers)), what="a renewer process outlived its program")


# -- what holds up the program


def test_a_call_that_holds_the_gil_for_three_leases_loses_none_with_a_process_and_all_without(
    any_url: str, start: Start
) -> None:
    with holdfast.connect(any_url) as other:
        helped, alone = start(any_url), start(any_url, renewer="here")
        token = helped.do("acquire", "helped", TTL_S)
        alone.do("acquire", "alone", TTL_S)
        for one in (helped, alone):
            one.order("keep_the_gil", CALL_S)
        taken = other.lock("alone").acquire(
            timeout_s=CALL_S * 5
        )  # else nothing was held up, and the rest shows nothing
        assert other.lock("helped").try_acquire() is None
        for one in (helped, alone):
            one.answer()
        assert other.lock("helped").try_acquire() is None
        assert helped.do("state") == "HELD"
        helped.do("ensure_held")
        helped.do("open", "cell")
        helped.do("put", "written after the call")
        helped.do("release")
        assert alone.do("state") == "LOST"
        with pytest.raises(LeaseLost):
            alone.do("release")
        with other.lock("helped").acquire(timeout_s=20) as lease:
            assert lease.token > token
        taken.release()


def test_a_loop_that_is_blocked_for_three_leases_loses_none_with_a_process_and_all_without(
    redis_url: str, start: Start
) -> None:
    with holdfast.connect(redis_url) as other:
        helped, alone = start(redis_url, face="aio"), start(redis_url, face="aio", renewer="here")
        helped.do("acquire", "helped", TTL_S)
        alone.do("acquire", "alone", TTL_S)
        for one in (helped, alone):
            one.order("block_the_loop", CALL_S)
        taken = other.lock("alone").acquire(timeout_s=CALL_S * 5)
        for one in (helped, alone):
            one.answer()
        assert helped.do("state") == "HELD"
        assert alone.do("state") == "LOST"
        helped.do("release")
        taken.release()
        helped.do("close_client")
        eventually(lambda: not helpers_of(helped.process.pid))


@pytest.mark.parametrize("how", ["hangs", "is paused"])
def test_a_program_that_hangs_for_longer_than_its_bound_loses_what_it_holds(
    how: str, redis_url: str, start: Start
) -> None:
    with holdfast.connect(redis_url) as other:
        one = start(redis_url, hang_s=1.0)
        first = one.do("acquire", "x", 1.0)
        helper = helper_of(one.process.pid)
        if how == "hangs":
            one.order("keep_the_gil", 5.0)
        else:
            one.signal(signal.SIGSTOP)
        with other.lock("x").acquire(timeout_s=30) as lease:
            assert lease.token > first
            if how == "hangs":
                assert helpers_of(one.process.pid) == [helper], "it waits for its program to go on"
                one.answer()
            else:
                one.signal(signal.SIGCONT)
            assert one.do("state") == "LOST"
            with pytest.raises(LeaseLost):
                one.do("ensure_held")
        one.do("acquire", "x", 1.0)  # and all goes on, helped as before
        one.order("keep_the_gil", 1.8)
        one.answer()
        assert one.do("state") == "HELD"


# -- ends


def test_a_killed_program_ends_its_process_and_its_lease(any_url: str, start: Start) -> None:
    """On the embedded engine at once: its claim hangs on the program's life and not on the helper's."""
    with holdfast.connect(any_url) as other:
        embedded = any_url.startswith("sqlite")
        one = start(any_url)
        one.do("acquire", "x", 600.0 if embedded else TTL_S)
        helper = helper_of(one.process.pid)
        one.signal(signal.SIGKILL)
        eventually(lambda: is_gone(helper))
        other.lock("x").acquire(timeout_s=20).release()


def test_a_process_that_was_killed_is_started_again(redis_url: str, start: Start) -> None:
    one = start(redis_url)
    one.do("acquire", "x", TTL_S)
    first = helper_of(one.process.pid)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: helpers_of(one.process.pid) not in ([], [first]))
    one.do("keep_the_gil", 2 * TTL_S)
    assert one.do("state") == "HELD"
    one.do("release")


def test_a_process_that_dies_again_and_again_is_left_alone_for_a_while(
    redis_url: str, start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    one = start(redis_url)
    one.do("acquire", "x", 0.6)
    killed: set[int] = set()

    def kill() -> bool:
        for helper in helpers_of(one.process.pid):
            killed.add(helper)
            os.kill(helper, signal.SIGKILL)
        return len(killed) >= 5

    eventually(kill, timeout_s=40)
    sees = holdfast.connect(redis_url)
    assert not one.do("wait_lost", 2.0), "its own renewer goes on"
    assert kill()
    assert len(killed) == 5
    assert sees.lock("x").try_acquire() is None
    sees.close()
    assert "renewer process ended (-9)" in capfd.readouterr().err


def test_closing_and_leaving_end_the_process(any_url: str, start: Start) -> None:
    closed, left = start(any_url), start(any_url)
    helpers: list[int] = []
    for number, one in enumerate((closed, left)):
        one.do("acquire", f"x{number}", 60.0)
        helpers.append(helper_of(one.process.pid))
    closed.do("close_client")
    assert is_gone(helpers[0])
    assert not Path(f"/proc/{helpers[0]}").exists(), "it was waited for"
    assert left.process.stdin
    left.process.stdin.close()
    assert left.process.wait(20) == 0
    assert is_gone(helpers[1])
    left.process.stdin = None
    with holdfast.connect(any_url) as other:
        for number in range(2):
            other.lock(f"x{number}").acquire(timeout_s=20).release()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets that nobody closes any more
def test_what_an_event_loop_held_that_was_closed_is_kept_by_nobody_once_the_next_one_begins(redis_url: str) -> None:
    client = aio.connect(redis_url, renewer="process")
    leases: list[Any] = []  # a reference to what is not ours any more

    async def take(name: str) -> None:
        leases.append(await client.lock(name, ttl_s=TTL_S).acquire())

    async def close() -> None:
        await client.lock("y").acquire()
        await client.aclose()

    asyncio.run(take("x"))
    first = helper_of(os.getpid())
    asyncio.run(close())
    eventually(lambda: is_gone(first))
    with holdfast.connect(redis_url) as other:
        other.lock("x").acquire(timeout_s=20).release()
        other.lock("y").acquire(timeout_s=20).release()
    assert not helpers_of(os.getpid())
    leases.clear()
    gc.collect()  # while what they say is ignored


def test_nothing_is_started_before_a_lease_is_held_or_for_one_that_is_not_renewed(redis_url: str) -> None:
    with holdfast.connect(redis_url, renewer="process") as client:
        client.ping()
        client.lock("x", renew=False).acquire().release()
        assert not helpers_of(os.getpid())
        client.lock("x").acquire().release()
        assert helpers_of(os.getpid())
    assert not helpers_of(os.getpid())


def test_it_is_told_what_is_released_and_what_changes_hands(any_url: str, start: Start) -> None:
    with holdfast.connect(any_url, renewer="process") as client, holdfast.connect(any_url) as other:
        released = client.lock("released", ttl_s=TTL_S).acquire()
        detached = client.lock("detached", ttl_s=60.0).acquire()
        helper: Any = client.session.renewer.helper
        lines = [helper._table.read(line) for line in range(2)]
        assert [line.turnstile.name for line in lines] == ["released", "detached"]
        released.release()
        text = detached.detach()
        assert [helper._table.read(line) for line in range(2)] == [None, None]
        other.lock("released").acquire(timeout_s=20).release()
        attached = other.attach(text)
        attached.release()


def test_the_secrets_in_an_url_are_in_nobodys_sight(redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "geheim")
    url = f"redis://:geheim@127.0.0.1:{redis_server.port}/0"
    with holdfast.connect(url, renewer="process") as client:
        lease = client.lock("x", ttl_s=TTL_S).acquire()
        helper = Path(f"/proc/{helper_of(os.getpid())}")
        for file in ("cmdline", "environ"):
            assert b"geheim" not in (helper / file).read_bytes()
        lease.release()


def test_a_child_holds_nothing_and_has_a_process_of_its_own_which_keeps_nobody_alive(
    any_url: str,
) -> None:
    """The child inherits the parent's end of what the helper listens to: it must let go of it."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING, any_url], check=False, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    child, helper, own_helper = map(int, done.stdout.split())
    try:
        eventually(lambda: is_gone(helper), what="the parent is gone and its helper is not")
        assert not is_gone(child)
        assert not is_gone(own_helper)
        with holdfast.connect(any_url) as other:
            assert other.lock("childs").try_acquire() is None
            other.lock("parents").acquire(timeout_s=20).release()
    finally:
        os.kill(child, signal.SIGKILL)
    eventually(lambda: is_gone(own_helper))


FORKING = """
import os, sys, time
import holdfast
hf = holdfast.connect(sys.argv[1], renewer="process")
lease = hf.lock("parents", ttl_s=2.0).acquire()
helper = hf.session.renewer.helper._child._pid
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    assert not lease.is_held
    own = hf.lock("childs", ttl_s=2.0).acquire()
    os.write(writing, str(hf.session.renewer.helper._child._pid).encode())
    os.close(1)
    os.close(2)
    time.sleep(60)
    os._exit(0)
own_helper = os.read(reading, 100).decode()
assert lease.is_held
print(child, helper, own_helper, flush=True)
os._exit(0)
"""
