"""Members of a job, in threads on the memory engine: who runs what, what is recorded, and when it is over."""

import copy
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.contract import Request
from holdfast.core.assigner import partition_turnstile
from holdfast.engines.memory import MemoryEngine, MemoryLink
from holdfast.errors import HoldfastError, Misuse, OutcomeUnknown, StaleToken
from holdfast.fleet.each_exec import CannotRun, Command
from holdfast.fleet.each_input import Input
from holdfast.fleet.each_items import Item, item
from holdfast.fleet.each_part import Part
from holdfast.fleet.each_report import Settings, Summary
from holdfast.fleet.each_store import Counters, JobState, Store
from holdfast.fleet.each_worker import Member
from holdfast.model import CellReply, CellSnapshot, Change, Fence, State
from holdfast.sync import Client, Lease, OpenCell
from holdfast.worlds.threads import drive

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the commands here are a Unix's")

JOB = "job with spaces/é"


class Fleet:
    """Members on one engine, each with a client of its own, as processes would have."""

    def __init__(self, folder: Path) -> None:
        self.engine = MemoryEngine()
        self.log = folder / "log"
        self.folder = folder
        self.said: list[str] = []
        self._clients: list[Client] = []
        self._threads: list[threading.Thread] = []

    def client(self, name: str = "me", engine: MemoryEngine | None = None) -> Client:
        self._clients.append(Client(engine or self.engine, owner=name))
        return self._clients[-1]

    def store(self, name: str = "me", ttl_s: float = 15.0, engine: MemoryEngine | None = None) -> Store:
        return Store(self.client(name, engine), JOB, ttl_s)

    def member(
        self,
        lines: Sequence[bytes] = (),
        argv: Sequence[str] = (),
        *,
        name: str = "me",
        batch: int = 1,
        collect: bool = False,
        ttl_s: float = 15.0,
        workers: int = 2,
        partitions: int | None = 8,
        engine: MemoryEngine | None = None,
        timeout_s: float | None = None,
        **settings: Any,
    ) -> Member:
        command = Command(tuple(argv) or self.logging(), batch, collect, timeout_s)
        chosen = Settings(workers, partitions, **settings)
        return Member(self.store(name, ttl_s, engine), command, chosen, Input(lines), tell=self.said.append)

    def logging(self, then: str = "") -> tuple[str, ...]:
        """A command that appends its items to a log, a line each."""
        return ("sh", "-c", f'printf "%s\\n" "$@" >> "$0"\n{then}', str(self.log), "{}")

    def start(self, member: Member) -> "Later":
        later = Later(member)
        self._threads.append(later.thread)
        later.thread.start()
        return later

    @property
    def ran(self) -> list[bytes]:
        return sorted(self.log.read_bytes().splitlines()) if self.log.exists() else []

    def records(self) -> list[dict[str, Any]]:
        return list(self.store("reader").results())

    def dead(self) -> list[dict[str, Any]]:
        return list(self.store("reader").dead())

    def close(self) -> None:
        for thread in self._threads:
            thread.join(20)
        for client in self._clients:
            client.close()
        assert not any(thread.is_alive() for thread in self._threads)


class Later:
    """A member that runs in a thread."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.summary: Summary | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.summary = self.member.run()

    def result(self) -> Summary:
        self.thread.join(20)
        assert self.summary is not None, "the member did not end in time"
        return self.summary


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


def lines(count: int, start: int = 0) -> list[bytes]:
    return [b"item %d\n" % number for number in range(start, start + count)]


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- the plain way


def test_every_item_is_run_and_recorded_once(fleet: Fleet) -> None:
    summary = fleet.member([*lines(30), b"item 3\n"]).run()
    assert fleet.ran == sorted([*(line.strip() for line in lines(30)), b"item 3"])
    assert (summary.status, summary.items, summary.done, summary.failed) == ("finished", 31, 31, 0)
    records = fleet.records()
    assert Counter((one["item"], one["occurrence"]) for one in records)[("item 3", 2)] == 1
    assert len(records) == 31
    assert all(one["code"] == 0 and one["member"] == "me" and one["token"] > 0 for one in records)


def test_members_share_the_union_of_their_inputs(fleet: Fleet) -> None:
    runs = [fleet.start(fleet.member(lines(40, start), name=f"m{start}")) for start in (0, 10, 20)]
    summaries = [one.result() for one in runs]
    assert fleet.ran == sorted(line.strip() for line in lines(60))
    assert [one.items for one in summaries] == [60, 60, 60]
    assert sum(one.done for one in summaries) == 60
    assert all(one.done + one.done_by_others + one.done_before == 60 for one in summaries)


def test_a_batch_runs_up_to_n_items_of_one_partition_at_once(fleet: Fleet) -> None:
    command = ("sh", "-c", 'echo $# >> "$0"', str(fleet.log), "{}")
    fleet.member(lines(50), command, batch=4, partitions=2).run()
    sizes = [int(size) for size in fleet.ran]
    assert sum(sizes) == 50
    assert max(sizes) == 4
    assert len(sizes) <= 50 // 4 + 2


def test_what_is_collected_is_recorded_with_its_item(fleet: Fleet) -> None:
    fleet.member([b"a b\n", b"\xff\n", b"'\n"], ("printf", "<%s>\n", "{}"), batch=3, collect=True).run()
    assert {one["item"]: one["out"] for one in fleet.records()} == {"a b": "<a b>", "\udcff": "<\udcff>", "'": "<'>"}


def test_many_items_more_than_one_put_takes(fleet: Fleet) -> None:
    summary = fleet.member(lines(3000), ("true", "{}"), batch=1000, partitions=2).run()
    assert (summary.done, len(fleet.records())) == (3000, 3000)


# -- again, and on and on


def test_a_finished_job_run_again_does_nothing(fleet: Fleet) -> None:
    fleet.member(lines(10)).run()
    again = fleet.member(lines(10)[::-1]).run()
    assert (again.status, again.done, again.done_before) == ("finished before", 0, 10)
    assert len(fleet.ran) == 10
    part = fleet.member(lines(3)).run()
    assert part.status == "finished before"


def test_new_lines_of_a_finished_job_are_run(fleet: Fleet) -> None:
    fleet.member(lines(10)).run()
    more = fleet.member(lines(12)).run()
    assert (more.status, more.done, more.done_before) == ("finished", 2, 10)
    assert Counter(fleet.ran).most_common(1)[0][1] == 1


def test_again_runs_a_finished_job_afresh_and_drops_what_was(fleet: Fleet) -> None:
    fleet.member(lines(10)).run()
    again = fleet.member(lines(4), again=True).run()
    assert (again.status, again.items, again.done, again.generation) == ("finished", 4, 4, 2)
    assert len(fleet.records()) == 4
    assert not [name for name in fleet.engine.cells if name.startswith(("each2:in:1:", "each2:done:1:"))]


def test_again_joins_an_unfinished_job(fleet: Fleet) -> None:
    with pytest.raises(CannotRun):
        fleet.member(lines(10), (_vanishing(fleet), "{}")).run()
    summary = fleet.member(again=True).run()
    assert (summary.status, summary.generation, summary.done) == ("finished", 1, 10)


def _vanishing(fleet: Fleet) -> str:
    """A command that deletes itself when it is run first, and fails."""
    path = fleet.folder / "once"
    path.write_text('#!/bin/sh\nrm -f "$0"\nexit 1\n')
    path.chmod(0o755)
    return str(path)


def test_what_was_begun_is_finished_by_a_run_without_input(fleet: Fleet) -> None:
    slow = fleet.start(fleet.member(lines(40), fleet.logging("sleep 0.05"), workers=1))
    until(lambda: len(fleet.ran) > 5)
    slow.member.interrupt(signal.SIGTERM)
    first = slow.result()
    assert (first.status, first.signal) == ("interrupted", signal.SIGTERM)
    assert 0 < first.done < 40
    rest = fleet.member().run()
    assert (rest.status, rest.done, rest.done_before) == ("finished", 40 - first.done, first.done)
    assert len(fleet.records()) == 40


def test_no_items_at_all_is_nothing_to_do(fleet: Fleet) -> None:
    assert fleet.member().run().status == "nothing to do"
    assert fleet.engine.cells == {}


def test_a_member_without_input_helps_the_others(fleet: Fleet) -> None:
    first = fleet.start(fleet.member(lines(60), fleet.logging("sleep 0.02"), workers=1, name="first"))
    until(lambda: len(fleet.ran) > 2)
    helper = fleet.member((), fleet.logging("sleep 0.02"), workers=2, name="helper").run()
    assert helper.status == first.result().status == "finished"
    assert helper.done > 0
    assert len(fleet.ran) == 60


def test_items_published_while_others_run_are_noticed_by_their_owner(fleet: Fleet) -> None:
    gate = fleet.folder / "gate"
    gate.touch()
    waits = f"while [ -e {gate} ]; do sleep 0.02; done"
    owner = fleet.start(fleet.member(lines(1), fleet.logging(waits), name="owner", workers=1, partitions=1))
    until(lambda: len(fleet.ran) == 1)  # it owns the only partition, and is busy
    late = fleet.start(fleet.member(lines(5), fleet.logging(), name="late", partitions=1))
    store = fleet.store()
    until(lambda: store.tally(store.known()).items == 5)
    gate.unlink()
    assert (owner.result().items, late.result().items) == (5, 5)
    assert len(fleet.ran) == 5


# -- failures


def test_a_failing_item_is_tried_again(fleet: Fleet) -> None:
    command = fleet.logging('test "$(grep -cx "$1" "$0")" -ge 3')
    summary = fleet.member(lines(2), command, retry=2).run()
    assert (summary.status, summary.done) == ("finished", 2)
    assert Counter(fleet.ran) == {b"item 0": 3, b"item 1": 3}
    assert {one["attempts"] for one in fleet.records()} == {3}


def test_a_failing_item_stops_the_job_for_all_members(fleet: Fleet) -> None:
    bad = 'test "$1" != "item 7" && sleep 0.02'
    runs = [fleet.start(fleet.member(lines(300), fleet.logging(bad), retry=0, name=f"m{n}")) for n in range(2)]
    statuses = sorted(one.result().status for one in runs)
    assert statuses == ["failed", "stopped"]
    assert len(fleet.ran) < 300
    assert all("'item 7' failed with exit code 1 after 1 try" in one.result().why for one in runs)


def test_a_later_run_tries_again_and_finishes_what_was_stopped(fleet: Fleet) -> None:
    fleet.member(lines(20), fleet.logging('test "$1" != "item 7"'), retry=0).run()
    later = fleet.member(lines(20)).run()
    assert (later.status, later.failed, later.session) == ("finished", 0, 2)
    assert len(fleet.records()) == 20


def test_keep_going_runs_all_others_and_lists_what_failed(fleet: Fleet) -> None:
    command = fleet.logging('case "$1" in *3) exit 4;; esac')
    summary = fleet.member(lines(20), command, retry=1, keep_going=True).run()
    assert (summary.status, summary.done, summary.failed) == ("finished", 18, 2)
    assert [(one["item"], one["code"], one["attempts"]) for one in sorted(summary.failures, key=str)] == [
        ("item 13", 4, 2),
        ("item 3", 4, 2),
    ]
    assert Counter(fleet.ran)[b"item 3"] == 2


def test_what_failed_for_good_is_a_dead_letter_and_is_left_alone_by_later_runs(fleet: Fleet) -> None:
    bad = fleet.logging('test "$1" != "item 7" || exit 9')
    fleet.member(lines(20), bad, retry=1, keep_going=True, name="first").run()
    later = fleet.member(lines(20)).run()
    assert (later.status, later.done, later.failed, later.dead) == ("finished before", 0, 1, 1)
    assert later.failures == fleet.dead()
    assert fleet.dead() == [{"item": "item 7", "occurrence": 1, "code": 9, "attempts": 2, "member": "first"}]
    assert fleet.member(lines(22)).run().done == 2  # new lines are run, and nothing else
    assert Counter(fleet.ran)[b"item 7"] == 2
    assert len(fleet.records()) == 21


def test_dead_letters_are_tried_again_when_asked_for_and_nothing_else_is(fleet: Fleet) -> None:
    odd = fleet.logging('case "$1" in *3|*7) exit 4;; esac')
    fleet.member(lines(20), odd, retry=0, keep_going=True, partitions=1).run()
    assert len(fleet.dead()) == 4
    once_more = fleet.member(
        (), fleet.logging('case "$1" in *7) exit 5;; esac'), retry=0, keep_going=True, retry_dead=True, partitions=1
    )
    summary = once_more.run()
    assert (summary.status, summary.done, summary.failed) == ("finished", 2, 2)
    assert sorted((one["item"], one["code"]) for one in fleet.dead()) == [("item 17", 5), ("item 7", 5)]
    assert fleet.member(retry_dead=True, partitions=1).run().done == 2
    assert fleet.dead() == []
    assert len(fleet.records()) == 20
    assert sorted(Counter(fleet.ran).values()) == [1] * 16 + [2, 2, 3, 3]
    nothing = fleet.member(retry_dead=True, partitions=1).run()
    assert (nothing.status, nothing.done) == ("finished before", 0)


def test_owners_at_work_try_dead_letters_again_when_a_newcomer_asks(fleet: Fleet) -> None:
    gate, good = fleet.folder / "gate", fleet.folder / "good"
    gate.touch()
    command = fleet.logging(
        f'case "$1" in *7) test -e {good} || exit 1;; *9) while [ -e {gate} ]; do sleep 0.01; done;; esac'
    )
    owner = fleet.start(fleet.member(lines(10), command, name="owner", retry=0, keep_going=True, partitions=1))
    until(lambda: b"item 9" in fleet.ran and len(fleet.dead()) == 1)
    good.touch()
    newcomer = fleet.start(fleet.member((), command, retry_dead=True, partitions=1))
    until(lambda: not fleet.dead())  # while the owner still has its only partition, since item 9 runs there
    gate.unlink()
    assert (owner.result().done, newcomer.result().status) == (10, "finished")
    assert Counter(fleet.ran) == {b"item %d" % number: 2 if number == 7 else 1 for number in range(10)}


def test_an_heir_tries_what_of_the_dead_letters_is_left(fleet: Fleet) -> None:
    fleet.member(lines(40), ("false", "{}"), retry=0, keep_going=True, partitions=2).run()
    slow = fleet.logging("sleep 0.05; exit 1")
    first = fleet.start(fleet.member((), slow, retry=0, keep_going=True, retry_dead=True, workers=1, partitions=2))
    until(lambda: len(fleet.ran) > 3)
    first.member.interrupt()
    assert first.result().status == "interrupted"
    tried = set(fleet.ran)
    heir = fleet.member((), fleet.logging(), partitions=2).run()
    assert heir.status == "finished"
    assert len(fleet.dead()) == 40 - heir.done
    assert 40 - len(tried) <= heir.done <= 40 - len(tried) + 1  # and the one that was ended with the first
    assert fleet.member(retry_dead=True, partitions=2).run().done == 40 - heir.done


def test_a_command_that_takes_too_long_has_failed_and_is_put_on_record_as_such(fleet: Fleet) -> None:
    command = fleet.logging('test "$1" != "item 3" || sleep 60')
    summary = fleet.member(lines(5), command, retry=1, keep_going=True, timeout_s=0.3).run()
    assert (summary.done, summary.failed) == (4, 1)
    (dead,) = fleet.dead()
    assert (dead["item"], dead["code"], dead["attempts"], dead["note"]) == ("item 3", 124, 2, "timed out after 0.3 s")
    assert Counter(fleet.ran)[b"item 3"] == 2


def test_a_job_that_ended_with_failures_can_be_run_afresh(fleet: Fleet) -> None:
    fleet.member(lines(5), ("false", "{}"), retry=0, keep_going=True).run()
    assert fleet.member(lines(5), again=True).run().generation == 2


def test_one_bad_item_does_not_take_its_batch_with_it(fleet: Fleet) -> None:
    command = fleet.logging('for one; do test "$one" != "item 7" || exit 1; done')
    summary = fleet.member(lines(20), command, batch=20, partitions=1, retry=1, keep_going=True).run()
    assert (summary.done, summary.failed) == (19, 1)


def test_a_batch_that_does_not_print_a_line_each_fails_clearly(fleet: Fleet) -> None:
    summary = fleet.member(lines(3), ("echo", "{}"), batch=3, partitions=1, collect=True, retry=0).run()
    assert "it printed 1 lines for 3 items" in summary.why


def test_a_command_that_vanishes_ends_the_member_and_records_nothing(fleet: Fleet) -> None:
    with pytest.raises(CannotRun):
        fleet.member(lines(5), (_vanishing(fleet), "{}"), workers=1).run()
    assert fleet.records() == []


# -- however many there are


class Watched(MemoryEngine):
    """Notes how much is asked of cells at once."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = self.bytes = 0
        self.reads: list[tuple[str, tuple[str, ...]]] = []

    def read(self, cell: str, keys: Sequence[str] | None) -> Request[CellSnapshot]:
        assert keys is not None, "a whole cell was read"
        self.reads.append((cell, tuple(keys)))
        self.entries = max(self.entries, len(keys))
        return super().read(cell, keys)

    def put(
        self, cell: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> Request[CellReply]:
        self.entries = max(self.entries, len(changes))
        self.bytes = max(self.bytes, len(value or b"") + sum(len(one.value or b"") for one in changes))
        return super().put(cell, fence, version, op_id, value, changes)


def test_no_request_grows_with_the_job(fleet: Fleet) -> None:
    fleet.engine = engine = Watched()
    long = [b"x" * 700 + b" %d\n" % number for number in range(2500)]
    printing = ("sh", "-c", 'for one; do printf "%04000d\\n" 7; done', "sh", "{}")
    summary = fleet.member(long, printing, batch=100, collect=True, partitions=1).run()
    assert (summary.status, summary.done) == ("finished", 2500)
    assert len(fleet.records()) == 2500
    assert engine.entries <= 1001
    assert engine.bytes < 300_000


def test_a_member_holds_a_few_blocks_of_what_is_left_and_no_more(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.fleet.each_items.runs.__defaults__", (10,))
    most = 0

    def watched(part: Part, fresh: Sequence[Item]) -> None:
        nonlocal most
        add(part, fresh)
        most = max(most, sum(len(one._fresh) for one in member._parts.values()))

    add = Part.add
    monkeypatch.setattr(Part, "add", watched)
    member = fleet.member(lines(1000), ("true", "{}"), batch=5, workers=2, partitions=16)
    assert member.run().done == 1000
    assert 10 <= most <= 2 * (10 + 5)  # for each worker: a block, and less than a batch from the one before


def test_an_heir_begins_where_the_last_owner_was_and_asks_nothing_of_what_nobody_began(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.fleet.each_items.runs.__defaults__", (10,))
    fleet.engine = engine = Watched()
    first = fleet.start(fleet.member(lines(100), fleet.logging("sleep 0.02"), workers=1, partitions=1))
    until(lambda: len(fleet.ran) > 44)
    first.member.interrupt()
    done = first.result().done
    engine.reads.clear()
    assert fleet.member(partitions=1).run().done == 100 - done
    blocks = [int(key) for cell, keys in engine.reads if cell.startswith("each2:in:") for key in keys if key != "0"]
    assert blocks == list(range(done // 10 + 1, 11))
    asked = [keys for cell, keys in engine.reads if cell.startswith("each2:done:") and keys]
    assert sum(map(len, asked)) <= 2 * 11  # of the block it was in, and perhaps the one that was read ahead


def test_partitions_that_are_over_are_not_asked_for_again_until_the_end(fleet: Fleet) -> None:
    fleet.engine = engine = Watched()
    gate = fleet.folder / "gate"
    gate.touch()
    waits = fleet.logging(f'while [ -e {gate} ] && [ "$1" = "item 0" ]; do sleep 0.01; done')
    running = fleet.start(fleet.member(lines(200), waits, workers=4, partitions=64))
    until(lambda: running.member._summary.done == 199)
    looks = lambda: sum(cell.startswith("each2:done:") and not keys for cell, keys in engine.reads)  # noqa: E731
    state_reads = lambda: sum(cell.startswith("each2:job:") for cell, _ in engine.reads)  # noqa: E731
    until(lambda: running.member._tally is not None and len(running.member._tally.unfinished) == 1)
    engine.reads.clear()
    until(lambda: state_reads() >= 4)
    assert looks() <= state_reads()  # one partition at each look
    gate.unlink()
    assert running.result().done == 200


def test_what_the_engine_forgot_of_a_partition_that_was_over_is_made_again(fleet: Fleet) -> None:
    gate = fleet.folder / "gate"
    gate.touch()
    waits = fleet.logging(f'while [ -e {gate} ] && [ "$1" = "item 0" ]; do sleep 0.01; done')
    running = fleet.start(fleet.member(lines(60), waits, workers=2, partitions=8))
    until(lambda: running.member._summary.done > 10)
    with fleet.engine.lock:
        older = copy.deepcopy(fleet.engine.cells)
    until(lambda: running.member._tally is not None and len(running.member._tally.unfinished) == 1)
    with fleet.engine.lock:
        fleet.engine.cells = older
    gate.unlink()
    assert running.result().status == "finished"
    assert len(fleet.records()) == 60


def test_more_partitions_than_items(fleet: Fleet) -> None:
    summary = fleet.member(lines(30), ("true", "{}"), partitions=2000).run()
    assert (summary.status, summary.done) == ("finished", 30)
    assert sum(name.startswith("each2:done:") for name in fleet.engine.cells) <= 30  # what has no items is left alone


# -- who may join


def test_members_that_disagree_on_the_partitions_are_refused(fleet: Fleet) -> None:
    running = fleet.start(fleet.member(lines(3), fleet.logging("sleep 0.3"), partitions=8))
    until(lambda: len(fleet.ran) > 0)
    with pytest.raises(Misuse, match=r"has 8 partitions.*not 9"):
        fleet.member(lines(3), partitions=9).run()
    assert running.result().status == "finished"
    with pytest.raises(Misuse, match="has 8 partitions"):
        fleet.member(lines(4), partitions=9).run()
    assert fleet.member(lines(4), partitions=None).run().done == 1


def test_again_may_change_the_partitions_of_a_finished_job(fleet: Fleet) -> None:
    fleet.member(lines(5), partitions=8).run()
    assert fleet.member(lines(5), partitions=3, again=True).run().done == 5
    assert fleet.store().known().partitions == 3


def test_a_generation_left_half_dropped_is_dropped_by_the_next_member(fleet: Fleet) -> None:
    fleet.member(lines(5)).run()
    store = fleet.store()
    with store._lock("job") as lease:
        cell = store._job_cell().open(lease)
        state = JobState.load(cell.value or b"")
        cell.put(JobState(8, state.generation + 1, state.session, old=(1, 8)).dump())
    fleet.member(lines(2)).run()
    assert {name.split(":")[2] for name in fleet.engine.cells if name.startswith(("each2:in:", "each2:done:"))} == {"2"}


# -- death and delay


class Usurper:
    """Another owner of a job's only partition: in line behind ``owner``, whose leases then end behind its back."""

    def __init__(self, fleet: Fleet, owner: str) -> None:
        self._fleet, self._owner = fleet, owner
        self._store = fleet.store("usurper")
        self._session = self._store.client.session
        self._tenure = self._session.new_tenure(partition_turnstile(f"each:{JOB}", 0), 1, 15.0)

    def take(self) -> OpenCell:
        """Take the partition, and open its cell."""
        drive(self._session.enter(self._tenure, nowait=False))
        engine = self._fleet.engine
        with engine.lock:
            stand = engine.stands[self._tenure.turnstile.address]
            for claim_id, place in list(stand.places.items()):
                if place.claim.owner == self._owner:
                    del stand.places[claim_id]
            engine._settle(stand)
        assert drive(self._session.renew_one(self._tenure)).state is State.ADMITTED
        self._session.hold(self._tenure)
        self.lease = Lease(self._session, self._tenure)
        return self._store.done_cell(self._store.known(), 0).open(self.lease)

    def record(self, cell: OpenCell, line: bytes) -> None:
        record = {"member": "usurper", "token": cell.token, "attempts": 1}
        cell.put(Counters(1, over=1, begun=1).dump(), [Change(item(line, 1).id, json.dumps(record).encode(), True)])


def test_a_result_that_comes_after_another_took_over_is_refused(fleet: Fleet) -> None:
    gate, begun = fleet.folder / "gate", fleet.folder / "begun"
    gate.touch()
    waits = f"touch {begun}; while [ -e {gate} ]; do sleep 0.01; done"
    paused = fleet.start(fleet.member([b"x\n"], fleet.logging(waits), name="paused", partitions=1, ttl_s=6.0))
    until(begun.exists)
    usurper = Usurper(fleet, "paused")
    usurper.record(usurper.take(), b"x")
    gate.unlink()  # the renewer looks every two seconds only: the result comes first
    until(lambda: paused.member._summary.refused == 1)
    usurper.lease.release()
    summary = paused.result()
    assert (summary.status, summary.refused, summary.done, summary.done_by_others) == ("finished", 1, 0, 1)
    assert [record["member"] for record in fleet.records()] == ["usurper"]


def test_a_member_that_learns_of_its_loss_ends_what_it_runs_and_goes_on(fleet: Fleet) -> None:
    ended = fleet.folder / "ended"
    first = f"test -e {ended} || {{ trap 'touch {ended}; exit 0' TERM; while :; do sleep 0.01; done; }}"
    member = fleet.start(fleet.member([b"x\n"], fleet.logging(first), name="cut off", partitions=1, ttl_s=0.6))
    until(lambda: len(fleet.ran) == 1)
    usurper = Usurper(fleet, "cut off")
    usurper.take()
    until(ended.exists)
    usurper.lease.release()
    summary = member.result()
    assert (summary.status, summary.done, summary.refused) == ("finished", 1, 0)
    assert fleet.ran == [b"x", b"x"]
    assert len(fleet.records()) == 1


@pytest.mark.parametrize("died", [False, True])
def test_items_whose_owner_died_are_counted_as_taken_over(fleet: Fleet, died: bool) -> None:
    begun = fleet.start(fleet.member(lines(30), fleet.logging("sleep 0.02"), partitions=1, workers=1))
    until(lambda: len(fleet.ran) > 2)
    begun.member.interrupt()
    left = 30 - begun.result().done
    if died:  # as it stands where an owner had no time to hand over
        usurper = Usurper(fleet, "nobody")
        cell = usurper.take()
        cell.put(Counters.load(cell.value)._replace(owner="dead one").dump())
        usurper.lease.release()
    summary = fleet.member(name="heir", partitions=1).run()
    assert (summary.done, summary.taken_over) == (left, left if died else 0)


def test_a_job_that_the_engine_has_lost_is_an_error(fleet: Fleet) -> None:
    member = fleet.member(lines(30), fleet.logging("sleep 0.02"), workers=1)
    until_lost = threading.Thread(target=lambda: (until(lambda: len(fleet.ran) > 3), fleet.engine.cells.clear()))
    until_lost.start()
    with pytest.raises(HoldfastError, match="has lost job"):
        member.run()
    until_lost.join()


def test_completions_that_the_engine_forgot_are_made_again(fleet: Fleet) -> None:
    """As after a server came back with an older copy of its data, leases included."""
    member = fleet.start(fleet.member(lines(12), fleet.logging("sleep 0.05"), workers=1, partitions=1))
    until(lambda: len(fleet.ran) > 3)
    with fleet.engine.lock:
        older = copy.deepcopy(fleet.engine.cells)
    until(lambda: len(fleet.records()) > 6)
    with fleet.engine.lock:
        fleet.engine.cells = older
    assert member.result().status == "finished"
    assert len(fleet.records()) == 12
    assert len(fleet.ran) > 12


def test_a_publisher_that_was_overtaken_publishes_nothing_twice(fleet: Fleet) -> None:
    paused, quick = fleet.store("paused"), fleet.store("quick")
    state, share = paused.enter(1, lambda state: paused.members(state).join(), brings=True)
    calls = 0

    def going() -> bool:
        """At its second call it holds the lock and has the cell open: let its lease end, and the other do the work."""
        nonlocal calls
        calls += 1
        if calls == 2:
            stand = fleet.engine.stands[f"lock:each:in:{JOB}"]
            with fleet.engine.lock:
                stand.places.clear()
            quick.publish(state, Input(lines(30)), lambda: True, lambda partition: None)
        return True

    with share, pytest.raises(StaleToken):
        paused.publish(state, Input(lines(30)), going, lambda partition: None)
    paused.publish(state, Input(lines(30)), lambda: True, lambda partition: None)
    (published,) = paused.tally(state).published
    assert (published.print.items, published.blocks) == (30, 1)


class LossyEngine(MemoryEngine):
    """Does what it is asked to, and loses the answers to puts while ``losing`` is above 0."""

    losing = 0

    def blocking_link(self) -> MemoryLink:
        return LossyLink(self)


class LossyLink(MemoryLink):
    engine: LossyEngine

    def call(self, request: Request[Any], timeout_s: float) -> Any:
        reply = super().call(request, timeout_s)
        if request.op == "put" and self.engine.losing > 0:
            self.engine.losing -= 1
            raise OutcomeUnknown("the reply was lost")
        return reply


def test_a_completion_whose_reply_was_lost_for_long_is_recorded_once(tmp_path: Path) -> None:
    engine = LossyEngine()
    with Client(engine, owner="me", patience_s=0.02) as client:
        gate = tmp_path / "gate"
        command = Command(("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.01; done", "{}"))
        later = Later(Member(Store(client, JOB), command, Settings(1, 1), Input([b"x\n"])))
        later.thread.start()
        until(lambda: len(later.member._runs) == 1)
        engine.losing = 8
        gate.touch()
        summary = later.result()
        assert (summary.done, summary.refused, engine.losing) == (1, 0, 0)
        assert len(list(Store(client, JOB).results())) == 1
