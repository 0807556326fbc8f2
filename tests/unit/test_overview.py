"""What stands on an engine, put together for people. In fake time."""

from __future__ import annotations

import dataclasses

import pytest

from holdfast.core.assignment import Assignment, Worker
from holdfast.core.chronicle import Change, Step
from holdfast.core.election import Record
from holdfast.core.session import ASKED_AT_ONCE
from holdfast.errors import Unavailable
from holdfast.fleet import overview
from holdfast.fleet.overview import Overview, gather
from holdfast.fleet.presence import FRESH, LATE, Lengths
from holdfast.model import ClaimView, Snapshot
from holdfast.sync import Client
from holdfast.testing.threads import FakeClient
from holdfast.worlds.threads import drive


def seen(client: Client, prefix: str = "", lengths: Lengths | None = None) -> Overview:
    return drive(gather(client.session, prefix, lengths))


def claim(id: str, token: int, admitted: bool = True, weight: int = 1, remaining_s: float = 15.0) -> ClaimView:
    return ClaimView(id, token, weight, admitted, f"host:{id}", b"", 1.0, remaining_s)


def of(stands: list[Snapshot], **cells: bytes) -> Overview:
    return overview.put_together(0.0, stands, {f"partitions:{name}": value for name, value in cells.items()}, Lengths())


def test_an_empty_engine_has_nothing_to_show(hf: FakeClient) -> None:
    assert seen(hf).is_empty


def test_each_kind_is_in_its_place(hf: FakeClient) -> None:
    with hf.lock("invoice") as lease, hf.group("workers").join(b"a"), hf.partitions("orders", 8).join():
        hf.clock.advance(1)
        found = seen(hf)
    (lock,), (group,), (orders,) = found.locks, found.groups, found.partitions
    assert (lock.kind, lock.name, lock.admitted[0].token) == ("lock", "invoice", lease.token)
    assert (group.name, [member.claim.payload for member in group.members]) == ("workers", [b"a"])
    assert (orders.name, orders.count, [portion.owned for portion in orders.portions]) == ("orders", 8, [8])
    assert (orders.unowned, orders.handed_over) == ((), ())
    assert {one.address for one in found.announcing} >= {"group:workers", "partitions:orders"}


def test_partitions_are_counted_for_each_member_and_not_listed_as_locks(hf: FakeClient) -> None:
    shares = [client.partitions("orders", 100).join() for client in (hf, hf.other(), hf.other())]
    hf.clock.advance(5)
    found = seen(hf)
    assert found.locks == ()
    (orders,) = found.partitions
    owned = {portion.member.claim.id: portion.owned for portion in orders.portions if portion.member}
    assert owned == {share.member_id: len(share.owned) for share in shares}
    assert sum(owned.values()) == 100


def test_a_prefix_chooses_by_address_or_name_and_takes_a_sets_partitions_along(hf: FakeClient) -> None:
    with hf.lock("orders"), hf.lock("report"), hf.partitions("orders", 4).join(), hf.group("others").join():
        hf.clock.advance(1)
        both, one, single = seen(hf, "orders"), seen(hf, "partitions:orders"), seen(hf, "partition:orders/2")
    assert ([lock.name for lock in both.locks], both.groups, both.partitions) == (["orders"], (), one.partitions)
    assert [len(portions.places) for portions in one.partitions] == [4]
    assert [(stand.kind, stand.name) for stand in single.locks] == [("partition", "orders/2")]
    assert seen(hf, "nobody").is_empty


def test_it_takes_a_few_rounds_however_much_stands(hf: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = [hf.lock(f"lock {number}").acquire() for number in range(ASKED_AT_ONCE + 1)]
    batches: list[int] = []
    link, call_many = hf.session.world.link, hf.session.world.link.call_many
    monkeypatch.setattr(link, "call_many", lambda some, s: batches.append(len(some)) or call_many(some, s))
    assert len(seen(hf).locks) == len(leases)
    assert [size for size in batches if size] == [ASKED_AT_ONCE, 1]


def test_a_look_that_did_not_arrive_is_asked_again(hf: FakeClient) -> None:
    with hf.lock("a"), hf.lock("b"):
        hf.engine.unavailable(times=1, op="look")
        assert len(seen(hf).locks) == 2
        with hf.engine.unavailable(), pytest.raises(Unavailable):
            seen(hf)


# -- health


def test_who_has_not_renewed_while_others_did_is_late(hf: FakeClient) -> None:
    dead = hf.other()
    workers = [client.group("workers").join(ttl_s=15) for client in (hf, dead)]
    hf.clock.advance(1)
    assert [member.health for member in seen(hf).groups[0].members] == [FRESH, FRESH]
    dead.session.forget("it died")
    hf.clock.advance(9)
    assert [member.health for member in seen(hf).groups[0].members] == [FRESH, LATE]
    hf.clock.advance(20)
    assert len(seen(hf).groups[0].members) == 1
    workers[0].release()


def test_whoever_looks_again_tells_lateness_of_one_that_is_alone() -> None:
    lengths = Lengths()
    healths = [lengths.judge([claim("a.1", 1, remaining_s=left_s)])[0].health for left_s in (4.0, 9.9, 6.7, 9.8, 4.0)]
    assert healths == [FRESH, FRESH, FRESH, FRESH, LATE]


def test_a_short_lease_beside_a_long_one_is_not_late_once_its_renewal_was_seen() -> None:
    lengths = Lengths()
    for left_s in (3.5, 4.9, 3.6):
        long, short = lengths.judge([claim("a.1", 1, remaining_s=59), claim("b.1", 2, remaining_s=left_s)])
    assert (long.health, short.health) == (FRESH, FRESH)


# -- elections


def leading(token: int, payload: bytes = b"") -> bytes:
    change = Change("a leads", "nobody led before", "a", (Step("admitted", 90.0),))
    return Record("a", token, 90.0, 90.0, payload, "ready", (change,)).dump()


def elected(record: bytes | None) -> Overview:
    stand = Snapshot("election", "x", 1, (claim("a.1", 7), claim("b.1", 8, admitted=False), claim("c.1", 9, False)))
    cells = {} if record is None else {"election:x": record}
    return overview.put_together(100.0, [stand], cells, Lengths())


def test_a_leader_is_shown_with_its_record_and_the_candidates_in_order() -> None:
    view = elected(leading(7, b"10.0.0.1"))
    (found,) = view.elections
    assert found.leader is not None
    assert (found.leader.claim.id, [one.claim.id for one in found.candidates]) == ("a.1", ["b.1", "c.1"])
    assert (found.since_s, found.state, found.payload) == (10.0, "ready", b"10.0.0.1")
    assert [(one.address, one.change.what) for one in view.failovers] == [("election:x", "a leads")]


@pytest.mark.parametrize("record", [None, b"{}", b"\xff", b"[1]", leading(6)])
def test_what_an_earlier_leader_or_somebody_else_wrote_says_nothing_of_this_one(record: bytes | None) -> None:
    (found,) = elected(record).elections
    assert found.leader is not None
    assert (found.since_s, found.state, found.payload) == (None, "", b"")


def test_an_engine_without_cells_has_no_records(hf: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with hf.partitions("orders", 4).join():
        without = dataclasses.replace(hf.engine.capabilities, cells=False)
        monkeypatch.setattr(type(hf.engine), "capabilities", without)
        with hf.engine.unavailable(op="read"):
            assert len(seen(hf).partitions) == 1


# -- partitions, by the record


def orders(
    held: dict[int, list[ClaimView]], members: list[ClaimView], assignment: Assignment | None = None
) -> Overview:
    stands = [Snapshot("partition", f"orders/{partition}", 1, tuple(claims)) for partition, claims in held.items()]
    stands += [Snapshot("partitions", "orders", 4, tuple(members))] if members else []
    return of(stands, **({"orders": assignment.dump()} if assignment else {}))


A, B = claim("a.1", 1, weight=0), claim("b.1", 2, weight=0)
WORKERS = (Worker("alice", "a.1", "host:1"), Worker("bob", "b.1", "host:2"))


def test_the_record_says_who_should_own_what() -> None:
    held = {0: [claim("a.2", 1)], 1: [claim("a.3", 1)], 2: [claim("a.4", 1), claim("b.2", 2, admitted=False)]}
    (found,) = orders(held, [A, B], Assignment((0, 0, 1, 1), WORKERS, epoch=7)).partitions
    assert [(one.name, one.owned, one.wanted) for one in found.portions] == [("alice", 3, 2), ("bob", 0, 2)]
    assert [(place.partition, place.owner, place.wanted) for place in found.handed_over] == [(2, "alice", "bob")]
    assert [(place.partition, place.wanted) for place in found.unowned] == [(3, "bob")]
    assert found.epoch == 7


def test_one_that_leaves_and_one_that_died_are_shown_with_what_they_still_hold() -> None:
    retired = A._replace(weight=1)
    (found,) = orders({0: [claim("a.2", 1)], 1: [claim("b.2", 1)]}, [retired], Assignment((0, 1), WORKERS)).partitions
    assert found.epoch == 0, "a record of another count is of another time"
    four = Assignment((0, 0, 0, 0), WORKERS[1:])
    (found,) = orders({0: [claim("a.2", 1)], 1: [claim("b.2", 1)]}, [retired], four).partitions
    told = {one.name: (one.owned, one.wanted, one.leaving, one.member) for one in found.portions}
    assert told == {"host:a.1": (1, 0, True, None), "bob": (1, 4, False, None)}


def test_a_set_without_members_is_found_by_its_record_or_by_what_is_still_held() -> None:
    (found,) = of([], orders=Assignment((0, 1), WORKERS, epoch=3).dump()).partitions
    assert (found.count, len(found.unowned), {one.name for one in found.portions}) == (2, 2, {"alice", "bob"})
    assert of([], orders=b"something else").partitions[0].count == 0


def test_failovers_come_from_the_records_the_last_first() -> None:
    changes = tuple(
        Change(f"{at:g}", "", "a:1", (Step("noticed", at - 1), Step("assigned", at))) for at in (10.0, 20.0)
    )
    stores = Assignment((0,), WORKERS, history=changes[:1]).dump()
    found = of([], stores=stores, orders=Assignment((0,), WORKERS, history=changes).dump()).failovers
    assert [(one.address, one.at) for one in found] == [
        ("partitions:orders", 20.0),
        ("partitions:orders", 10.0),
        ("partitions:stores", 10.0),
    ]


def test_a_record_is_read_under_its_exact_name_when_nobody_is_left(hf: FakeClient) -> None:
    history = (Change("moved", "alice went", "b:1", ()),)
    with hf.lock("x") as lease:
        hf.cell("partitions:orders").open(lease).put(Assignment((0,), WORKERS, history=history).dump())
    found = seen(hf, "partitions:orders")
    assert ([one.name for one in found.partitions], [one.change for one in found.failovers]) == (["orders"], [*history])
    assert seen(hf, "partitions:order").is_empty
    assert seen(hf, "orders").is_empty
