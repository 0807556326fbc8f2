"""The checks are themselves checked: engines with a planted bug must fail the test that is there for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from holdfast.engines.memory import MemoryEngine
from holdfast.model import WANTED, CellReply, Change, Claim, Fence, Signal, Standing, Turnstile

from . import test_cell_contract as cell
from . import test_turnstile_contract as turnstile
from .conftest import Seat


class NoOwnerCheck(MemoryEngine):
    def _leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> bool:
        stand = self.stands.get(turnstile.address)
        return super()._leave(turnstile, next(iter(stand.places)) if stand else claim_id, bury)


class OffByOne(MemoryEngine):
    def _enter(self, turnstile: Turnstile, claim: Claim, nowait: bool) -> Standing:
        return super()._enter(replace(turnstile, capacity=turnstile.capacity + 1), claim, nowait)


class NoTombstones(MemoryEngine):
    def _leave(self, turnstile: Turnstile, claim_id: str, bury: bool) -> bool:
        left = super()._leave(turnstile, claim_id, bury)
        self.tombstones.clear()
        return left


class TokensRestart(MemoryEngine):
    def _settle(self, stand: Any) -> None:
        super()._settle(stand)
        if not stand.places:
            self.last_tokens.clear()
            self.tokens_us = lambda: 0


class TellsOnlyAdmitted(MemoryEngine):
    def _settle(self, stand: Any) -> None:
        told = {place.claim.id for place in stand.places.values() if place.admitted}
        self.untold = {place.claim.id for place in stand.places.values()} - told
        super()._settle(stand)
        self.untold = set()

    def _signal(self, inbox: str, signal: Signal) -> None:
        if signal.kind != WANTED or signal.key not in getattr(self, "untold", ()):
            super()._signal(inbox, signal)


class WantedForEver(MemoryEngine):
    def _settle(self, stand: Any) -> None:
        super()._settle(stand)
        self._want(stand)


class RenewCreates(MemoryEngine):
    def _renew(self, turnstile: Turnstile, claim: Claim) -> Standing:
        self._enter(turnstile, claim, nowait=False)
        return super()._renew(turnstile, claim)


class NoFenceOnOpen(MemoryEngine):
    def _open(self, name: str, fence: Fence) -> CellReply:
        before = self.cells[name].fence if name in self.cells else None
        reply = super()._open(name, fence)
        if before is not None:
            self.cells[name].fence = before
            self.cells[name].version -= reply.accepted
        return reply


class NoVersion(MemoryEngine):
    def _put(
        self, name: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> CellReply:
        stands = self.cells[name].version if name in self.cells else version
        return super()._put(name, fence, stands, op_id, value, changes)


class OpeningsAreOne(MemoryEngine):
    def _open(self, name: str, fence: Fence) -> CellReply:
        return super()._open(name, fence._replace(opening=1))

    def _put(
        self, name: str, fence: Fence, version: int, op_id: str, value: bytes | None, changes: Sequence[Change]
    ) -> CellReply:
        return super()._put(name, fence._replace(opening=1), version, op_id, value, changes)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (NoOwnerCheck, turnstile.test_a_leave_of_what_is_not_there_disturbs_nobody),
        (OffByOne, turnstile.test_a_mutex_admits_one_and_then_the_next_in_order),
        (OffByOne, turnstile.test_a_semaphore_admits_what_fits_and_nobody_overtakes_a_heavy_one),
        (NoTombstones, turnstile.test_an_enter_that_arrives_after_its_leave_leaves_no_orphan),
        (TokensRestart, turnstile.test_tokens_rise_in_admission_order_and_after_the_turnstile_emptied),
        (RenewCreates, turnstile.test_renewing_never_creates),
        (NoFenceOnOpen, cell.test_an_older_token_is_refused_from_the_opening_on),
        (NoVersion, cell.test_a_put_needs_the_version),
        (NoVersion, cell.test_a_resent_put_answers_as_before_and_lands_once),
        (OpeningsAreOne, cell.test_opening_again_refuses_the_earlier_opening),
    ],
    ids=lambda one: one.__name__,
)
def test_a_planted_bug_is_caught(broken: type[MemoryEngine], check: Callable[[Seat], None]) -> None:
    check(Seat(MemoryEngine(), None))
    with pytest.raises(AssertionError):
        check(Seat(broken(), None))


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (TellsOnlyAdmitted, turnstile.test_who_is_admitted_while_others_wait_knows_at_once_that_it_is_wanted),
        (TellsOnlyAdmitted, turnstile.test_all_who_are_admitted_together_are_wanted_if_anyone_still_waits),
        (WantedForEver, turnstile.test_who_waited_and_went_makes_nobody_wanted_who_is_admitted_later),
    ],
    ids=lambda one: one.__name__,
)
def test_a_planted_bug_in_what_is_told_is_caught(
    broken: type[MemoryEngine], check: Callable[[Callable[..., Seat]], None]
) -> None:
    for kind in (MemoryEngine, broken):
        engine = kind()
        with pytest.raises(AssertionError) if kind is broken else contextlib.nullcontext():
            check(lambda engine=engine: Seat(engine, None))
