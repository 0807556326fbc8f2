"""How processes end that hold something, and what one thread can do to the others of its process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from onlooker import Onlooker
from peer import Peer

import holdfast
from holdfast import LeaseLost, StaleToken

pytestmark = pytest.mark.live

HOLDER = """
import asyncio, os, sys, threading, time
import holdfast
from holdfast import aio

URL, TTL_S = sys.argv[1], float(sys.argv[2])
hf = holdfast.connect(URL)
lock = hf.lock("x", ttl_s=TTL_S)


def held():
    print("held", flush=True)
    sys.stdin.readline()


"""

THREAD = """
taken = threading.Event()
threading.Thread(target=lambda: (lock.acquire(), taken.set(), time.sleep(60)), daemon=True).start()
taken.wait()
held()
sys.exit(7)
"""

LOOP = """
async def main():
    async with aio.connect(URL).lock("x", ttl_s=TTL_S):
        held()
        raise SystemExit(7)
asyncio.run(main())
"""

ENDS = {
    "the program ends": ("lock.acquire(); held()", 0),
    "it ends, and threw its client away": (
        "lease = holdfast.connect(URL).lock('x', ttl_s=TTL_S).acquire(); held()",
        0,
    ),
    "sys.exit() in the block": ("with lock: held(); sys.exit(7)", 7),
    "a message in the block": ("with lock: held(); raise SystemExit('wrong')", 1),
    "sys.exit() while a thread holds it": (THREAD, 7),
    "sys.exit() in the block of an event loop": (LOOP, 7),
}

ABORT = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
lock.acquire()
held()
os.abort()
"""

UNCLOSED_LOOP = """
async def main():
    lease = await aio.connect(URL).lock("x", ttl_s=TTL_S).acquire()
    held()
    return lease
lease = asyncio.run(main())
"""

DIES = {
    "os._exit()": ("lock.acquire(); held(); os._exit(7)", 7),
    "os.abort()": (ABORT, -6),
    "the end of an event loop that was not closed": (UNCLOSED_LOOP, 0),
}


@contextlib.contextmanager
def holder(url: str, ttl_s: float, body: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``x``, and goes on with how it ends once it is told a line."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", HOLDER + body, url, str(ttl_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", ENDS)
def test_what_a_process_held_at_its_end_is_given_back_at_once(url: str, how: str) -> None:
    body, code = ENDS[how]
    with holdfast.connect(url) as client, holder(url, 60.0, body) as process:
        assert client.lock("x").try_acquire() is None
        _, errors = process.communicate("go on\n", timeout=40)
        assert process.returncode == code
        assert "Traceback" not in errors
        assert "Exception ignored" not in errors
        lease = client.lock("x").try_acquire()
        assert lease is not None
        lease.release()


@pytest.mark.parametrize("how", DIES)
def test_a_death_without_a_word_frees_what_was_held_at_once_or_when_the_lease_ends(url: str, how: str) -> None:
    body, code = DIES[how]
    at_once = url.startswith("sqlite")
    with holdfast.connect(url) as client, holder(url, 600.0 if at_once else 1.5, body) as process:
        process.communicate("go on\n", timeout=40)
        assert process.returncode == code
        client.lock("x").acquire(timeout_s=20).release()


def test_who_kept_the_gil_past_its_lease_is_told_and_refused(
    url: str, start_peer: Callable[..., Peer], onlooker: Callable[[str], Onlooker]
) -> None:
    """The limit that the guide names: a C extension that lets no other thread run starves the renewer as well."""
    peer, view = start_peer(url), onlooker(url)
    token = peer.do("acquire", "x", 1.0)
    peer.do("open", "ledger")
    peer.do("put", "first")
    with holdfast.connect(url) as client:
        peer.order("keep_the_gil", 2.5)
        lease = client.lock("x", ttl_s=60).acquire(timeout_s=20)
        assert lease.token > token
        client.cell("ledger").open(lease).put(b"second")
        peer.answer()
        with pytest.raises(StaleToken):
            peer.do("put", "written in the past")
        assert peer.do("wait_lost", 20.0)
        with pytest.raises(LeaseLost):
            peer.do("ensure_held")
        assert view.cell("ledger").value == b"second"
        assert view.holders("x") == [lease.token]
        lease.release()
