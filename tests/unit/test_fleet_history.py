"""The checker of the storm: what it must find in histories that were made up, and what it must let pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bench.fleet.history import (
    Gap,
    Holding,
    fallen_tokens,
    gaps,
    holdings,
    overlaps,
    owners_at,
    settled,
    stale_saves,
)
from bench.fleet.journal import Journal, Journals


def entry(at: float, what: str, who: str, **fields: Any) -> dict[str, Any]:
    return {"at": at, "what": what, "who": who, **fields}


def own(at: float, who: str, token: int, key: int = 7) -> dict[str, Any]:
    return entry(at, "own", who, key=key, token=token)


def lost(at: float, who: str, token: int, key: int = 7) -> dict[str, Any]:
    return entry(at, "lost", who, key=key, token=token)


def saved(began: float, at: float, who: str, token: int, count: int) -> dict[str, Any]:
    return entry(at, "saved", who, key=7, token=token, began=began, count=count)


def test_a_hand_over_from_one_to_the_next_is_right() -> None:
    found = holdings([own(1, "a", 10), lost(2, "a", 10), own(2, "b", 11), lost(3, "b", 11)])
    assert found == [Holding("a", 7, 10, 1, 2), Holding("b", 7, 11, 2, 3)]
    assert overlaps(found) == fallen_tokens(found) == []


def test_two_owners_at_once_are_found() -> None:
    found = holdings([own(1, "a", 10), own(1.9, "b", 11), lost(2, "a", 10), lost(3, "b", 11)])
    assert [(one.who, other.who) for one, other in overlaps(found)] == [("a", "b")]


def test_an_owner_that_never_ends_overlaps_with_all_that_come_after_those_in_between() -> None:
    entries = [own(1, "a", 10), own(2, "b", 11), lost(3, "b", 11), own(4, "c", 12), lost(5, "c", 12)]
    assert [(one.who, other.who) for one, other in overlaps(holdings(entries))] == [("a", "b"), ("a", "c")]


def test_different_partitions_do_not_overlap() -> None:
    assert overlaps(holdings([own(1, "a", 10, key=7), own(1, "b", 10, key=8)])) == []


def test_a_pause_ended_at_the_deadline_though_its_owner_tells_of_it_later() -> None:
    """Its line comes after the next owner's, with the time of the deadline in it."""
    found = holdings([own(1, "a", 10), own(4, "b", 11), lost(3.5, "a", 10)])
    assert overlaps(found) == []
    assert overlaps(holdings([own(1, "a", 10), own(4, "b", 11), lost(4.1, "a", 10)]))


def test_who_was_killed_owned_until_then() -> None:
    found = holdings([own(1, "a", 10), own(1, "a", 3, key=8), entry(2, "killed", "a"), own(2.5, "b", 11)])
    assert {(one.key, one.end) for one in found if one.who == "a"} == {(7, 2), (8, 2)}
    assert overlaps(found) == []


def test_tokens_that_do_not_rise_are_found() -> None:
    entries = [own(1, "a", 10), lost(2, "a", 10), own(3, "b", 10), lost(4, "b", 10), own(5, "c", 9)]
    assert [later.who for _, later in fallen_tokens(holdings(entries))] == ["b", "c"]


def test_a_checkpoint_with_an_old_token_that_was_accepted_is_found() -> None:
    right = [saved(1, 2, "a", 10, 1), saved(3, 4, "b", 11, 2)]
    assert stale_saves(right) == []
    assert [stale["who"] for _, stale in stale_saves([*right, saved(5, 6, "a", 10, 3)])] == ["a"]


def test_a_checkpoint_that_was_under_way_before_the_newer_one_was_confirmed_is_not_stale() -> None:
    assert stale_saves([saved(1, 3.5, "a", 10, 1), saved(3, 4, "b", 11, 2)]) == []


def test_a_checkpoint_that_does_not_know_of_an_earlier_one_is_found() -> None:
    """The same token, and as far as one that was confirmed before it began: that one was lost."""
    assert stale_saves([saved(1, 2, "a", 10, 5), saved(3, 4, "a", 10, 5)])


def test_how_long_nobody_owned_it() -> None:
    found = holdings([own(1, "a", 10), lost(2, "a", 10), own(2.5, "b", 11)])
    assert gaps(found, [7, 8], 0.5, 4) == [Gap(7, 0.5, 1), Gap(7, 2, 2.5), Gap(8, 0.5, 4)]
    assert gaps(found, [7], 2.6, 4) == []


def test_it_has_settled_once_all_are_owned_by_one_each_for_good() -> None:
    entries = [own(1, "a", 1, key=0), own(2, "a", 2, key=1), lost(3, "a", 2, key=1), own(5, "b", 3, key=1)]
    assert settled(holdings(entries), range(2), {"a", "b"}, 0.5, even=True).settled_at == 5
    assert settled(holdings(entries[:2]), range(2), {"a", "b"}, 0.5, even=False).settled_at == 2
    assert math.isnan(settled(holdings(entries[:2]), range(2), {"a", "b"}, 0.5, even=True).settled_at)
    assert math.isnan(settled(holdings(entries[:3]), range(2), {"a", "b"}, 0.5, even=False).settled_at)


def test_what_two_claimed_at_once_is_counted_and_not_settled() -> None:
    found = holdings([own(1, "a", 0, key=0), own(2, "b", 0, key=0), lost(4, "a", 0, key=0)])
    claims = settled(found, range(1), {"a", "b"}, 0, even=False)
    assert (claims.settled_at, claims.twice) == (4, 1)
    assert owners_at(found, 5) == {0: "b"}


def test_journals_are_read_by_and_by_and_a_line_that_was_cut_off_is_left(tmp_path: Path) -> None:
    one, journals = Journal(tmp_path, "a"), Journals(tmp_path)
    one("own", at=1.0, key=7, token=10)
    assert journals.news() == [own(1.0, "a", 10)]
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"at": 2.0, "wh')
    assert journals.news() == []
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'at": "killed", "who": "a"}\n')
    assert journals.news() == [entry(2.0, "killed", "a")]
    assert len(journals.entries) == 2


@pytest.mark.parametrize("what", ["own", "lost"])
def test_a_journal_says_when(tmp_path: Path, what: str) -> None:
    journal = Journal(tmp_path, "a")
    journal(what, key=1, token=1)
    journal(what, key=1, token=1)
    first, second = Journals(tmp_path).news()
    assert first["at"] <= second["at"]
