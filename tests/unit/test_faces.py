"""The two faces: the same names and signatures, and the same behaviour."""

# ruff: noqa: PT012, PT031 (a block that a lock guards is more than one statement)

from __future__ import annotations

import gc
import inspect
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from faces import Face, go, held

from holdfast import (
    AcquireTimeout,
    Adaptive,
    Backoff,
    HoldfastError,
    LeaseLost,
    Misuse,
    Poll,
    Queue,
    Spin,
    StaleToken,
    Unavailable,
    Unsupported,
    aio,
    sync,
)
from holdfast.core.recipe import LockOptions, Recipe
from holdfast.hooks import Event, log_events
from holdfast.model import Turnstile


@pytest.fixture(params=["sync", "aio"])
def face(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Face:
    monkeypatch.setattr("holdfast.testing.tasks.REAL_S", 0.0)  # here a wait of the test's own is meant to end
    return Face(request.param)


# -- the same names and signatures

PAIRS = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
KEPT = {"__init__", "__call__", "__getitem__"}
CLASSES = [
    *("Client", "Lock", "RWLock", "Lease", "Cell", "OpenCell", "Election", "Leadership", "Group", "Health"),
    *("Partitions", "Share"),
]
WITHOUT_IO = {
    "Client": {"lock", "rwlock", "semaphore", "cell", "election", "group", "partitions"},
    "RWLock": {"read", "write"},
    "Lock": {"__call__"},
    "Election": {"observe"},
    "Group": {"watch", "events"},
    "Share": {"events"},
}


def public(cls: type) -> dict[str, Any]:
    names = {name for name in vars(cls) if not name.startswith("_")} | ((KEPT | set(PAIRS)) & set(vars(cls)))
    return {name: inspect.getattr_static(cls, name) for name in names}


def awaited(signature: inspect.Signature) -> str:
    return str(signature).replace("Awaitable[R]", "R").replace("AsyncIterator", "Iterator")


@pytest.mark.parametrize("name", CLASSES)
def test_both_faces_have_the_same_names_with_the_same_signatures(name: str) -> None:
    blocking, tasks = getattr(sync, name), getattr(aio, name)
    names = public(blocking)
    theirs = {PAIRS.get(own, own) for own in names}
    assert theirs | {"__init__"} == public(tasks).keys() | set(PAIRS.values()) & set(vars(tasks)) | {"__init__"}
    for own, member in names.items():
        other = inspect.getattr_static(tasks, PAIRS.get(own, own))
        if isinstance(member, property):
            assert isinstance(other, property), own
            member, other = member.fget, other.fget
            assert member is not None
            assert other is not None
        elif own != "__init__" and own not in WITHOUT_IO.get(name, set()):
            assert inspect.iscoroutinefunction(other), f"aio.{name}.{own} is not awaited"
        if own != "__init__":
            assert awaited(inspect.signature(other)) == str(inspect.signature(member)), f"{name}.{own}"
            assert own.startswith("__") or (member.__doc__ or own in ("name", "token", "read", "write")), own


def test_connect_is_the_same_on_both_faces() -> None:
    assert inspect.signature(sync.connect) == inspect.signature(aio.connect)
    assert sync.connect.__doc__ == aio.connect.__doc__


def test_every_kind_of_lock_takes_the_options_that_are_documented(face: Face) -> None:
    recipe = Recipe(Turnstile("lock", "x", 1))
    options = {name: getattr(recipe, name) for name in LockOptions.__annotations__}
    documented = {line.split(":")[0].strip() for line in (LockOptions.__doc__ or "").splitlines() if ": " in line}
    assert options.keys() <= documented
    assert Recipe.__dataclass_fields__.keys() - {"turnstile", "weight", "key"} == options.keys()
    hf = face.connect("memory://")
    for made in (hf.lock("x", **options), hf.rwlock("x", **options).read(), hf.semaphore("x", 2, **options)):
        assert repr(made).startswith("<Lock ")
    for kind in (face.module.Client.lock, face.module.Client.rwlock, face.module.Client.semaphore):
        assert inspect.signature(kind).parameters["options"].annotation == "Unpack[LockOptions]"


# -- taking turns


def test_a_lock_is_taken_by_with_and_given_back_at_its_end(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(hf.lock("x")) as lease:
            assert lease.state == "HELD"
            assert lease.is_held
            assert 14 < lease.remaining_s < 15
            assert await go(hf.other().lock("x").try_acquire()) is None
            await go(hf.clock.advance(5))
            assert lease.wanted, "a renewal tells"
        assert lease.state == "RELEASED"
        assert lease.remaining_s == 0
        second = await go(hf.other().lock("x").try_acquire())
        assert second.token > lease.token

    face.run(scenario)


def test_a_timeout_leaves_nothing_in_the_queue(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first = await go(hf.lock("x").acquire())
        with pytest.raises(AcquireTimeout) as caught:
            await go(hf.lock("x").acquire(timeout_s=5))
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(AcquireTimeout):
            await go(hf.lock("x", timeout_s=0).acquire())
        await go(first.release())
        assert not hf.engine.stands

    face.run(scenario)


def test_a_lock_object_is_shared_and_release_gives_back_the_innermost(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        permits = hf.semaphore("x", 3)
        first, second = await go(permits.acquire()), await go(permits.acquire())
        await go(permits.release())
        assert (first.state, second.state) == ("HELD", "RELEASED")
        await go(permits.release())
        assert first.state == "RELEASED"
        with pytest.raises(Misuse, match="holds no"):
            await go(permits.release())

    face.run(scenario)


def test_a_lock_that_waits_for_itself_is_refused_unless_it_is_reentrant(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(hf.lock("x")):
            with pytest.raises(Misuse, match="wait for itself"):
                async with held(hf.lock("x")):
                    raise AssertionError("never here")
        again = hf.lock("y", reentrant=True)
        async with held(again) as outer:
            async with held(again) as inner:
                assert inner is outer
                assert await go(again.try_acquire()) is outer
                await go(again.release())
            assert outer.is_held
            assert await go(hf.other().lock("y").try_acquire()) is None
        assert not outer.is_held

    face.run(scenario)


def test_releasing_a_lease_twice_does_nothing(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(hf.lock("x")) as lease:
            await go(lease.release())
        await go(lease.release())
        async with held(await go(hf.lock("y").acquire())) as lease:
            assert lease.is_held
        assert not lease.is_held

    face.run(scenario)


def test_a_block_gives_back_what_it_took_though_a_lease_within_was_released_by_its_handle(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        semaphore = hf.semaphore("s", permits=2)
        async with held(semaphore) as outer:
            inner = await go(semaphore.acquire())
            await go(inner.release())
            assert outer.is_held
        assert outer.state == "RELEASED"
        async with held(semaphore) as outer:
            inner = await go(semaphore.acquire())
        assert (outer.state, inner.state) == ("RELEASED", "HELD")
        await go(semaphore.release())
        assert not hf.engine.stands

    face.run(scenario)


def test_a_block_whose_lease_was_released_early_leaves_the_one_around_it_alone(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        semaphore = hf.semaphore("s", permits=2)
        async with held(semaphore) as outer:
            async with held(semaphore) as inner:
                await go(inner.release())
            assert outer.is_held
        assert not hf.engine.stands

    face.run(scenario)


def test_leases_released_by_their_handles_are_not_kept(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x")
        released = []
        for _ in range(3):
            lease = await go(lock.acquire())
            await go(lease.release())
            released.append(weakref.ref(lease))
        lease = await go(lock.acquire())
        gc.collect()
        assert [one() for one in released] == [None] * 3
        await go(lock.release())
        assert lease.state == "RELEASED"

    face.run(scenario)


@pytest.mark.parametrize("strategy", [Queue(), Adaptive(), Spin(), Poll(0.2), Backoff()])
def test_every_strategy_takes_and_gives_up(face: Face, strategy: Any) -> None:
    async def scenario(hf: Any) -> None:
        lock = hf.lock("x", strategy=strategy, timeout_s=60)
        async with held(lock):
            with pytest.raises(AcquireTimeout):
                await go(hf.other().lock("x", strategy=strategy).acquire(timeout_s=1))
        await go(hf.other().lock("x", renew=False, ttl_s=2).acquire())
        async with held(lock):
            assert not hf.engine.faults
        assert [claim for stand in hf.engine.stands.values() for claim in stand.places] == []

    face.run(scenario)


def test_readers_share_and_a_writer_is_alone(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        mine, theirs = hf.rwlock("x"), hf.other().rwlock("x")
        async with held(mine.read()):
            reader = await go(theirs.read().try_acquire())
            assert reader is not None
            assert await go(theirs.write().try_acquire()) is None
            await go(reader.release())
        async with held(mine.write()):
            assert await go(theirs.read().try_acquire()) is None
            assert await go(theirs.write().try_acquire()) is None

    face.run(scenario)


def test_a_semaphore_counts_weights(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        async with held(hf.semaphore("gpu", 4, weight=3)):
            other = hf.other()
            assert await go(other.semaphore("gpu", 4, weight=2).try_acquire()) is None
            assert await go(other.semaphore("gpu", 4).try_acquire()) is not None
            assert await go(other.semaphore("gpu", 4).try_acquire()) is None
            assert await go(other.lock("gpu").try_acquire()) is not None, "kinds are separate name spaces"

    face.run(scenario)


# -- the decorator


def test_a_decorated_function_runs_under_the_lock_of_its_arguments(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        @hf.lock("user:{user.id}:{part}")
        @face.function
        def job(user: Any, part: str = "all") -> tuple[str, ...]:
            """What it does."""
            return tuple(hf.engine.stands)

        class User:
            id = 7

        assert await go(job(User())) == ("lock:user:7:all",)
        assert await go(job(User(), part="{odd}")) == ("lock:user:7:{odd}",)
        assert not hf.engine.stands
        assert job.__name__ in ("job", "call")

    face.run(scenario)


def test_a_generator_whose_body_would_run_without_the_lock_is_refused(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        def items() -> Iterator[int]:
            yield 1

        async def items_of_a_task() -> AsyncIterator[int]:
            yield 1

        for function in (items, items_of_a_task):
            with pytest.raises(Misuse, match="items"):
                hf.lock("x")(function)

    face.run(scenario)


def test_on_busy_says_what_a_decorated_function_does_when_it_is_taken(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        ran: list[str] = []

        def decorated(on_busy: Any) -> Any:
            return hf.lock("x", on_busy=on_busy, timeout_s=3)(face.function(lambda: ran.append(on_busy) or 1))

        assert [await go(decorated(kind)()) for kind in ("wait", "skip", "raise")] == [1, 1, 1]
        other = await go(hf.other().lock("x").acquire())
        ran.clear()
        assert await go(decorated("skip")()) is None
        with pytest.raises(AcquireTimeout):
            await go(decorated("raise")())
        with pytest.raises(AcquireTimeout):
            await go(decorated("wait")())
        assert ran == []
        await go(other.release())
        assert not hf.engine.stands

    face.run(scenario)


def test_a_name_that_fits_no_function_is_refused_when_it_is_decorated(face: Face) -> None:
    hf = face.connect("memory://")
    function = face.function(lambda user_id: user_id)
    for name in ("{user}", "{0}", "{}", "{user_id"):
        with pytest.raises(Misuse, match="the name"):
            hf.lock(name)(function)
    wrong = Face("aio" if face.name == "sync" else "sync").function(lambda: None)
    with pytest.raises(Misuse, match="async"):
        hf.lock("x")(wrong)


def test_an_empty_name_made_from_an_argument_is_refused_at_the_call(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        decorated = hf.lock("{name}")(face.function(lambda name: name))
        assert await go(decorated("a")) == "a"
        with pytest.raises(Misuse, match="1 to 512 bytes"):
            await go(decorated(""))

    face.run(scenario)


# -- bad input

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"ttl_s": 0}, "ttl_s"),
    ({"ttl_s": -1}, "ttl_s"),
    ({"ttl_s": 0.001}, "ttl_s"),
    ({"ttl_s": float("nan")}, "ttl_s"),
    ({"ttl_s": float("inf")}, "ttl_s"),
    ({"ttl_s": "15"}, "ttl_s"),
    ({"ttl_s": None}, "ttl_s"),
    ({"timeout_s": -1}, "timeout_s"),
    ({"timeout_s": float("nan")}, "timeout_s"),
    ({"timeout_s": "5"}, "timeout_s"),
    ({"max_hold_s": 0}, "max_hold_s"),
    ({"max_hold_s": -1}, "max_hold_s"),
    ({"max_hold_s": "1"}, "max_hold_s"),
    ({"strategy": "queue"}, "strategy"),
    ({"strategy": Queue}, "strategy"),
    ({"on_busy": "ignore"}, "on_busy"),
    ({"on_unsure": "ignore"}, "on_unsure"),
    ({"payload": "text"}, "payload"),
    ({"payload": bytes(4097)}, "payload"),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=str)
def test_a_wrong_option_is_refused_when_the_lock_is_made(face: Face, options: dict[str, Any], says: str) -> None:
    hf = face.connect("memory://")
    for make in (hf.lock, hf.rwlock, lambda name, **options: hf.semaphore(name, 2, **options)):
        with pytest.raises(Misuse, match=says) as caught:
            make("x", **options)
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["", "a" * 513, "ä" * 257, "\ud800", b"x", 7, None], ids=ascii)
def test_a_wrong_name_is_refused_everywhere(face: Face, name: Any) -> None:
    hf = face.connect("memory://")
    semaphore, partitions = (lambda name: hf.semaphore(name, 2)), (lambda name: hf.partitions(name, 2))
    for make in (hf.lock, hf.rwlock, hf.cell, hf.group, semaphore, partitions):
        with pytest.raises(Misuse, match=r"name|key"):
            make(name)


@pytest.mark.parametrize("name", ["a b", "\0\n\r\x1b", "{braces}", "a:b/c*?[d]", "🐙 ünïcode", "x" * 512], ids=ascii)
def test_any_text_may_be_a_name(face: Face, name: str) -> None:
    async def scenario(hf: Any) -> None:
        async with held(hf.lock(name)) as lease:
            assert lease.name == name
            await go((await go(hf.cell(name).open(lease))).set(name, b"v"))
            assert (await go(hf.cell(name).read())).entries == {name: b"v"}

    face.run(scenario)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda hf: hf.semaphore("x", 0), "permits"),
        (lambda hf: hf.semaphore("x", 1.5), "permits"),
        (lambda hf: hf.semaphore("x", 1 << 30), "permits"),
        (lambda hf: hf.semaphore("x", 2, weight=0), "weight"),
        (lambda hf: hf.semaphore("x", 2, weight=3), "weight"),
        (lambda hf: hf.partitions("x", 0), "count"),
        (lambda hf: hf.partitions("x", "8"), "count"),
        (lambda hf: hf.partitions("x", 8, ttl_s=0), "ttl_s"),
        (lambda hf: Poll(0), "interval_s"),
        (lambda hf: Backoff(2, 1), "first_s"),
        (lambda hf: Adaptive(0), "spin_s"),
        (lambda hf: hf.lock("x", strategy=Adaptive), "Adaptive"),
    ],
)
def test_a_wrong_number_is_refused_when_the_object_is_made(face: Face, make: Callable[[Any], Any], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        make(face.connect("memory://"))


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ({"blocking": False}, "try_acquire"),
        ({"blocking_timeout": 3}, "timeout_s"),
        ({"timeout": 3}, "timeout_s"),
        ({"expire": 3}, "ttl_s"),
        ({"ttl": 3}, "ttl_s"),
        ({"tll_s": 3}, "ttl_s"),
    ],
)
def test_foreign_words_raise_a_type_error_that_names_ours(face: Face, words: dict[str, Any], ours: str) -> None:
    hf = face.connect("memory://")
    for make in (hf.lock, hf.rwlock, lambda name, **options: hf.semaphore(name, 2, **options)):
        with pytest.raises(TypeError, match=ours):
            make("x", **words)


@pytest.mark.parametrize(
    ("words", "ours"),
    [({"blocking": False}, "try_acquire"), ({"timeout": 3}, "timeout_s"), ({"ttl_s": 3}, r"hf.lock\(name, ttl_s=")],
)
def test_foreign_words_to_acquire_do_as_well(face: Face, words: dict[str, Any], ours: str) -> None:
    async def scenario(hf: Any) -> None:
        with pytest.raises(TypeError, match=ours):
            await go(hf.lock("x").acquire(**words))

    face.run(scenario)


TARGETS: list[tuple[Any, dict[str, Any], type[HoldfastError], str]] = [
    ("mysql://localhost", {}, Misuse, "no engine is called 'mysql'"),
    ("localhost:6379", {}, Misuse, "not a URL"),
    (7, {}, Misuse, "a URL"),
    ("memory://", {"scope": "galaxy"}, Misuse, "scope"),
    ("memory://", {"scope": "fleet"}, Unsupported, "name a server"),
    ("memory://", {"namespace": "n" * 513}, Misuse, "namespace"),
    ("memory://", {"patience_s": 0}, Misuse, "patience_s"),
    ("memory://", {"patience_s": "5"}, Misuse, "patience_s"),
]


@pytest.mark.parametrize(("target", "options", "error", "says"), TARGETS, ids=str)
def test_connect_refuses_what_it_cannot_use(
    face: Face, target: Any, options: dict[str, Any], error: type[HoldfastError], says: str
) -> None:
    with pytest.raises(error, match=says):
        face.connect(target, **options)


def test_a_missing_extra_is_named_with_what_installs_it(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("holdfast.engines.redis.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(Unsupported, match=r"pip install 'holdfast\[redis\]'"):
        face.connect("redis://localhost")


def test_the_environment_names_the_engine_and_the_default_is_said(
    face: Face, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOLDFAST_URL", "memory://")
    assert face.connect().capabilities.engine == "memory"
    assert not caplog.records
    monkeypatch.delenv("HOLDFAST_URL")
    assert face.connect().capabilities.engine == "sqlite"
    assert [(record.name, record.levelname) for record in caplog.records] == [("holdfast.engine", "WARNING")]


def test_two_users_of_one_name_with_different_capacities_are_told(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first = await go(hf.semaphore("x", 3).acquire())
        with pytest.raises(Misuse, match="3"):
            await go(hf.other().semaphore("x", 4).acquire())
        assert first.is_held
        async with held(await go(hf.partitions("p", 4).join())):
            with pytest.raises(Misuse, match="same count"):
                await go(hf.other().partitions("p", 5).join())

    face.run(scenario)


@pytest.mark.parametrize("text", ["", "hf1.", "hf1.!!", "hf1.NQ==", "hf2.W10=", None, 7, "hf1.WzEsMl0="], ids=repr)
def test_what_no_detach_gave_cannot_be_attached(face: Face, text: Any) -> None:
    async def scenario(hf: Any) -> None:
        with pytest.raises(Misuse, match="attach"):
            await go(hf.attach(text))

    face.run(scenario)


def test_a_negative_timeout_is_refused_when_waiting(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x").acquire())
        for call in (hf.lock("y").acquire, lease.wait_lost):
            for timeout_s in (-1, float("nan"), "5"):
                with pytest.raises(Misuse, match="timeout_s"):
                    await go(call(timeout_s=timeout_s))

    face.run(scenario)


# -- cells


def test_a_cell_is_written_under_a_lease_and_read_by_anyone(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        cell = hf.cell("offset")
        assert (await go(cell.read())).value is None
        async with held(hf.lock("x")) as lease:
            opened = await go(cell.open(lease))
            assert (opened.value, opened.version, opened.token) == (None, 1, lease.token)
            assert await go(opened.put(b"1")) == ()
            assert (opened.value, opened.version) == (b"1", 2)
            assert await go(opened.set("k", b"v", create=True)) is True
            assert await go(opened.set("k", b"w", create=True)) is False
            assert await go(opened["k"]) == b"v"
            with pytest.raises(KeyError):
                await go(opened["none"])
            assert await go(opened.delete("k")) is True
            assert await go(opened.delete("k")) is False
            assert await go(opened.entries()) == {}
        assert (await go(cell.read())).value == b"1"
        assert await go(cell.drop()) is True
        assert await go(cell.drop()) is False
        with pytest.raises(StaleToken, match="is gone"):
            await go(opened.put(b"2"))

    face.run(scenario)


def test_an_earlier_holder_is_refused_from_the_next_ones_open_on(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        first = await go(hf.lock("x").acquire())
        old = await go(hf.cell("c").open(first))
        again = await go(hf.cell("c").open(first))
        with pytest.raises(StaleToken, match="opened again"):
            await go(old.put(b"0"))
        await go(again.put(b"1"))
        hf.lose(first)
        other = hf.other()
        second = await go(other.lock("x").acquire())
        new = await go(other.cell("c").open(second))
        assert new.value == b"1"
        for refused in (again.put(b"2"), again.entries(), again.set("k", b"v")) if face.name == "aio" else ():
            with pytest.raises(StaleToken):
                await refused
        if face.name == "sync":
            for refuse in (lambda: again.put(b"2"), again.entries, lambda: again.set("k", b"v")):
                with pytest.raises(StaleToken):
                    refuse()
        with pytest.raises(LeaseLost):
            await go(hf.cell("c").open(first))

    face.run(scenario)


def test_an_entry_is_removed_by_delete_and_never_by_a_value_that_is_none(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x").acquire())
        cell = await go(hf.cell("c").open(lease))
        await go(cell.set("k", b"v"))
        with pytest.raises(Misuse, match="delete"):
            await go(cell.set("k", None))
        assert (await go(cell.entries())) == {"k": b"v"}
        await go(lease.release())
        with pytest.raises(LeaseLost, match="was released before"):
            await go(hf.cell("c").open(lease))

    face.run(scenario)


def test_a_cell_is_opened_under_its_own_exclusive_lease_only(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x").acquire())
        opened = await go(hf.cell("c").open(lease))
        permit = await go(hf.semaphore("s", 2).acquire())
        foreign = await go(hf.lock("y").acquire())
        others = await go(hf.other().lock("z").acquire())
        for wrong, says in ((permit, "exclusive"), (foreign, "belongs to"), (others, "another client"), ("x", "lease")):
            with pytest.raises(Misuse, match=says):
                await go(hf.cell("c").open(wrong))
        with pytest.raises(Misuse, match="bytes"):
            await go(opened.put("text"))
        with pytest.raises(Misuse, match="bytes"):
            await go(opened.set("k", "text"))
        with pytest.raises(Misuse, match="key"):
            await go(opened.set("", b"v"))
        await go(opened.put(b"still fine"))

    face.run(scenario)


# -- a lease's life


def test_a_lease_is_unsure_after_a_failed_renewal_and_lost_at_its_deadline(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        trusting = await go(hf.lock("x").acquire())
        careful = await go(hf.lock("y", on_unsure="raise").acquire())
        with hf.engine.unavailable(op="renew"):
            await go(hf.clock.advance(6))
            assert trusting.state == careful.state == "UNSURE"
            assert trusting.is_held
            trusting.ensure_held()
            with pytest.raises(LeaseLost, match="could not be renewed"):
                careful.ensure_held()
        await go(hf.clock.advance(1))
        assert careful.state == "HELD"
        careful.ensure_held()
        hf.engine.unavailable(op="renew")
        await go(hf.clock.advance(16))
        assert trusting.state == "LOST"
        with pytest.raises(LeaseLost, match="time ran out"):
            trusting.ensure_held()
        hf.engine.available()
        with pytest.raises(LeaseLost):
            await go(trusting.release())
        await go(hf.lock("z").acquire())
        released = await go(hf.lock("w").acquire())
        await go(released.release())
        with pytest.raises(LeaseLost, match="released"):
            released.ensure_held()

    face.run(scenario)


def test_the_engines_word_ends_a_lease_at_the_next_renewal(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x").acquire())
        hf.engine.stands.clear()  # restarted without persistence
        await go(hf.clock.advance(6))
        with pytest.raises(LeaseLost, match="no longer knows it"):
            lease.ensure_held()

    face.run(scenario)


def test_without_renewal_a_lease_ends_and_max_hold_ends_one_that_is_renewed(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        plain = await go(hf.lock("x", renew=False).acquire())
        bounded = await go(hf.lock("y", max_hold_s=40).acquire())
        await go(hf.clock.advance(14.5))
        assert plain.is_held
        await go(hf.clock.advance(0.5))
        assert plain.state == "LOST"
        await go(hf.clock.advance(24))
        assert bounded.is_held
        await go(hf.clock.advance(1))
        with pytest.raises(LeaseLost, match="max_hold_s=40"):
            bounded.ensure_held()
        assert await go(hf.other().lock("y").try_acquire()) is not None

    face.run(scenario)


def test_on_lost_is_called_once_and_at_once_if_it_is_lost_already(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        told: list[str] = []
        lost, released = await go(hf.lock("x").acquire()), await go(hf.lock("y").acquire())
        lost.on_lost(lambda: told.append("first"))
        released.on_lost(lambda: told.append("never"))
        await go(released.release())
        lost.lose()
        lost.lose()
        await go(hf.clock.advance(60))
        assert told == ["first"]
        lost.on_lost(lambda: told.append("second"))
        await go(hf.clock.advance(0))
        assert told == ["first", "second"]

    face.run(scenario)


def test_wait_lost_says_which_of_the_ends_it_was(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x", renew=False).acquire())
        assert await go(lease.wait_lost(timeout_s=5)) is False
        assert await go(lease.wait_lost(timeout_s=60)) is True
        assert lease.remaining_s == 0
        released = await go(hf.lock("y").acquire())
        await go(released.release())
        assert await go(released.wait_lost()) is False

    face.run(scenario)


def test_leaving_a_block_whose_lease_was_lost_raises_or_notes_it(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        with pytest.raises(LeaseLost, match="the test took it away"):
            async with held(hf.lock("x", cancel_on_lost=False)) as lease:
                lease.lose()
        with pytest.raises(ZeroDivisionError) as caught:
            async with held(hf.lock("x", cancel_on_lost=False)) as lease:
                lease.lose()
                raise ZeroDivisionError
        assert "was lost" in caught.value.__notes__[0]
        with pytest.raises(ZeroDivisionError) as caught:
            async with held(await go(hf.lock("x").acquire())) as lease:
                lease.lose()
                raise ZeroDivisionError
        assert "was lost" in caught.value.__notes__[0]
        with pytest.raises(ZeroDivisionError) as caught:
            async with held(hf.lock("x")):
                raise ZeroDivisionError
        assert not hasattr(caught.value, "__notes__")

        def forget_all() -> None:
            hf.engine.stands.clear()

        decorated = hf.lock("x", cancel_on_lost=False)(face.function(forget_all))
        with pytest.raises(LeaseLost, match="at its release"):
            await go(decorated())

    face.run(scenario)


def test_a_lease_moves_to_another_process_by_detach_and_attach(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        other = hf.other()
        lease = await go(hf.lock("x").acquire())
        opened = await go(hf.cell("c").open(lease))
        text = await go(lease.detach())
        assert lease.state == "RELEASED"
        with pytest.raises(LeaseLost):
            await go(lease.detach())
        await go(hf.clock.advance(10))
        theirs = await go(other.attach(text))
        assert (theirs.token, theirs.name) == (lease.token, "x")
        await go(hf.clock.advance(60))
        assert theirs.is_held, "whoever attached it renews it"
        await go((await go(other.cell("c").open(theirs))).put(b"1"))
        with pytest.raises(StaleToken):
            await go(opened.put(b"0"))
        await go(theirs.release())
        with pytest.raises(LeaseLost):
            await go(hf.attach(text))
        with pytest.raises(Misuse, match="another engine"):
            await go(face.client().attach(text))

    face.run(scenario)


# -- groups and partitions


def test_members_come_go_and_die_and_watchers_see_it(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        group, other = hf.group("workers"), hf.other()
        senior = await go(group.join(b"a"))
        junior = await go(other.group("workers").join(b"b", ttl_s=5))
        assert [member.payload for member in await go(group.members())] == [b"a", b"b"]
        seen: list[list[bytes]] = []

        def take(members: Any) -> bool:
            seen.append([member.payload for member in members])
            return len(seen) == 3

        watch = group.watch(timeout_s=60)
        for step in (lambda: go(junior.release()), lambda: go(senior.release()), None):
            members = await anext(watch) if face.name == "aio" else next(watch)
            take(members)
            if step is not None:
                await step()
        assert seen == [[b"a", b"b"], [b"a"], []]
        assert ((await anext(watch, None)) if face.name == "aio" else next(watch, None)) is None, "nothing for 60 s"
        assert await go(group.members()) == []
        with pytest.raises(Misuse, match="payload"):
            await go(group.join("text"))

    face.run(scenario)


def test_partitions_are_shared_among_the_living(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        calls: list[tuple[str, int]] = []
        assigned, revoked = (lambda p, lease: calls.append(("+", p))), (lambda p: calls.append(("-", p)))
        async with held(await go(hf.partitions("p", 24).join(on_assigned=assigned, on_revoked=revoked))) as first:
            await go(hf.clock.advance(1))
            assert set(first.owned) == set(range(24)) == {p for _, p in calls}
            calls.clear()
            second = await go(hf.other().partitions("p", 24).join(b"second"))
            await go(hf.clock.advance(1))
            assert {*first.owned} | {*second.owned} == set(range(24))
            assert not {*first.owned} & {*second.owned}
            assert second.owned
            assert {("-", p) for p in second.owned} == set(calls), "only what moves is revoked"
            members = await go(hf.partitions("p", 24).members())
            assert [member.id for member in members] == [first.member_id, second.member_id]
            assert set(await go(hf.partitions("p", 24).owners())) == set(range(24))
            partition, lease = next(iter(second.owned.items()))
            assert lease.name == f"p/{partition}"
            while await go(first.wait_change(timeout_s=0)):
                pass
            await go(second.leave())
            assert await go(first.wait_change(timeout_s=5)) is True
            await go(hf.clock.advance(1))
            assert set(first.owned) == set(range(24))
        assert await go(hf.partitions("p", 24).owners()) == {}

    face.run(scenario)


# -- what is told


def test_hooks_hear_each_step_of_a_leases_life(face: Face) -> None:
    events: list[Event] = []

    async def scenario(hf: Any) -> None:
        first = await go(hf.lock("x").acquire())
        with pytest.raises(AcquireTimeout):
            await go(hf.lock("x").acquire(timeout_s=1))
        await go(hf.clock.advance(5))
        hf.engine.unavailable(op="renew", times=1)
        await go(hf.clock.advance(7))
        await go(first.release())
        second = await go(hf.lock("x").acquire())
        second.lose()

    face.run(scenario, hooks=[events.append])
    kinds = [event.kind for event in events]
    assert " ".join(dict.fromkeys(kinds)) == "held waiting gave_up renewed wanted unsure handed_over lost"
    assert {event.turnstile.address for event in events} == {"lock:x"}
    assert len({event.token for event in events if event.kind in ("held", "lost")}) == 2
    (handed_over,) = [event for event in events if event.kind == "handed_over"]
    assert handed_over.elapsed_s == pytest.approx(13, abs=0.5)


def test_a_hook_that_raises_harms_nothing(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a broken hook")

    async def scenario(hf: Any) -> None:
        async with held(hf.lock("x")) as lease:
            assert lease.is_held

    face.run(scenario, hooks=[broken, lambda event: seen.append(event.kind)])
    assert seen == ["held", "released"]
    assert {record.name for record in caplog.records} == {"holdfast.hooks"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_on_lost_callback_that_raises_harms_nothing(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease, other = await go(hf.lock("x").acquire()), await go(hf.lock("y").acquire())
        told: list[str] = []
        lease.on_lost(lambda: 1 / 0)
        lease.on_lost(lambda: told.append("told"))
        lease.lose()
        await go(hf.clock.advance(60))
        assert told == ["told"]
        assert other.is_held

    face.run(scenario)


def test_loggers_have_the_names_and_levels_that_the_guide_tells(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "holdfast")

    async def scenario(hf: Any) -> None:
        lease = await go(hf.lock("x").acquire())
        hf.engine.unavailable(op="renew", times=1)
        await go(hf.clock.advance(6))
        lease.lose()

    face.run(scenario, hooks=[log_events])
    told = {(record.name, record.levelname, record.message.split(" ")[1]) for record in caplog.records}
    assert {
        ("holdfast.lease", "DEBUG", "held"),
        ("holdfast.lease", "WARNING", "unsure"),
        ("holdfast.lease", "ERROR", "lost"),
        ("holdfast.renewer", "WARNING", "of"),
        ("holdfast.renewer", "WARNING", "lock:x"),
    } <= told


# -- close, reuse, collection


def test_a_closed_client_released_all_and_refuses_more(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        other = hf.other()
        lease = await go(other.lock("x").acquire())
        await go(other.group("g").join())
        await go(other.close() if face.name == "sync" else other.aclose())
        assert not hf.engine.stands
        assert lease.state == "RELEASED"
        await go(lease.release())
        for call in (other.lock("x").acquire, other.ping, lambda: other.attach("hf1.")):
            with pytest.raises(Misuse, match="closed"):
                await go(call())
        await go(other.close() if face.name == "sync" else other.aclose())
        await go(hf.ping())

    face.run(scenario)


def test_a_lease_that_nobody_holds_any_more_is_released_with_a_warning(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        lease = await go(hf.group("g").join())
        with pytest.warns(ResourceWarning, match="group:g was never released"):
            del lease
            gc.collect()
            await go(hf.clock.advance(0.1))
        assert not hf.engine.stands

    face.run(scenario)


def test_without_an_engine_a_call_ends_after_its_patience(face: Face) -> None:
    async def scenario(hf: Any) -> None:
        hf.engine.unavailable()
        for call in (hf.lock("x").acquire, hf.lock("x").try_acquire, hf.cell("c").read, hf.ping):
            before = hf.clock.now()
            with pytest.raises(Unavailable, match="tried") as caught:
                await go(call())
            assert isinstance(caught.value, ConnectionError)
            assert 1 < hf.clock.now() - before <= 2
        hf.engine.available()
        assert not hf.engine.stands

    face.run(scenario, patience_s=2)
