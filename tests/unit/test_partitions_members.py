"""Members of partitions: names, graces, weights, checkpoints, what is streamed and recorded. In fake time."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from faces import Face, go
from ledger import Ledger

from holdfast import LeaseLost, Misuse, StaleToken

COUNT = 30


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest) -> Face:
    return Face(request.param)


async def joined(hf: Any, count: int = COUNT, **options: Any) -> Any:
    share = await go(hf.partitions("p", count).join(**options))
    await go(hf.clock.advance(5))
    return share


def test_a_weight_is_a_share(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        one = await joined(hf)
        two = await joined(hf.other(), weight=2)
        assert (len(one.owned), len(two.owned)) == (10, 20)

    face.run(scenario)


def test_a_member_that_comes_back_within_its_grace_finds_its_partitions_unmoved(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        ledger = Ledger()
        stays = await joined(hf, **ledger.callbacks("stays"))
        goes = await joined(hf.other(), name="w", grace_s=60)
        its = set(goes.owned)
        await go(goes.leave())
        await go(hf.clock.advance(30))
        ledger.moved()
        assert not its & set(stays.owned)
        back = await joined(hf.other(), name="w", grace_s=60)
        assert set(back.owned) == its
        assert ledger.moved() == set()

    face.run(scenario)


def test_who_stays_away_for_longer_than_its_grace_loses_its_partitions(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        stays = await joined(hf)
        dies = hf.other()
        await joined(dies, name="w", grace_s=60)
        dies.session.forget("it died")
        await go(hf.clock.advance(50))
        assert len(stays.owned) == COUNT // 2
        await go(hf.clock.advance(40))
        assert len(stays.owned) == COUNT
        last = (await go(hf.partitions("p", COUNT).assignment())).history[-1]
        assert re.fullmatch(r"w \(\S+\) stayed away", last.why)

    face.run(scenario)


def test_rebalance_waits_no_longer_for_who_is_away(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        stays = await joined(hf)
        goes = await joined(hf.other(), name="w", grace_s=3600)
        await go(goes.leave())
        await go(hf.clock.advance(100))
        assert len(stays.owned) == COUNT // 2
        made = await go(hf.other().partitions("p", COUNT).rebalance())
        assert made.by_name() == {stays.member_id: list(range(COUNT))}
        await go(hf.clock.advance(5))
        assert len(stays.owned) == COUNT

    face.run(scenario)


def test_two_live_members_with_one_name_are_refused_and_who_it_is_is_said(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        ledger = Ledger()
        first = await joined(hf, name="w", **ledger.callbacks("first"))
        ledger.moved()
        with pytest.raises(Misuse, match=r"'p' have a live member 'w' already: .*give each a name of its own"):
            await go(hf.other().partitions("p", COUNT).join(name="w"))
        await go(hf.clock.advance(5))
        assert set(first.owned) == set(range(COUNT))
        assert ledger.moved() == set(), "nor does the second take anything while it is being refused"
        assert [member.name for member in await go(hf.partitions("p", COUNT).members())] == ["w"]

    face.run(scenario)


def test_a_senior_member_that_does_nothing_is_stepped_in_for(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        senior = await joined(hf)
        senior._share._assigner.act_at = lambda member_id: math.inf
        junior = await joined(hf.other())
        assert (len(senior.owned), len(junior.owned)) == (COUNT // 2, COUNT // 2)

    face.run(scenario)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": 0}, "weight is a whole number from 1"),
        ({"weight": 1.5}, "weight is a whole number from 1"),
        ({"grace_s": 5}, "give it the same name="),
        ({"grace_s": -1, "name": "w"}, "grace_s is 0 seconds or more"),
        ({"name": ""}, "member's name has 1 to 512 bytes"),
        ({"revoke_timeout_s": 0}, "revoke_timeout_s is above 0"),
        ({"payload": b"x" * 5000}, "payload is at most 4096 bytes"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_joined(
    face: Face, options: dict[str, Any], says: str
) -> None:
    async def scenario(hf: Any) -> None:
        with pytest.raises(Misuse, match=says):
            await go(hf.partitions("p", COUNT).join(**options))
        assert not hf.engine.stands

    face.run(scenario)


def test_a_member_is_seen_with_all_that_it_said_of_itself(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        share = await joined(hf, payload=b"\x00 at 10.0.0.1", name="w", weight=3, zone="eu")
        (member,) = await go(hf.partitions("p", COUNT).members())
        assert member.id == share.member_id
        assert member[2:] == (b"\x00 at 10.0.0.1", member.token, "w", 3, "eu")

    face.run(scenario)


# -- checkpoints


def test_a_checkpoint_is_found_by_the_next_owner_and_refused_to_the_last(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first = await joined(hf)
        lease = first.owned[7]
        assert lease.partition == 7
        assert await go(lease.load()) is None
        await go(lease.save(b"41"))
        await go(lease.save(b"42"))
        await go(first.leave())
        second = await joined(hf.other())
        assert await go(second.owned[7].load()) == b"42"
        with pytest.raises(StaleToken):
            await go(lease.save(b"43"))
        assert await go(second.owned[7].load()) == b"42"
        assert (await go(hf.cell("partition:p/7").read())).value == b"42"

    face.run(scenario)


def test_who_lost_its_partition_before_it_ever_looked_cannot_open_it(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        cut = hf.other()
        lease = (await joined(cut)).owned[0]
        cut.session.forget("it was paused")
        await go(hf.clock.advance(60))
        second = await joined(hf)
        await go(second.owned[0].save(b"1"))
        with pytest.raises(LeaseLost):
            await go(lease.save(b"0"))
        assert await go(second.owned[0].load()) == b"1"

    face.run(scenario)


# -- the stream


def test_events_begin_with_what_is_ours_and_a_hand_over_waits_for_the_next_to_be_asked_for(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first = await joined(hf, count=4)

        async def read() -> Any:
            events = first.events(timeout_s=0.0)
            event = next(events, None) if face.name == "sync" else await anext(events, None)
            await go(hf.clock.advance(1))
            return event

        assert await read() is None, "it began just now"
        got = [await read() for _ in range(4)]
        assert [(event.kind, event.partition) for event in got] == [("ASSIGNED", n) for n in range(4)]
        assert await read() is None
        second = await joined(hf.other(), count=4)
        assert len(second.owned) == 0
        revoked = await read()
        assert (revoked.kind, revoked.partition, revoked.lease.is_held) == ("REVOKED", 2, True)
        assert len(second.owned) == 0, "nothing goes before the consumer has let go of it"
        assert (await read()).partition == 3
        assert set(second.owned) == {2}
        await read()
        assert set(second.owned) == {2, 3}

    face.run(scenario)


def test_a_share_has_callbacks_or_a_stream(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        share = await joined(hf, on_revoked=lambda partition: None)
        events = share.events()
        with pytest.raises(Misuse, match="callbacks or events"):
            await go(next(events) if face.name == "sync" else anext(events))

    face.run(scenario)


# -- the record


def test_each_change_says_what_was_noticed_who_acted_and_when_all_had_arrived(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        await joined(hf)
        dies = hf.other()
        await joined(dies, name="w")
        dies.session.forget("it died")
        await go(hf.clock.advance(60))
        came, left = (await go(hf.partitions("p", COUNT).assignment())).history[-2:]
        assert came.what == "assignment 2: 15 of 30 partitions move"
        assert re.fullmatch(r"w \(\S+\) came", came.why)
        assert left.what == "assignment 3: 15 of 30 partitions move"
        assert re.fullmatch(r"w \(\S+\) was lost: its lease ended", left.why)
        assert [step.what for step in left.steps] == ["noticed", "assigned", "every partition is with its owner"]

    face.run(scenario)
