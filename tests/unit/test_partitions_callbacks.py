"""Callbacks of partitions that take long hold up nobody; what is on its way out is nowhere else. In real time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faces import Face, go
from ledger import Ledger, is_even, moving, owners_of, until
from lives import ended
from scripted import World, unavailable

from holdfast import LeaseLost, Misuse, StaleToken, aio, sync
from holdfast.core import handover
from holdfast.core import partitions as core
from holdfast.core.assigner import Seat, partition_turnstile
from holdfast.core.partitions import Share
from holdfast.engines.memory import MemoryEngine
from holdfast.model import Claim, Signal
from holdfast.worlds.threads import drive

COUNT = 32


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest) -> Face:
    return Face(request.param)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    assert made.wrong == []


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
    session.renewer.lose(tenure, "taken away")
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
    monkeypatch.setattr(handover, "AT_ONCE", 3)

    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        gate = Gate(clients.face, *range(COUNT))
        first = await go(hf.partitions("p", COUNT).join(on_revoked=gate.callback))
        await until(lambda: len(first.owned) == COUNT)
        second = await go(other.partitions("p", COUNT).join())
        await until(lambda: len(gate.inside) == 3)
        gate.blocked.clear()
        await until(lambda: is_even(owners_of([first, second]), [first, second], COUNT))
        await go(first.leave())
        await until(lambda: len(second.owned) == COUNT)
        assert gate.most == 3

    clients.run(scenario)


def test_the_name_of_a_member_that_died_is_waited_for(clients: Clients) -> None:
    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        died = await go(hf.partitions("p", 4, ttl_s=0.5).join(name="w"))
        await until(lambda: len(died.owned) == 4)
        hf.session.forget("it died")
        again = await go(other.partitions("p", 4, ttl_s=0.5).join(name="w"))
        await until(lambda: len(again.owned) == 4)
        assert [member.name for member in await go(other.partitions("p", 4).members())] == ["w"]

    clients.run(scenario)


@pytest.mark.parametrize("callback", ["on_assigned", "on_revoked"])
def test_a_callback_that_never_returns_keeps_its_partition_for_a_bounded_time(
    clients: Clients, callback: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(clients: Clients) -> None:
        hf, other = clients.new(), clients.new()
        gate = Gate(clients.face, 3)
        first = await go(hf.partitions("p", 4).join(revoke_timeout_s=0.3, **{callback: gate.callback}))
        await until(lambda: len(first.owned) == 4)
        lease = first.owned[3]
        second = await go(other.partitions("p", 4).join())
        await until(lambda: set(second.owned) == {2, 3})
        assert gate.inside == [3]
        with pytest.raises((LeaseLost, StaleToken)):
            await go(lease.save(b"late"))
        gate.blocked.clear()
        await until(lambda: gate.inside == [])
        await go(second.leave())
        await until(lambda: len(first.owned) == 4)

    with caplog.at_level("ERROR", "holdfast.partitions"):
        clients.run(scenario)
    assert "partition 3 of p goes on without its user, who has not let go of it for 0.3 s" in caplog.messages


# -- the protocol alone


class Alone:
    """The protocol of one member of one partition, which another holds at first."""

    def __init__(self) -> None:
        self.world = World()
        self.guard = partition_turnstile("p", 0)
        self.assigned: list[Any] = []
        turnstile = core.member_turnstile(self.world.engine.capabilities, "p", 1, 15.0)
        self.share = Share[Any](
            self.world.session,
            turnstile,
            15.0,
            Seat("", 1, "", 0.0, b""),
            lambda partition, tenure: tenure,
            self._assigned,
            self._revoked,
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
        self.world.spawn = lambda protocol, name: drive(protocol)  # type: ignore[method-assign]
        drive(self.share._run())
        assert not self.world.engine.stands
        ended(self.world.events)
        self.world.close()

    def _end(self) -> None:
        assert set(self.share.owned) == {0}
        self.share._users._on_revoked = None
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
        world.session.renewer.lose(tenure, "evicted")

    world.at(1.0, evicted)
    world.renewer_at(*range(5, 20, 5))
    alone.run(20.0)
    assert len(alone.assigned) == 1
