"""Partitions: one owner at most, no more moves than a change asks for, and nobody is held up by another's callback."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faces import Face, go
from scripted import World, unavailable

from holdfast import Misuse, aio, sync
from holdfast.core import partitions as core
from holdfast.core.partitions import Share, partition_turnstile, shares
from holdfast.engines.memory import MemoryEngine
from holdfast.errors import Unavailable
from holdfast.model import Claim, Signal
from holdfast.worlds.threads import drive


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest) -> Face:
    return Face(request.param)


class Ledger:
    """Every assignment and revocation of all members, checked as they are told."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner: dict[int, tuple[str, Any]] = {}
        self.tokens: dict[int, int] = defaultdict(int)
        self.events: list[tuple[str, str, int]] = []
        self.wrong: list[str] = []

    def callbacks(self, member: str, while_revoking: Callable[[int], Any] | None = None) -> dict[str, Any]:
        """For ``join``."""

        def assigned(partition: int, lease: Any) -> None:
            with self.lock:
                self.events.append(("+", member, partition))
                who, before = self.owner.get(partition, ("", None))
                if not lease.is_held:  # a client that was closed meanwhile
                    return
                if before is not None and (who == member or before.is_held) and lease.is_held:
                    self.wrong.append(f"{partition} came to {member} while it was {who}'s")
                if lease.token <= self.tokens[partition] and lease.is_held:
                    self.wrong.append(f"{partition} came to {member} under token {lease.token}, not above the last")
                self.owner[partition], self.tokens[partition] = (member, lease), lease.token

        def revoked(partition: int) -> None:
            with self.lock:
                if self.owner.get(partition, ("", None))[0] == member:
                    del self.owner[partition]
                elif ("+", member, partition) not in self.events:
                    self.wrong.append(f"{partition} was taken from {member}, who never had it")
                self.events.append(("-", member, partition))

        async def revoked_after(partition: int) -> None:
            assert while_revoking is not None
            await while_revoking(partition)
            revoked(partition)

        def revoked_after_blocking(partition: int) -> None:
            assert while_revoking is not None
            while_revoking(partition)
            revoked(partition)

        if while_revoking is not None:
            is_async = asyncio.iscoroutinefunction(while_revoking)
            return {"on_assigned": assigned, "on_revoked": revoked_after if is_async else revoked_after_blocking}
        return {"on_assigned": assigned, "on_revoked": revoked}

    def moved(self) -> set[int]:
        """The partitions that anybody was told of since this was last asked."""
        moved = {partition for _, _, partition in self.events}
        self.events.clear()
        return moved

    def alternates(self, member: str) -> bool:
        """Whether each partition of the member was assigned and revoked in turns."""
        kinds: dict[int, str] = defaultdict(str)
        for kind, who, partition in self.events:
            if who == member:
                kinds[partition] += kind
        return not any("++" in told or "--" in told or told.startswith("-") for told in kinds.values())


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    assert made.wrong == []


def owners_of(members: list[Any]) -> dict[int, str]:
    """Who owns what, as the members see it."""
    owned = [(partition, member.member_id) for member in members for partition in member.owned]
    assert len(owned) == len(dict(owned)), f"owned twice: {owned}"
    return dict(owned)


async def until(condition: Callable[[], object], what: Callable[[], Any] = lambda: "it never came true") -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at, what()
        await asyncio.sleep(0.005)


def moving(first: Any, second: Any, count: int) -> set[int]:
    """What the second member takes from the first one."""
    owner_of = shares([first.member_id, second.member_id], count)
    return {partition for partition, owner in owner_of.items() if owner == second.member_id}


# -- moves; in fake time


COUNT = 32


def test_when_members_come_go_and_die_only_their_partitions_move(face: Face, ledger: Ledger) -> None:
    async def scenario(hf: Any) -> None:
        members: list[Any] = []
        owned: dict[int, str] = {}

        async def settled(change: str, of: str) -> None:
            nonlocal owned
            await go(hf.clock.advance(20))
            before, owned = owned, owners_of(members)
            assert owned == shares([member.member_id for member in members], COUNT)
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
        assert owners_of([first, second]) == shares([first.member_id, second.member_id], COUNT)
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
        assert owners_of(members) == shares([member.member_id for member in members], COUNT)
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
        with pytest.raises(Misuse, match=r"all members of partitions 'p' give the same count: .*capacity 8"):
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
        assert owners_of([first, second]) == shares([first.member_id, second.member_id], 8)
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


# -- callbacks that take long; in real time


class Gate:
    """A callback that does not return before it may."""

    def __init__(self, face: Face, *blocked: int) -> None:
        self.blocked = set(blocked)
        self.inside: list[int] = []
        self.most = 0
        self._lock = threading.Lock()
        self.callback: Any = self._blocks if face.name == "sync" else self._awaits

    def _enters(self, partition: int) -> None:
        with self._lock:
            self.inside.append(partition)
            self.most = max(self.most, len(self.inside))

    def _blocks(self, partition: int, lease: Any = None) -> None:
        self._enters(partition)
        while partition in self.blocked:
            time.sleep(0.002)
        self.inside.remove(partition)

    async def _awaits(self, partition: int, lease: Any = None) -> None:
        self._enters(partition)
        await until(lambda: partition not in self.blocked)
        self.inside.remove(partition)


class Clients:
    """Several on one memory engine, in real time."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.engine = MemoryEngine()
        self.made: list[Any] = []

    def new(self) -> Any:
        self.made.append(sync.Client(self.engine) if self.face.name == "sync" else aio.Client(self.engine))
        return self.made[-1]

    def claims(self, partition: int, client: Any = None) -> list[str]:
        """The claims on a partition, all or one client's."""
        with self.engine.lock:
            stand = self.engine.stands.get(partition_turnstile("p", partition).address)
            found = [*stand.places] if stand is not None else []
        return [id for id in found if client is None or id.startswith(client.session.world.inbox)]

    async def in_background(self, call: Callable[[], Any]) -> asyncio.Task[Any]:
        if self.face.name == "sync":
            return asyncio.create_task(asyncio.to_thread(call))
        return asyncio.create_task(call())

    def run(self, scenario: Callable[[Clients], Any]) -> None:
        async def main() -> None:
            try:
                await scenario(self)
            finally:
                for client in self.made:
                    await go(client.close() if self.face.name == "sync" else client.aclose())

        asyncio.run(main())


@pytest.fixture
def clients(face: Face) -> Clients:
    return Clients(face)


def test_an_on_revoked_that_takes_long_holds_up_no_other_partition(clients: Clients, ledger: Ledger) -> None:
    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        gate = Gate(clients.face, *range(COUNT))
        first = await go(hf.partitions("p", COUNT).join(**ledger.callbacks("first", gate.callback)))
        await until(lambda: len(first.owned) == COUNT)
        second = await go(other.partitions("p", COUNT).join(**ledger.callbacks("second")))
        its = moving(first, second, COUNT)
        await until(lambda: set(gate.inside) == its)
        assert not second.owned, "it is handed over when on_revoked returns"
        assert set(first.owned) == set(range(COUNT))
        slow = min(its)
        gate.blocked = {slow}
        await until(lambda: set(second.owned) == its - {slow})
        assert slow in first.owned
        assert first.owned[slow].is_held
        gate.blocked.clear()
        await until(lambda: set(second.owned) == its)
        assert slow not in first.owned

    clients.run(scenario)


def test_a_partition_that_is_wanted_again_while_it_leaves_goes_and_comes_back(clients: Clients, ledger: Ledger) -> None:
    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        gate = Gate(clients.face, *range(8))
        first = await go(hf.partitions("p", 8).join(**ledger.callbacks("first", gate.callback)))
        await until(lambda: len(first.owned) == 8)
        second = await go(other.partitions("p", 8).join())
        leaving, tokens = moving(first, second, 8), {p: lease.token for p, lease in first.owned.items()}
        await until(lambda: set(gate.inside) == leaving)
        await until(lambda: all(clients.claims(p, other) for p in leaving))
        await go(second.leave())
        await until(lambda: not any(clients.claims(p, other) for p in leaving))
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert all(len(clients.claims(p)) == 1 for p in range(8)), "nothing enters while it is on its way out"
        assert set(gate.inside) == leaving
        gate.blocked.clear()
        await until(lambda: {p for p, lease in first.owned.items() if lease.token > tokens[p]} == leaving)
        assert set(first.owned) == set(range(8))
        assert ledger.alternates("first")

    clients.run(scenario)


def test_a_lost_partition_is_not_entered_again_before_its_callback_returned(clients: Clients, ledger: Ledger) -> None:
    async def scenario(clients: Clients) -> None:
        hf = clients.new()
        gate = Gate(clients.face, *range(4))
        share = await go(hf.partitions("p", 4).join(**ledger.callbacks("first", gate.callback)))
        await until(lambda: len(share.owned) == 4)
        before = dict(share.owned)
        lost = before[2]
        take_away(clients.engine, lost)
        await until(lambda: gate.inside == [2])
        assert lost.state == "LOST"
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert clients.claims(2) == []
        take_away(clients.engine, before[3])  # nor does one hold up another
        await until(lambda: sorted(gate.inside) == [2, 3])
        gate.blocked.clear()
        await until(lambda: all(share.owned.get(p, lost).token > before[p].token for p in (2, 3)))
        assert [p for p in range(4) if share.owned[p] is before[p]] == [0, 1]
        assert ledger.alternates("first")

    clients.run(scenario)


def test_a_partition_that_is_lost_while_it_is_handed_over_is_revoked_once(clients: Clients, ledger: Ledger) -> None:
    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        gate = Gate(clients.face, *range(8))
        first = await go(hf.partitions("p", 8).join(**ledger.callbacks("first", gate.callback)))
        await until(lambda: len(first.owned) == 8)
        second = await go(other.partitions("p", 8).join(**ledger.callbacks("second")))
        leaving = moving(first, second, 8)
        await until(lambda: set(gate.inside) == leaving)
        for partition in leaving:
            take_away(clients.engine, first.owned[partition])
        await until(lambda: set(second.owned) == leaving)  # the engine has it so: the first one's lease is over
        gate.blocked.clear()
        await until(lambda: set(first.owned) == set(range(8)) - leaving)
        assert ledger.alternates("first")

    clients.run(scenario)


def take_away(engine: MemoryEngine, lease: Any) -> None:
    """Its holder hears that it is over, and so it is at the engine."""
    session, tenure = lease._session, lease._tenure
    session.lose(tenure, "taken away")
    engine.blocking_link().call(engine.leave(tenure.turnstile, tenure.claim.id, True), 1.0)


def test_a_leaving_member_that_takes_long_holds_up_no_other_partition_and_others_to_its_count(
    clients: Clients, ledger: Ledger
) -> None:
    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        gate = Gate(clients.face, 5)
        first = await go(hf.partitions("p", 8).join(**ledger.callbacks("first", gate.callback)))
        await until(lambda: len(first.owned) == 8)
        leaving = await clients.in_background(first.leave)
        await until(lambda: gate.inside == [5])
        await until(lambda: set(first.owned) == {5})
        assert await go(other.partitions("p", 8).members()) == []
        with pytest.raises(Misuse, match="same count"):
            await go(other.partitions("p", 9).join())
        second = await go(other.partitions("p", 8).join(**ledger.callbacks("second")))
        await until(lambda: set(second.owned) == set(range(8)) - {5})
        assert not leaving.done()
        gate.blocked.clear()
        await leaving
        await until(lambda: set(second.owned) == set(range(8)))
        await go(second.leave())
        assert not clients.engine.stands

    clients.run(scenario)


@pytest.mark.parametrize("callback", ["on_assigned", "on_revoked"])
def test_closing_ends_a_leave_that_a_callback_keeps_from_ending(clients: Clients, callback: str) -> None:
    async def scenario(clients: Clients) -> None:
        hf = clients.new()
        gate = Gate(clients.face, 0)
        share = await go(hf.partitions("p", 1).join(**{callback: gate.callback}))
        await until(lambda: len(share.owned) == 1)
        leaving = await clients.in_background(share.leave)
        await until(lambda: gate.inside == [0])
        await go(hf.close() if clients.face.name == "sync" else hf.aclose())
        await asyncio.wait_for(leaving, 20)
        assert not clients.engine.stands
        gate.blocked.clear()

    clients.run(scenario)


def test_a_bounded_number_is_handed_over_at_once(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "AT_ONCE", 3)

    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        gate = Gate(clients.face, *range(COUNT))
        first = await go(hf.partitions("p", COUNT).join(on_revoked=gate.callback))
        await until(lambda: len(first.owned) == COUNT)
        second = await go(other.partitions("p", COUNT).join())
        await until(lambda: len(gate.inside) == 3)
        gate.blocked.clear()
        await until(lambda: owners_of([first, second]) == shares([first.member_id, second.member_id], COUNT))
        await go(first.leave())
        await until(lambda: len(second.owned) == COUNT)
        assert gate.most == 3

    clients.run(scenario)


# -- anything at once; in real time


def test_no_two_members_own_one_at_once_whoever_comes_and_goes_in_threads(ledger: Ledger) -> None:
    engine = MemoryEngine()
    trouble: list[BaseException] = []

    def member(number: int) -> None:
        chance = random.Random(number)

        def pauses(partition: int) -> None:
            time.sleep(chance.uniform(0, 0.01))

        try:
            with sync.Client(engine) as hf:
                for turn in range(8):
                    share = hf.partitions("p", 16, ttl_s=5.0).join(**ledger.callbacks(f"{number}.{turn}", pauses))
                    time.sleep(chance.uniform(0, 0.1))
                    if chance.random() < 0.2:
                        return  # without a leave
                    share.leave()
                    assert share.owned == {}
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=member, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive()
    assert trouble == []
    assert len(ledger.events) > 50
    with sync.Client(engine) as hf, hf.partitions("p", 16).join() as last:
        give_up_at = time.monotonic() + 30
        while len(last.owned) < 16:
            assert time.monotonic() < give_up_at
            time.sleep(0.005)


def test_no_two_members_own_one_at_once_whoever_comes_and_goes_as_tasks(ledger: Ledger) -> None:
    engine = MemoryEngine()

    async def member(number: int) -> None:
        chance = random.Random(number)

        async def pauses(partition: int) -> None:
            await asyncio.sleep(chance.uniform(0, 0.01))

        async with aio.Client(engine) as hf:
            for turn in range(8):
                share = await hf.partitions("p", 16, ttl_s=5.0).join(**ledger.callbacks(f"{number}.{turn}", pauses))
                await asyncio.sleep(chance.uniform(0, 0.1))
                if chance.random() < 0.2:
                    return  # without a leave
                await share.leave()
                assert share.owned == {}

    async def main() -> None:
        await asyncio.gather(*(member(number) for number in range(8)))
        assert len(ledger.events) > 50
        async with aio.Client(engine) as hf:
            last = await hf.partitions("p", 16).join()
            await until(lambda: len(last.owned) == 16)

    asyncio.run(main())


# -- the protocol alone


class Alone:
    """The protocol of one member of one partition, which another holds at first."""

    def __init__(self) -> None:
        self.world = World()
        self.guard = partition_turnstile("p", 0)
        self.assigned: list[Any] = []
        turnstile = core.member_turnstile(self.world.engine.capabilities, "p", 1, 15.0)
        self.share = Share[Any](
            self.world.session, turnstile, 15.0, b"", lambda tenure: tenure, self._assigned, self._revoked
        )
        self.world.ask(self.world.engine.enter(self.guard, Claim("other", 1, 600.0), False))

    def _assigned(self, partition: int, tenure: Any) -> None:
        assert not tenure.ended
        self.assigned.append(tenure)

    def _revoked(self, partition: int) -> None:
        raise AssertionError("nothing is lost or handed over before the end")

    def holder_goes(self) -> None:
        self.world.ask(self.world.engine.leave(self.guard, "other", False))

    def run(self, seconds: float) -> None:
        """Its background part, for so long; it ends owning the partition."""
        self.world.at(seconds, self._end)
        drive(self.share.start())
        self.world._background.pop().close()
        drive(self.share._run())
        assert not self.world.engine.stands
        self.world.close()

    def _end(self) -> None:
        assert set(self.share.owned) == {0}
        self.share._on_revoked = None
        self.share._stopping = True
        self.share._mailbox.post(Signal("nudge"))


def test_a_renewal_that_fails_in_the_middle_does_not_end_the_share() -> None:
    """It is admitted with little of its lease left, and cannot be renewed for a while."""
    alone = Alone()
    world = alone.world
    world.at(11.0, lambda: world.answers.update(renew=[unavailable] * 40))
    world.at(11.0, alone.holder_goes)
    world.at(17.0, world.answers.clear)
    world.renewer_at(*range(17, 60))
    alone.run(60.0)
    assert "renew" in world.ops()
    assert len(alone.assigned) == 1


def test_what_is_gone_as_soon_as_it_came_is_not_assigned_but_entered_again() -> None:
    """Evicted, and the renewer hears of it before the share hears that it was admitted."""
    alone = Alone()
    world = alone.world

    def evicted() -> None:
        alone.holder_goes()
        ((_, tenure),) = alone.share._entering.values()
        world.ask(world.engine.leave(alone.guard, tenure.claim.id, True))
        world.session.lose(tenure, "evicted")

    world.at(1.0, evicted)
    world.renewer_at(*range(5, 20, 5))
    alone.run(20.0)
    assert len(alone.assigned) == 1


def test_shares_are_as_even_as_the_ring_makes_them() -> None:
    """64 partitions of 4 members, 200 times: the largest share is 1.3 times the mean on average, never twice."""
    chance = random.Random(1)
    largest = []
    for _ in range(200):
        members = [f"{chance.getrandbits(48):012x}.1" for _ in range(4)]
        count = Counter(shares(members, 64).values())
        largest.append(max(count.values()) / 16)
    assert sum(largest) / len(largest) < 1.4
    assert max(largest) < 2


def test_shares_move_only_to_who_comes_and_from_who_goes() -> None:
    members = [f"member {number}" for number in range(6)]
    before, after = shares(members[:5], 256), shares(members, 256)
    moved = {partition for partition in before if before[partition] != after[partition]}
    assert {after[partition] for partition in moved} == {members[5]}
    assert 10 < len(moved) < 90
