"""What happens to those who hold and wait when the embedded engine's file does not stay as it was."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from onlooker import Onlooker
from peer import Peer
from servers import eventually

from holdfast import Misuse, OutcomeUnknown, StaleToken, Unavailable

pytestmark = pytest.mark.live

Connect = Callable[..., Any]
StartPeer = Callable[..., Peer]


@pytest.fixture
def path(sqlite_url: str) -> Path:
    return Path(sqlite_url.removeprefix("sqlite://"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def parts(path: Path) -> list[Path]:
    """The file, its log and the log's index."""
    return [file for file in path.parent.glob(path.name + "*") if file.is_file()]


def remove_file(path: Path) -> None:
    path.unlink()


def remove_file_and_log(path: Path) -> None:
    for file in parts(path):
        file.unlink()


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("remove", [remove_file, remove_file_and_log, remove_folder])
def test_who_held_and_who_waited_meet_again_in_a_new_file_where_somebody_removed_theirs(
    sqlite_url: str,
    path: Path,
    connect: Connect,
    start_peer: StartPeer,
    onlooker: Callable[[str], Onlooker],
    pool: ThreadPoolExecutor,
    remove: Callable[[Path], None],
) -> None:
    holder, client, old = start_peer(sqlite_url), connect(sqlite_url), onlooker(sqlite_url)
    token = holder.do("acquire", "x", 1.5)
    holder.do("open", "ledger")
    holder.do("put", "gone")
    entering = pool.submit(client.lock("x", ttl_s=60.0).acquire, timeout_s=25)
    eventually(lambda: old.waiters("x") == 1)
    remove(path)
    assert holder.do("wait_lost", 20.0)
    with pytest.raises(StaleToken):
        holder.do("put", "to nobody")
    lease = entering.result()
    assert lease.token > token
    new = onlooker(sqlite_url)
    assert new.holders("x") == [lease.token]
    assert new.cell("ledger").value is None
    # And from now on they hear of each other as before: of a release, and of a death.
    holder.order("acquire", "x", 60.0)
    eventually(lambda: new.waiters("x") == 1)
    lease.release()
    assert holder.answer() > lease.token
    entering = pool.submit(client.lock("x", ttl_s=60.0).acquire, timeout_s=15)  # less than a third of the lease
    eventually(lambda: new.waiters("x") == 1)
    holder.signal(signal.SIGKILL)
    entering.result().release()


def test_a_file_that_another_programs_replaced_is_left_alone_and_the_own_one_serves_again(
    sqlite_url: str, path: Path, connect: Connect, start_peer: StartPeer
) -> None:
    holder, client = start_peer(sqlite_url, patience_s=0.5), connect(sqlite_url, patience_s=0.5)
    token = holder.do("acquire", "x", 2.0)
    holder.do("open", "ledger")
    holder.do("put", "kept")
    aside = path.parent / "aside"
    aside.mkdir()
    for file in parts(path):
        file.rename(aside / file.name)
    with contextlib.closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    assert holder.do("wait_lost", 20.0)
    for user in (lambda: holder.do("acquire", "x", 2.0), lambda: client.lock("x").try_acquire()):
        with pytest.raises(Misuse, match="another program"):
            user()
    assert path.read_bytes() == before
    path.unlink()
    for file in aside.iterdir():
        file.rename(path.parent / file.name)
    lease = client.lock("x").acquire(timeout_s=20)
    assert lease.token > token
    assert client.cell("ledger").open(lease).value == b"kept"
    lease.release()


def test_where_the_disk_is_full_nobody_enters_a_lease_ends_in_time_and_all_goes_on_when_there_is_room(
    sqlite_url: str, path: Path, connect: Connect, start_peer: StartPeer, onlooker: Callable[[str], Onlooker]
) -> None:
    full, client, view = start_peer(sqlite_url, patience_s=0.5), connect(sqlite_url), onlooker(sqlite_url)
    token = full.do("acquire", "x", 2.0)
    full.do("open", "ledger")
    full.do("put", "kept")
    full.do("limit_files", 0)  # what stands can be read; nothing can be written, as root or not
    with pytest.raises(Unavailable, match=r"holdfast\.db"):
        full.do("acquire", "y", 2.0)
    with pytest.raises((Unavailable, OutcomeUnknown), match=r"holdfast\.db"):
        full.do("put", "no room")
    assert full.do("wait_lost", 20.0)
    lease = client.lock("x", ttl_s=60.0).acquire(timeout_s=20)  # somebody else has room
    assert lease.token > token
    assert client.cell("ledger").open(lease).value == b"kept"
    lease.release()
    full.do("limit_files", -1)
    assert full.do("acquire", "x", 2.0) > lease.token
    full.do("release")
    eventually(lambda: not view.claims("x") and not view.claims("y"))
