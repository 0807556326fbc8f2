"""Every order of events of a small quorum: distinct tokens in the order of holding, and which rule is there for what.

The bounds of each run stand in it (`quorum_model.Bounds`): clients that acquire once, nodes, restarts without memory,
renewals (also late ones), and how many requests arrive late or have their answer lost (any number by default; with 0 a
request that nobody waits for any more is never delivered). The number of states is printed (``pytest -rP``).
"""

from __future__ import annotations

from typing import Any

import pytest
from quorum_model import Bounds, Found, Rules, check

from holdfast.engines.quorum import protocol

THREE = Bounds(clients=3, late=0)
LATE = Bounds(clients=2)
RESTART = Bounds(clients=2, restarts=1, late=1)
RENEWAL = Bounds(clients=2, renewals=1, late=0)


def explored(bounds: Bounds, rules: Rules | None = None) -> Found:
    found = check(bounds, rules)
    print(f"{bounds}: {found.states} states; {found.violation or f'no violation; tokens held: {sorted(found.held)}'}")
    return found


@pytest.mark.parametrize("bounds", [THREE, LATE, RESTART, RENEWAL], ids=["three", "late", "restart", "renewal"])
def test_tokens_are_distinct_and_in_the_order_of_holding_in_every_order_of_events(bounds: Bounds) -> None:
    found = explored(bounds)
    assert not found.violation
    assert len(found.held) >= bounds.clients  # all of them had their turn
    assert found.states > 5_000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(clients=3, late=1),
        Bounds(clients=3, restarts=1, late=0),
        Bounds(clients=2, restarts=1),
        Bounds(clients=2, renewals=1, late=1),
        Bounds(clients=2, restarts=2, late=0),
    ],
    ids=repr,
)
def test_they_are_within_wider_bounds(bounds: Bounds) -> None:
    assert not explored(bounds).violation


@pytest.mark.parametrize(
    ("bounds", "rules", "what"),
    [
        (RESTART, Rules(sits_out=False), "two hold at once"),
        (RESTART, Rules(waits=False), "two hold at once"),
        (RESTART, Rules(is_given_highest=False), "is held after"),
        (THREE, Rules(marks_own_only=False), "is held after"),
        (RENEWAL, Rules(regrants_with_token=False), "is held after"),
    ],
    ids=["sits out", "waits", "is given the highest", "marks its own only", "regrants with the token"],
)
def test_without_one_of_the_rules_of_a_node_there_is_a_violation(bounds: Bounds, rules: Rules, what: str) -> None:
    assert what in explored(bounds, rules).violation


def without_write_back(size: int, asks: Any, highest: int) -> Any:
    return highest
    yield


def with_no_look_at_the_answers(size: int, asks: Any, highest: int) -> Any:
    yield protocol.Round(protocol.everywhere(size, asks.mark(highest)), protocol.at_once)
    return highest


@pytest.mark.parametrize("planted", [without_write_back, with_no_look_at_the_answers])
def test_without_the_write_back_there_is_a_violation(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "write_back", planted)
    assert "is held after" in explored(THREE).violation


def test_where_the_highest_of_any_majority_is_taken_for_agreed_there_is_a_violation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "agreed", lambda numbers, size: max(numbers))
    assert "is held after" in explored(THREE).violation


def test_where_two_of_four_are_taken_for_a_majority_there_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "majority", lambda size: size // 2)
    assert explored(Bounds(clients=2, nodes=4, late=0)).violation


def test_where_a_renewal_takes_any_number_for_its_token_there_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of its own that comes late can have put a new one there, after others."""
    monkeypatch.setattr(protocol, "_common", lambda numbers, size: max(numbers.values(), default=0))
    assert explored(Bounds(clients=2, renewals=1)).violation
