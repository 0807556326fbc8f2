"""Partitions: one owner at most, and no more moves than a change asks for. In fake time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faces import Face, go
from ledger import Ledger, is_even, owners_of

from holdfast import Misuse
from holdfast.errors import Unavailable


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest) -> Face:
    return Face(request.param)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    assert made.wrong == []


COUNT = 32


def test_when_members_come_go_and_die_only_their_partitions_move(face: Face, ledger: Ledger) -> None:
    async def scenario(hf: Any) -> None:
        members: list[Any] = []
        owned: dict[int, str] = {}

        async def settled(change: str, of: str) -> None:
            nonlocal owned
            await go(hf.clock.advance(20))
            before, owned = owned, owners_of(members)
            assert is_even(owned, members, COUNT)
            moved = {partition for partition in range(COUNT) if owned[partition] != before.get(partition)}
            assert moved == {p for p in range(COUNT) if (owned if change == "came" else before).get(p) == of}
            assert ledger.moved() == moved, "and nobody is told of any other"

        clients = [hf, *(hf.other() for _ in range(4))]
        for number, client in enumerate(clients):
            members.append(await go(client.partitions("p", COUNT).join(**ledger.callbacks(str(number)))))
            await settled("came", members[-1].member_id)
        gone = members.pop(1)
        gone_id = gone.member_id
        await go(gone.leave())
        await settled("went", gone_id)
        dead = members.pop(2)
        dead_id = dead.member_id
        clients[3].session.forget("it died")
        await settled("died", dead_id)
        for member in members:
            await go(member.leave())
        assert owners_of(members) == {}
        assert not hf.engine.stands

    face.run(scenario)


def test_a_member_that_is_cut_off_stops_before_another_begins_and_comes_back_as_a_new_one(
    face: Face, ledger: Ledger
) -> None:
    async def scenario(hf: Any) -> None:
        other = hf.other()
        first = await go(hf.partitions("p", COUNT).join(**ledger.callbacks("first")))
        second = await go(other.partitions("p", COUNT).join(**ledger.callbacks("second")))
        await go(hf.clock.advance(5))
        before, its_id = set(second.owned), second.member_id
        assert before
        mend = cut(other)
        await go(hf.clock.advance(40))
        assert owners_of([first, second]) == dict.fromkeys(range(COUNT), first.member_id)
        assert [kind for kind, who, _ in ledger.events if who == "second"] == ["+"] * len(before) + ["-"] * len(before)
        mend()
        await go(hf.clock.advance(20))
        assert second.member_id not in ("", its_id)
        assert is_even(owners_of([first, second]), [first, second], COUNT)
        assert ledger.alternates("first")
        assert ledger.alternates("second")

    face.run(scenario)


def cut(client: Any) -> Callable[[], None]:
    """Cut one client off from the engine; gives what mends it."""
    link = client.session.world.link
    link = getattr(link, "_link", link)

    def fails(request: Any, timeout_s: float) -> Any:
        raise Unavailable("cut off")

    deliver = client._engine.inboxes.pop(link.inbox)
    link.call = fails

    def mend() -> None:
        del link.call
        client._engine.inboxes[link.inbox] = deliver
        client.session.look_again()

    return mend


def test_an_engine_that_was_away_for_long_finds_all_partitions_owned_again(face: Face, ledger: Ledger) -> None:
    async def scenario(hf: Any) -> None:
        members = [
            await go(client.partitions("p", COUNT).join(**ledger.callbacks(str(number))))
            for number, client in enumerate([hf, hf.other(), hf.other()])
        ]
        await go(hf.clock.advance(5))
        assert len(owners_of(members)) == COUNT
        hf.engine.unavailable()
        await go(hf.clock.advance(60))
        assert owners_of(members) == {}
        hf.engine.available()
        await go(hf.clock.advance(60))
        assert is_even(owners_of(members), members, COUNT)
        assert all(ledger.alternates(str(number)) for number in range(3))

    face.run(scenario)


def test_a_short_outage_moves_nothing(face: Face, ledger: Ledger) -> None:
    async def scenario(hf: Any) -> None:
        members = [
            await go(client.partitions("p", COUNT).join(**ledger.callbacks(str(number))))
            for number, client in enumerate([hf, hf.other()])
        ]
        await go(hf.clock.advance(5))
        owned = owners_of(members)
        ledger.moved()
        hf.engine.unavailable()
        await go(hf.clock.advance(9))
        hf.engine.available()
        await go(hf.clock.advance(20))
        assert owners_of(members) == owned
        assert not ledger.moved()

    face.run(scenario)


def test_members_who_disagree_on_the_count_are_refused(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first = await go(hf.partitions("p", 8).join())
        with pytest.raises(Misuse, match=r"'p' give the same count: this one gives 9, and \S+ 8$"):
            await go(hf.other().partitions("p", 9).join())
        await go(first.leave())
        async_or_not = await go(hf.other().partitions("p", 9).join())
        await go(hf.clock.advance(1))
        assert set(async_or_not.owned) == set(range(9))

    face.run(scenario)


def test_a_callback_that_raises_costs_nothing_but_a_line_in_the_log(
    face: Face, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*args: Any) -> None:
        raise RuntimeError("the user's own")

    async def scenario(hf: Any) -> None:
        first = await go(hf.partitions("p", 8).join(on_assigned=raises, on_revoked=raises))
        await go(hf.clock.advance(1))
        second = await go(hf.other().partitions("p", 8).join(**ledger.callbacks("second")))
        await go(hf.clock.advance(1))
        assert is_even(owners_of([first, second]), [first, second], 8)
        await go(first.leave())
        await go(hf.clock.advance(1))
        assert set(second.owned) == set(range(8))

    with caplog.at_level(logging.ERROR, "holdfast.partitions"):
        face.run(scenario)
    assert caplog.messages.count("a callback of partitions p raised") == 16


def test_changes_that_nobody_asks_for_pile_up_nowhere(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        share = await go(hf.partitions("p", 32).join())
        for _ in range(3):
            other = await go(hf.other().partitions("p", 32).join())
            await go(hf.clock.advance(1))
            await go(other.leave())
            await go(hf.clock.advance(1))
        assert await go(share.wait_change(timeout_s=0)) is True
        assert await go(share.wait_change(timeout_s=0)) is False

    face.run(scenario)
