"""Forks: the child holds nothing and is told so, takes locks of its own, and does its parent no harm."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import eventually

import holdfast
from holdfast import LeaseLost, sync

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

Connect = Callable[..., Any]


@pytest.fixture(params=["memory", "sqlite", "redis"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    value: str = request.getfixturevalue(f"{request.param}_url")
    return value


def in_child(body: Callable[[], Any]) -> Any:
    """What ``body`` answers in a forked child; fails where that raises, or never ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = [None, body()]
        except BaseException as error:
            answer = [f"{type(error).__name__}: {error}", None]
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    try:
        ended, _, _ = select.select([reading], [], [], 20)
        if not ended:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child hangs")
        error, value = json.loads(os.read(reading, 1 << 16))
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    assert error is None, error
    return value


def refused(action: Callable[[], Any]) -> str:
    """How it was told that the lease is not ours; raises where it was not."""
    with pytest.raises(LeaseLost) as told:
        action()
    return str(told.value)


def test_a_child_holds_nothing_and_is_told_while_its_parents_lease_goes_on(any_url: str, connect: Connect) -> None:
    client = connect(any_url)
    lease = client.lock("x", ttl_s=3.0).acquire()
    opened = client.cell("ledger").open(lease)
    inbox = client.session.world.inbox

    def child() -> Any:
        state, remaining_s = lease.state, lease.remaining_s
        told = [refused(lease.ensure_held), refused(lease.release), refused(lease.detach)]
        told += [refused(lambda: opened.put(b"by the child")), refused(opened.entries)]
        told += [refused(lambda: client.cell("ledger").open(lease))]
        taken = client.lock("x").try_acquire() is None
        with_own = client.lock("y").acquire(timeout_s=10)
        own = client.cell("another").open(with_own)
        own.put(b"mine")
        with_own.release()
        return state, remaining_s, lease.wait_lost(0), told, taken, client.session.world.inbox

    for _ in range(2):
        state, remaining_s, lost, told, taken, own_inbox = in_child(child)
        assert (state, remaining_s, lost) == ("LOST", 0.0, True)
        assert all("fork" in one for one in told), told
        assert taken == (not any_url.startswith("memory"))  # a child's memory is its own
        assert own_inbox != inbox
    ends_s = lease.remaining_s
    eventually(lambda: lease.remaining_s > ends_s or lease.state != "HELD")
    assert lease.state == "HELD"
    opened.put(b"by the parent")
    lease.release()


def test_a_lease_whose_client_was_thrown_away_stays_with_the_parent_as_well(any_url: str) -> None:
    lease = holdfast.connect(any_url).lock("x", ttl_s=30.0).acquire()
    gc.collect()
    assert "fork" in in_child(lambda: refused(lease.release))
    lease.release()
    sync.client._close(lease._session)


def test_no_child_takes_its_siblings_write_for_its_own(url: str, connect: Connect) -> None:
    """Each does the same, from the same state: what tells their requests apart must not be of before the fork."""
    client = connect(url)

    def child() -> str:
        lease = client.lock("x").acquire(timeout_s=10)
        opened = client.cell("ledger").open(lease)
        opened.put((opened.value or b"") + b"+")
        lease.release()
        return client.cell("ledger").read().value.decode()

    assert [in_child(child) for _ in range(3)] == ["+", "++", "+++"]


def test_a_childs_child_is_told_as_well(any_url: str, connect: Connect) -> None:
    client = connect(any_url)
    lease = client.lock("x", ttl_s=30.0).acquire()

    def child() -> Any:
        own = client.lock("y", ttl_s=30.0).acquire(timeout_s=10)
        told = in_child(lambda: [refused(lease.ensure_held), refused(own.release), client.lock("z").acquire().token])
        own.release()
        return told

    assert in_child(child)[-1] > 0
    lease.release()


def test_partitions_and_memberships_stay_with_the_parent(any_url: str, connect: Connect) -> None:
    client = connect(any_url)
    member = client.group("workers").join(ttl_s=3.0)
    share = client.partitions("orders", 4, ttl_s=3.0).join()
    eventually(lambda: len(share.owned) == 4)

    def child() -> Any:
        states = [share.owned[partition].state for partition in range(4)]
        share.leave()
        return states, refused(member.release), len(client.group("workers").members())

    states, _, members = in_child(child)
    assert states == ["LOST"] * 4
    assert members == (0 if any_url.startswith("memory") else 1)
    ends_s = member.remaining_s
    eventually(lambda: member.remaining_s > ends_s or member.state != "HELD")
    assert member.state == "HELD"
    assert {lease.state for lease in share.owned.values()} == {"HELD"}
    assert len(share.owned) == 4
    share.leave()
    member.release()


LEAVING = """
import os, sys
import holdfast
hf = holdfast.connect(sys.argv[1])
lock = hf.lock("x")
with lock as lease:
    if os.fork() == 0:
        with hf.lock("y"):
            pass
        if sys.argv[2] == "exits":
            sys.exit(7)
    else:
        assert os.waitstatus_to_exitcode(os.wait()[1]) == int(sys.argv[3])
        assert lease.is_held and not lock.try_acquire()
"""


@pytest.mark.parametrize(("how", "code"), [("exits", 7), ("goes on", 1)])
def test_a_child_leaves_the_with_block_that_it_was_born_in(url: str, how: str, code: int) -> None:
    command = [sys.executable, "-c", LEAVING, url, how, str(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    if how == "exits":
        assert done.stderr == ""
    else:  # what it did there was not covered
        assert done.stderr.strip().splitlines()[-1].startswith("holdfast.errors.LeaseLost: ")
        assert "fork" in done.stderr


def test_forks_in_the_middle_of_other_threads_calls_do_no_harm(any_url: str, connect: Connect) -> None:
    client = connect(any_url)
    client.ping()
    stop = threading.Event()
    failures: list[BaseException] = []
    counts = [0] * 3

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                lease = client.lock(f"x{number % 2}").acquire(timeout_s=20)
                client.cell(f"c{number % 2}").open(lease).put(b"data")
                lease.release()
                counts[number] += 1
        except BaseException as error:
            failures.append(error)

    def child(number: int) -> None:
        lease = client.lock(f"x{number % 2}").acquire(timeout_s=20)
        client.cell(f"c{number % 2}").open(lease).put(b"data")
        lease.release()
        client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    fork = multiprocessing.get_context("fork")
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(stop.set)
        for number in range(12):
            before = sum(counts)
            process = fork.Process(target=child, args=(number,))
            process.start()
            cleanup.callback(process.kill)
            process.join(30)
            assert process.exitcode == 0
            eventually(lambda before=before: sum(counts) > before or failures)
    for thread in threads:
        thread.join()
    assert not failures


def take(url: str) -> None:
    """What a child of any start method runs, and then ends."""
    global taken  # noqa: PLW0603
    taken = holdfast.connect(url).lock("x", ttl_s=60.0).acquire(timeout_s=20)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_what_a_child_of_multiprocessing_holds_at_its_end_is_given_back(url: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=take, args=(url,))
    process.start()
    process.join(40)
    assert process.exitcode == 0
    with holdfast.connect(url) as client:
        lease = client.lock("x").try_acquire()
        assert lease is not None
        lease.release()
