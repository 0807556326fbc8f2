"""The cell's contract, on every engine and both kinds of link."""

from __future__ import annotations

import pytest

from holdfast.model import CellSnapshot, Change, Fence

from .conftest import Seat


def fence(token: int, claim: str = "", opening: int = 1, turnstile: str = "lock:m") -> Fence:
    return Fence(turnstile, token, claim or f"claim {token}", opening)


def test_a_new_cell_is_empty_and_keeps_what_is_put(seat: Seat) -> None:
    opened = seat.open("c", fence(5))
    assert (opened.accepted, opened.value) == (True, None)
    put = seat.put("c", fence(5), opened.version, "1", b"value")
    assert put.accepted
    assert put.version > opened.version
    assert seat.read("c").value == b"value"
    assert seat.open("c", fence(6)).value == b"value"


def test_an_older_token_is_refused_from_the_opening_on(seat: Seat) -> None:
    old = seat.open("c", fence(5))
    new = seat.open("c", fence(6))  # has not written yet
    late = seat.put("c", fence(5), old.version, "1", b"late")
    assert (late.accepted, late.token) == (False, 6)
    assert not seat.open("c", fence(5, opening=2)).accepted
    assert seat.read("c").value is None
    assert seat.put("c", fence(6), new.version, "2", b"new").accepted


def test_an_equal_token_of_another_claim_is_refused(seat: Seat) -> None:
    seat.open("c", fence(5, "a"))
    assert not seat.open("c", fence(5, "b")).accepted
    assert not seat.open("c", fence(5, "b", 9)).accepted


def test_opening_again_refuses_the_earlier_opening(seat: Seat) -> None:
    first = seat.open("c", fence(5))
    second = seat.open("c", fence(5, opening=2))
    assert second.version > first.version
    assert not seat.put("c", fence(5), first.version, "1", b"first").accepted
    assert not seat.put("c", fence(5), second.version, "2", b"first").accepted
    assert seat.put("c", fence(5, opening=2), second.version, "3", b"second").accepted


def test_a_resent_open_answers_as_before_and_a_late_one_changes_nothing(seat: Seat) -> None:
    first = seat.open("c", fence(5))
    assert seat.open("c", fence(5)) == first
    second = seat.open("c", fence(5, opening=2))
    assert not seat.open("c", fence(5)).accepted  # a late duplicate of the first
    assert seat.put("c", fence(5, opening=2), second.version, "1", b"x").accepted


def test_a_put_needs_the_version(seat: Seat) -> None:
    opened = seat.open("c", fence(5))
    put = seat.put("c", fence(5), opened.version, "1", b"1")
    assert not seat.put("c", fence(5), opened.version, "2", b"2").accepted
    assert not seat.put("c", fence(5), put.version + 1, "3", b"3").accepted
    assert seat.read("c").value == b"1"


def test_a_resent_put_answers_as_before_and_lands_once(seat: Seat) -> None:
    opened = seat.open("c", fence(5))
    changes = [Change("k", b"v", create=True)]
    put = seat.put("c", fence(5), opened.version, "op", b"1", changes)
    assert put.applied == (True,)
    again = seat.put("c", fence(5), opened.version, "op", b"1", changes)
    assert (again.accepted, again.version, again.applied) == (True, put.version, (True,))
    after = seat.put("c", fence(5), put.version, "next", b"2")
    assert not seat.put("c", fence(5), opened.version, "op", b"1", changes).accepted  # late, over a newer one
    assert seat.read("c").value == b"2"
    assert seat.read("c").version == after.version


def test_entries_are_created_once_overwritten_and_deleted(seat: Seat) -> None:
    version = seat.open("c", fence(5)).version
    one = seat.put("c", fence(5), version, "1", None, [Change("a", b"1", True), Change("b", b"", False)])
    two = seat.put(
        "c", fence(5), one.version, "2", None,
        [Change("a", b"2", True), Change("b", b"2"), Change("c", b"3"), Change("gone", None)],
    )  # fmt: skip
    assert (one.applied, two.applied) == ((True, True), (False, True, True, False))
    assert dict(seat.read("c").entries) == {"a": b"1", "b": b"2", "c": b"3"}
    assert seat.put("c", fence(5), two.version, "3", None, [Change("a", None)]).applied == (True,)
    assert dict(seat.read("c", ["a", "b", "nothing"]).entries) == {"b": b"2"}
    assert dict(seat.read("c", []).entries) == {}
    assert seat.read("c").value is None


def test_a_refused_put_changes_no_entry(seat: Seat) -> None:
    version = seat.open("c", fence(5)).version
    assert not seat.put("c", fence(5), version + 7, "1", b"v", [Change("k", b"v")]).accepted
    assert (seat.read("c").value, dict(seat.read("c").entries)) == (None, {})


def test_a_cell_belongs_to_one_turnstile(seat: Seat) -> None:
    seat.open("c", fence(5))
    other = seat.open("c", fence(9, turnstile="lock:other"))
    assert (other.accepted, other.foreign, other.turnstile) == (False, True, "lock:m")


@pytest.mark.parametrize("value", [b"", b"\x00\r\n\xff", b"x" * 1_000_000], ids=["empty", "odd", "large"])
def test_any_bytes_come_back(seat: Seat, value: bytes) -> None:
    value = value[: seat.engine.capabilities.max_value_bytes]
    version = seat.open("c", fence(5)).version
    assert seat.put("c", fence(5), version, "1", value, [Change("k\x00 日", value)]).accepted
    found = seat.read("c")
    assert (found.value, found.entries["k\x00 日"]) == (value, value)


def test_many_entries_at_once(seat: Seat) -> None:
    version = seat.open("c", fence(5)).version
    changes = [Change(f"key {number}", str(number).encode(), create=True) for number in range(2_000)]
    assert all(seat.put("c", fence(5), version, "1", None, changes).applied)
    assert len(seat.read("c").entries) == 2_000


def test_a_dropped_cell_is_gone_with_its_fence(seat: Seat) -> None:
    version = seat.open("c", fence(5)).version
    seat.put("c", fence(5), version, "1", b"v", [Change("k", b"v")])
    assert seat.call(seat.engine.drop("c"))
    assert not seat.call(seat.engine.drop("c"))
    assert not seat.put("c", fence(5), version + 1, "2", b"w").accepted
    assert seat.read("c") == CellSnapshot()
    assert seat.open("c", fence(1)).accepted


def test_a_put_without_an_open_is_refused(seat: Seat) -> None:
    assert not seat.put("never", fence(5), 1, "1", b"v").accepted
    assert seat.read("never") == CellSnapshot()
