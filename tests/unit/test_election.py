"""One leader, whose record is never taken for another's; how it stops, and what is told. Both faces, fake time."""

# ruff: noqa: PT031 (what warns is more than one statement)

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from faces import Face, go, held

from holdfast import AcquireTimeout, LeaseLost, Misuse, StaleToken, Unavailable, Unsupported, testing
from holdfast.core import chronicle
from holdfast.core.election import Record, rules
from holdfast.engines.memory import CAPABILITIES
from holdfast.hooks import Event
from holdfast.model import Claim, Fence, Turnstile

SEAT = Turnstile("election", "e", 1, announces=True)
TTL_S = 15


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Face:
    monkeypatch.setattr("holdfast.testing.tasks.REAL_S", 0.0)  # here a wait of the test's own is meant to end
    return Face(request.param)


async def following(observed: Any) -> Any:
    """What an observer sees next; False once it has ended."""
    return next(observed, False) if isinstance(observed, Iterator) else await anext(observed, False)


def ask(hf: Any, request: Any) -> Any:
    return hf.engine.blocking_link().call(request, 1.0)


def standing_by(hf: Any, id: str, payload: bytes = b"") -> None:
    """A candidate that dies when its turn comes: it leads, and never says so."""
    ask(hf, hf.engine.enter(SEAT, Claim(id, 1, float(TTL_S), "", f"host:{id}", payload), False))


def stands(hf: Any) -> list[str]:
    return [id for stand in hf.engine.stands.values() for id in stand.places]


# -- to lead


def test_who_leads_is_known_by_the_time_that_campaign_returns(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        assert await go(election.leader()) is None
        leadership = await go(election.campaign(b"10.0.0.1:80"))
        leader = await go(hf.other().election("e").leader())
        assert (leader.payload, leader.token, leader.owner) == (b"10.0.0.1:80", leadership.token, hf.session.owner)
        assert (leader.since > 1.6e9, leader.age_s >= 0) == (True, True)
        assert (leadership.is_leader, leadership.name, leadership.payload) == (True, "e", b"10.0.0.1:80")
        await go(leadership.resign())
        assert (leadership.is_leader, await go(election.leader())) == (False, None)
        await go(leadership.resign())

    face.run(scenario)


def test_candidates_wait_in_the_order_of_their_turn_and_the_first_leads_next(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        async with held(await go(election.campaign(b"first"))):
            for id in ("second", "third"):
                standing_by(hf, id, id.encode())
            await go(hf.clock.advance(4))
            waiting = await go(election.candidates())
            assert [(one.owner, one.payload, one.waited_s) for one in waiting] == [
                ("host:second", b"second", 4.0),
                ("host:third", b"third", 4.0),
            ]
        assert (await go(election.leader())).owner == "host:second"
        assert [one.owner for one in await go(election.candidates())] == ["host:third"]

    face.run(scenario)


def test_one_election_object_serves_many_candidates_at_once() -> None:
    with testing.client() as hf:
        election, led = hf.election("e"), []

        def lead() -> None:
            with election.campaign() as leadership:
                leader = election.leader()
                assert leader is not None
                led.append((leader.token, leadership.token))

        threads = [threading.Thread(target=lead) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(30)
        assert len(set(led)) == 8
        assert all(shown == own for shown, own in led)

    async def main() -> None:
        ahf = testing.aio_client()
        election, led = ahf.election("e"), []

        async def lead() -> None:
            async with await election.campaign() as leadership:
                leader = await election.leader()
                assert leader is not None
                led.append((leader.token, leadership.token))

        await asyncio.gather(*(lead() for _ in range(8)))
        assert len(set(led)) == 8
        assert all(shown == own for shown, own in led)
        await ahf.aclose()

    asyncio.run(main())


def test_a_campaign_that_is_not_won_in_time_leaves_no_candidate(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(await go(hf.election("e").campaign())):
            with pytest.raises(AcquireTimeout):
                await go(hf.other().election("e").campaign(timeout_s=3))
            assert await go(hf.election("e").candidates()) == []

    face.run(scenario)


@pytest.mark.parametrize("op", ["open", "put"])
@pytest.mark.parametrize("done", [False, True])
def test_who_cannot_write_that_it_leads_does_not_lead(face: Face, op: Any, done: bool) -> None:
    async def scenario(hf: Any) -> None:
        with hf.engine.unavailable(op=op, done=done), pytest.raises(OSError, match=op):
            await go(hf.election("e").campaign(b"p"))
        await go(hf.clock.advance(0))
        assert (stands(hf), await go(hf.election("e").leader())) == ([], None)
        with hf.engine.unavailable(op=op, done=done, times=1):
            async with held(await go(hf.election("e").campaign(b"p"))) as leadership:
                assert (await go(hf.election("e").leader())).token == leadership.token

    face.run(scenario)


def test_whose_turn_was_over_before_it_could_say_so_does_not_lead(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        later = Fence(SEAT.address, 10**15, "later", 1)
        assert ask(hf, hf.engine.open(SEAT.address, later)).accepted
        with pytest.raises(LeaseLost, match="another leads"):
            await go(hf.election("e").campaign())
        assert stands(hf) == []

    face.run(scenario)


def test_a_leadership_that_was_thrown_away_is_given_up_with_a_warning(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        leadership = await go(hf.election("e").campaign())
        with pytest.warns(ResourceWarning, match="election:e was never released"):
            del leadership
            gc.collect()
            await go(hf.clock.advance(0.1))
        assert stands(hf) == []

    face.run(scenario)


# -- an unsure lease


def test_a_leader_that_stops_when_unsure_is_none_from_the_first_renewal_that_failed(face: Face) -> None:
    steps: list[str] = []

    async def scenario(hf: Any) -> None:
        lost: list[float] = []
        leadership = await go(hf.election("e").campaign(b"p"))
        leadership.on_lost(lambda: lost.append(hf.clock.now()))
        began = hf.clock.now()
        hf.engine.unavailable()
        await go(hf.clock.advance(6))
        assert (leadership.is_leader, leadership.state, leadership.remaining_s) == (False, "LOST", 0)
        assert len(lost) == 1
        assert lost[0] - began < 6
        assert await go(leadership.wait_lost(0))
        assert len(stands(hf)) == 1, "the engine does not know yet"
        hf.engine.available()
        await go(hf.clock.advance(2))
        assert stands(hf) == [], "it is free long before its lease would have ended"
        with pytest.raises(LeaseLost, match="a renewal failed"):
            await go(leadership.resign())
        with pytest.raises(LeaseLost, match="a renewal failed"):
            await go(leadership.update(b"again"))
        await go(hf.clock.advance(60))
        assert (leadership.is_leader, len(lost)) == (False, 1)

    def note(event: Event) -> None:
        steps.append(event.kind)

    face.run(scenario, hooks=[note])
    assert steps == ["held", "unsure", "lost"]


def test_a_leader_stops_though_the_renewal_after_the_one_that_failed_would_have_succeeded(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        leadership = await go(hf.election("e").campaign())
        standing_by(hf, "next")
        hf.engine.unavailable(op="renew", times=1)
        await go(hf.clock.advance(6))
        assert not leadership.is_leader
        assert (await go(hf.election("e").leader())).owner == "host:next"

    face.run(scenario)


def test_a_leader_that_keeps_on_while_unsure_leads_until_its_deadline(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e", on_unsure="keep_until_deadline")
        leadership = await go(election.campaign())
        hf.engine.unavailable(op="renew", times=3)
        await go(hf.clock.advance(6))
        assert (leadership.is_leader, leadership.state) == (True, "UNSURE")
        await go(hf.clock.advance(9))
        assert (leadership.is_leader, leadership.state) == (True, "HELD")
        hf.engine.unavailable()
        await go(hf.clock.advance(9))
        assert leadership.is_leader
        await go(hf.clock.advance(6))
        assert (leadership.is_leader, leadership.state) == (False, "LOST")
        hf.engine.available()

    face.run(scenario)


def test_an_unsure_candidate_goes_on_waiting(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        standing_by(hf, "leader")
        hf.engine.unavailable(op="renew", times=2)
        async with held(await go(hf.election("e").campaign(timeout_s=60))) as leadership:
            assert leadership.is_leader

    face.run(scenario)


# -- to look


def test_a_past_leaders_record_is_never_shown_as_the_present_ones(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        leadership = await go(election.campaign(b"old"))
        await go(leadership.update(b"older"))
        standing_by(hf, "next", b"new")
        hf.lose(leadership)
        leader = await go(election.leader())
        assert (leader.owner, leader.payload, leader.since, leader.age_s) == ("host:next", b"new", None, None)
        assert leader.token > leadership.token
        await go(hf.clock.advance(TTL_S + 1))
        assert await go(election.leader()) is None

    face.run(scenario)


def test_a_record_that_was_rewritten_is_seen_by_who_looks_and_who_observes(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        observed = hf.other().election("e").observe(timeout_s=60)
        async with held(await go(election.campaign(b"starting"))) as leadership:
            assert (await following(observed)).payload == b"starting"
            await go(leadership.update(b"ready"))
            assert leadership.payload == b"ready"
            assert (await go(election.leader())).payload == b"ready"
            assert (await following(observed)).payload == b"ready"
            with pytest.raises(Misuse, match="4096"):
                await go(leadership.update(bytes(4097)))
            assert (await go(election.leader())).payload == b"ready"

    face.run(scenario)


def test_who_was_followed_unawares_cannot_write_and_is_told(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first = await go(hf.election("e").campaign(b"first"))
        assert ask(hf, hf.engine.leave(SEAT, stands(hf)[0], False))  # as if its lease had ended while it was paused
        async with held(await go(hf.other().election("e").campaign(b"second"))):
            with pytest.raises(StaleToken):
                await go(first.update(b"still me"))
            assert (await go(hf.election("e").leader())).payload == b"second"
            with pytest.raises(LeaseLost):
                await go(first.resign())

    face.run(scenario)


def test_an_observer_sees_leaders_come_and_go_and_ends_when_nothing_changes(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        observed = hf.other().election("e").observe(timeout_s=60)
        assert await following(observed) is None
        first = await go(election.campaign(b"a"))
        assert (await following(observed)).payload == b"a"
        standing_by(hf, "b", b"b")
        await go(first.resign())
        assert (await following(observed)).payload == b"b"
        before = hf.clock.now()
        assert await following(observed) is None, "its lease ended, and no signal said so"
        assert hf.clock.now() - before < TTL_S + 1
        before = hf.clock.now()
        assert await following(observed) is False
        assert 60 <= hf.clock.now() - before < 66

    face.run(scenario)


def test_an_observer_outlasts_an_engine_that_is_away_and_sees_what_happened_meanwhile(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        observed = hf.other().election("e").observe()
        standing_by(hf, "a")
        assert (await following(observed)).owner == "host:a"
        ask(hf, hf.engine.leave(SEAT, "a", False))
        standing_by(hf, "b")
        hf.engine.unavailable(op="read", times=30)  # for longer than its patience
        before = hf.clock.now()
        assert (await following(observed)).owner == "host:b"
        assert hf.clock.now() - before > 6

    face.run(scenario, patience_s=2)


def test_an_observer_that_cannot_know_says_so_at_its_end(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        observed = hf.election("e").observe(timeout_s=20)
        assert await following(observed) is None
        hf.engine.unavailable()
        with pytest.raises(Unavailable):
            await following(observed)
        hf.engine.available()

    face.run(scenario)


# -- what happened


def test_each_leader_notes_whom_it_follows_and_why(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election, owner = hf.election("e"), hf.session.owner
        assert await go(election.history()) == []
        async with held(await go(election.campaign())):
            pass
        lost = await go(election.campaign())
        hf.lose(lost)
        await go((await go(election.campaign())).release())
        first, second, third = await go(election.history())
        assert (first.what, first.why, first.by) == (f"{owner} leads", "nobody led before", owner)
        assert (second.what, second.why) == (f"{owner} leads after {owner}", f"{owner} resigned")
        assert (third.what, third.why) == (f"{owner} leads after {owner}", f"{owner} went without a word")
        assert [step.what for step in second.steps] == ["resigned", "admitted", "leads"]
        assert [step.what for step in third.steps] == ["admitted", "leads"]
        assert 0 <= second.took_s < 60

    face.run(scenario)


def test_what_a_leader_notes_is_written_with_its_next_update_or_as_it_resigns(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        leadership = await go(election.campaign(b"p"))
        leadership.note("loaded", state="starting")
        leadership.note("serves", state="ready")
        assert ((await go(election.leader())).state, len((await go(election.history()))[-1].steps)) == ("", 2)
        await go(leadership.update())
        leader = await go(election.leader())
        assert (leader.state, leader.payload) == ("ready", b"p")
        leadership.note(state="busy")
        await go(leadership.update(b"q"))
        leader = await go(election.leader())
        assert (leader.state, leader.payload) == ("busy", b"q")
        leadership.note("drained")
        await go(leadership.resign())
        (change,) = await go(election.history())
        assert [step.what for step in change.steps] == ["admitted", "leads", "loaded", "serves", "drained"]

    face.run(scenario)


def test_what_was_noted_is_written_later_where_an_update_failed(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        async with held(await go(election.campaign(b"p"))) as leadership:
            leadership.note("loaded", state="ready")
            with hf.engine.unavailable(op="put", done=False), pytest.raises(Unavailable):
                await go(leadership.update(b"q"))
            assert leadership.payload == b"p"
            leadership.note("serves")
            await go(leadership.update())
            leader = await go(election.leader())
            assert (leader.state, leader.payload) == ("ready", b"p")
            assert [step.what for step in (await go(election.history()))[-1].steps][2:] == ["loaded", "serves"]

    face.run(scenario)


def test_a_record_stays_small_however_much_is_noted(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        async with held(await go(election.campaign())) as leadership:
            for number in range(1000):
                leadership.note(f"{number} " + "x" * 10_000, state="y" * 10_000)
            await go(leadership.update())
            steps = (await go(election.history()))[-1].steps
            assert 10 < len(steps) < 30
            assert max(len(step.what) for step in steps) == len((await go(election.leader())).state) == 200

    face.run(scenario)


def test_a_leader_knows_whether_the_one_before_resigned(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election, owner = hf.election("e"), hf.session.owner
        first = await go(election.campaign())
        assert first.predecessor is None
        first.note(state="ready")
        await go(first.resign())
        second = await go(election.campaign())
        assert (second.predecessor.owner, second.predecessor.resigned) == (owner, True)
        with pytest.raises(Misuse, match="what resign"):
            second.note(state="resigned")
        second.note(state="ready")
        await go(second.update())
        hf.lose(second)
        async with held(await go(election.campaign())) as third:
            assert (third.predecessor.owner, third.predecessor.resigned) == (owner, False)

    face.run(scenario)


def test_the_last_changes_are_kept(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        for _ in range(chronicle.KEPT + 3):
            await go((await go(election.campaign())).resign())
        changes = await go(election.history())
        assert len(changes) == chronicle.KEPT
        assert changes[0].why != "nobody led before"

    face.run(scenario)


def test_a_leader_resigns_though_it_cannot_say_so(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        election = hf.election("e")
        leadership = await go(election.campaign())
        with hf.engine.unavailable(op="put"):
            await go(leadership.resign())
        assert (leadership.state, stands(hf)) == ("RELEASED", [])
        async with held(await go(election.campaign())):
            assert (await go(election.history()))[-1].why.endswith("went without a word")

    face.run(scenario)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"leader": 1}', b"\xff", b'{"leader":"a","token":[],"since":0}'])
def test_a_record_that_nobody_can_read_is_passed_over(face: Face, value: bytes) -> None:
    async def scenario(hf: Any) -> None:
        fence = Fence(SEAT.address, 1, "before", 1)
        version = ask(hf, hf.engine.open(SEAT.address, fence)).version
        assert ask(hf, hf.engine.put(SEAT.address, fence, version, "op", value, ())).accepted
        election = hf.election("e")
        assert (await go(election.leader()), await go(election.history())) == (None, [])
        async with held(await go(election.campaign(b"p"))):
            assert (await go(election.leader())).payload == b"p"

    face.run(scenario)


def test_a_record_comes_back_as_it_was_written() -> None:
    change = chronicle.Change("b leads after a", "a resigned", "b", (chronicle.Step("admitted", 1.5),))
    record = Record("b", 7, 2.5, 3.5, bytes(range(256)), "resigned", (change,))
    assert Record.load(record.dump()) == record
    assert Record.load(None) is None


# -- wrong uses


def test_what_is_wrong_is_said_when_it_is_asked_for(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        for wrong in ({"on_unsure": "pass"}, {"ttl_s": 0}, {"name": ""}, {"name": "x" * 513}):
            with pytest.raises(Misuse):
                hf.election(**{"name": "e"} | wrong)
        for payload in (bytes(4097), "text"):
            with pytest.raises(Misuse, match="4096"):
                await go(hf.election("e").campaign(payload))
        with pytest.raises(Misuse, match="timeout_s"):
            await go(hf.election("e").campaign(timeout_s=-1))
        assert stands(hf) == []

    face.run(scenario)


def test_an_engine_without_cells_has_no_elections() -> None:
    import dataclasses

    with pytest.raises(Unsupported, match="cells"):
        rules(dataclasses.replace(CAPABILITIES, cells=False), "e", None, "stop")
