"""The second renewer: what stands in its table, when it renews, and for whom connect() refuses it."""

from __future__ import annotations

import itertools
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scripted import World
from servers import eventually

import holdfast
from holdfast import Misuse, Unsupported, aio
from holdfast.contract import BlockingLink, Request
from holdfast.core import lease
from holdfast.core.recipe import Recipe
from holdfast.core.tenure import trusted_s
from holdfast.engines.memory import MemoryEngine, MemoryLink
from holdfast.errors import OutcomeUnknown
from holdfast.model import MAX_NAME_BYTES, NEVER_S, Claim, State, Turnstile
from holdfast.renewing import __main__ as process
from holdfast.renewing.table import LINE_BYTES, LINES, Head, Kept, Table
from holdfast.sync import Lease
from holdfast.worlds.threads import drive

TTL_S = 10.0
HANG_S = 30.0
LOCK = Turnstile("lock", "x", 1)


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table.make()
    yield made
    made.close()


def kept(number: int = 1, deadline: float = 0.0, until: float = NEVER_S, name: str = "x") -> Kept:
    return Kept(number, deadline, until, Turnstile("lock", name, 1), Claim(f"claim {number}", 1, TTL_S, "inbox"))


# -- the table


def test_what_one_side_writes_the_other_reads(table: Table) -> None:
    theirs = Table(table.fd)
    assert theirs.head() is None
    assert theirs.read(0) is None
    table.write_head(Head(12.5, 2, 0.25))
    longest = kept(2**40, 3.5, 99.0, name="\x01" * MAX_NAME_BYTES)
    table.write(LINES - 1, longest)
    assert theirs.head() == Head(12.5, 2, 0.25)
    assert theirs.read(LINES - 1) == longest
    theirs.write_answer(LINES - 1, longest.number, 7.0)
    assert table.answer(LINES - 1, longest.number) == 7.0
    assert theirs.read(LINES - 1) == longest._replace(deadline=7.0), "one that is started again knows what was renewed"
    table.erase(LINES - 1)
    assert theirs.read(LINES - 1) is None


def test_an_answer_for_who_had_the_line_before_is_none_for_who_has_it_now(table: Table) -> None:
    table.write(0, kept(1, deadline=5.0))
    table.erase(0)
    table.write(0, kept(2, deadline=6.0))
    table.write_answer(0, 1, 100.0)  # it was under way
    assert table.answer(0, 2) == 0.0
    assert table.read(0) == kept(2, deadline=6.0)


def test_a_line_that_is_half_written_is_not_read(table: Table) -> None:
    table.write(0, kept(1, name="a" * 100))
    before = table._memory[LINE_BYTES : 2 * LINE_BYTES]
    table.write(0, kept(2, name="b" * 300))
    after = table._memory[LINE_BYTES : 2 * LINE_BYTES]
    whole = {kept(1, name="a" * 100), kept(2, name="b" * 300)}
    for _ in range(200):  # whichever bytes came first
        mixed = bytes(random.choice(pair) for pair in zip(before, after, strict=True))
        table._memory[LINE_BYTES : 2 * LINE_BYTES] = mixed
        read = table.read(0)
        assert read is None or read in whole
    for cut in range(LINE_BYTES):
        table._memory[LINE_BYTES : 2 * LINE_BYTES] = after[:cut] + before[cut:]
        read = table.read(0)
        assert read is None or read in whole


# -- when it renews


class Helped:
    """A program on a memory engine whose helper is looked at step by step; nothing runs by itself."""

    def __init__(self, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 1000.0
        self.table = table
        self.asked: list[float] = []
        self.fails = False
        monkeypatch.setattr(process, "clock", SimpleNamespace(now=lambda: self.time))
        self.engine = MemoryEngine(lambda: self.time, lambda: self.time * 1e6)
        self.renewing = process.Renewing(table, self.engine, HANG_S, 0)
        self.link = MemoryLink(self.engine)
        self._numbers = itertools.count(1)

    def call_many(self, requests: Sequence[Request[Any]], timeout_s: float) -> list[Any]:
        """As the helper's link."""
        self.asked.append(self.time)
        if self.fails:
            return [OutcomeUnknown("scripted") for _ in requests]
        return self.link.call_many(requests, timeout_s)

    def take(self, until: float = NEVER_S) -> Kept:
        number = next(self._numbers)
        one = kept(number, self.time + trusted_s(TTL_S), until, name=str(number))
        assert self.link.call(self.engine.enter(one.turnstile, one.claim, True), 1.0).state is State.ADMITTED
        self.table.write(number - 1, one)
        self.beat()
        return one

    def beat(self) -> None:
        self.table.write_head(Head(self.time, 8, TTL_S / 6))

    def renew(self, one: Kept) -> None:
        """As the program does."""
        self.beat()
        self.table.write(one.number - 1, one._replace(deadline=self.time + trusted_s(TTL_S)))

    def pass_time(self, seconds: float) -> None:
        """The helper does what it does meanwhile."""
        until = self.time + seconds
        while (pause_s := self.renewing.look(cast(BlockingLink, self))) and self.time + pause_s < until:
            self.time += pause_s
        self.time = until

    def stands(self, one: Kept) -> bool:
        return bool(self.link.call(self.engine.look(one.turnstile), 1.0).claims)


@pytest.fixture
def helped(table: Table, monkeypatch: pytest.MonkeyPatch) -> Helped:
    return Helped(table, monkeypatch)


def test_it_renews_nothing_for_a_program_that_does_so_itself(helped: Helped) -> None:
    one = helped.take()
    for _ in range(20):
        helped.pass_time(TTL_S * 1.1 / 3)
        helped.link.call_many(list(helped.engine.renew([(one.turnstile, one.claim)])), 1.0)
        helped.renew(one)
    assert helped.asked == []


def test_it_renews_all_together_when_the_program_is_late_and_says_until_when(helped: Helped) -> None:
    first = helped.take()
    helped.pass_time(0.5)
    second = helped.take()
    began = helped.time
    helped.pass_time(3 * TTL_S - 1)
    assert helped.stands(first)
    assert helped.stands(second)
    assert len(helped.asked) == 5
    assert helped.asked[0] - began == pytest.approx(TTL_S / 2, abs=0.6)
    for one in (first, second):
        deadline = helped.table.answer(one.number - 1, one.number)
        assert deadline == pytest.approx(helped.asked[-1] + trusted_s(TTL_S))


def test_it_renews_nothing_for_a_program_that_hangs_until_that_runs_again(helped: Helped) -> None:
    one = helped.take()
    began = helped.time
    helped.pass_time(HANG_S + 2 * TTL_S)
    assert helped.asked[-1] < began + HANG_S
    assert not helped.stands(one)
    other, asked = helped.take(), len(helped.asked)
    helped.pass_time(TTL_S)
    assert helped.stands(other)
    assert len(helped.asked) > asked


def test_a_lease_of_bounded_length_is_not_renewed_beyond_it(helped: Helped) -> None:
    bounded = helped.take(until=helped.time + 8.0)
    helped.pass_time(12.0)
    assert helped.stands(bounded)
    helped.pass_time(5.0)
    assert not helped.stands(bounded)


def test_what_is_over_or_gone_is_not_asked_for_again(helped: Helped) -> None:
    one = helped.take()
    helped.link.call(helped.engine.leave(one.turnstile, one.claim.id, False), 1.0)
    helped.pass_time(3 * TTL_S)
    assert len(helped.asked) == 1
    other = helped.take()
    helped.time += TTL_S  # not even the helper ran
    helped.pass_time(TTL_S)
    assert len(helped.asked) == 1
    assert helped.table.answer(other.number - 1, other.number) == 0.0


def test_a_renewal_that_fails_is_tried_again_until_the_lease_is_over(helped: Helped) -> None:
    one = helped.take()
    began, helped.fails = helped.time, True
    helped.pass_time(2 * TTL_S)
    assert len(helped.asked) >= 3
    assert helped.asked[-1] < began + TTL_S
    assert helped.table.answer(0, one.number) == 0.0
    again = helped.take()
    helped.pass_time(TTL_S * 0.8)
    helped.fails = False
    helped.pass_time(TTL_S)
    assert helped.stands(again)


# -- the first renewer


def test_a_client_has_one_renewer_however_many_threads_begin_at_once() -> None:
    def count() -> int:
        return sum(thread.name == "holdfast-renewer" for thread in threading.enumerate())

    before = count()
    with holdfast.connect("memory://renewers") as client, holdfast.connect("memory://renewers") as other:
        together = threading.Barrier(30)

        def take(number: int) -> None:
            together.wait()
            client.lock(str(number)).acquire(timeout_s=30)

        threads = [threading.Thread(target=take, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: count() == before + 1)
        other.lock("others").acquire()
        eventually(lambda: count() == before + 2)


# -- what the program makes of it


def test_no_lease_is_called_over_before_it_was_seen_what_the_helper_renewed() -> None:
    world = World()
    tenure = lease.new_tenure(world.session, Recipe(LOCK, ttl_s=TTL_S))
    handle = Lease(world.session, tenure)
    assert drive(lease.try_acquire(world.session, tenure))
    world.pass_time(3 * TTL_S)
    assert handle.state == "LOST"
    until = world.time + 5.0
    tenure.also = lambda: until
    assert handle.state == "HELD"
    assert handle.remaining_s == 5.0
    handle.ensure_held()
    world.down = True
    drive(world.session.renewer._round())
    assert handle.state == "UNSURE", "its own renewal was tried"
    assert handle.is_held
    world.pass_time(5.0)
    assert handle.state == "LOST"
    world.close()


# -- whom it is for


@pytest.mark.parametrize("connect", [holdfast.connect, aio.connect])
def test_who_cannot_be_helped_is_told_why(connect: Any) -> None:
    for url, why in (
        ("memory://", "in this process alone"),
        ("zookeeper://127.0.0.1:1", "no other process can renew"),
        ("etcd://127.0.0.1:1", "no other process can renew"),
        ("postgresql://127.0.0.1:1/x?ends_with_connection=true", "no other process can renew"),
    ):
        with pytest.raises(Unsupported, match=why):
            connect(url, renewer="process")
    with pytest.raises(Misuse, match="'here' or 'process'"):
        connect("memory://", renewer="thread")
    for hang_s in (0, -1.0, float("inf"), float("nan"), True, "30"):
        with pytest.raises(Misuse, match="hang_s"):
            connect("redis://127.0.0.1:1", renewer="process", hang_s=hang_s)
    redis = pytest.importorskip("redis")
    with pytest.raises(Misuse, match="needs the engine's URL"):
        connect(redis.Redis(), renewer="process")
    with pytest.raises(Misuse, match="needs the engine's URL"):
        connect(lambda: None, renewer="process")


def test_the_default_engine_and_the_one_of_the_environment_can_be_helped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for url in ("", f"sqlite:///{tmp_path}/named.db"):
        monkeypatch.setenv("HOLDFAST_URL", url)
        with holdfast.connect(renewer="process") as client, client.lock("x").acquire():
            helper: Any = client.session.renewer.helper
            assert helper._settings["url"] == (url or "sqlite://")


def test_a_lease_that_is_held_anew_stands_in_one_line_and_a_line_is_used_again(tmp_path: Any) -> None:
    with holdfast.connect(f"sqlite:///{tmp_path}/x.db", renewer="process") as client:
        helper: Any = client.session.renewer.helper
        for _ in range(3):
            with client.lock("x") as lease:
                client.session.hold(lease._tenure)
                assert len([line for line in range(10) if helper._table.read(line)]) == 1
        assert helper._table.head().lines == 1
        assert helper._table.read(0) is None


def test_a_process_that_cannot_go_on_says_why(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "holdfast.renewer")
    with holdfast.connect(f"sqlite:///{tmp_path}/x.db", renewer="process") as client:
        helper: Any = client.session.renewer.helper
        helper._settings["identity"] = "another"
        with client.lock("x", ttl_s=60.0):
            eventually(lambda: helper._child.code is not None)
            helper.beat()
    assert "and to another there" in caplog.text


def test_the_process_loads_neither_face_nor_asyncio_of_itself() -> None:
    code = "import sys, holdfast.renewing.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "holdfast.renewing.table" in loaded
    assert not {"asyncio", "holdfast.sync", "holdfast.aio"} & set(loaded)
