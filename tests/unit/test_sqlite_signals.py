"""Signals between processes: they arrive at once where they can, and are never waited for where they cannot."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import shutil
import socket
import threading
from pathlib import Path

import pytest
from servers import eventually

from holdfast.engines.sqlite import signals
from holdfast.engines.sqlite.engine import SqliteEngine
from holdfast.engines.sqlite.file import live_folder
from holdfast.engines.sqlite.signals import FULL, PEERS, PER_DATAGRAM, Post
from holdfast.errors import Unavailable
from holdfast.model import ADMITTED, CHANGED, WANTED, Claim, Signal, State, Turnstile

LOCK = Turnstile("lock", "x", 1)
GROUP = Turnstile("group", "g", 1 << 30, announces=True)


@pytest.fixture(params=["short", "long", "no unix sockets"])
def engine(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SqliteEngine:
    if request.param == "long":
        return SqliteEngine(tmp_path / ("d" * 150) / "holdfast.db")
    if request.param == "no unix sockets":
        monkeypatch.setattr(signals, "UNIX", False)
    return SqliteEngine(tmp_path / "holdfast.db")


def test_a_release_tells_the_next_waiter_of_another_link(engine: SqliteEngine) -> None:
    holder, waiter = engine.blocking_link(), engine.blocking_link()
    heard: dict[str, queue.SimpleQueue[Signal]] = {"holder": queue.SimpleQueue(), "waiter": queue.SimpleQueue()}
    assert holder.listen(heard["holder"].put, lambda: None)
    assert not holder.listen(heard["holder"].put, lambda: None)
    assert waiter.listen(heard["waiter"].put, lambda: None)
    assert holder.call(engine.enter(LOCK, Claim("h", 1, 60.0, holder.inbox), False), 5.0).state is State.ADMITTED
    assert waiter.call(engine.enter(LOCK, Claim("w", 1, 60.0, waiter.inbox), False), 5.0).state is State.WAITING
    assert heard["holder"].get(timeout=5) == Signal(WANTED, "h")
    assert holder.call(engine.leave(LOCK, "h", False), 5.0)
    assert heard["waiter"].get(timeout=5) == Signal(ADMITTED, "w")
    holder.close()
    waiter.close()
    assert list(live_folder(engine.path).iterdir()) == []


def test_an_event_loop_hears_as_well(engine: SqliteEngine) -> None:
    async def main() -> None:
        holder, waiter = engine.async_link(), engine.async_link()
        heard: asyncio.Queue[Signal] = asyncio.Queue()
        assert await waiter.listen(heard.put_nowait, lambda: None)
        await holder.call(engine.enter(LOCK, Claim("h", 1, 60.0, holder.inbox), False), 5.0)
        await waiter.call(engine.enter(LOCK, Claim("w", 1, 60.0, waiter.inbox), False), 5.0)
        await holder.call(engine.leave(LOCK, "h", False), 5.0)
        assert await asyncio.wait_for(heard.get(), 5) == Signal(ADMITTED, "w")
        await waiter.watch(GROUP)
        await holder.call(engine.enter(GROUP, Claim("m", 0, 60.0, holder.inbox), False), 5.0)
        assert await asyncio.wait_for(heard.get(), 5) == Signal(CHANGED, GROUP.address)
        await waiter.unwatch(GROUP)
        await holder.call(engine.leave(GROUP, "m", False), 5.0)
        await holder.close()
        await waiter.close()
        assert heard.empty()

    asyncio.run(main())


def test_a_crowd_that_is_admitted_at_once_is_told_completely(engine: SqliteEngine) -> None:
    rw = Turnstile("rwlock", "x", 1 << 30)
    writer, readers = engine.blocking_link(), engine.blocking_link()
    heard: queue.SimpleQueue[Signal] = queue.SimpleQueue()
    readers.listen(heard.put, lambda: None)
    writer.call(engine.enter(rw, Claim("w", 1 << 30, 60.0, writer.inbox), False), 5.0)
    crowd = {f"r{n}" for n in range(3 * PER_DATAGRAM)}
    for reader in sorted(crowd):
        readers.call(engine.enter(rw, Claim(reader, 1, 60.0, readers.inbox), False), 5.0)
    writer.call(engine.leave(rw, "w", False), 5.0)
    assert {heard.get(timeout=5).key for _ in crowd} == crowd
    writer.close()
    readers.close()


def test_a_watcher_that_vanished_is_told_no_more(engine: SqliteEngine) -> None:
    gone, here = engine.blocking_link(), engine.blocking_link()
    gone.listen(lambda signal: None, lambda: None)
    gone.watch(GROUP)
    for file in live_folder(engine.path).glob("*" + signals.SUFFIX):
        file.unlink()
    here.call(engine.enter(GROUP, Claim("m", 0, 60.0, here.inbox), False), 5.0)
    rows = here._core._store.run(lambda db: db.execute("SELECT * FROM watch").fetchall(), 5.0)
    assert rows == []
    gone.close()
    here.close()


def test_a_watcher_hears_of_a_group_in_a_new_file_as_well(engine: SqliteEngine) -> None:
    watcher, other = engine.blocking_link(), engine.blocking_link()
    heard: queue.SimpleQueue[Signal] = queue.SimpleQueue()
    watcher.listen(heard.put, lambda: None)
    watcher.watch(GROUP)
    shutil.rmtree(engine.path.parent)
    for link in (watcher, other):
        link._core._store._look_at = 0.0  # not to wait for the next regular look
        link.call(engine.ping(), 5.0)
    other.call(engine.enter(GROUP, Claim("m", 0, 60.0, other.inbox), False), 5.0)
    assert heard.get(timeout=5) == Signal(CHANGED, GROUP.address)
    watcher.close()
    other.close()
    assert list(live_folder(engine.path).iterdir()) == []


def test_who_listens_after_all_was_removed_is_told_so_until_it_is_made_anew(engine: SqliteEngine) -> None:
    link, other = engine.blocking_link(), engine.blocking_link()
    heard: queue.SimpleQueue[Signal] = queue.SimpleQueue()
    link.call(engine.ping(), 5.0)
    shutil.rmtree(engine.path.parent)

    def listens() -> bool:
        with contextlib.suppress(Unavailable):
            return link.listen(heard.put, lambda: None)
        return False

    eventually(listens)
    link.watch(GROUP)
    other.call(engine.enter(GROUP, Claim("m", 0, 60.0, other.inbox), False), 5.0)
    assert heard.get(timeout=5) == Signal(CHANGED, GROUP.address)
    link.close()
    other.close()


def test_an_inbox_that_was_full_is_looked_at_again(tmp_path: Path) -> None:
    sender, receiver = Post(tmp_path, "s", 0o600), Post(tmp_path, "r", 0o600)
    inbox = receiver.bind()
    for n in range(100):
        assert sender.send("r", [Signal(CHANGED, str(n))])  # and it never waits
    engine = SqliteEngine(tmp_path / "holdfast.db")
    link = engine.blocking_link()
    listener = link._core.listener
    again: list[bool] = []
    listener._post, listener._deliver, listener._look_again = receiver, lambda signal: None, lambda: again.append(True)
    listener._take_all(inbox)
    assert again == [True]
    assert FULL <= 10
    for post in (sender, receiver):
        post.close()
    inbox.close()


def test_a_waiter_that_is_woken_just_before_it_sleeps_does_not_sleep(tmp_path: Path) -> None:
    listener = SqliteEngine(tmp_path / "holdfast.db").blocking_link()._core.listener
    listener._post = Post(tmp_path, "r", 0o600)
    with listener._post.bind():
        waiter = object()
        assert listener.begin(waiter)
        listener.interrupt()  # something was posted to it, after it had looked
        waiting = threading.Thread(target=listener.wait, args=(3600,), daemon=True)
        waiting.start()
        waiting.join(20)
        assert not waiting.is_alive()
        listener.end(waiter)
    listener._post.close()


def test_a_socket_that_was_left_is_not_read_for_ever(tmp_path: Path) -> None:
    class Left:
        def recv(self, size: int) -> bytes:
            return b""  # what a socket that was shut down gives, on some systems again and again

    listener = SqliteEngine(tmp_path / "holdfast.db").blocking_link()._core.listener
    listener._post = Post(tmp_path, "r", 0o600)
    with listener._post.bind():
        listener._take_all(Left())  # type: ignore[arg-type]
    listener._post.close()


def test_who_receives_at_a_new_socket_is_found_there(tmp_path: Path) -> None:
    sender, receiver = Post(tmp_path, "s", 0o600), Post(tmp_path, "r", 0o600)
    for name in ("first", "an\nodd \xff\x00 näme"):
        with receiver.bind() as inbox:
            inbox.settimeout(5)
            assert sender.send("r", [Signal(CHANGED, name), Signal(ADMITTED, name)])
            assert receiver.read(inbox.recv(1 << 16)) == [Signal(CHANGED, name), Signal(ADMITTED, name)]
    assert not sender.send("r", [Signal(CHANGED, "nobody is there")])
    for post in (sender, receiver):
        post.close()


def test_signals_go_to_more_processes_than_sockets_are_kept_for(tmp_path: Path) -> None:
    sender = Post(tmp_path, "s", 0o600)
    others = [Post(tmp_path, str(n), 0o600) for n in range(PEERS + 10)]
    with contextlib.ExitStack() as stack:
        inboxes = [stack.enter_context(post.bind()) for post in others]
        for turn in range(2):
            for number in range(len(others)):
                assert sender.send(str(number), [Signal(CHANGED, str(turn))])
        assert len(sender._peers) == PEERS
        for post, inbox in zip(others, inboxes, strict=True):
            inbox.settimeout(5)
            assert [post.read(inbox.recv(1 << 16)) for _ in range(2)] == [
                [Signal(CHANGED, "0")],
                [Signal(CHANGED, "1")],
            ]
    for post in (sender, *others):
        post.close()


def test_datagrams_of_strangers_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "UNIX", False)
    post = Post(tmp_path, "r", 0o600)
    inbox = post.bind()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"admitted\xffc1", inbox.getsockname())
    inbox.settimeout(5)
    assert post.read(inbox.recv(1 << 16)) == []
    assert post.send("r", [Signal(ADMITTED, "c1")])
    assert post.read(inbox.recv(1 << 16)) == [Signal(ADMITTED, "c1")]
    post.close()
    inbox.close()
