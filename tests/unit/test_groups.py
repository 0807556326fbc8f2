"""Who comes, falls silent, is back, leaves or is gone, and a view of it for routers. Both faces, fake time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import scripted
from faces import Face, go, held

from holdfast import HoldfastError, Misuse, Unavailable, testing
from holdfast.core import group as groups
from holdfast.core.roster import Member
from holdfast.engines.memory import CAPABILITIES
from holdfast.model import UNBOUNDED, Claim, Turnstile
from holdfast.worlds.threads import drive

GROUP = Turnstile("group", "g", UNBOUNDED, announces=True)
TTL_S = 15


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Face:
    monkeypatch.setattr("holdfast.testing.tasks.REAL_S", 0.0)  # here a wait of the test's own is meant to end
    return Face(request.param)


async def following(stream: Any) -> Any:
    """What comes next; None once it has ended."""
    return next(stream, None) if isinstance(stream, Iterator) else await anext(stream, None)


async def told(stream: Any) -> tuple[str, bytes]:
    event = await following(stream)
    return event.kind, event.member.payload


def cut_off(hf: Any) -> None:
    """This client renews nothing any more, as one whose process was stopped."""

    async def fail(requests: Any, timeout_s: float) -> list[Exception]:
        return [Unavailable("cut off")] * len(requests)

    hf.session.world.call_many = fail


def mend(hf: Any) -> None:
    del hf.session.world.call_many


def ask(hf: Any, request: Any) -> Any:
    return hf.engine.blocking_link().call(request, 1.0)


# -- events


def test_each_member_comes_falls_silent_is_heard_of_again_and_goes(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first, second = hf.other(), hf.other()
        early = await go(first.group("g").join(b"early"))
        events = hf.group("g").events()
        assert await told(events) == ("JOINED", b"early")
        late = await go(second.group("g").join(b"late"))
        assert await told(events) == ("JOINED", b"late")
        cut_off(first)
        assert await told(events) == ("SUSPECT", b"early")
        mend(first)
        assert await told(events) == ("ALIVE", b"early")
        assert early.is_held
        assert await go(late.release()) is None
        assert await told(events) == ("LEFT", b"late")
        cut_off(first)
        assert await told(events) == ("SUSPECT", b"early")
        silent_since = hf.clock.now()
        assert await told(events) == ("GONE", b"early")
        assert hf.clock.now() - silent_since < TTL_S / 2 + 0.1
        assert not early.is_held

    face.run(scenario)


def test_of_an_evicted_member_it_is_said_that_it_left_and_of_the_next_that_it_joined(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        member = await go(hf.other().group("g").join(b"m"))
        events = hf.group("g").events()
        assert (await following(events)).kind == "JOINED"
        member.lose()
        assert (await following(events)).kind == "LEFT"
        kept = await go(hf.other().group("g").join(b"m"))
        again = await following(events)
        assert (again.kind, again.member.token) == ("JOINED", kept.token)

    face.run(scenario)


def test_events_end_once_nothing_happened_for_as_long_as_was_asked(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        assert await following(hf.group("g").events(timeout_s=60)) is None
        lease = await go(hf.group("g").join())
        events = hf.group("g").events(timeout_s=60)
        assert (await following(events)).kind == "JOINED"
        began = hf.clock.now()
        assert await following(events) is None
        assert 60 <= hf.clock.now() - began < 61
        await go(lease.release())
        assert not hf.session.watchers, "nothing is left of it"

    face.run(scenario)


def test_a_lower_threshold_suspects_sooner(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        at: list[float] = []
        for threshold in (3, 8, 20):
            other = hf.other()
            member = await go(other.group("g").join())
            events = hf.group("g").events(threshold=threshold)
            assert (await following(events)).kind == "JOINED"
            await go(hf.clock.advance(100))
            await following(hf.group("g").watch(timeout_s=0))
            cut_off(other)
            began = hf.clock.now()
            assert (await following(events)).kind == "SUSPECT"
            at.append(hf.clock.now() - began)
            member.lose()
        assert at == sorted(at)
        assert at[0] < at[1] - 0.5 < at[2] - 1

    face.run(scenario)


@pytest.mark.parametrize("wrong", [0, 1000, "8", None])
def test_a_threshold_that_is_none_is_refused_when_it_is_given(face: Face, wrong: Any) -> None:
    async def scenario(hf: Any) -> None:
        with pytest.raises(Misuse, match="threshold"):
            hf.group("g").events(threshold=wrong)
        with pytest.raises(Misuse, match="threshold"):
            await go(hf.group("g").health(threshold=wrong))

    face.run(scenario)


def test_events_taken_together_are_what_stands(face: Face) -> None:
    rng = random.Random(6)

    async def scenario(hf: Any) -> None:
        events, present, leases = hf.group("g").events(timeout_s=0), dict[str, Member](), list[Any]()
        others = [hf.other() for _ in range(4)]
        for _ in range(60):
            for _ in range(rng.randrange(4)):
                if leases and rng.random() < 0.5:
                    leases.pop(rng.randrange(len(leases))).lose()
                else:
                    leases.append(await go(rng.choice(others).group("g").join(rng.randbytes(4))))
            await go(hf.clock.advance(rng.random() * 20))
            events = hf.group("g").events(timeout_s=0) if rng.random() < 0.1 else events
            while (event := await following(events)) is not None:
                if event.kind in ("LEFT", "GONE"):
                    del present[event.member.id]
                else:
                    present[event.member.id] = event.member
            members = await go(hf.group("g").members())
            assert present.keys() == {member.id for member in members}
            present.clear()
            events = hf.group("g").events(timeout_s=0)
        assert leases

    face.run(scenario)


def test_where_leases_hang_on_sessions_nobody_is_suspect(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(hf: Any) -> None:
        other = hf.other()
        kept = await go(other.group("g").join())
        monkeypatch.setattr(hf.session.engine, "capabilities", dataclasses.replace(CAPABILITIES, ttl_s=float(TTL_S)))
        events = hf.group("g").events()
        assert (await following(events)).kind == "JOINED"
        cut_off(other)
        assert (await following(events)).kind == "GONE"
        del kept

    face.run(scenario)


# -- health


def test_a_router_reads_who_is_well_from_a_view_that_keeps_itself_up_to_date(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        group, others = hf.group("g"), [hf.other() for _ in range(3)]
        leases = [await go(other.group("g").join(bytes([place]))) for place, other in enumerate(others)]
        async with held(await go(group.health())) as health:
            a, b, c = health.alive()
            assert [one.payload for one in (a, b, c)] == [b"\0", b"\1", b"\2"]
            await go(hf.clock.advance(60))
            assert health.alive() == (a, b, c)
            assert health.age_s < 3
            cut_off(others[1])
            await go(hf.clock.advance(11))
            assert (health.alive(), health.suspects()) == ((a, c), (b,))
            assert [health.state_of(one) for one in (a, b.id, c, "nobody")] == ["ALIVE", "SUSPECT", "ALIVE", "GONE"]
            assert health.phi(b) >= 8 > 1 > health.phi(a.id)
            assert repr(health) == "<Health group:g: 2 alive, 1 suspect>"
            mend(others[1])
            await go(hf.clock.advance(4))
            assert health.alive() == (a, b, c)
            await go(leases[0].release())
            await go(hf.clock.advance(0.1))
            assert (health.alive(), health.state_of(a)) == ((b, c), "GONE")
        await go(leases[1].release())
        await go(hf.clock.advance(100))
        assert health.alive() == (b, c), "what was seen last stays when it is closed"
        assert health.age_s > 99
        assert not hf.session.watchers

    face.run(scenario)


def test_a_look_costs_one_request_six_times_in_the_shortest_lease_whatever_the_number_of_members(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        leases = [await go(hf.group("g").join()) for _ in range(20)]
        looks: list[float] = []
        look = hf.engine.look
        hf.engine.look = lambda turnstile: looks.append(hf.clock.now()) or look(turnstile)
        async with held(await go(hf.group("g").health())):
            await go(hf.clock.advance(150))
            assert 50 <= len(looks) <= 75
        assert all(lease.is_held for lease in leases)

    face.run(scenario)


def test_health_outlives_an_outage_in_which_it_suspects_nobody_anew(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        other = hf.other()
        lease = await go(other.group("g").join(ttl_s=60))
        async with held(await go(hf.group("g").health())) as health:
            await go(hf.clock.advance(100))
            (member,) = health.alive()
            with hf.engine.unavailable():
                await go(hf.clock.advance(35))
                assert (health.alive(), health.age_s > 29) == ((member,), True)
            await go(hf.clock.advance(10))
            assert (health.alive(), health.age_s < 10, lease.is_held) == ((member,), True, True)

    face.run(scenario)


def test_without_an_engine_there_is_no_view_to_begin_with(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        with hf.engine.unavailable(), pytest.raises(Unavailable):
            await go(hf.group("g").health())
        assert not hf.session.watchers

    face.run(scenario, patience_s=2)


def test_in_a_fork_the_parents_view_is_refused(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(await go(hf.group("g").health())) as health:
            hf.session.forgotten = "this process is a fork of the one that held it"
            for read in (health.alive, health.suspects, lambda: health.phi("x"), lambda: health.state_of("x")):
                with pytest.raises(Misuse, match="open one in this process"):
                    read()
            hf.session.forgotten = ""

    face.run(scenario)


def test_what_is_kept_in_the_background_ends_with_its_client() -> None:
    with testing.client() as hf:
        hf.group("g").health()
        assert "holdfast-health" in {thread.name for thread in threading.enumerate()}
    for thread in threading.enumerate():
        if thread.name == "holdfast-health":
            thread.join(10)
            assert not thread.is_alive()

    async def main() -> None:
        ahf = testing.aio_client()
        await ahf.group("g").health()
        await ahf.aclose()
        assert "holdfast-health" not in {task.get_name() for task in asyncio.all_tasks()}

    asyncio.run(main())


# -- watching


def test_who_watches_is_told_when_its_client_is_closed() -> None:
    raised: list[Exception] = []
    with testing.client() as hf:
        watching = [hf.group("g").watch(), hf.group("g").events(), hf.election("e").observe()]

        def watch(stream: Any) -> None:
            try:
                for _ in stream:
                    pass
            except Misuse as error:
                raised.append(error)

        threads = [threading.Thread(target=watch, args=(stream,)) for stream in watching]
        for one in threads:
            one.start()
        hf.clock.advance(1, waiters=3)
        closed_at = hf.clock.now()
    for one in threads:
        one.join(20)
    assert hf.clock.now() == closed_at, "at once"
    assert [str(error) for error in raised] == ["this client was closed"] * 3

    async def main() -> None:
        ahf = testing.aio_client()

        async def watch() -> None:
            async for _ in ahf.group("g").watch():
                pass

        task = asyncio.create_task(watch())
        await ahf.clock.advance(1)
        await ahf.aclose()
        with pytest.raises(Misuse, match="closed"):
            await asyncio.wait_for(task, 20)

    asyncio.run(main())


def test_a_watch_goes_on_when_the_engine_is_back_and_when_it_forgot_everything(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lost = await go(hf.other().group("g").join(b"before"))
        watch = hf.group("g").watch()
        assert [member.payload for member in await following(watch)] == [b"before"]
        hf.engine.unavailable(times=40)
        hf.engine.stands.clear()
        assert await following(watch) == []
        kept = await go(hf.other().group("g").join(b"after"))
        assert [member.payload for member in await following(watch)] == [b"after"]
        await go(hf.clock.advance(6))
        assert (lost.is_held, kept.is_held) == (False, True)

    face.run(scenario)


@pytest.fixture
def world() -> Iterator[scripted.World]:
    world = scripted.World()
    yield world
    world.close()


def refused(do: Any) -> Any:
    raise HoldfastError("not now")


def misused(do: Any) -> Any:
    raise Misuse("never")


def seen(watch: Any, until_s: float = 60.0) -> list[str] | None:
    found = drive(watch.changed(watch._session.world.time + until_s))
    return None if found is None else [member.id for member in found[0]]


def comes(world: scripted.World, id: str) -> None:
    world.ask(world.engine.enter(GROUP, Claim(id, 0, 600.0), False))


def test_a_change_whose_signal_was_lost_is_seen_some_seconds_later(world: scripted.World) -> None:
    watch = groups.watch(world.session, GROUP)
    assert seen(watch) == []
    world.hears = False
    world.at(1.0, lambda: comes(world, "a"))
    assert seen(watch) == ["a"]
    assert world.time < scripted.START_S + 6
    assert seen(watch, 30.0) is None


def test_many_changes_at_once_cost_few_looks(world: scripted.World) -> None:
    watch = groups.watch(world.session, GROUP)
    assert seen(watch) == []
    for number in range(50):
        comes(world, str(number))
    world.ops()
    assert len(seen(watch) or ()) == 50
    drive(watch.changed(world.time))
    assert world.ops().count("look") < 5


def test_an_engine_that_refuses_ends_a_watch_only_before_its_first_look(world: scripted.World) -> None:
    watch = groups.watch(world.session, GROUP)
    world.answers["look"] = [refused]
    with pytest.raises(HoldfastError, match="not now"):
        seen(watch)
    assert seen(watch) == []
    world.at(0.1, lambda: comes(world, "a"))
    world.answers["look"] = [refused] * 5
    assert seen(watch) == ["a"]
    world.answers["look"] = [refused] * 100
    with pytest.raises(HoldfastError, match="not now"):
        seen(watch, 10.0)
    world.answers["look"] = [misused]
    with pytest.raises(Misuse):
        seen(watch)


def test_a_watch_that_is_ended_returns_to_who_waits_in_it(world: scripted.World) -> None:
    watch = groups.watch(world.session, GROUP)
    assert seen(watch) == []
    world.at(3.0, watch.end)
    assert seen(watch) is None
    assert world.time == scripted.START_S + 3.0
    drive(watch.stop())
    with contextlib.suppress(KeyError):
        assert not world.session.watchers[GROUP.address]
