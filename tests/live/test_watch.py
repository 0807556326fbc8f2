"""``holdfast watch`` and what ``status`` says of a fleet: through a pipe, on a terminal, through an outage."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from servers import RedisServer, eventually

import holdfast

pytestmark = pytest.mark.live


@pytest.fixture
def on(url: str, tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, url)
    yield commands
    commands.close()


@pytest.fixture
def on_sqlite(sqlite_url: str, tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path, sqlite_url)
    yield commands
    commands.close()


def connect(on: Commands, owner: str) -> holdfast.sync.Client:
    return holdfast.connect(on.environment["HOLDFAST_URL"], owner=owner)


class Watch:
    """A ``holdfast watch`` whose output goes to a file."""

    def __init__(self, on: Commands, *arguments: str) -> None:
        self._file = on.folder / "watched"
        with self._file.open("wb") as out:
            self.process = on.start("watch", *arguments, stdout=out)

    def lines(self) -> list[str]:
        return self._file.read_text().splitlines()

    def says(self, *words: str) -> None:
        """Waits for a line with all of these."""
        eventually(lambda: any(all(word in line for word in words) for line in self.lines()), what=f"{words}")

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, on: Commands, *arguments: str, columns: int = 100, lines: int = 40) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.before: Any = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        streams = {"stdin": theirs, "stdout": theirs, "stderr": subprocess.PIPE}
        on.environment = {**on.environment, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(lines)}
        self.process = on.start(*arguments, **streams)

    def _read(self) -> None:
        try:
            while piece := os.read(self._ours, 1 << 16):
                self.shown += piece
        except OSError:
            pass

    def text(self) -> str:
        """What was shown, without what only moves and colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode(errors="replace"))

    def shows(self, *words: str) -> None:
        eventually(lambda: all(word in self.text() for word in words), what=f"{words}")

    def forget(self) -> None:
        self.shown.clear()

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.join(10)
        os.close(self._ours)


@pytest.fixture
def screen() -> Iterator[Callable[..., Screen]]:
    made: list[Screen] = []

    def new(on: Commands, *arguments: str, **size: int) -> Screen:
        made.append(Screen(on, *arguments, **size))
        return made[-1]

    yield new
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        one.close()


# -- status of a fleet


def test_status_shows_groups_and_partitions_for_each_member(on: Commands) -> None:
    with (
        connect(on, "web-1:1") as first,
        connect(on, "web-2:2") as second,
        first.group("workers").join(b"zone a"),
    ):
        shares = [client.partitions("orders", 50).join() for client in (first, second)]
        eventually(lambda: sum(len(share.owned) for share in shares) == 50 and all(share.owned for share in shares))
        told = on.overview()
        (group,), (orders,) = told["groups"], told["partitions"]
        assert [(one["owner"], one["health"], one["payload"]) for one in group["members"]] == [
            ("web-1:1", "fresh", "zone a")
        ]
        owned = {one["claim"]["id"]: one["owned"] for one in orders["members"]}
        assert owned == {share.member_id: len(share.owned) for share in shares}
        assert (orders["count"], orders["unowned"], told["locks"]) == (50, [], [])
        assert "places" not in orders
        people = on.run("status").out
        assert "orders: all of 50 owned" in people
        assert len(people.splitlines()) < 15, "partitions are not listed one by one"
        assert len(on.overview("--all")["partitions"][0]["places"]) == 50
        assert len(on.run("status", "--all").out.splitlines()) > 50


def test_status_says_what_waits_for_what(on_sqlite: Commands) -> None:
    with connect(on_sqlite, "web-1:1") as client, client.lock("invoice"):
        waiters = [on_sqlite.start("run", "invoice", "--", "true") for _ in range(2)]
        eventually(lambda: on_sqlite.waiting("invoice") == 2)
        people = on_sqlite.run("status").out
    assert re.search(
        r"2 wait for lock:invoice, the first for [0-9.]+ s; held by web-1:1, which came [0-9.]+ s ago", people
    )
    assert [on_sqlite.ended(waiter).code for waiter in waiters] == [0, 0]


def test_of_very_many_locks_a_bounded_table_shows_those_that_are_waited_for(on_sqlite: Commands) -> None:
    with connect(on_sqlite, "web-1:1") as client:
        leases = [client.lock(f"lock {number:04}").acquire() for number in range(1200)]
        waiter = on_sqlite.start("run", "lock 1100", "--", "true")
        eventually(lambda: on_sqlite.waiting("lock 1100") == 1)
        people = on_sqlite.run("status").out.splitlines()
        assert len(people) < 30
        assert "lock 1100" in people[2]
        assert any("and 1,181 more claims (--all lists them)" in line for line in people)
        assert len(on_sqlite.status()) == 1200
        leases[1100].release()
        assert on_sqlite.ended(waiter).code == 0


def test_status_fits_a_narrow_terminal(on_sqlite: Commands, screen: Callable[..., Screen]) -> None:
    payload = b"a payload that needs room as well, and does not get it here"
    with (
        connect(on_sqlite, "a-machine-with-a-long-name:4711") as client,
        client.lock("invoice"),
        client.group("workers").join(payload),
    ):
        narrow = screen(on_sqlite, "status", columns=50)
        assert narrow.process.wait(20) == 0
        narrow.shows("invoice", "workers")
        assert max(map(len, narrow.text().splitlines())) <= 50


def test_without_a_record_there_are_no_failovers_to_tell(on_sqlite: Commands) -> None:
    assert on_sqlite.run("status", "--failovers").out == "no failover is recorded\n"


# -- watch


def test_through_a_pipe_each_event_is_a_line(on: Commands) -> None:
    with connect(on, "web-1:1") as first, connect(on, "web-2:2") as second:
        one = first.group("workers").join()
        watch = Watch(on, "--interval", "30")
        watch.says("group:workers: web-1:1 joined")
        other = second.group("workers").join()
        watch.says("group:workers: web-2:2 joined")  # by its signal, long before the interval
        one.release()
        watch.says("group:workers: web-1:1 left")
        other.release()
        assert watch.interrupt() == 130
        assert len(watch.lines()) <= 4


def test_partitions_that_move_are_lines_by_pairs_of_owners(on_sqlite: Commands) -> None:
    with connect(on_sqlite, "web-1:1") as first, connect(on_sqlite, "web-2:2") as second:
        share = first.partitions("orders", 20).join()
        eventually(lambda: len(share.owned) == 20)
        watch = Watch(on_sqlite, "partitions:orders", "--interval", "0.2")
        watch.says("partitions:orders: 20 partitions to web-1:1")
        second.partitions("orders", 20).join()
        watch.says("web-2:2 joined")
        watch.says("from web-1:1 to web-2:2")
        assert watch.interrupt() == 130


def test_json_is_a_document_a_line(on_sqlite: Commands) -> None:
    with connect(on_sqlite, "web-1:1") as client, client.group("workers").join():
        watch = Watch(on_sqlite, "--json")
        watch.says("joined")
        watch.interrupt()
    (event,) = map(json.loads, watch.lines())
    assert (event["address"], event["kind"], event["text"]) == ("group:workers", "joined", "web-1:1 joined")
    assert event["at"] > 1e9


def test_an_outage_is_said_and_survived(redis_server: RedisServer, tmp_path: Path) -> None:
    on = Commands(tmp_path, redis_server.url)
    try:
        watch = Watch(on, "--interval", "0.2")
        redis_server.kill()
        watch.says("the engine cannot be reached")
        redis_server.start()
        watch.says("the engine answers again")
        with connect(on, "web-1:1") as client, client.group("workers").join():
            watch.says("group:workers: web-1:1 joined")
        assert watch.interrupt() == 130
    finally:
        on.close()


def test_a_reader_that_went_away_ends_it(on_sqlite: Commands) -> None:
    reading, writing = os.pipe()
    process = on_sqlite.start("watch", "--interval", "0.1", stdout=writing)
    os.close(writing)
    os.close(reading)
    with connect(on_sqlite, "web-1:1") as client, client.group("workers").join():
        done = on_sqlite.ended(process)
    assert (done.code, "Traceback" in done.err) == (1, False)


@pytest.mark.parametrize("end", ["q", "SIGINT", "SIGTERM"])
def test_on_a_terminal_it_is_live_and_puts_the_terminal_back(
    on_sqlite: Commands, screen: Callable[..., Screen], end: str
) -> None:
    with connect(on_sqlite, "web-1:1") as client, client.lock("invoice"):
        live = screen(on_sqlite, "watch")
        live.shows("invoice", "web-1:1", "q ends")
        with client.group("workers").join():
            live.shows("workers", "group:workers: web-1:1 joined")
        live.shows("group:workers: web-1:1 left")
        if end == "q":
            live.press(b"q")
        else:  # as Ctrl-C sends it
            live.process.send_signal(signal.Signals[end])
        assert live.process.wait(20) == {"q": 0, "SIGINT": 130, "SIGTERM": 143}[end]
        assert b"\x1b[?1049l" in live.shown, "the screen of before is back"
        assert termios.tcgetattr(live.theirs) == live.before


def test_on_a_terminal_an_outage_is_said(
    redis_server: RedisServer, tmp_path: Path, screen: Callable[..., Screen]
) -> None:
    on = Commands(tmp_path, redis_server.url)
    try:
        live = screen(on, "watch", "--interval", "0.2", columns=60, lines=10)
        live.shows("nobody holds anything")
        redis_server.kill()
        live.shows("the engine cannot be reached for")
        redis_server.start()
        live.forget()
        live.shows("q ends")
        live.press(b"q")
        assert live.process.wait(20) == 0
    finally:
        on.close()
